"""What a token costs as T grows, form beside form: microseconds of forward, and of forward and backward.

Every form has a process of its own, and they take turns, as peers do in :mod:`kvq_ref.bench.run`. The longer the
sequences, the fewer of them, so that the number of tokens stays the same, until there is one.
"""

from __future__ import annotations

import importlib.util
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from kvq_ref.bench.jobs import FORMS, WHATS, Job
from kvq_ref.bench.peers import too_large
from kvq_ref.bench.processes import Worker, WorkerDiedError, WorkerError
from kvq_ref.bench.report import Results, table
from kvq_ref.bench.run import BenchError, Options, Progress, Run
from kvq_ref.bench.schedule import Measurement
from kvq_ref.bench.summary import Case, best_probe, kept
from kvq_ref.files import to_json, write_atomically

SHORTEST = 64
FITTED = 4  # the largest T that a slope is of, three doublings
ALL = "forms"  # stands for all of them in a job
READING = """\
The abstract of Garnelo & Czarnecki 2023 states that the computational complexity of the least-squares module "is \
exactly the same as that of Attention"; neither of which attention, nor in which variable. By the definitions that are \
timed here, a token costs, with d = dv and no mask,

- linear attention O(d^2): it does not depend on T;
- Intention O(d^2 + d^3 / T): as linear attention once T is at least d, with larger constants;
- softmax and expressive attention, and beside its least squares sigma-Intention, O(T d): in proportion to T.

Causal, the kernels of linear attention and of Intention (recursive least squares, a chunk of tokens at a time) need \
O(d^2) a token too. So the statement holds, in T and d, of linear attention; of softmax attention it holds as a bound, \
for T at least d: the two cost the same order where T is about d, and beyond that Intention costs less and less of \
what softmax attention does. "Exactly the same" is said of complexity: the same time it is not.

A slope is that of log time over log T, by least squares over the {fitted} largest T: 0 where a token costs the same \
however long the sequence, 1 where it costs in proportion to T."""


def lengths(longest: int) -> list[int]:
    """T, in powers of 2.

    >>> lengths(300)
    [64, 128, 256]
    """
    return [2**n for n in range(round(math.log2(SHORTEST)), longest.bit_length())]


