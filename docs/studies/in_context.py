"""Every form at every task in context: the runs behind the tutorials on few-shot learning, policies and memory.

Every form gets the same search: the step sizes of ``RATES`` on two seeds that are not used again. What is best on
these episodes is then trained from ten seeds. The architecture is searched for two forms on one task, where the
claim is that no softmax model of the same size comes near.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kvq_ref.lab.results import Run, axes_of, grouped, read_runs, where
from kvq_ref.lab.yardsticks import standings

FORMS = (
    "softmax",
    "expressive",
    "quadratic",
    "taylor",
    "sigmoid",
    "linear",
    "gated_linear",
    "delta_rule",
    "intention",
    "sigma_intention",
    "expressive_intention",
)
"""All but two: the mesa layer, which without a decay is Intention, and local linear attention, which is NumPy alone
here and takes thirty times as long."""
UNIT = ("delta_rule", "gated_linear")  # recurrences ask for queries and keys of length 1
JOBS = "2"
RATES = "--set rate=1e-3,3e-3,1e-2"
LARGER_RATES = "--set rate=3e-3,1e-2,3e-2"
SHAPES = "--set values=plain,encoded --set layers=1,3 --set heads=1,4 --set norm=none,pre --set rate=1e-3,3e-3"
CHOSEN = ("rate", "values", "layers", "heads", "norm")  # what a search may vary
COMMON = "--schedule cosine --batch 32 --evaluate-every 500"
NO_TARGET = "--target 2"  # all steps, so that none is chosen by what is held out


@dataclass(frozen=True)
class Experiment:
    """A task, and what is varied.

    Attributes
    ----------
    name : str
    task : str
        And its settings, as ``kvq-ref run`` takes them.
    at : str
        Where the search is made, if not ``told``.
    told : str
        Where the ten seeds are trained.
    search : str
    forms : sequence of str
    """

    name: str
    task: str
    at: str = ""
    told: str = ""
    search: str = RATES
    forms: Sequence[str] = FORMS


EXPERIMENTS = (
    Experiment("sinusoid", "sinusoid --steps 4000"),
    Experiment("architecture", "sinusoid --steps 2000", search=SHAPES, forms=("softmax", "intention")),
    Experiment("recall", f"recall --d 16 --steps 500 {NO_TARGET}", at="--K 32", told="--set K=4,8,16,32,64,128"),
    Experiment("digits", f"digits --K 5 --steps 500 {NO_TARGET}"),
    Experiment("photographs", f"photographs --K 5 --steps 500 {NO_TARGET}"),
    Experiment("linear_regression", "linear_regression --steps 1000", search="--set rate=1e-2,3e-2,1e-1"),
    Experiment("registration", "registration --steps 1000"),
    Experiment("registration-outliers", "registration --outlier-share 0.25 --steps 1000"),
    Experiment("sinusoid-range", "sinusoid --K 40 --K-least 2 --steps 4000"),
    Experiment("outliers", f"outliers --steps 1000 {NO_TARGET}"),
    Experiment("fetch", f"fetch --steps 1000 {NO_TARGET}", search=LARGER_RATES),
    Experiment("cartpole", f"cartpole --steps 1000 {NO_TARGET}", at="--K 32", told="--set K=8,16,32,64"),
    Experiment("mountain_car", f"mountain_car --steps 1000 {NO_TARGET}"),
)


def studies(folder: Path) -> Iterator[tuple[str, str]]:
    """Name and arguments of each sweep, in the order of their importance; of the ten seeds once the search is there."""
    for e in EXPERIMENTS:
        searched = f"{e.name}/search"
        for of_norm, forms in _grouped({form: _norm(form) for form in e.forms}).items():
            given = f"{e.task} {e.at or e.told} --set form={','.join(forms)} {of_norm}"
            yield searched, f"{given} {e.search} {COMMON} --seeds 100:101"
        if (folder / searched / "cells").is_dir():
            runs = read_runs([folder / searched]).finished
            for chosen, forms in _grouped({form: f"{best(runs, form)} {_norm(form)}" for form in e.forms}).items():
                given = f"{e.task} {e.told or e.at} --set form={','.join(forms)} {chosen}"
                yield f"{e.name}/ten", f"{given} {COMMON} --seeds 10"


def best(runs: Sequence[Run], form: str) -> str:
    """The settings of the search that did best on its seeds, as options."""
    points = grouped([(run.config, run) for run in where(runs, "form", [form])], CHOSEN)

    def merit(runs: Sequence[Run]) -> float:
        return runs[0].judged_by.sign * float(np.mean([run.score for run in runs]))

    point = max(points, key=lambda point: merit(points[point]))
    options = zip(CHOSEN, point, strict=True)
    return " ".join(f"--{name} {value}" for name, value in options if len({x[CHOSEN.index(name)] for x in points}) > 1)


def results(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """For each experiment: the search, the ten seeds, and what yardsticks make of the same episodes."""
    found = {}
    for name in dict.fromkeys(name for name, _ in studies(folder) if (folder / name / "cells").is_dir()):
        runs = read_runs([folder / name]).finished
        found[name] = _points(runs)
        if name.endswith("/ten"):
            found[name] += _yardsticks(runs)
    return found


def _points(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each point of the grid, with the score from every seed."""
    names = axes_of([run.config for run in runs], ["form"])
    rows = []
    for point, group in grouped([(run.config, run) for run in runs], names).items():
        group = sorted(group, key=lambda run: run.config.seed)
        settings = {name: value for name, value in zip(names, point, strict=True) if value is not None}
        extra = [name for name, x in group[0].result.items() if isinstance(x, float) and name not in NOT_TOLD]
        rows.append(
            settings
            | {"seeds": [run.config.seed for run in group]}
            | {name: [_short(run.result[name]) for run in group] for name in extra}
            | {"parameters": group[0].result["parameters"], "command": group[0].config.command()}
        )
    return rows


NOT_TOLD = ("loss", "test_loss", "best_error", "best_accuracy")


def _yardsticks(runs: Sequence[Run]) -> list[dict[str, Any]]:
    rows = []
    for x in standings(runs):
        if x.is_yardstick:
            name = x.judged_by.name
            kinds = {f"{name} {kind}": _short(y.value) for kind, y in x.kinds.items()}
            ends = {"low": _short(x.score.low), "high": _short(x.score.high)}
            acting = {what: _short(y.value) for what, y in x.acting.items()}
            row = {"yardstick": x.who["form"], **x.settings, name: _short(x.score.value), **ends, **kinds, **acting}
            rows.append(row)
    return rows


def _short(x: float | None) -> float | None:
    """Four digits that count."""
    return None if x is None or not np.isfinite(x) else float(f"{x:.4g}")


def _norm(form: str) -> str:
    return "--norm unit" if form in UNIT else ""


def _grouped(of_forms: dict[str, str]) -> dict[str, list[str]]:
    """Forms with the same options, by these."""
    found: dict[str, list[str]] = {}
    for form, options in of_forms.items():
        found.setdefault(options, []).append(form)
    return found
