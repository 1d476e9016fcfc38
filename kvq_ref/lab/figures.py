"""The figures of a tour, as PNG bytes, for a light and a dark page."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from kvq_ref.lab.evaluate import Evaluation
from kvq_ref.lab.geometry import Geometry
from kvq_ref.lab.limits import LIMITS, Limits
from kvq_ref.lab.looks import LOOKS, Theme
from kvq_ref.lab.picture import Picture, draw_both

ANGLES = {0: "parallel", 45: "", 90: "orthogonal", 135: "", 180: "opposite"}


def prediction_figure(evaluation: Evaluation) -> Picture:
    """A row for each predictor, best on top: every split as a small dot, mean and spread as a marker with a bar."""
    ranked = evaluation.ranked()[::-1]
    data = evaluation.data
    low, high = _range(evaluation)

    def draw(figure: Figure, theme: Theme) -> None:
        ax = figure.subplots()
        for y, result in enumerate(ranked):
            look, colour = LOOKS[result.predictor], theme.colour(result.predictor)
            ax.text(1.02, y, f"{result.mean:.3f}", transform=ax.get_yaxis_transform(), va="center", color=colour)
            if result.mean < low:
                ax.plot(0.015, y, "<", transform=ax.get_yaxis_transform(), color=colour, markersize=8)
                continue
            ax.scatter(
                result.scores, np.full(len(result.scores), y), s=12, color=colour, alpha=0.45, linewidths=0, zorder=2
            )
            ax.errorbar(
                result.mean,
                y,
                xerr=result.spread,
                fmt="D" if look.score == "yardstick" else look.marker,
                markersize=6 if look.score == "yardstick" else 8,
                color=colour,
                markerfacecolor=colour if look.preconditioned or look.score == "yardstick" else theme.paper,
                markeredgewidth=1.8,
                capsize=4,
                zorder=3,
            )
        ax.set_yticks(range(len(ranked)), [LOOKS[result.predictor].label for result in ranked])
        ax.set_ylim(-0.6, len(ranked) - 0.4)
        ax.set_xlim(low, high)
        ax.set_xlabel(f"{data.metric} on rows not seen")
        splits = len(ranked[0].scores)
        ax.set_title(
            f"{data.name}: {evaluation.n_context} context rows, {data.features.shape[1]} features, {splits} splits"
        )
        ax.grid(axis="x", color=theme.faint, linewidth=0.6)

    return draw_both((5.8, 4.0), draw)


def _range(evaluation: Evaluation) -> tuple[float, float]:
    """The axis: all scores, but what is far below the rest is left to an arrow at the edge."""
    lowest = {result.predictor: min(result.scores) for result in evaluation.results}
    high = max(max(result.scores) for result in evaluation.results)
    baseline = lowest.pop("mean" if evaluation.data.task == "regression" else "majority")
    low = max(min(lowest.values()), -1.0)
    if low - baseline < high - low:
        low = min(low, baseline)
    margin = 0.04 * (high - low) or 0.05
    return low - margin, high + margin


def limits_figure(limits: Limits) -> Picture:
    """Distance to the limit against alpha, both logarithmic."""

    def draw(figure: Figure, theme: Theme) -> None:
        ax = figure.subplots()
        ax.loglog(
            limits.alphas, limits.bound, color=theme.ink, linestyle="--", linewidth=1.2, label="bound on Intention"
        )
        styles = {"intention": "-", "sigma_intention": "-.", "expressive_intention": ":"}
        for name, errors in limits.errors.items():
            shown = np.where(errors > 0, errors, np.nan)
            label = f"{LOOKS[name].label} to {LOOKS[LIMITS[name]].label}: slope {limits.slopes[name]:.3f}"
            ax.loglog(limits.alphas, shown, styles[name], color=theme.colour(name), linewidth=2.2, label=label)
        ax.axhline(limits.rounding, color=theme.yardstick, linewidth=1)
        ax.text(limits.alphas[0], limits.rounding * 1.6, "allowed for rounding", color=theme.yardstick, va="bottom")
        ax.axvline(limits.largest_eigenvalue, color=theme.faint, linewidth=1)
        note = "largest eigenvalue of G"
        ax.text(limits.largest_eigenvalue * 1.6, 0.02, note, transform=ax.get_xaxis_transform(), color=theme.yardstick)
        ax.set_ylim(top=limits.bound[0] * 1e5)
        ax.set_xlabel("alpha")
        ax.set_ylabel("distance to the limit (spectral norm)")
        ax.grid(color=theme.faint, linewidth=0.4)
        ax.legend(loc="upper right")

    return draw_both((5.8, 4.4), draw)


def geometry_figure(geometry: Geometry) -> Picture:
    """Weight against the angle, one panel a form, darker for larger |q||k|."""
    half = geometry.degrees <= 180
    angles = geometry.degrees[half]

    def draw(figure: Figure, theme: Theme) -> None:
        panels = figure.subplots(1, 2)
        for ax, (form, weights) in zip(panels, geometry.weights.items(), strict=True):
            for i, (size, row) in enumerate(zip(geometry.sizes, weights, strict=True)):
                strength = 0.55 + 0.45 * i / max(len(geometry.sizes) - 1, 1)
                style = (":", "--", "-")[i % 3]
                ax.plot(
                    angles, row[half], style, color=theme.colour(form), alpha=strength, linewidth=2, label=f"{size:g}"
                )
            ax.axhline(1, color=theme.yardstick, linewidth=0.8)
            ax.axvline(90, color=theme.faint, linewidth=0.8, zorder=0)
            ax.set_xticks(list(ANGLES), [f"{angle}\N{DEGREE SIGN}\n{word}" for angle, word in ANGLES.items()])
            ax.set_xlim(0, 180)
            ax.set_ylim(bottom=0)
            ax.set_title(LOOKS[form].label)
            ax.legend(title="|q||k|", loc="upper right" if form == "softmax_attention" else "lower right")
        panels[0].set_ylabel("weight, in units of an equal share")

    return draw_both((6.8, 3.6), draw)
