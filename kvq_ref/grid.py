"""Where each form stands: what becomes of a query, of a score and of a row. The one declaration of it.

    w_ij  = m_ij * exp(b_ij) * f(scale * q*_i . k_j)        q*: the query;  f: the score

    sum     out_i = sum_j w_ij v_j
    mean    out_i = sum_j w_ij v_j / sum_j w_ij
    line    out_i = the line that fits the values best under these weights, at q_i

What is claimed of a form (its laws, its rounding, its defaults) is read off from here.
"""

from __future__ import annotations

from typing import NamedTuple


class Place(NamedTuple):
    """The place of a form.

    Attributes
    ----------
    query : {"plain", "preconditioned", "centred"}
        Whether q* is q, or (K^T K + alpha I)^-1 q; or q, which is also where a line is read off.
    score : {"z", "exp", "z^2/(1+z^2)", "z^2", "1+z+z^2/2", "sigmoid"}
        What f is.
    row : {"sum", "mean", "line"}
        What is made of the weights of a row and its values.
    has_root_scale : bool
        Whether scale is 1/sqrt(d) by default, and not 1.
    """

    query: str
    score: str
    row: str
    has_root_scale: bool = False

    @property
    def may_vanish(self) -> bool:
        """Whether all weights of a row that sees keys can be zero, and its mean is none: where f(0) = 0."""
        return self.row == "mean" and self.is_even

    @property
    def is_even(self) -> bool:
        """Whether f(-z) = f(z)."""
        return self.score in ("z^2", "z^2/(1+z^2)")

    def default_scale(self, d: int) -> float:
        """The factor of the scores where none is given.

        >>> GRID["softmax_attention"].default_scale(4), GRID["expressive_attention"].default_scale(4)
        (0.5, 1.0)
        """
        return max(d, 1) ** -0.5 if self.has_root_scale else 1.0


GRID: dict[str, Place] = {
    "softmax_attention": Place("plain", "exp", "mean", has_root_scale=True),
    "expressive_attention": Place("plain", "z^2/(1+z^2)", "mean"),
    "quadratic_attention": Place("plain", "z^2", "mean"),
    "taylor_attention": Place("plain", "1+z+z^2/2", "mean"),
    "sigmoid_attention": Place("plain", "sigmoid", "sum"),
    "local_linear_attention": Place("centred", "exp", "line", has_root_scale=True),
    "linear_attention": Place("plain", "z", "sum"),
    "intention": Place("preconditioned", "z", "sum"),
    "sigma_intention": Place("preconditioned", "exp", "mean"),
    "expressive_intention": Place("preconditioned", "z^2/(1+z^2)", "mean"),
    # Keys that act one after the other stand where they would if nothing faded and all keys were orthogonal.
    "delta_rule": Place("plain", "z", "sum"),
    "gated_linear_attention": Place("plain", "z", "sum"),
    "mesa_attention": Place("preconditioned", "z", "sum"),
}
