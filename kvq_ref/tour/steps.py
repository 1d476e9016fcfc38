"""The steps of a tour, each from the lab or the bench to one field of the findings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from kvq_ref import kernels
from kvq_ref.bench.implementations import SHAPES, Shape, compare
from kvq_ref.lab.correctness import check_form, why_no_kernel
from kvq_ref.lab.csv_file import DataError, read_csv
from kvq_ref.lab.data import Dataset, diabetes, digits, subset
from kvq_ref.lab.evaluate import evaluate
from kvq_ref.lab.geometry import measure_geometry
from kvq_ref.lab.limits import measure_limits
from kvq_ref.testing import ORACLES
from kvq_ref.tour.findings import Findings, Options, TourError

SPLITS, QUICK_SPLITS = 10, 2
QUICK_ROWS = 600
TIMED, QUICK_TIMED = 0.25, 0.05  # seconds for each pair of timings


class Progress(Protocol):
    """The part of a progress bar that the steps use."""

    def set_description(self, desc: str) -> None: ...

    def update(self, n: float = 1) -> object: ...


Step = tuple[str, int, Callable[[Findings, Progress], None]]  # name, length, what to do


def steps(options: Options, seed: int) -> list[Step]:
    """What to do, in order."""
    splits = options.splits or (QUICK_SPLITS if options.quick else SPLITS)
    if options.data is not None:
        return [("prediction", splits, _predict(_own_data(options, seed), splits))]
    return [
        ("checks", len(ORACLES), _check_forms),
        ("prediction", 2 * splits, _predict(_bundled_data(options, seed), splits)),
        ("limits", 1, _limits),
        ("geometry", 1, _geometry),
        ("timing", len(_with_kernel()) * len(_shapes(options.quick)), _time_kernels),
    ]


def _check_forms(findings: Findings, bar: Progress) -> None:
    for name in ORACLES:
        findings.correctness += check_form(name, findings.seed)
        bar.update()


def _predict(tables: list[Dataset], splits: int) -> Callable[[Findings, Progress], None]:
    def step(findings: Findings, bar: Progress) -> None:
        for data in tables:
            findings.predictions.append(evaluate(data, splits=splits, seed=findings.seed, after_each=bar.update))

    return step


def _limits(findings: Findings, bar: Progress) -> None:
    findings.limits = measure_limits(findings.seed)
    bar.update()


def _geometry(findings: Findings, bar: Progress) -> None:
    findings.geometry = measure_geometry()
    bar.update()


def _time_kernels(findings: Findings, bar: Progress) -> None:
    forms = _with_kernel()
    if not forms:
        findings.no_kernels = f"kernels not installed ({kernels.missing})"
    budget = QUICK_TIMED if findings.quick else TIMED
    for comparison in compare(forms, _shapes(findings.quick), budget=budget, seed=findings.seed):
        findings.timings.append(comparison)
        bar.update()


def _with_kernel() -> list[str]:
    return [name for name in ORACLES if not why_no_kernel(name)]


def _shapes(quick: bool) -> tuple[Shape, ...]:
    return SHAPES[1:3] if quick else SHAPES


def _bundled_data(options: Options, seed: int) -> list[Dataset]:
    return [diabetes(), subset(digits(), QUICK_ROWS, seed) if options.quick else digits()]


def _own_data(options: Options, seed: int) -> list[Dataset]:
    if options.data is None or options.target is None:
        raise TourError("--data and --target go together: the file, and the column in it to predict.")
    try:
        rows = min(options.rows, QUICK_ROWS) if options.quick else options.rows
        return [read_csv(options.data, options.target, task=options.task, max_rows=rows, seed=seed)]
    except DataError as error:
        raise TourError(str(error)) from None
