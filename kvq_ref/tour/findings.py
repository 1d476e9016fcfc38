"""What a tour is asked, and what it finds: plain numbers, and the checks that they must pass."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvq_ref.bench.implementations import Comparison
from kvq_ref.lab.check import Check
from kvq_ref.lab.correctness import Row
from kvq_ref.lab.evaluate import Evaluation
from kvq_ref.lab.geometry import Geometry
from kvq_ref.lab.limits import Limits


class TourError(Exception):
    """The tour cannot be taken as asked; the message says what to do."""


@dataclass(frozen=True)
class Options:
    """What was asked for.

    Attributes
    ----------
    out : Path
        Folder of the report.
    seed : int, optional
        Of all random numbers; by default a new one, which is printed.
    quick : bool
        Fewer splits, less data, shorter timings.
    data, target, task : optional
        The user's CSV file, its target column, and "regression" or "classification".
    splits : int, optional
        Random splits into context and test rows.
    rows : int
        Of a longer file, a random subset of so many rows is used.
    """

    out: Path = Path("kvq-tour")
    seed: int | None = None
    quick: bool = False
    data: Path | None = None
    target: str | None = None
    task: str | None = None
    splits: int | None = None
    rows: int = 2000


@dataclass
class Findings:
    """All numbers of a tour; a step that was not taken left its field empty."""

    seed: int
    quick: bool
    config: dict[str, str]
    correctness: list[Row] = field(default_factory=list)
    predictions: list[Evaluation] = field(default_factory=list)
    limits: Limits | None = None
    geometry: Geometry | None = None
    timings: list[Comparison] = field(default_factory=list)
    no_kernels: str = ""
    crashes: list[Check] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def checks(self) -> list[Check]:
        """Every claim that was put to the test."""
        found = [check for row in self.correctness for check in row.checks]
        found += [evaluation.ridge for evaluation in self.predictions]
        for step in (self.limits, self.geometry):
            found += step.checks if step is not None else []
        return found + self.crashes

    @property
    def failures(self) -> list[Check]:
        return [check for check in self.checks if not check.holds]


def as_dict(findings: Findings) -> dict[str, Any]:
    """Plain numbers: the checks with their verdicts first, features and targets of the data left out."""

    def tidy(evaluation: Evaluation) -> dict[str, Any]:
        plain = dataclasses.asdict(evaluation)
        data = plain.pop("data")
        about = {"name": data["name"], "task": data["task"], "metric": evaluation.data.metric, "notes": data["notes"]}
        means = [{"mean": r.mean, "spread": r.spread} for r in evaluation.results]
        results = [result | mean for result, mean in zip(plain.pop("results"), means, strict=True)]
        return about | plain | {"results": results}

    numbers = {f.name: getattr(findings, f.name) for f in dataclasses.fields(findings)}
    for name in ("correctness", "timings", "crashes"):
        numbers[name] = [dataclasses.asdict(x) for x in numbers[name]]
    for name in ("limits", "geometry"):
        numbers[name] = dataclasses.asdict(numbers[name]) if numbers[name] else None
    numbers["predictions"] = [tidy(evaluation) for evaluation in findings.predictions]
    checks = [dataclasses.asdict(check) | {"holds": check.holds} for check in findings.checks]
    return {"all_hold": not findings.failures, "checks": checks} | numbers
