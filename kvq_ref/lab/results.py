"""Runs that have finished, and which of their settings differ."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from kvq_ref.dispatch import FORMS, file_name, form_name
from kvq_ref.lab.catalogue import TASKS
from kvq_ref.lab.config import FIELDS, Config
from kvq_ref.lab.scores import Score

Point = tuple[Any, ...]  # values of some settings
Row = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """A run that has finished: what it was, what came of it, and where it is kept."""

    config: Config
    result: Row
    folder: Path = field(default=Path(), compare=False)

    @property
    def steps(self) -> float:
        """To the target; inf if it was not reached."""
        return self.result["steps"] if self.result["solved"] else math.inf

    @functools.cached_property
    def judged_by(self) -> Score:
        """What its task is judged by."""
        return TASKS[self.config.task].score

    @property
    def score(self) -> float:
        """At the end, on what is held out; an error that is no number is infinite."""
        value = self.result[self.judged_by.name]
        return math.inf if value is None else float(value)

    @property
    def accuracy(self) -> float:
        """The score of a run that is judged by accuracy."""
        return float(self.result["accuracy"])

    @property
    def milliseconds(self) -> float:
        """What a step took, the evaluations included; nan if that was not kept."""
        try:
            cost = json.loads((self.folder / "cost.json").read_text(encoding="utf-8"))
            return 1e3 * float(cost["seconds"]) / int(cost["steps"])
        except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
            return math.nan

    def evaluations(self) -> list[Row]:
        """The lines of metrics.jsonl; none if they cannot be read."""
        try:
            lines = (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            return [json.loads(line) for line in lines]
        except (OSError, ValueError):
            return []


@dataclass
class Runs:
    """What there is in the folders of sweeps.

    Attributes
    ----------
    finished : list of Run
    unfinished : list of Path
        Cells that have no result, and no error either.
    failed : dict of Path to str
        Cells that ended with an error, and its first line.
    broken : dict of Path to str
        Cells that cannot be read, and why.
    """

    finished: list[Run] = field(default_factory=list)
    unfinished: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)
    broken: dict[Path, str] = field(default_factory=dict)


def read_runs(folders: Iterable[Path]) -> Runs:
    """All cells of the sweeps; a run that is in several of them counts once.

    Parameters
    ----------
    folders : iterable of Path
        Each with a folder ``cells``.

    Returns
    -------
    Runs

    Raises
    ------
    ValueError
        If there is no such folder.
    """
    found = Runs()
    seen = set()
    for folder in folders:
        if not (folder / "cells").is_dir():
            raise ValueError(f"{folder}: there are no runs in it; runs are in DIR/cells")
        for cell in sorted(x for x in (folder / "cells").iterdir() if x.is_dir()):
            if not (cell / "result.json").exists():
                if (cell / "error.txt").exists():
                    found.failed[cell] = (cell / "error.txt").read_text(encoding="utf-8").partition("\n")[0]
                else:
                    found.unfinished.append(cell)
                continue
            try:
                run = _read(cell)
            except (OSError, ValueError, KeyError, TypeError) as error:
                found.broken[cell] = f"{type(error).__name__}: {error}"
                continue
            if run.config.name not in seen:
                found.finished.append(run)
                seen.add(run.config.name)
    return found


def _read(cell: Path) -> Run:
    config = Config.from_toml((cell / "config.toml").read_text(encoding="utf-8"))
    result = json.loads((cell / "result.json").read_text(encoding="utf-8"))
    if not (isinstance(result["solved"], bool) and isinstance(result["steps"], int)):
        raise ValueError("result.json does not say how it ended")
    run = Run(_without_defaults(config), result, cell)
    run.score  # noqa: B018 (it must be there)
    return run


def _without_defaults(config: Config) -> Config:
    """The same run, where what the task or the form chooses is not said: its command is shorter."""
    for names in ({"T", "alpha"}, {"T"}, {"alpha"}):
        shorter = Config.of({name: value for name, value in config.settings.items() if name not in names})
        if shorter.name == config.name:
            return shorter
    return config


def have_target(runs: Iterable[Run]) -> bool:
    """Whether any of them aims at a target.

    >>> have_target([Run(Config(), {})]), have_target([Run(Config(task="sinusoid"), {})])
    (True, False)
    """
    return any(run.judged_by.has_target(run.config.target) for run in runs)


def where(runs: Iterable[Run], name: str, values: Sequence[Any]) -> list[Run]:
    """Those whose setting has one of the values.

    Examples
    --------
    >>> [run.config.tau for run in where([Run(Config(tau=2), {}), Run(Config(tau=3), {})], "tau", [3, 4])]
    [3]
    """
    wanted = [file_name(form_name(x)) for x in values] if name == "form" else values
    return [run for run in runs if run.config.settings.get(name) in wanted]


# ---- Settings that differ --------------------------------------------------------------


def varying(configs: Iterable[Config]) -> list[str]:
    """Settings that are not the same in all runs, but for the seed.

    Examples
    --------
    >>> varying([Config(tau=2), Config(tau=3, seed=1)])  # T follows from tau
    ['tau', 'T']
    """
    settings = [config.settings for config in configs]
    return [name for name in FIELDS if name != "seed" and len({x.get(name) for x in settings}) > 1]


def axes_of(configs: Sequence[Config], keep: Sequence[str] = ()) -> list[str]:
    """Settings that vary and do not follow from the others that do; ``keep`` and the task are never said to follow.

    Examples
    --------
    Each form has a rate of its own:

    >>> best = (("softmax", 0.1), ("expressive", 0.2))
    >>> axes_of([Config(tau=tau, form=form, rate=rate) for tau in (2, 3) for form, rate in best])
    ['tau', 'form']

    A task is not what a form has of its own: results of two are not compared, even if each form was tried on one.

    >>> tried = (("nt", "softmax"), ("copy", "linear"))
    >>> axes_of([Config(task=task, form=form) for task, form in tried], keep=["form"])
    ['task', 'form']
    """
    free = varying(configs)
    settings = [config.settings for config in configs]

    def follows(name: str) -> bool:
        others = [x for x in free if x != name]
        points = {(tuple(x.get(other) for other in others), x.get(name)) for x in settings}
        return len({point for point, _ in points}) == len(points)

    for name in sorted(free, key=lambda name: (name not in ("T", "alpha", "scale"), -list(FIELDS).index(name))):
        if name not in (*keep, "task") and follows(name):
            free.remove(name)
    return free


def value_of(config: Config, names: Sequence[str]) -> Point:
    """The run's values of some settings; None for one that it has no use for."""
    return tuple(config.settings.get(name) for name in names)


def grouped(items: Iterable[tuple[Config, T]], names: Sequence[str]) -> dict[Point, list[T]]:
    """What belongs to runs, by the runs' values of the settings, in order.

    Examples
    --------
    >>> grouped([(Config(tau=3), "a"), (Config(tau=2), "b"), (Config(tau=3, seed=1), "c")], ["tau"])
    {(2,): ['b'], (3,): ['a', 'c']}
    """
    found: dict[Point, list[T]] = {}
    for config, item in items:
        found.setdefault(value_of(config, names), []).append(item)
    return dict(sorted(found.items(), key=lambda pair: [rank(value) for value in pair[0]]))


def rank(value: Any) -> tuple[int, float, str]:
    """To sort by: None, then numbers, then forms in the order of the house, then other words."""
    if value is None:
        return 0, 0.0, ""
    if isinstance(value, (int, float)):
        return 1, float(value), ""
    return 2, float(FORM_ORDER.index(value) if value in FORM_ORDER else len(FORM_ORDER)), str(value)


FORM_ORDER = tuple(map(file_name, FORMS))
