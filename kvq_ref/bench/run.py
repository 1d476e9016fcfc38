"""A whole run: the processes, job after job, and the files, written anew after every job."""

from __future__ import annotations

import contextlib
import importlib.util
import platform
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from kvq_ref.bench import memory
from kvq_ref.bench.jobs import Job
from kvq_ref.bench.peers import PEERS, why_not_installed
from kvq_ref.bench.processes import Answers, Worker, WorkerDiedError, WorkerError
from kvq_ref.bench.report import Results, as_text
from kvq_ref.bench.schedule import Effort, Measurement, Workers
from kvq_ref.bench.special import MIXED_THREADS, latency_jobs
from kvq_ref.bench.summary import Case
from kvq_ref.files import to_json, write_atomically

PICTURES = {"torch": "bench.png", "jax": "bench-jax.png", "reference": "bench-reference.png"}


class BenchError(Exception):
    """The run cannot take place at all."""


@dataclass(frozen=True)
class Options:
    """What to run.

    Attributes
    ----------
    out : Path
        Folder of bench.json, bench.md and bench.png.
    jobs : list of Job
        For the table of ratios; may be empty.
    latency, memory, mixed : bool
        What else to measure.
    peers : tuple of str
    threads : int
        Of every process.
    dtype : str
    effort : Effort
    seed : int
    """

    out: Path
    jobs: list[Job] = field(default_factory=list)
    latency: bool = False
    memory: bool = False
    mixed: bool = False
    peers: tuple[str, ...] = ("ours", "torch", "jax")
    threads: int = 1
    dtype: str = "float32"
    effort: Effort = field(default_factory=Effort)
    seed: int = 0


class Progress(Protocol):
    """Is told what is being measured."""

    def start(self, what: str) -> None:
        """A job begins."""

    def detail(self, what: str) -> None:
        """A step of it."""

    def done(self) -> None:
        """It has ended."""


class Silent:
    """A progress that is not shown."""

    def start(self, what: str) -> None: ...

    def detail(self, what: str) -> None: ...

    def done(self) -> None: ...


def length(options: Options) -> int:
    """How many jobs there are, for a progress bar."""
    latency = len(latency_jobs(options.dtype)) if options.latency else 0
    long = len(memory.memory_jobs(options.dtype)) if options.memory else 0
    return len(options.jobs) + latency + long + options.mixed


class Run:
    """One run; ``results`` has what was measured so far, also after an interruption.

    Parameters
    ----------
    options : Options
    progress : Progress, optional
    start : callable
        Makes the process of a peer, from its name and the number of threads.
    """

    measurement: type[Measurement] = Measurement

    def __init__(
        self, options: Options, progress: Progress | None = None, start: Callable[[str, int], Any] = Worker
    ) -> None:
        self.options = options
        self.progress: Progress = progress or Silent()
        self.results = Results(missing={p: why for p in options.peers if (why := why_not_installed(p))})
        self._start = start
        self._alive: dict[str, Any] = {}

    def measure(self) -> Results:
        """Measure everything, and write it down after every job."""
        options, results = self.options, self.results
        try:
            options.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BenchError(f"--out {options.out}: cannot be made a folder ({error.strerror})") from None
        with tempfile.TemporaryDirectory(prefix="kvq-ref-") as folder, self._workers():
            self._describe()
            for cases, jobs in (
                (results.cases, options.jobs),
                (results.latency, latency_jobs(options.dtype) if options.latency else []),
            ):
                for job in jobs:
                    with self._step(str(job)):
                        cases.append(self._case(job, Path(folder)))
            for job in memory.memory_jobs(options.dtype) if options.memory else []:
                with self._step(f"memory {job}"):
                    for peer in self._peers:
                        with self._start(peer, options.threads) as worker:
                            results.memory.append(memory.measure(job, peer, options.seed, worker))
            if options.mixed:
                with self._step("mixed"):
                    results.mixed = self._mixed()
        return results

    def _case(self, job: Job, folder: Path) -> Case:
        alive = self._living()
        peers: dict[str, Answers] = {name: alive[name] for name in self._peers}
        workers = Workers(peers, alive["probe"], self.options.threads)
        how = (self.options.effort, folder, self.options.seed, self.progress.detail)
        case = self.measurement(job, workers, *how).run()
        for name in set(self._peers) - set(peers):  # it died
            self._alive.pop(name).close()
        return case

    def _mixed(self) -> list[dict[str, float]]:
        """On as many threads as it takes for two pools to be in each other's way."""
        with self._start("ours", max(MIXED_THREADS, self.options.threads)) as worker:
            rounds: list[dict[str, float]] = worker.ask(
                "mixed", rounds=self.options.effort.rounds, seed=self.options.seed
            )["rounds"]
        return rounds

    # ---- Processes ----

    @property
    def _peers(self) -> list[str]:
        return [peer for peer in PEERS if peer in self.options.peers and peer not in self.results.missing]

    def _living(self) -> dict[str, Any]:
        """The processes; those that died are started anew."""
        for name in [*self._peers, "probe"]:
            if name not in self._alive:
                self._alive[name] = self._start(name, self.options.threads)
        return self._alive

    @contextlib.contextmanager
    def _workers(self) -> Iterator[None]:
        try:
            yield
        finally:
            for worker in self._alive.values():
                worker.close()

    def _describe(self) -> None:
        options, alive = self.options, self._living()
        versions: dict[str, str] = {}
        for peer in self._peers:
            try:
                versions |= alive[peer].ask("versions")["versions"]
            except (WorkerError, WorkerDiedError) as error:
                if peer == "ours":
                    raise BenchError(f"the process of {peer} cannot be used: {error}") from None
                self.results.missing[peer] = str(error)
                alive.pop(peer).close()
        self.results.config = {
            "processor": processor(),
            "threads": str(options.threads),
            "dtype": options.dtype,
            "torch.compile": "takes part" if options.effort.compiled else "left out (a quick look only)",
            "python": platform.python_version(),
            **versions,
        }
        if options.threads > 1:
            one = max(alive["probe"].ask("rate", dtype="float32", threads=1)["rate"] for _ in range(5))
            self.results.scaling = max(alive["probe"].ask("rate", dtype="float32")["rate"] for _ in range(5)) / one

    # ---- Files ----

    @contextlib.contextmanager
    def _step(self, what: str) -> Iterator[None]:
        self.progress.start(what)
        yield
        self.write()
        self.progress.done()

    def write(self, figures: bool = False) -> None:
        """Write what there is; each file appears whole or not at all."""
        out = self.options.out
        try:
            write_atomically(out / "bench.json", to_json(self.results.fields()) + "\n")
            write_atomically(out / "bench.md", as_text(self.results) + "\n")
            if figures and importlib.util.find_spec("matplotlib") is not None:
                from kvq_ref.bench.figure import ratio_figure

                for peer, name in (
                    ("torch", "bench.png"),
                    ("jax", "bench-jax.png"),
                    ("reference", "bench-reference.png"),
                ):
                    if picture := ratio_figure(self.results, peer):
                        write_atomically(out / name, picture)
        except OSError as error:
            raise BenchError(f"--out {out}: cannot be written to ({error.strerror})") from None


def processor() -> str:
    """The name of this machine's processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
