"""Microseconds a token against T, a panel for each job, in the colours of the house."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from kvq_ref.bench.cost import FITTED, costs, groups, slope_text, slopes
from kvq_ref.bench.jobs import FORMS
from kvq_ref.bench.report import Results
from kvq_ref.lab.looks import LOOKS, Theme
from kvq_ref.lab.picture import Picture, draw_both


def cost_figure(results: Results) -> Picture:
    """The figure, light and dark; at least one T must have been timed."""
    panels = groups(costs(results))
    d, threads = results.cases[0].job.shape[-1], results.config.get("threads", "1")
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        legend: dict[str, Any] = {}
        for ax, (title, group) in zip(axes.flat, panels.items(), strict=False):
            fitted = slopes(group)
            for form in dict.fromkeys(form for row in group for form in row.microseconds):
                look, colour = LOOKS[FORMS[form]], theme.colour(FORMS[form])
                xs = [row.T for row in group if form in row.microseconds]
                ys = [row.microseconds[form] for row in group if form in row.microseconds]
                face = colour if look.preconditioned else theme.paper
                style: dict[str, Any] = {"color": colour, "linestyle": "--" if look.preconditioned else "-"}
                (line,) = ax.plot(xs, ys, marker=look.marker, markersize=5, markerfacecolor=face, **style)
                legend.setdefault(look.label, line)
            for i, (form, slope) in enumerate(fitted.items()):  # where no curve is: short sequences cost little
                words = f"{LOOKS[FORMS[form]].label} {slope_text(slope)}"
                colour = theme.colour(FORMS[form])
                ax.text(0.04, 0.95 - 0.09 * i, words, transform=ax.transAxes, va="top", size=9, color=colour)
            ax.set_title(title)
            ax.set_xscale("log", base=2)
            ax.set_yscale("log")
            ticks = [row.T for row in group][:: 2 if len(group) > 5 else 1]
            ax.set_xticks(ticks, [f"{T:,}" for T in ticks])
            ax.xaxis.set_minor_locator(NullLocator())
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_minor_locator(NullLocator())
            ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
            ax.grid(color=theme.faint, linewidth=0.4)
        for ax in axes.flat[len(panels) :]:
            ax.remove()
        figure.supylabel("microseconds a token", fontsize=10.5)
        figure.supxlabel(
            f"T; d = {d}, {results.config.get('dtype', '')}, {threads} thread{'s' * (threads != '1')}; "
            f"slopes over the last {FITTED}",
            fontsize=10.5,
        )
        figure.legend(legend.values(), legend.keys(), loc="outside upper left", ncols=len(legend))

    return draw_both((1.8 + 3.3 * columns, 1.2 + 2.5 * rows), draw)