def cost_jobs(
    longest: int, d: int, whats: Iterable[str] = ("f", "fb"), causal: Iterable[bool] = (False, True), dtype: str = ""
) -> list[Job]:
    """Every T, in batches that have as many tokens as the longest.

    Examples
    --------
    >>> [str(job) for job in cost_jobs(256, 8, ["f"], [False])]
    ['forms (4,1,64,8) f', 'forms (2,1,128,8) f', 'forms (1,1,256,8) f']
    """
    Ts, columns = lengths(longest), list(causal)
    return [
        Job(ALL, (max(Ts) // T, 1, T, d), what, is_causal, dtype or "float32")
        for what in whats
        for is_causal in columns
        for T in Ts
    ]


class CostRun(Run):
    """One run; ``results`` has what was measured so far, also after an interruption.

    Parameters
    ----------
    options : Options
        Its peers are forms, its jobs from :func:`cost_jobs`.
    progress : Progress, optional
    """

    def __init__(self, options: Options, progress: Progress | None = None) -> None:
        super().__init__(options, progress, lambda name, n: Worker(name if name == "probe" else "ours", n))
        self.measurement = _OneLength

    @property
    def _peers(self) -> list[str]:
        return [form for form in self.options.peers if form not in self.results.missing]

    def write(self, figures: bool = False) -> None:
        """Write what there is; each file appears whole or not at all."""
        out = self.options.out
        try:
            write_atomically(out / "cost.json", to_json(self.results.fields()) + "\n")
            write_atomically(out / "cost.md", as_text(self.results) + "\n")
            if figures and costs(self.results) and importlib.util.find_spec("matplotlib") is not None:
                from kvq_ref.bench.cost_figure import cost_figure

                for theme, picture in cost_figure(self.results).items():
                    write_atomically(out / ("cost.png" if theme == "light" else f"cost-{theme}.png"), picture)
        except OSError as error:
            raise BenchError(f"--out {out}: cannot be written to ({error.strerror})") from None


class _OneLength(Measurement):
    """All forms at one T: the kernel of each, or its reference where there is none."""

    def _prepare(self, case: Case) -> None:
        for form, worker in list(self.workers.peers.items()):
            self.say(form)
            try:
                job = {**vars(self.job), "form": form}
                variants = worker.ask("prepare", job=job, seed=self.seed, compiled=False)["variants"]
            except (WorkerError, WorkerDiedError) as error:
                case.failed[f"{form}/all"] = self._reason(form, error)
                continue
            name = f"{form}/{variants[-1]}"  # the kernel, where there is one
            if why := too_large(_bytes(self.job)) if name.endswith("reference") else "":
                case.left_out[name] = why
            elif (seconds := self._window(case, name)) is not None:
                case.first[name] = seconds

    def _is_worth_it(self, names: Iterable[str]) -> bool:
        return bool(list(names))


def _bytes(job: Job) -> float:
    """What a reference may hold at a time: some arrays of (T, T), or of (T, d, d)."""
    batch, heads, T, d = job.shape
    return 6.0 * batch * heads * T * (T + d * d) * job.itemsize


# ---- What the rounds say ---------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Of one T.

    Attributes
    ----------
    what : str
        "f" or "fb".
    causal : bool
    T, batch : int
    microseconds : dict of float
        A token's, by form: the median over the rounds.
    is_reference : dict of bool
        By form, whether it has no kernel there.
    noisy : bool
        Whether so few rounds were good that the least bad had to stand in.
    """

    what: str
    causal: bool
    T: int
    batch: int
    microseconds: dict[str, float]
    is_reference: dict[str, bool]
    noisy: bool


def costs(results: Results) -> list[Cost]:
    """Of every T at which something was timed, in the order of the run."""
    found = []
    for case in results.cases:
        batch, heads, T, _ = case.job.shape
        rounds, noisy = kept(case.rounds, best_probe(results.cases, case.job.dtype))
        seconds: dict[str, list[float]] = {}
        for one in rounds:
            for name, taken in one.seconds.items():
                seconds.setdefault(name, []).append(taken)
        each = {name: 1e6 * statistics.median(x) / (batch * heads * T) for name, x in seconds.items()}
        names = sorted(each, key=lambda name: list(FORMS).index(name.partition("/")[0]))
        if each:
            found.append(
                Cost(
                    case.job.what,
                    case.job.causal,
                    T,
                    batch * heads,
                    {name.partition("/")[0]: each[name] for name in names},
                    {name.partition("/")[0]: name.endswith("/reference") for name in names},
                    noisy,
                )
            )
    return found


def slopes(rows: Sequence[Cost]) -> dict[str, float]:
    """By form, how a token's cost grows with T where T is large; of forms that were timed at two of these T.

    Examples
    --------
    >>> rows = [Cost("f", False, T, 1, {"softmax": 0.01 * T, "linear": 0.1}, {}, False) for T in (64, 128, 256)]
    >>> {form: round(abs(slope), 3) for form, slope in slopes(rows).items()}
    {'softmax': 1.0, 'linear': 0.0}
    """
    largest = sorted(rows, key=lambda row: row.T)[-FITTED:]
    found = {}
    for form in dict.fromkeys(form for row in largest for form in row.microseconds):
        points = [(row.T, row.microseconds[form]) for row in largest if form in row.microseconds]
        if len(points) > 1:
            log_T, log_time = np.log(np.array(points)).T
            found[form] = float(np.polyfit(log_T, log_time, 1)[0])
    return found


def slope_text(slope: float) -> str:
    """Two digits, and no -0.00.

    >>> slope_text(0.987), slope_text(-0.001)
    ('0.99', '0.00')
    """
    return f"{round(slope, 2) + 0.0:.2f}"


def groups(rows: Iterable[Cost]) -> dict[str, list[Cost]]:
    """By what was timed: a table and a panel each."""
    found: dict[str, list[Cost]] = {}
    for row in rows:
        found.setdefault(f"{WHATS[row.what]}{', causal' * row.causal}", []).append(row)
    return found


# ---- The report ------------------------------------------------------------------------


def as_text(results: Results) -> str:
    """The whole report: microseconds a token, slopes, and how to read them."""
    rows = costs(results)
    parts = []
    for title, group in groups(rows).items():
        forms = list(dict.fromkeys(form for row in group for form in row.microseconds))
        lines = [(str(row.T), str(row.batch), *(_cell(row, form) for form in forms)) for row in group]
        fitted = slopes(group)
        lines.append(("slope", "", *(slope_text(fitted[form]) if form in fitted else "" for form in forms)))
        parts.append(f"**{title}: microseconds a token**\n\n" + table(("T", "sequences", *forms), lines))
    notes = [f"{name}: {value}" for name, value in results.config.items() if name != "torch.compile"]
    notes += [f"left out: {name} {why} ({case.job})" for case in results.cases for name, why in case.left_out.items()]
    if any(row.noisy for row in rows):
        notes.append("~ the machine was busy: fewer than three good rounds, the least bad ones stand in")
    if any(any(row.is_reference.values()) for row in rows):
        notes.append("* the NumPy reference: no kernel serves it")
    notes += [f"WRONG: {failure}" for failure in failures(results)]
    return "\n\n".join([*parts, READING.format(fitted=FITTED), "\n".join(f"- {line}" for line in notes)])


def _cell(row: Cost, form: str) -> str:
    if form not in row.microseconds:
        return ""
    return f"{row.microseconds[form]:.3g}{'~' * row.noisy}{'*' * row.is_reference[form]}"


def failures(results: Results) -> list[str]:
    """What must not happen."""
    return [f"{case.job}: {name} {why}" for case in results.cases for name, why in case.failed.items()]
