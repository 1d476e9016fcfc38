"""The figure of a form: the same seven points for all of them, and what the form makes of these.

With the identity as values the output of a form *is* its weights. They are drawn three times: against the place of
the query, as the causal matrix, and summed up with values, which is the form's prediction. docs/make_forms.py
draws the figures at every build, from calls of the form itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

import kvq_ref as kvq
from kvq_ref.lab.looks import THEMES, Theme
from kvq_ref.lab.picture import draw_both

F64 = NDArray[np.float64]

X = np.array([-0.9, -0.62, -0.3, 0.05, 0.3, 0.62, 0.9])
Y = np.array([-0.55, -0.95, -0.6, 0.35, 0.9, 0.8, 0.1])
ONE = 2  # the point whose weight is drawn thick
STEP = 0.14  # half way to the next point
GRID = np.linspace(-1.2, 1.2, 193)
FREQUENCIES, WIDTH = 6, 0.4

# What a form is drawn with, where its defaults would show little: keys have length 1, so no score is above 1.
SETTINGS: dict[str, dict[str, Any]] = {
    "softmax_attention": {"scale": 5.0},
    "expressive_attention": {"scale": 3.0},
    "taylor_attention": {"scale": 5.0},
    "sigmoid_attention": {"scale": 5.0, "offset": -4.0},
    "local_linear_attention": {"alpha": 0.01, "scale": 5.0},
    "intention": {"alpha": 0.01},
    "sigma_intention": {"alpha": 0.01, "scale": 5.0},
    "expressive_intention": {"alpha": 0.01, "scale": 3.0},
    "gated_linear_attention": {"decay": 0.8},
    "mesa_attention": {"alpha": 0.01, "decay": 0.5},
}


class Weights(NamedTuple):
    """What is drawn.

    Attributes
    ----------
    of_places : array, shape (places, points)
        The weights of the points for a query at each place of ``GRID``.
    causal : array, shape (points, points)
        Query i is a little to the right of point i, and sees that point and those before it.
    """

    of_places: F64
    causal: F64

    @property
    def prediction(self) -> F64:
        return np.asarray(self.of_places @ Y)


def features(x: F64) -> F64:
    """The key of a place: a constant and waves, of length 1, so that k(x).k(x') is a bump of x - x'."""
    waves = x[:, None] * 2 * np.arctanh(np.arange(1, FREQUENCIES + 1) / (FREQUENCIES + 1)) / WIDTH
    together = np.concatenate([np.ones((len(x), 1)), np.cos(waves), np.sin(waves)], axis=1)
    return np.asarray(together / np.sqrt(1 + FREQUENCIES))


def weights(name: str) -> Weights:
    """From the form, with the identity for values."""
    form, settings = getattr(kvq, name), SETTINGS.get(name, {})
    k, identity = features(X), np.eye(len(X))
    return Weights(
        form(features(GRID), k, identity, **settings),
        form(features(X + STEP), k, identity, is_causal=True, **settings),
    )


# ---- Drawing -----------------------------------------------------------------------------


def _against_place(ax: Axes, w: Weights, colour: str, theme: Theme) -> None:
    ax.axhline(0, color=theme.faint, linewidth=0.8)
    for j, curve in enumerate(w.of_places.T):
        if j != ONE:
            ax.plot(GRID, curve, color=colour, linewidth=1, alpha=0.45)
    ax.plot(GRID, w.of_places.sum(axis=1), color=theme.yardstick, linewidth=1.2, linestyle="--", label="all together")
    ax.plot(GRID, w.of_places[:, ONE], color=colour, linewidth=2.6, label="of the large point")
    low, high = ax.get_ylim()
    ax.set_ylim(low - 0.09 * (high - low), high + 0.28 * (high - low))
    at = low - 0.04 * (high - low)
    ax.plot(X, np.full(len(X), at), "o", color=colour, markersize=4, alpha=0.6)
    ax.plot(X[ONE], at, "o", color=colour, markersize=8)
    ax.set_xlabel("where the query is")
    ax.set_title("weight of each point")
    ax.legend(loc="upper left", ncols=2, columnspacing=1, handlelength=1.4)


def _causal(ax: Axes, w: Weights, colour: str, theme: Theme) -> None:
    largest = np.abs(w.causal).max()
    shades = LinearSegmentedColormap.from_list("form", [theme.yardstick, theme.paper, colour])
    n = len(X)
    hidden = np.triu(np.ones((n, n), bool), 1)
    ax.imshow(np.ma.array(w.causal, mask=hidden), cmap=shades, vmin=-largest, vmax=largest)
    for i, j in zip(*np.nonzero(~hidden), strict=True):
        share = abs(w.causal[i, j]) / largest
        number = f"{w.causal[i, j]:.2f}".replace("0.", ".", 1).replace("-", "\N{MINUS SIGN}")
        number = "0" if abs(w.causal[i, j]) < 0.005 else number
        ink = theme.paper if share > 0.55 else theme.ink
        ax.text(j, i, number, ha="center", va="center", fontsize=8.5, color=ink)
    ax.set_xticks(range(n), [str(j + 1) for j in range(n)])
    ax.set_yticks(range(n), [str(i + 1) for i in range(n)])
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.set_xlabel("key")
    ax.set_ylabel("query")
    ax.set_title("causal: weights of the points so far")


def _prediction(ax: Axes, w: Weights, colour: str, theme: Theme) -> None:
    ax.axhline(0, color=theme.faint, linewidth=0.8)
    ax.plot(GRID, w.prediction, color=colour, linewidth=2.6)
    ax.plot(X, Y, "o", color=theme.ink, markersize=6)
    ax.set_ylim(-1.6, 1.6)
    ax.set_xlabel("where the query is")
    ax.set_title("weights times values: the prediction")


PANELS: dict[str, Callable[[Axes, Weights, str, Theme], None]] = {
    "weights": _against_place,
    "causal": _causal,
    "prediction": _prediction,
}


def stems(name: str) -> dict[str, str]:
    """The file of each panel, to which ``-light.png`` or ``-dark.png`` goes.

    It is named by what is in it, the numbers and how they are drawn: a file that is there need not be drawn again.
    """
    colours = [theme.colour(name) for theme in THEMES.values()]
    numbers = (np.round(x, 6) + 0.0 for x in weights(name))  # no -0
    made_of = (Path(__file__).read_bytes(), repr(colours).encode(), *(x.tobytes() for x in numbers))
    digest = hashlib.sha256(b"".join(made_of)).hexdigest()[:12]
    return {panel: f"{name}-{panel}-{digest}" for panel in PANELS}


def draw(name: str, folder: Path) -> None:
    """Draw what is not there, and remove what is not wanted any more."""
    folder.mkdir(exist_ok=True)
    wanted = {f"{stem}-{theme}.png": panel for panel, stem in stems(name).items() for theme in THEMES}
    for old in folder.glob(f"{name}-*.png"):
        if old.name not in wanted:
            old.unlink()
    for panel in {panel for file, panel in wanted.items() if not (folder / file).exists()}:

        def picture(figure: Figure, theme: Theme, panel: str = panel) -> None:
            PANELS[panel](figure.subplots(), weights(name), theme.colour(name), theme)

        for theme, png in draw_both((4.1, 3.7), picture).items():
            (folder / f"{stems(name)[panel]}-{theme}.png").write_bytes(png)
