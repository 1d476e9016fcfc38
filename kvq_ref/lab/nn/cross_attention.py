"""Multi-head attention from queries to a context, over any form, with a learned positive number a head.

    in each head: o = form(q, k, v; alpha)         alpha = exp(a), where the form takes an alpha
                  o = form(s q, k, v)              s = exp(b): what multiplies the queries multiplies the scores

Nothing is projected here: queries and keys come from an encoder, whose last layer is linear.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import kvq_ref as kvq
from kvq_ref.dispatch import FORMS
from kvq_ref.lab.nn.attention import split
from kvq_ref.lab.nn.layers import unit
from kvq_ref.types import Array

LEARN = ("one", "each")


def learned_numbers(form: Callable[..., Any], learn: str) -> tuple[str, ...]:
    """Which positive numbers a head learns: of "alpha" and "scale".

    Parameters
    ----------
    form : callable
    learn : {"one", "each"}
        One: alpha where the form takes it, else the scale, so that every form has
        equally many parameters. Each: whatever the form takes of the two.

    Examples
    --------
    >>> [learned_numbers(kvq.sigma_intention, learn) for learn in LEARN]
    [('alpha',), ('alpha', 'scale')]
    >>> [learned_numbers(kvq.softmax_attention, learn) for learn in LEARN]
    [('scale',), ('scale',)]
    """
    takes = FORMS[form.__name__].options
    if learn == "one":
        return ("alpha",) if "alpha" in takes else ("scale",)
    return tuple(name for name in ("alpha", "scale") if name in takes)


def cross_attention(
    p: Mapping[str, Array],
    q: Array,
    k: Array,
    v: Array,
    *,
    form: Callable[..., Any],
    heads: int,
    is_unit: bool = False,
    options: Mapping[str, Any] | None = None,
) -> tuple[Array, Callable[[Array], tuple[Array, Array, Array, dict[str, Array]]]]:
    """Each query attends to the whole context.

    Parameters
    ----------
    p : mapping of str to array, shape (heads,)
        Logarithms of "alpha", of "scale", or of both.
    q : array, shape (batch, Tq, width)
    k : array, shape (batch, Tk, width)
    v : array, shape (batch, heads or 1, Tk, dv)
        One head of values serves all heads.
    form : callable
        ``kvq_ref.softmax_attention``, or any other form.
    heads : int
        A divisor of width.
    is_unit : bool
        Divide the queries and keys of each head by their length.
    options : mapping, optional
        Further keyword arguments of the form, which are not learned.

    Returns
    -------
    o : array, shape (batch, heads, Tq, dv)
    pullback : callable
        do to (dq, dk, dv, gradients of p).

    Examples
    --------
    >>> q, k, v = np.ones((1, 2, 4)), np.ones((1, 3, 4)), np.ones((1, 1, 3, 1))
    >>> o, pullback = cross_attention({"alpha": np.zeros(2)}, q, k, v, form=kvq.intention, heads=2)
    >>> o.shape, pullback(o)[3]["alpha"].shape
    ((1, 2, 2, 1), (2,))
    """
    (q,), from_q = split(q, 1, heads)
    (k,), from_k = split(k, 1, heads)
    if is_unit:
        q, from_unit_q = unit(q)
        k, from_unit_k = unit(k)
    numbers = {name: np.exp(x) for name, x in p.items()}
    learned = {"alpha": numbers["alpha"]} if "alpha" in numbers else {}
    scale = numbers["scale"][:, None, None] if "scale" in numbers else None
    o, from_o = kvq.vjp(form, q if scale is None else q * scale, k, v, **learned, **(options or {}))

    def pullback(do: Array) -> tuple[Array, Array, Array, dict[str, Array]]:
        grads = from_o(do)
        dq, logs = grads.q, {}
        if scale is not None:
            logs["scale"] = (dq * q).sum(axis=(0, 2, 3)) * numbers["scale"]
            dq = dq * scale
        if learned:
            logs["alpha"] = grads.alpha * numbers["alpha"]
        dk = grads.k
        if is_unit:
            dq, dk = from_unit_q(dq), from_unit_k(dk)
        return from_q((dq,)), from_k((dk,)), grads.v, logs

    return o, pullback
