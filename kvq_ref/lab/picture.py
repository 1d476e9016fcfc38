"""A figure as PNG bytes, drawn once for a light and once for a dark page."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from kvq_ref.lab.looks import THEMES, Theme

Picture = dict[str, bytes]  # by theme

DPI = 170


def draw_both(size: tuple[float, float], draw: Callable[[Figure, Theme], None]) -> Picture:
    """Draw once for each theme. No pyplot: nothing global is touched, no display is needed."""
    pictures = {}
    for name, theme in THEMES.items():
        with matplotlib.rc_context(_settings(theme)):
            figure = Figure(figsize=size, layout="constrained", dpi=DPI)
            draw(figure, theme)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", metadata={"Software": None})
            pictures[name] = buffer.getvalue()
    return pictures


def _settings(theme: Theme) -> dict[Any, Any]:
    coloured = ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.labelcolor", "ytick.labelcolor")
    return {
        **matplotlib.rcParamsDefault,
        "font.family": "DejaVu Sans",
        "font.size": 10.5,
        "legend.fontsize": 9.5,
        "legend.frameon": False,
        "axes.titlesize": 11.5,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "figure.constrained_layout.wspace": 0.08,
        "axes.spines.right": False,
        "axes.edgecolor": theme.faint,
        "xtick.color": theme.faint,
        "ytick.color": theme.faint,
        "figure.facecolor": theme.paper,
        "axes.facecolor": theme.paper,
        **dict.fromkeys(coloured, theme.ink),
    }
