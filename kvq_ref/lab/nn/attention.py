"""Multi-head self-attention over any form of the package, causal.

    q, k, v = x Wqkv + b     in each head: o = form(q, k, v)     y = o Wout + b

The form is an argument, and all that is asked of it is to work with ``kvq.vjp``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import kvq_ref as kvq
from kvq_ref.lab.nn.compiled import layer
from kvq_ref.lab.nn.layers import linear
from kvq_ref.lab.nn.positions import rotary
from kvq_ref.types import Array


def attention_shapes(width: int) -> dict[str, tuple[int, ...]]:
    """The parameters of :func:`multi_head_attention`."""
    return {
        "qkv.weight": (width, 3 * width),
        "qkv.bias": (3 * width,),
        "out.weight": (width, width),
        "out.bias": (width,),
    }


@layer
def split(x: Array, parts: int, heads: int) -> tuple[tuple[Array, ...], Callable[[tuple[Array, ...]], Array]]:
    """(..., T, parts * heads * d) to so many arrays (..., heads, T, d), contiguous; and the way back.

    Examples
    --------
    >>> (q, k), back = split(np.arange(8).reshape(2, 4), 2, 1)
    >>> k, back((q, k)).tolist()
    (array([[[2, 3],
            [6, 7]]]), [[0, 1, 2, 3], [4, 5, 6, 7]])
    """
    apart = tuple(np.ascontiguousarray(kvq.split_heads(part, heads)) for part in np.split(x, parts, axis=-1))
    return apart, lambda grads: np.concatenate([kvq.merge_heads(grad) for grad in grads], axis=-1)


@layer
def merge(x: Array) -> tuple[Array, Callable[[Array], Array]]:
    """(..., heads, T, d) to (..., T, heads * d); and the way back.

    Examples
    --------
    >>> merge(np.arange(4).reshape(2, 2, 1))[0]
    array([[0, 2],
           [1, 3]])
    """
    return kvq.merge_heads(x), lambda dy: np.ascontiguousarray(kvq.split_heads(dy, x.shape[-3]))


def multi_head_attention(
    p: Mapping[str, Array],
    x: Array,
    *,
    form: Callable[..., Any],
    heads: int,
    is_rotary: bool = False,
    options: Mapping[str, Any] | None = None,
) -> tuple[Array, Callable[[Array], tuple[Array, dict[str, Array]]]]:
    """Each token attends to itself and those before it.

    Parameters
    ----------
    p : mapping of str to array
        Named as in :func:`attention_shapes`.
    x : array, shape (batch, T, width)
    form : callable
        ``kvq_ref.softmax_attention``, or any other form.
    heads : int
        A divisor of width.
    is_rotary : bool
        Turn queries and keys by their place.
    options : mapping, optional
        Keyword arguments of the form: ``scale``, ``alpha``, ``bias``. Their
        gradients are dropped.

    Returns
    -------
    y : array, shape (batch, T, width)
    pullback : callable
        dy to (dx, gradients of p).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> p = {name: rng.standard_normal(shape) for name, shape in attention_shapes(4).items()}
    >>> y, pullback = multi_head_attention(p, np.ones((1, 3, 4)), form=kvq.intention, heads=2, options={"alpha": 1.0})
    >>> y.shape, pullback(y)[0].shape
    ((1, 3, 4), (1, 3, 4))
    """
    qkv, from_qkv = linear(x, p["qkv.weight"], p["qkv.bias"])
    (q, k, v), from_parts = split(qkv, 3, heads)
    if is_rotary:
        q, from_q = rotary(q)
        k, from_k = rotary(k)
    o, from_o = kvq.vjp(form, q, k, v, is_causal=True, **(options or {}))
    merged, from_merged = merge(o)
    y, from_out = linear(merged, p["out.weight"], p["out.bias"])

    def pullback(dy: Array) -> tuple[Array, dict[str, Array]]:
        grads = {}
        dmerged, grads["out.weight"], grads["out.bias"] = from_out(dy)
        dq, dk, dv, *_ = from_o(from_merged(dmerged))
        if is_rotary:
            dq, dk = from_q(dq), from_k(dk)
        dx, grads["qkv.weight"], grads["qkv.bias"] = from_qkv(from_parts((dq, dk, dv)))
        return dx, grads

    return y, pullback
