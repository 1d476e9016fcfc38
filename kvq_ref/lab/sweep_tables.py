"""The tables of a sweep."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from kvq_ref.lab.analysis import Comparison, Summary
from kvq_ref.lab.results import Run, axes_of, grouped
from kvq_ref.lab.scores import Score
from kvq_ref.lab.statistics import Estimate, mean, median
from kvq_ref.lab.table import Table


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
    names, score = axes_of([run.config for run in runs]), runs[0].judged_by
    rows = []
    for point, group in grouped([(run.config, run) for run in runs], names).items():
        counts = (str(len(group)), str(sum(run.result["solved"] for run in group)))
        merit = score.as_word(mean([run.score for run in group]).value)
        rows.append((*map(as_word, point), *counts, _steps(median([run.steps for run in group])), merit))
    return Table((*names, "runs", "solved", "median steps", f"mean {score.name}"), rows, text_columns=len(names))


def summary_table(summaries: Sequence[Summary]) -> Table:
    """Every point of the grid, with intervals."""
    names, score = shown(summaries[0].settings), summaries[0].judged_by
    head = (*names, "seeds", "solved", "95 %", score.name, "95 %", "median steps", "fewest to most", "diverged")
    rows = []
    for x in summaries:
        span = f"{_steps(x.fewest)} to {_steps(x.most)}" if x.fewest < math.inf else "-"
        estimates = (
            f"{x.solved.value:.2f}",
            _interval(x.solved, 2),
            _number(x.score.value, score),
            _score_interval(x.score, score),
        )
        words = tuple(as_word(x.settings[name]) for name in names)
        rows.append((*words, str(x.n), *estimates, _steps(x.steps), span, str(x.diverged or "-")))
    return Table(head, rows, text_columns=len(names))


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


def verdict_table(comparisons: Sequence[Comparison]) -> Table:
    """For every pair, at how many points the first is ahead."""
    rows = []
    for (first, second), group in pairs(comparisons).items():
        merit, speed = Counter(x.by_score for x in group), Counter(x.by_speed for x in group)
        for what, counts in ((group[0].judged_by.name, merit), ("steps", speed)):
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


def _interval(x: Estimate, digits: int) -> str:
    return "-" if math.isnan(x.low) else f"[{x.low:.{digits}f}, {x.high:.{digits}f}]"


def _p(p: float) -> str:
    return f"{p:.2g}" if p >= 0.001 else f"{p:.0e}"
