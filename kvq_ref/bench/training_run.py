"""A run of training steps: for each number of threads the processes, model after model; and the report."""

from __future__ import annotations

import importlib.util
import statistics
from dataclasses import dataclass, field, replace
from typing import Any, Self

from kvq_ref.bench.report import Results, table
from kvq_ref.bench.run import BenchError, Options, Progress, Run
from kvq_ref.bench.summary import Case, Round, best_probe, kept
from kvq_ref.bench.training import Step
from kvq_ref.files import to_json, write_atomically

OURS = ("ours/compiled", "ours/reference")  # the first that was timed stands for ours
COLUMNS = {"torch/eager": "torch eager", "torch/compile": "torch.compile", "ours/reference": "reference"}


@dataclass
class TrainingResults:
    """Everything of a run: by the number of threads, what was measured with it."""

    runs: dict[int, Results] = field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        """As plain data: all raw windows."""
        return {str(threads): results.fields() for threads, results in self.runs.items()}

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Self:
        """The way back."""

        def case(x: dict[str, Any]) -> Case:
            job: Any = Step(**x["job"])
            return Case(**{**x, "job": job, "rounds": [Round(**one) for one in x["rounds"]]})

        return cls({int(n): Results(**{**x, "cases": [case(y) for y in x["cases"]]}) for n, x in fields.items()})

    @property
    def failures(self) -> list[str]:
        """What must not happen."""
        return [failure for results in self.runs.values() for failure in results.failures]


class TrainingRun:
    """One run; ``results`` has what was measured so far, also after an interruption.

    Parameters
    ----------
    options : Options
        Its jobs are steps.
    threads : list of int
        One after the other.
    progress : Progress, optional
    """

    def __init__(self, options: Options, threads: list[int], progress: Progress | None = None) -> None:
        self.options, self.threads, self.progress = options, threads, progress
        self.results = TrainingResults()

    def measure(self) -> TrainingResults:
        """Measure everything, and write it down after every model."""
        for threads in self.threads:
            one = _OneRun(replace(self.options, threads=threads), self.progress, self.write)
            self.results.runs[threads] = one.results
            one.measure()
        return self.results

    def write(self, figures: bool = False) -> None:
        """Write what there is; each file appears whole or not at all."""
        out = self.options.out
        try:
            write_atomically(out / "train.json", to_json(self.results.fields()) + "\n")
            write_atomically(out / "train.md", as_text(self.results) + "\n")
            if figures and importlib.util.find_spec("matplotlib") is not None:
                from kvq_ref.bench.figure import training_figure

                if picture := training_figure(self.results):
                    write_atomically(out / "train.png", picture)
        except OSError as error:
            raise BenchError(f"--out {out}: cannot be written to ({error.strerror})") from None


class _OneRun(Run):
    """The run with one number of threads, of which the whole writes the files."""

    def __init__(self, options: Options, progress: Progress | None, write: Any) -> None:
        super().__init__(options, progress)
        self._write = write

    def write(self, figures: bool = False) -> None:
        self._write()


# ---- What the rounds say ---------------------------------------------------------------


@dataclass(frozen=True)
class Rates:
    """Of one model and number of threads.

    Attributes
    ----------
    step : Step
    threads : int
    ours : str
        The variant that stands for ours.
    rate : dict of float
        Steps a second, by variant: of the median step.
    ratio : dict of tuple
        Ours over another's: the median over rounds of each round's ratio, and the quartiles.
    rounds, dropped : int
        That count, and those in which the machine was busy.
    noisy : bool
        Whether so few were good that the least bad had to stand in.
    """

    step: Step
    threads: int
    ours: str
    rate: dict[str, float]
    ratio: dict[str, tuple[float, float, float]]
    rounds: int
    dropped: int
    noisy: bool


def rates(results: TrainingResults) -> list[Rates]:
    """A row for each model and number of threads in which ours was timed."""
    found = []
    for threads, one in results.runs.items():
        for case in one.cases:
            step: Any = case.job
            rounds, noisy = kept(case.rounds, best_probe(one.cases, step.dtype))
            ours = next((name for name in OURS if any(name in x.seconds for x in rounds)), None)
            if ours is None:
                continue
            names = dict.fromkeys(name for x in rounds for name in x.seconds)
            rate = {name: 1 / statistics.median(x.seconds[name] for x in rounds if name in x.seconds) for name in names}
            ratio = {}
            for name in names:
                both = [x.seconds[name] / x.seconds[ours] for x in rounds if {name, ours} <= set(x.seconds)]
                if name != ours and both:
                    ratio[name] = _median_and_quartiles(both)
            dropped = len(case.rounds) - len(rounds)
            found.append(Rates(step, threads, ours, rate, ratio, len(rounds), dropped, noisy))
    return found


def _median_and_quartiles(x: list[float]) -> tuple[float, float, float]:
    if len(x) == 1:
        return x[0], x[0], x[0]
    low, middle, high = statistics.quantiles(x, n=4, method="inclusive")
    return middle, low, high


# ---- The report ------------------------------------------------------------------------


def as_text(results: TrainingResults) -> str:
    """The whole report: steps a second, ratios with their quartiles, and what a reader must know."""
    rows = rates(results)
    others = [name for name in COLUMNS if any(name in x.ratio for x in rows)]
    speeds = [
        (str(x.step), str(x.threads), _rate(x.rate[x.ours]), *(_rate(x.rate.get(name)) for name in others))
        for x in rows
    ]
    ratios = [
        (
            str(x.step),
            str(x.threads),
            *(_ratio(x.ratio.get(name), x.noisy) for name in others),
            f"{0 if x.noisy else x.rounds} of {x.rounds + x.dropped}",
        )
        for x in rows
    ]
    labels = [COLUMNS[name] for name in others]
    parts = []
    if rows:
        head = ("steps a second", "threads", "ours", *labels)
        parts.append(table(head, speeds))
        head = ("ours over", "threads", *labels, "rounds")
        parts.append("Ratios, with quartiles over the rounds:\n\n" + table(head, ratios))
    return "\n\n".join([*parts, _notes(results, rows)])


def _rate(x: float | None) -> str:
    return "" if x is None else f"{x:.0f}" if x >= 100 else f"{x:.3g}"


def _ratio(x: tuple[float, float, float] | None, noisy: bool) -> str:
    if x is None:
        return ""
    middle, low, high = (f"{y:.3g}" for y in x)
    return f"{middle}{'~' * noisy} ({low} to {high})"


def _notes(results: TrainingResults, rows: list[Rates]) -> str:
    first = next(iter(results.runs.values()))
    lines = [f"{name}: {value}" for name, value in first.config.items() if name != "threads"]
    for threads, one in results.runs.items():
        if one.scaling is not None:
            lines.append(f"{threads} threads together: {one.scaling:.2f} times as fast as one")
    lines += [f"left out: {peer}, {why}" for peer, why in first.missing.items()]
    if any(x.noisy for x in rows):
        lines.append("~ the machine was busy: fewer than three good rounds, the least bad ones stand in")
    if any(x.ours == "ours/reference" for x in rows):
        lines.append("ours is the NumPy reference: the kernels are not installed")
    lines += [
        f"not timed: {name} {why}" for one in results.runs.values() for x in one.cases for name, why in x.failed.items()
    ]
    lines += [f"WRONG: {failure}" for failure in results.failures]
    return "\n".join(f"- {line}" for line in lines)
