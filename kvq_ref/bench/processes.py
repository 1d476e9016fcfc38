"""Starting, asking and ending the processes of the peers.

Each has the same number of threads, by the variables that the libraries read, and
is pinned to the same cores, so that what one leaves behind in the other's way is
the same for all. They take turns: only one of them ever works.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import kvq_ref

TIMEOUT = 900.0  # seconds for an answer: compilation takes minutes on a slow machine
GRACE = 5.0
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class WorkerError(Exception):
    """The worker raised; it lives on."""


class WorkerDiedError(Exception):
    """The worker has ended, or does not answer; there is a reason, and no worker any more."""


def cores(threads: int) -> list[int]:
    """The first so many cores that this process may run on; none where a process cannot be pinned."""
    return sorted(os.sched_getaffinity(0))[:threads] if hasattr(os, "sched_getaffinity") else []


def available_threads() -> int:
    """How many cores there are to run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(peer: str, threads: int) -> dict[str, str]:
    """The variables of a peer's process.

    >>> environment("torch", 2)["OMP_NUM_THREADS"], environment("probe", 2)["OPENBLAS_NUM_THREADS"]
    ('2', '1')
    """
    path = [str(Path(kvq_ref.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        **dict.fromkeys(THREADS, "1" if peer == "probe" else str(threads)),
        "KVQ_REF_BENCH_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",  # or helper processes are alive while others are timed
        "XLA_FLAGS": f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}",
        "JAX_PLATFORMS": "cpu",
    }


class Answers(Protocol):
    """Whom one can ask."""

    def ask(self, do: str, **content: Any) -> dict[str, Any]:
        """Ask, and wait for the answer."""


class Worker:
    """A peer's process, with which one can talk.

    Parameters
    ----------
    peer : str
        "ours", "torch", "jax" or "probe".
    threads : int
    """

    def __init__(self, peer: str, threads: int) -> None:
        self.peer = peer
        self._errors: collections.deque[str] = collections.deque(maxlen=50)
        self._answers: queue.Queue[str | None] = queue.Queue()
        with _pinned(cores(threads)):
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "kvq_ref.bench.worker", peer],
                env=environment(peer, threads),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # Ctrl-C is for us; we end it
            )
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read_answers, self._read_errors)]
        for reader in self._readers:
            reader.start()

    def _read_answers(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        self._errors.extend(self._process.stderr)

    def ask(self, do: str, timeout: float = TIMEOUT, **content: Any) -> dict[str, Any]:
        """Ask, and wait for the answer.

        Raises
        ------
        WorkerError
            If the question raised there.
        WorkerDiedError
            If there is no answer to come.
        """
        assert self._process.stdin is not None
        line: str | None = None
        try:
            self._process.stdin.write(json.dumps({"do": do, **content}) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=timeout)
        except (BrokenPipeError, ValueError):
            pass
        except queue.Empty:
            self.close()
            raise WorkerDiedError(f"no answer within {timeout:g} s") from None
        if line is None:
            self.close()
            raise WorkerDiedError(self._why())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def _why(self) -> str:
        said = next((line.strip() for line in reversed(self._errors) if line.strip()), "")
        status = f"it ended with exit status {self._process.returncode}"
        return f"{status}; the last that it said: {said}" if said else status

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()  # it ends by itself when there is nothing more to read
        try:
            self._process.wait(0.5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for reader in self._readers:
            reader.join(GRACE)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextlib.contextmanager
def _pinned(to: list[int]) -> Iterator[None]:
    """What is started in here runs on these cores, from its first instruction on."""
    if not to:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, to)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
