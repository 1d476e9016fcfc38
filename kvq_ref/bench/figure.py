"""The ratios as bars, a panel for each form, with a line where the peer is as fast as we are."""

from __future__ import annotations

import io
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from kvq_ref.bench.jobs import shape_text
from kvq_ref.bench.report import COLUMNS, PEER_LABELS, Results
from kvq_ref.bench.summary import Summary
from kvq_ref.bench.training_run import COLUMNS as TRAINING_COLUMNS
from kvq_ref.bench.training_run import Rates, TrainingResults, rates

# of the palette of Okabe and Ito, made for colour-blind readers; lighter without causal mask
COLOURS = {"f": "#8cc4e8", "f causal": "#0072b2", "fb": "#f3b183", "fb causal": "#d55e00"}
TRAINING_COLOURS = {"torch/eager": "#0072b2", "torch/compile": "#8cc4e8", "ours/reference": "#f3b183"}
INK, FAINT = "#1d2129", "#c9ced6"
WIDTH = 0.2
DPI = 150
SETTINGS: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "text.color": INK,
    "axes.titlelocation": "left",
    "legend.frameon": False,
}


def ratio_figure(results: Results, peer: str = "torch") -> bytes:
    """A PNG of a peer's best times over ours.

    Parameters
    ----------
    results : Results
    peer : str
        "torch", "jax" or "reference".

    Returns
    -------
    bytes
        Nothing if that peer was not timed.
    """
    summaries = [x for x in results.summaries() if peer in x.ratio]
    forms = list(dict.fromkeys(x.job.form for x in summaries))
    if not forms:
        return b""
    widest = max(len({x.job.shape for x in summaries if x.job.form == form}) for form in forms)
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **SETTINGS}):
        size = (max(5.0, 1.5 + 1.6 * widest), 0.9 + 2.1 * len(forms))
        figure = Figure(figsize=size, layout="constrained", dpi=DPI)
        panels = figure.subplots(len(forms), 1, squeeze=False)[:, 0]
        for ax, form in zip(panels, forms, strict=True):
            _panel(ax, form, [x for x in summaries if x.job.form == form], peer)
        handles = {label: bar for ax in panels for bar, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        labels = [column for column in COLUMNS if column in handles]
        figure.legend([handles[x] for x in labels], labels, loc="outside upper center", ncols=len(labels))
        threads = results.config.get("threads", "1")
        figure.supylabel(f"time of {PEER_LABELS[peer]}'s best / time of ours", size="medium")
        figure.supxlabel(
            f"batch, heads, T, d; {results.config.get('dtype', '')}, {threads} thread{'s' * (threads != '1')}",
            size="medium",
        )
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def training_figure(results: TrainingResults) -> bytes:
    """A PNG of steps a second of ours over those of others, a group of bars for each model and number of threads.

    Parameters
    ----------
    results : TrainingResults

    Returns
    -------
    bytes
        Nothing if nobody else was timed.
    """
    rows = rates(results)
    names = [name for name in TRAINING_COLUMNS if any(name in x.ratio for x in rows)]
    if not names:
        return b""
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **SETTINGS}):
        figure = Figure(figsize=(max(5.0, 1.5 + 1.6 * len(rows)), 3.6), layout="constrained", dpi=DPI)
        ax = figure.subplots()
        for i, name in enumerate(names):
            shown = [(place, x.ratio[name]) for place, x in enumerate(rows) if name in x.ratio]
            places = [place + WIDTH * (i - (len(names) - 1) / 2) for place, _ in shown]
            middle, low, high = zip(*(ratio for _, ratio in shown), strict=True)
            ends = [
                [m - x for m, x in zip(middle, low, strict=True)],
                [x - m for m, x in zip(middle, high, strict=True)],
            ]
            heights = [m - 1 for m in middle]
            colour = TRAINING_COLOURS[name]
            ax.bar(places, heights, WIDTH * 0.92, bottom=1, color=colour, label=TRAINING_COLUMNS[name], zorder=2)
            ax.errorbar(places, middle, ends, fmt="none", ecolor=INK, elinewidth=0.8, zorder=3)
            for place, ratio, top in zip(places, middle, high, strict=True):
                where: dict[str, Any] = {"ha": "center", "va": "bottom", "size": 8}
                ax.annotate(
                    f"{ratio:.2g}" if ratio < 100 else f"{ratio:.0f}",
                    (place, max(1, top)),
                    (0, 2),
                    textcoords="offset points",
                    **where,
                )
        _ratio_axis(ax, [x for row in rows for ratio in row.ratio.values() for x in ratio])
        ax.set_xticks(range(len(rows)), [_training_label(x) for x in rows])
        ax.set_xlim(-0.6, len(rows) - 0.4)
        ax.set_ylabel("steps a second of ours / of the other")
        figure.legend(loc="outside upper center", ncols=len(names))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _training_label(x: Rates) -> str:
    return f"{x.step.layers} x {x.step.width}, T {x.step.T}\n{x.threads} thread{'s' * (x.threads != 1)}"


def _panel(ax: Any, form: str, summaries: list[Summary], peer: str) -> None:
    shapes = list(dict.fromkeys(x.job.shape for x in summaries))
    columns = [c for c in COLUMNS if any(x.job.column == c for x in summaries)]
    for i, column in enumerate(columns):
        shown = [x for x in summaries if x.job.column == column]
        places = [shapes.index(x.job.shape) + WIDTH * (i - (len(columns) - 1) / 2) for x in shown]
        ratios = [x.ratio[peer] for x in shown]
        # from 1 up where we are faster, down where the peer is
        bars = ax.bar(
            places, [r - 1 for r in ratios], WIDTH * 0.92, bottom=1, color=COLOURS[column], label=column, zorder=2
        )
        for bar, ratio in zip(bars, ratios, strict=True):
            at = (bar.get_x() + bar.get_width() / 2, ratio)
            up = 1 if ratio >= 1 else -1
            text = f"{ratio:.2g}" if ratio < 100 else f"{ratio:.0f}"
            where = {"ha": "center", "va": "bottom" if up > 0 else "top", "size": 8}
            ax.annotate(text, at, (0, 2 * up), textcoords="offset points", **where)
    _ratio_axis(ax, [x.ratio[peer] for x in summaries])
    ax.set_xticks(range(len(shapes)), [shape_text(shape) for shape in shapes])
    ax.set_xlim(-0.6, len(shapes) - 0.4)
    ax.set_title(form)


def _ratio_axis(ax: Any, ratios: list[float]) -> None:
    """A logarithmic axis with a line at 1."""
    ax.axhline(1, color=INK, linewidth=1, zorder=3)
    ax.set_yscale("log")
    ax.set_ylim(min(0.8, min(ratios) / 1.35), max(2.0, max(ratios) * 1.35))
    ax.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda y, _: f"{y:g}"))
    ax.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    ax.tick_params(axis="x", length=0)
    ax.grid(axis="y", color=FAINT, linewidth=0.5, zorder=0)
