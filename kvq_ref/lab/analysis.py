"""What the runs of a sweep say: estimates for each point of the grid, and pairs compared over equal seeds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvq_ref.lab import statistics
from kvq_ref.lab.results import Run, axes_of, grouped, rank, value_of, varying
from kvq_ref.lab.scores import Score
from kvq_ref.lab.statistics import Estimate, Signs

CLEAR = 0.05


@dataclass(frozen=True)
class Summary:
    """One point of the grid, over its seeds.

    Attributes
    ----------
    settings : dict
        Those that vary over the grid.
    n : int
        Seeds.
    solved : Estimate
        Share that reached the target.
    judged_by : Score
        What the next is.
    score : Estimate
        Mean over the seeds, at the end of each run.
    steps : float
        Median to the target, where runs that did not reach it took longer than any.
    fewest, most : float
        Steps to the target of the quickest and slowest run.
    diverged : int
    command : str
        Repeats one of the runs.
    """

    settings: dict[str, Any]
    n: int
    solved: Estimate
    judged_by: Score
    score: Estimate
    steps: float
    fewest: float
    most: float
    diverged: int
    command: str

    @property
    def accuracy(self) -> Estimate:
        """The score, where that is accuracy."""
        return self.score


def summarise(runs: Sequence[Run]) -> list[Summary]:
    """All points of the grid.

    Parameters
    ----------
    runs : sequence of Run

    Returns
    -------
    list of Summary

    Examples
    --------
    >>> from kvq_ref.lab.config import Config
    >>> result = {"solved": True, "diverged": False, "steps": 100, "accuracy": 1.0}
    >>> point, = summarise([Run(Config(seed=seed), result) for seed in (0, 1, 2)])
    >>> point.n, str(point.solved), point.steps
    (3, '1.000 [0.439, 1.000]', 100.0)
    """
    names = varying(run.config for run in runs)
    found = []
    for point, group in grouped([(run.config, run) for run in runs], names).items():
        steps = [run.steps for run in group]
        found.append(
            Summary(
                settings=dict(zip(names, point, strict=True)),
                n=len(group),
                solved=statistics.share(sum(run.result["solved"] for run in group), len(group)),
                judged_by=group[0].judged_by,
                score=statistics.mean([run.score for run in group]),
                steps=statistics.median(steps),
                fewest=min(steps),
                most=max(steps),
                diverged=sum(run.result["diverged"] for run in group),
                command=min(group, key=lambda run: run.config.seed).config.command(),
            )
        )
    return found


@dataclass(frozen=True)
class Comparison:
    """Two values of a setting, such as two forms, where all that both have to share is the same.

    Attributes
    ----------
    settings : dict
        The point of the grid.
    first, second : object
        What is compared.
    n : int
        Seeds that both have.
    judged_by : Score
    difference : Estimate
        Of the scores: first less second.
    p, holm : float
        Wilcoxon's signed-rank test of the differences; adjusted for all comparisons of the two.
    score : Signs
        Seeds for which the first has the better score, as good a one, a worse one.
    speed : Signs
        Seeds for which the first needs fewer steps, as many, more; not to reach the target is slowest.
    ratio : Estimate
        Geometric mean of the second's steps over the first's, where both reach the target.
    both : int
        Seeds for which both do.
    """

    settings: dict[str, Any]
    first: Any
    second: Any
    n: int
    judged_by: Score
    difference: Estimate
    p: float
    holm: float
    score: Signs
    speed: Signs
    ratio: Estimate
    both: int

    @property
    def accuracy(self) -> Signs:
        """The signs of the score, where that is accuracy."""
        return self.score

    @property
    def by_accuracy(self) -> str:
        """Whether the first is ahead, where the score is accuracy."""
        return self.by_score

    @property
    def by_score(self) -> str:
        """Whether the first is ahead: where the 95 % interval of the difference has no zero in it.

        No interval, or one of no width, that equal differences have, decides nothing but a tie.
        """
        if self.score.wins == self.score.losses == 0:
            return "equal"
        if not self.difference.low < self.difference.high or self.difference.low <= 0 <= self.difference.high:
            return "open"
        return "ahead" if self.judged_by.sign * self.difference.low > 0 else "behind"

    @property
    def by_speed(self) -> str:
        """Whether the first is ahead, by the sign test."""
        if self.speed.wins == self.speed.losses == 0:
            return "equal"
        if self.speed.p >= CLEAR:
            return "open"
        return "ahead" if self.speed.wins > self.speed.losses else "behind"


def compare(runs: Sequence[Run], name: str) -> list[Comparison]:
    """Every two values of a setting, at every point of the grid that has runs of both for the same seeds.

    Settings that follow from the others, such as a rate that was chosen for each
    form, may differ between the two; all others are equal.

    Parameters
    ----------
    runs : sequence of Run
    name : str
        Such as ``"form"``.

    Returns
    -------
    list of Comparison
    """
    axes = [axis for axis in axes_of([run.config for run in runs], keep=[name]) if axis != name]
    values = sorted({run.config.settings.get(name) for run in runs}, key=rank)
    found = []
    for second, first in itertools.combinations(values, 2):
        of_two = []
        for point, group in grouped([(run.config, run) for run in runs], axes).items():
            one, other = (
                {r.config.seed: r for r in group if value_of(r.config, [name]) == (x,)} for x in (first, second)
            )
            if seeds := sorted(one.keys() & other.keys()):
                settings = dict(zip(axes, point, strict=True))
                of_two.append(_compare(settings, first, second, [one[s] for s in seeds], [other[s] for s in seeds]))
        adjusted = statistics.holm([c.p for c in of_two])
        found += [Comparison(**{**vars(c), "holm": p}) for c, p in zip(of_two, adjusted, strict=True)]
    return found


def _compare(settings: dict[str, Any], first: Any, second: Any, one: list[Run], other: list[Run]) -> Comparison:
    score = one[0].judged_by
    pairs = [(a.score, b.score) for a, b in zip(one, other, strict=True)]
    differences = [a - b if a != b else 0.0 for a, b in pairs]  # two infinite errors are equal
    logs = [math.log(b.steps / a.steps) for a, b in zip(one, other, strict=True) if max(a.steps, b.steps) < math.inf]
    log = statistics.mean(logs) if logs else Estimate(math.nan, math.nan, math.nan)
    p = statistics.wilcoxon(differences)
    return Comparison(
        settings,
        first,
        second,
        n=len(one),
        judged_by=score,
        difference=statistics.mean(differences),
        p=p,
        holm=p,
        score=statistics.signs([score.sign * a for a, _ in pairs], [score.sign * b for _, b in pairs]),
        speed=statistics.signs([-r.steps for r in one], [-r.steps for r in other]),
        ratio=Estimate(math.exp(log.value), math.exp(log.low), math.exp(log.high)),
        both=len(logs),
    )


def choose(
    runs: Sequence[Run], names: Sequence[str], name: str | None, seeds: Sequence[int] | None = None
) -> list[Run]:
    """For each point of the grid, and each value of ``name``, only the runs with its best values of some settings.

    The best has the largest share of solved runs, then the best mean score,
    then the smallest median of steps. Runs that it was chosen by tell too well of
    it: with ``seeds``, those choose, and only the others are kept.

    Parameters
    ----------
    runs : sequence of Run
    names : sequence of str
        What to choose, such as ``["rate", "gain"]``.
    name : str or None
        What is compared: each of its values has a choice of its own.
    seeds : sequence of int, optional

    Returns
    -------
    list of Run

    Examples
    --------
    >>> from kvq_ref.lab.config import Config
    >>> def run(rate, accuracy):
    ...     result = {"solved": False, "diverged": False, "steps": 100, "accuracy": accuracy}
    ...     return Run(Config(rate=rate), result)
    >>> [run.config.rate for run in choose([run(0.1, 0.6), run(0.2, 0.7)], ["rate"], None)]
    [0.2]
    """
    keep = [name] if name else []
    axes = axes_of([run.config for run in runs], keep=[*names, *keep])
    points = [axis for axis in axes if axis not in names]
    kept = []
    for group in grouped([(run.config, run) for run in runs], points).values():
        searched = [run for run in group if seeds is None or run.config.seed in seeds]
        if not searched:
            continue
        candidates = grouped([(run.config, run) for run in searched], names)
        best = max(candidates, key=lambda values: _merit(candidates[values]))
        kept += [
            r for r in group if value_of(r.config, names) == best and (seeds is None or r.config.seed not in seeds)
        ]
    return kept


def _merit(runs: Sequence[Run]) -> tuple[float, float, float]:
    n = len(runs)
    steps = statistics.median([run.steps for run in runs])
    merit = sum(run.judged_by.sign * run.score for run in runs) / n
    return sum(run.result["solved"] for run in runs) / n, merit, -steps
