"""The figures of a sweep: what is measured against a setting, and curves of learning.

A line for each value of what is compared, such as a form; a panel for each
combination of the settings that remain; a dot for each run.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from kvq_ref.dispatch import form_name
from kvq_ref.lab import statistics
from kvq_ref.lab.config import FIELDS
from kvq_ref.lab.looks import LOOKS, Theme
from kvq_ref.lab.picture import Picture, draw_both
from kvq_ref.lab.results import Run, axes_of, grouped, have_target, rank
from kvq_ref.lab.statistics import Estimate
from kvq_ref.lab.sweep_tables import as_word, as_words
from kvq_ref.lab.yardsticks import lines_of_yardsticks

MOST_PANELS = 12
COLUMNS = 3
FAR = 1000  # a yardstick of so much less error than any run would press all runs into a corner
DASHES = (":", "-.", (0, (1, 4)), (0, (6, 3)))  # of yardsticks
MOST_AXES = 3
ACTED = {"return": "return in the environment", "goal": "how well the teacher's goal is met"}
SOLVED = {"solved": "share of runs that reach the target", "steps": "steps to the target"}
Lines = list[tuple[Any, list[Run]]]  # of what is compared, its value and its runs


def measures(runs: Sequence[Run]) -> dict[str, str]:
    """What is drawn, and what it is called: the score, what the target is about, where it can be reached at all, and
    what came of acting in an environment.

    >>> from kvq_ref.lab.config import Config
    >>> list(measures([Run(Config(), {})])), list(measures([Run(Config(task="sinusoid"), {})]))
    (['accuracy', 'solved', 'steps'], ['error'])
    """
    score = runs[0].judged_by
    acted = all(name in run.result for run in runs for name in ACTED)
    return {score.name: score.words} | (SOLVED if have_target(runs) else {}) | (ACTED if acted else {})


def numeric_axes(runs: Sequence[Run], compare: str | None) -> list[str]:
    """Settings to put on the x axis: numbers that vary, those with most values first, at most ``MOST_AXES``."""
    keep = [compare] if compare else []
    axes = [x for x in axes_of([r.config for r in runs], keep) if x != compare and FIELDS[x] is not str]
    return sorted(axes, key=lambda x: -len({run.config.settings.get(x) for run in runs}))[:MOST_AXES]


def against(runs: Sequence[Run], by: str, compare: str | None, measure: str) -> Picture:
    """One of :func:`measures` against the setting ``by``: estimates with 95 % intervals, a faint dot for each run."""
    values = sorted({run.config.settings[by] for run in runs if by in run.config.settings})
    is_log = FIELDS[by] is float and min(values) > 0 and max(values) > 4 * min(values)
    most = max(run.config.steps for run in runs)
    score = runs[0].judged_by
    # of all panels: they have one axis, and whichever is drawn first would set it
    lowest = min(run.score for run in runs) if measure == score.name else 0.0

    def draw(ax: Axes, lines: Lines, theme: Theme) -> None:
        for i, (value, of_line) in enumerate(lines):
            points = grouped([(run.config, run) for run in of_line], [by])
            xs = [point[0] for point in points if point[0] is not None]
            # lines that meet are drawn beside each other
            shift = 0.012 * (i - (len(lines) - 1) / 2)
            places = [x * (max(values) / min(values)) ** shift if is_log else x + shift * _span(values) for x in xs]
            _line(
                ax,
                places,
                [points[(x,)] for x in xs],
                measure,
                _style(value, i, compare, theme),
                _label(value, compare),
            )
        if measure not in SOLVED:
            of_panel = [run for _, of_line in lines for run in of_line]
            acted = measure if measure in ACTED else ""
            for i, (name, (xs, ys)) in enumerate(lines_of_yardsticks(of_panel, by, acted).items()):
                if score.sign > 0 or min(ys) > lowest / FAR:
                    ax.plot(xs, ys, color=theme.yardstick, linestyle=DASHES[i % len(DASHES)], linewidth=1, label=name)
        if is_log:
            ax.set_xscale("log")
        if is_log or len(values) <= 12:
            ax.set_xticks(values, [f"{x:g}" for x in values])
            ax.xaxis.set_minor_formatter(NullFormatter())
            ax.minorticks_off()
        ax.set_xlabel(by)
        if measure == "steps":
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            ax.yaxis.set_minor_formatter(NullFormatter())
            ax.axhline(most, color=theme.yardstick, linewidth=0.8, linestyle=":")
        elif measure == score.name and score.sign < 0:
            ax.set_yscale("log")
        elif measure != "return":
            ax.set_ylim(lowest - 0.04 * (1 - lowest or 1), 1 + 0.04 * (1 - lowest or 1))
        ax.grid(color=theme.faint, linewidth=0.4)

    return _panels(runs, [by], compare, measures(runs)[measure], draw)


def learning_curves(runs: Sequence[Run], compare: str | None) -> Picture:
    """The score against the step, a thin line for each run; a dot where the target was reached."""
    score = runs[0].judged_by

    def draw(ax: Axes, lines: Lines, theme: Theme) -> None:
        for i, (value, of_line) in enumerate(lines):
            style = _style(value, i, compare, theme)
            for j, run in enumerate(of_line):
                rows = run.evaluations()
                if not rows:
                    continue
                steps = [row["step"] for row in rows]
                values = [math.nan if row[score.name] is None else row[score.name] for row in rows]
                label = _label(value, compare) if j == 0 else "_"  # a name like that is left out of the legend
                ax.plot(steps, values, style["linestyle"], color=style["color"], lw=1, alpha=0.6, label=label)
                if run.result["solved"]:
                    ax.plot(steps[-1], values[-1], ".", color=style["color"], markersize=6)
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        if score.sign > 0:
            ax.set_ylim(-0.04, 1.04)
        else:
            ax.set_yscale("log")
        ax.set_xlabel("step")
        ax.grid(color=theme.faint, linewidth=0.4)

    return _panels(runs, [], compare, score.words, draw)


def panels_of(runs: Sequence[Run], by: Sequence[str], compare: str | None) -> dict[str, list[Run]]:
    """The runs of each panel, by its title."""
    keep = [compare] if compare else []
    rest = [x for x in axes_of([r.config for r in runs], [*keep, *by]) if x != compare and x not in by]
    groups = grouped([(run.config, run) for run in runs], rest)
    return {as_words(dict(zip(rest, point, strict=True))): group for point, group in groups.items()}


def _panels(
    runs: Sequence[Run],
    by: Sequence[str],
    compare: str | None,
    y_label: str,
    draw: Callable[[Axes, Lines, Theme], None],
) -> Picture:
    """Panels beside and below each other, with axes in common."""
    panels = dict(list(panels_of(runs, by, compare).items())[:MOST_PANELS])
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    size = (5.8, 3.8) if len(panels) == 1 else (1.7 + 2.2 * columns, 0.9 + 2.0 * rows)

    def draw_all(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        legend: dict[str, Any] = {}
        for ax, (title, of_panel) in zip(axes.flat, panels.items(), strict=False):
            draw(ax, _lines(of_panel, compare), theme)
            ax.set_title(title, fontsize=10)
            handles, labels = ax.get_legend_handles_labels()
            legend |= dict(zip(labels, handles, strict=True))
        for ax in axes.flat[len(panels) :]:
            ax.remove()
        for i, ax in enumerate(axes.flat[: len(panels)]):
            ax.label_outer()
            if i + columns >= len(panels):  # the lowest of its column, where the last row is not full
                ax.tick_params(labelbottom=True)
                ax.set_xlabel(axes[-1, 0].get_xlabel())
        figure.supylabel(textwrap.fill(y_label, 22 if rows == 1 else 60), fontsize=10.5)
        if compare or len(legend) > 1:
            columns_of_legend = 4 if max(map(len, legend), default=0) <= 20 else 2  # yardsticks
            figure.legend(legend.values(), legend.keys(), loc="outside upper left", ncols=columns_of_legend)

    return draw_both(size, draw_all)


def _lines(runs: Sequence[Run], compare: str | None) -> Lines:
    if compare is None:
        return [(None, list(runs))]
    return sorted(
        ((value[0], group) for value, group in grouped([(r.config, r) for r in runs], [compare]).items()),
        key=lambda pair: rank(pair[0]),
    )


def _line(ax: Axes, xs: list[float], groups: list[list[Run]], measure: str, style: dict[str, Any], label: str) -> None:
    """Estimates as a line with bars, and what they are of as dots."""
    estimates = [_estimate(group, measure) for group in groups]
    if measure == "steps":
        for x, group in zip(xs, groups, strict=True):
            reached = [run.steps for run in group if run.steps < math.inf]
            ax.scatter([x] * len(reached), reached, s=14, color=style["color"], alpha=0.45, linewidths=0)
    if measure not in SOLVED:
        for x, group in zip(xs, groups, strict=True):
            ys = [_value(run, measure) for run in group]
            ax.scatter([x] * len(group), ys, s=14, color=style["color"], alpha=0.45, linewidths=0)
    y = np.array([e.value if e.value < math.inf else math.nan for e in estimates])
    reach = np.array([[e.value - e.low, e.high - e.value] for e in estimates]).T
    bars = {"yerr": np.nan_to_num(reach, nan=0.0, posinf=0.0)} if measure != "steps" else {}
    ax.errorbar(xs, y, **bars, **style, label=label, linewidth=1.6, capsize=2.5, elinewidth=1, markersize=5)


def _estimate(group: Sequence[Run], measure: str) -> Estimate:
    if measure == "solved":
        return statistics.share(sum(run.result["solved"] for run in group), len(group))
    if measure == "steps":
        return Estimate(statistics.median([run.steps for run in group]), math.nan, math.nan)
    return statistics.mean([_value(run, measure) for run in group])


def _value(run: Run, measure: str) -> float:
    return float(run.result[measure]) if measure in ACTED else run.score


def _style(value: Any, i: int, compare: str | None, theme: Theme) -> dict[str, Any]:
    """A form has its colour and marker; other values take turns."""
    if compare == "form":
        look = LOOKS[form_name(value)]
        colour = theme.colour(form_name(value))
        face = colour if look.preconditioned else theme.paper
        return {
            "color": colour,
            "marker": look.marker,
            "linestyle": "--" if look.preconditioned else "-",
            "markerfacecolor": face,
        }
    colours = (theme.softmax, theme.expressive, theme.linear, theme.ink, theme.yardstick)
    return {"color": colours[i % len(colours)], "marker": "osD^v"[i % 5], "linestyle": ("-", "--", ":")[i // 5 % 3]}


def _label(value: Any, compare: str | None) -> str:
    if value is None:
        return "-"
    return LOOKS[form_name(value)].label if compare == "form" else as_word(value)


def _span(values: Sequence[float]) -> float:
    return (max(values) - min(values)) or 1.0
