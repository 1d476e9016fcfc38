"""What a form is called and how it is drawn, the same in every table and figure.

The colour says what becomes of a score (linear green, softmax and what is near it
blue, expressive and other squares vermilion; from the palette of Okabe and Ito, made for colour-blind readers),
the marker what becomes of the query: hollow circle q, filled square q*; and a
hollow triangle that the keys are taken one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    """Name, score form and kind of query of one predictor."""

    label: str
    score: str
    preconditioned: bool = False
    sequential: bool = False

    @property
    def marker(self) -> str:
        return "^" if self.sequential else "s" if self.preconditioned else "o"


LOOKS = {
    "linear_attention": Look("linear", "linear"),
    "softmax_attention": Look("softmax", "softmax"),
    "expressive_attention": Look("expressive", "expressive"),
    "quadratic_attention": Look("quadratic", "expressive"),
    "taylor_attention": Look("Taylor", "softmax"),
    "sigmoid_attention": Look("sigmoid", "softmax"),
    "local_linear_attention": Look("local linear", "softmax"),
    "intention": Look("Intention", "linear", preconditioned=True),
    "sigma_intention": Look("sigma-Intention", "softmax", preconditioned=True),
    "expressive_intention": Look("expressive Intention", "expressive", preconditioned=True),
    "delta_rule": Look("delta rule", "linear", sequential=True),
    "gated_linear_attention": Look("gated linear", "linear", sequential=True),
    "mesa_attention": Look("mesa", "linear", preconditioned=True, sequential=True),
    "mean": Look("mean of the context", "yardstick"),
    "majority": Look("majority class", "yardstick"),
    "neighbours": Look("nearest neighbours", "yardstick"),
    "ridge": Look("scikit-learn Ridge", "yardstick"),
}


@dataclass(frozen=True)
class Theme:
    """Colours of a figure."""

    paper: str
    ink: str
    faint: str
    linear: str
    softmax: str
    expressive: str
    yardstick: str

    def colour(self, name: str) -> str:
        """The colour of a predictor.

        >>> THEMES["light"].colour("intention") == THEMES["light"].colour("linear_attention")
        True
        """
        chosen: str = getattr(self, LOOKS[name].score)
        return chosen


THEMES = {
    "light": Theme("#ffffff", "#1d2129", "#c9ced6", "#009e73", "#0072b2", "#d55e00", "#6b7280"),
    "dark": Theme("#171a20", "#e6e8ec", "#454b57", "#2fc79a", "#56b4e9", "#ff9d5c", "#a3aab7"),
}
