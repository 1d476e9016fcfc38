"""The tables of a sweep."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from kvq_ref.lab.analysis import Comparison, Summary
from kvq_ref.lab.results import Run, axes_of, grouped, have_target
from kvq_ref.lab.scores import Score
from kvq_ref.lab.statistics import Estimate, mean, median
from kvq_ref.lab.table import Table
from kvq_ref.lab.yardsticks import Standing


def short_table(runs: Sequence[Run]) -> Table:
    """A row for each point of the grid, for a terminal.

    Examples
    --------
    >>> from kvq_ref.lab.config import Config
    >>> runs = [Run(Config(tau=2), {"solved": True, "steps": 100, "accuracy": 1.0}),
    ...         Run(Config(tau=3), {"solved": False, "steps": 500, "accuracy": 0.5})]
    >>> print(short_table(runs).as_text())
    tau  runs  solved  median steps  mean accuracy
    ---  ----  ------  ------------  -------------
    2       1       1           100         1.0000
    3       1       0   not reached         0.5000
    """
    names, score, has_target = axes_of([run.config for run in runs]), runs[0].judged_by, have_target(runs)
    acted = ("return", "teacher_return") if all("return" in run.result for run in runs) else ()
    rows = []
    for point, group in grouped([(run.config, run) for run in runs], names).items():
        reached = (str(sum(run.result["solved"] for run in group)), _steps(median([run.steps for run in group])))
        merit = score.as_word(mean([run.score for run in group]).value)
        acting = (f"{mean([run.result[name] for run in group]).value:.4g}" for name in acted)
        rows.append((*map(as_word, point), str(len(group)), *(reached if has_target else ()), merit, *acting))
    about_target = ("solved", "median steps") if has_target else ()
    about_acting = ("mean return", "teacher's") if acted else ()
    head = (*names, "runs", *about_target, f"mean {score.name}", *about_acting)
    return Table(head, rows, text_columns=len(names))


def summary_table(summaries: Sequence[Summary], has_target: bool = True) -> Table:
    """Every point of the grid, with intervals; without a target, nothing about reaching it."""
    names, score = shown(summaries[0].settings), summaries[0].judged_by
    head = ("seeds", "solved", "95 %", score.name, "95 %", "median steps", "fewest to most", "diverged")
    kept = [i for i in range(len(head)) if has_target or i not in (1, 2, 5, 6)]
    rows = []
    for x in summaries:
        span = f"{_steps(x.fewest)} to {_steps(x.most)}" if x.fewest < math.inf else "-"
        numbers = (
            str(x.n),
            f"{x.solved.value:.2f}",
            _interval(x.solved, 2),
            _number(x.score.value, score),
            _score_interval(x.score, score),
            _steps(x.steps),
            span,
            str(x.diverged or "-"),
        )
        rows.append((*(as_word(x.settings[name]) for name in names), *(numbers[i] for i in kept)))
    return Table((*names, *(head[i] for i in kept)), rows, text_columns=len(names))


def standing_table(standings: Sequence[Standing]) -> Table:
    """Models and yardsticks on each task, the best first; each kind of the task has a column if all have the same."""
    settings, score = shown(standings[0].settings), standings[0].judged_by
    kinds = list(standings[0].kinds)
    if any(list(x.kinds) != kinds for x in standings):
        kinds = []
    rows = []
    for x in standings:
        words = tuple(as_word(x.settings[name]) for name in settings)
        numbers = (str(x.n), _number(x.score.value, score), _score_interval(x.score, score))
        each = (_number(x.kinds[kind].value, score) for kind in kinds)
        cost = "-" if math.isnan(x.milliseconds) else f"{x.milliseconds:.2g}"
        rows.append((*words, _who(x), "yardstick" if x.is_yardstick else "trained", *numbers, *each, cost))
    head = (*settings, "form or yardstick", "", "seeds", score.name, "95 %", *kinds, "ms a step")
    return Table(head, rows, text_columns=len(settings) + 2)


def acting_table(standings: Sequence[Standing]) -> Table:
    """What came of acting in an environment, with the teachers and random actions; the largest return first."""
    settings = shown(standings[0].settings)
    points: dict[tuple[str, ...], list[Standing]] = {}
    for x in standings:
        if x.acting:
            points.setdefault(tuple(as_word(x.settings[name]) for name in settings), []).append(x)
    rows = []
    for words, group in points.items():
        entries = [(_who(x), "yardstick" if x.is_yardstick else "trained", "", x) for x in group]
        # the same beside every model of these seeds, as their starts are
        beside = max(group, key=lambda x: (x.n, not x.is_yardstick))
        entries += [("the teacher itself", "-", "teacher_", beside), ("random actions", "-", "random_", beside)]
        for who, what, prefix, x in sorted(entries, key=lambda entry: -entry[3].acting[f"{entry[2]}return"].value):
            found = [x.acting.get(f"{prefix}{name}") for name in ("return", "goal", "gap")]
            columns = [word for y in found for word in (("-", "-") if y is None else (f"{y.value:.4g}", _span(y)))]
            rows.append((*words, who, what, str(x.n), *columns))
    head = (*settings, "form or yardstick", "", "seeds", "return", "95 %", "goal", "95 %", "gap", "95 %")
    return Table(head, rows, text_columns=len(settings) + 2)


def _who(x: Standing) -> str:
    """A model by what varies, a yardstick by its name."""
    form, *others = x.who.items()
    return ", ".join([as_word(form[1]), *(f"{name} {as_word(value)}" for name, value in others)])


def score_table(comparisons: Sequence[Comparison]) -> Table:
    """Every point of the grid for one pair, compared by what their task is judged by."""
    names, score = shown(comparisons[0].settings), comparisons[0].judged_by
    rows = []
    for x in comparisons:
        words = tuple(as_word(x.settings[name]) for name in names)
        difference = (_number(x.difference.value, score, "+"), _score_interval(x.difference, score, "+"))
        rows.append((*words, str(x.n), *difference, _p(x.p), _p(x.holm), str(x.score), x.by_score))
    return Table((*names, "seeds", "difference", "95 %", "p", "Holm", "+/=/-", ""), rows, text_columns=len(names))


def speed_table(comparisons: Sequence[Comparison]) -> Table:
    """Every point of the grid for one pair, compared by the steps to the target."""
    names = shown(comparisons[0].settings)
    rows = []
    for x in comparisons:
        words = tuple(as_word(x.settings[name]) for name in names)
        ratio = (f"{x.ratio.value:.2f}", _interval(x.ratio, 2)) if x.both else ("-", "-")
        rows.append((*words, str(x.n), str(x.speed), _p(x.speed.p), str(x.both), *ratio, x.by_speed))
    return Table((*names, "seeds", "+/=/-", "p", "both reach", "ratio", "95 %", ""), rows, text_columns=len(names))


def verdict_table(comparisons: Sequence[Comparison], has_target: bool = True) -> Table:
    """For every pair, at how many points the first is ahead."""
    rows = []
    for (first, second), group in pairs(comparisons).items():
        counted = {group[0].judged_by.name: Counter(x.by_score for x in group)}
        counted |= {"steps": Counter(x.by_speed for x in group)} if has_target else {}
        for what, counts in counted.items():
            numbers = [str(counts[word]) for word in ("ahead", "open", "equal", "behind")]
            rows.append((as_word(first), as_word(second), what, str(len(group)), *numbers))
    return Table(("first", "second", "by", "points", "ahead", "open", "equal", "behind"), rows, text_columns=3)


def pairs(comparisons: Sequence[Comparison]) -> dict[tuple[Any, Any], list[Comparison]]:
    """By what is compared."""
    found: dict[tuple[Any, Any], list[Comparison]] = {}
    for x in comparisons:
        found.setdefault((x.first, x.second), []).append(x)
    return found


def shown(settings: dict[str, Any]) -> list[str]:
    """Columns for settings; T is left out where tau tells it.

    >>> shown({"tau": 2, "T": 10})
    ['tau']
    """
    return [name for name in settings if name != "T" or "tau" not in settings]


def as_word(value: Any) -> str:
    """A setting's value.

    >>> as_word(0.002), as_word(None)
    ('0.002', '-')
    """
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def as_words(settings: dict[str, Any]) -> str:
    """Settings on one line.

    >>> as_words({"tau": 2, "rate": 0.002})
    'tau 2, rate 0.002'
    """
    return ", ".join(f"{name} {as_word(settings[name])}" for name in shown(settings))


def _steps(x: float) -> str:
    return f"{x:,.0f}" if x < math.inf else "not reached"


def _number(x: float, score: Score, sign: str = "") -> str:
    """Accuracy to three digits after the point; an error to three that count, for it may have any size."""
    return f"{x:{sign}.3f}" if score.sign > 0 else f"{x:{sign}.3g}"


def _score_interval(x: Estimate, score: Score, sign: str = "") -> str:
    return "-" if math.isnan(x.low) else f"[{_number(x.low, score, sign)}, {_number(x.high, score, sign)}]"


def _span(x: Estimate) -> str:
    """The interval of a number of any size."""
    return "-" if math.isnan(x.low) else f"[{x.low:.4g}, {x.high:.4g}]"


def _interval(x: Estimate, digits: int) -> str:
    return "-" if math.isnan(x.low) else f"[{x.low:.{digits}f}, {x.high:.{digits}f}]"


def _p(p: float) -> str:
    return f"{p:.2g}" if p >= 0.001 else f"{p:.0e}"
