"""Runs beside yardsticks: what simple methods, and the best that there is, make of the same held-out episodes."""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvq_ref.lab import statistics
from kvq_ref.lab.catalogue import TASKS
from kvq_ref.lab.config import Config
from kvq_ref.lab.results import Run, axes_of, grouped
from kvq_ref.lab.scores import Score
from kvq_ref.lab.statistics import Estimate
from kvq_ref.lab.tasks.episodes import EpisodeTask, Predict, predictions
from kvq_ref.lab.train import ACTING, held_out, scored

PACKAGE = "sklearn"
ACTED = ("return", "goal", "gap")  # what comes of acting in an environment


@dataclass(frozen=True)
class Standing:
    """How well one method does on one task.

    Attributes
    ----------
    settings : dict
        Of the task, those that vary.
    who : dict
        The form and other settings of the model that vary; of a yardstick, its name.
    is_yardstick : bool
    n : int
        Seeds.
    judged_by : Score
    score : Estimate
        Mean over the seeds.
    kinds : dict of str to Estimate
        The same for each kind of the task, if there are several.
    acting : dict of str to Estimate
        What came of acting in the task's environment, if there is one: the method's own ``return``, ``goal`` and
        ``gap``, and those of the teachers and of random actions from the same starts.
    milliseconds : float
        What a step of training took, the median over the seeds; nan for a yardstick.
    """

    settings: dict[str, Any]
    who: dict[str, Any]
    is_yardstick: bool
    n: int
    judged_by: Score
    score: Estimate
    kinds: dict[str, Estimate]
    acting: dict[str, Estimate] = field(default_factory=dict)
    milliseconds: float = math.nan


def standings(runs: Sequence[Run]) -> list[Standing]:
    """For every task among the runs that has yardsticks: all models and all yardsticks, the best first.

    Parameters
    ----------
    runs : sequence of Run
        Judged alike.

    Returns
    -------
    list of Standing
        Without the yardsticks where scikit-learn, or what a task needs, is not installed.
    """
    runs = [run for run in runs if has_yardsticks(run.config)]
    if not runs:
        return []
    axes = axes_of([run.config for run in runs])
    own = {name for run in runs for name in ("task", *TASKS[run.config.task].settings)}
    of_task = [name for name in axes if name in own]
    of_model = ["form", *(name for name in axes if name not in own and name != "form")]
    found = []
    for point, group in grouped([(run.config, run) for run in runs], of_task).items():
        settings = dict(zip(of_task, point, strict=True))
        here = []
        for values, entrants in grouped([(run.config, run) for run in group], of_model).items():
            who, results = dict(zip(of_model, values, strict=True)), [run.result for run in entrants]
            cost = statistics.median([run.milliseconds for run in entrants])
            here.append(_standing(settings, who, False, results, group, milliseconds=cost))
        tests = {run.config.seed: _test_of(run.config) for run in group}
        by_name: dict[str, list[Mapping[str, Any]]] = {}
        for test in tests.values():
            for name, result in measured(test).items() if is_installed(test) else ():
                by_name.setdefault(name, []).append(result)
        here += [_standing(settings, {"form": x}, True, y, group) for x, y in by_name.items()]
        found += sorted(here, key=lambda x: -x.judged_by.sign * x.score.value)
    return found


def lines_of_yardsticks(runs: Sequence[Run], by: str, acted: str = "") -> dict[str, tuple[list[Any], list[float]]]:
    """What to draw against a setting of the task: for each yardstick, values of the setting and scores.

    With ``acted``, what came of acting: "return", say, of yardsticks and of the teachers.
    """
    found: dict[str, dict[Any, float]] = {}
    for x in standings(runs):
        if list(x.settings) == [by]:
            at = x.settings[by]
            if x.is_yardstick:
                score = x.acting[acted] if acted else x.score
                found.setdefault(x.who["form"].partition(" (")[0], {})[at] = score.value
            elif acted:
                found.setdefault("the teacher itself", {})[at] = x.acting[f"teacher_{acted}"].value
    return {name: (list(line), list(line.values())) for name, line in found.items()}


def has_yardsticks(config: Config) -> bool:
    """Whether the run's task is one in context: all of these have some."""
    return isinstance(config.task_of(), EpisodeTask)


def is_installed(config: Config | None = None) -> bool:
    """Whether there is scikit-learn, which most yardsticks come from, and what the run's task needs."""
    task = config.task_of() if config else None
    packages = task.packages if isinstance(task, EpisodeTask) else ()
    return all(importlib.util.find_spec(name) is not None for name in (PACKAGE, *packages))


@functools.lru_cache(maxsize=1024)
def measured(config: Config) -> dict[str, dict[str, float]]:
    """The scores of the task's yardsticks on what the run was tested on, under the names that the run's have.

    Those of policies act in the environment too, from the starts that the run's model had.

    Examples
    --------
    >>> found = measured(Config(task="recall", K=4, d=8, evaluate_on=16))
    >>> found["nearest neighbour"]
    {'accuracy': 1.0}
    """
    task, tests = config.task_of(), held_out(config)
    if not isinstance(task, EpisodeTask):
        return {}
    found = {
        name: scored(task, [predictions(predict, batch) for batch in tests], tests)
        for name, predict in _yardsticks(task).items()
    }
    for name, read in task.acting_yardsticks.items():
        found[name] |= task.act(read, [config.seed, ACTING], config.evaluate_on)
    of_each = [*task.variants.values(), *task.shifts.values()]
    for name in task.optimum:
        answers = [predictions(own.optimum[name], batch) for own, batch in zip(of_each, tests, strict=True)]
        found[name] = scored(task, answers, tests)
    return found


@functools.lru_cache(maxsize=64)
def _yardsticks(task: EpisodeTask) -> Mapping[str, Predict]:
    """Kept for the next seed: what they leave open is chosen once."""
    return task.yardsticks


def _test_of(config: Config) -> Config:
    """A run of the same episodes, the same for all models."""
    names = ("task", *TASKS[config.task].settings, "seed", "evaluate_on")
    return Config.of({name: config.settings[name] for name in names if name in config.settings})


def _standing(
    settings: dict[str, Any],
    who: dict[str, Any],
    is_yardstick: bool,
    results: Sequence[Mapping[str, Any]],
    group: Sequence[Run],
    milliseconds: float = math.nan,
) -> Standing:
    score = group[0].judged_by

    def estimate(name: str) -> Estimate:
        return statistics.mean([float("inf") if x[name] is None else x[name] for x in results])

    acted = [f"{who}{name}" for who in ("", "teacher_", "random_") for name in ACTED]
    acting = {name: estimate(name) for name in acted if all(name in x for x in results)}

    kinds = [name for name in results[0] if name.startswith(f"{score.name} ")]
    each = {name.removeprefix(f"{score.name} "): estimate(name) for name in kinds}
    n = len(results)
    return Standing(settings, who, is_yardstick, n, score, estimate(score.name), each, acting, milliseconds)
