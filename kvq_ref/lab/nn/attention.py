"""Multi-head self-attention over any form of the package, causal.

    q, k, v = x Wqkv + b     in each head: o = form(q, k, v)     y = o Wout + b

The form is an argument, and all that is asked of it is to work with ``kvq.vjp``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import kvq_ref as kvq
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
    q, k, v = (np.ascontiguousarray(kvq.split_heads(part, heads)) for part in np.split(qkv, 3, axis=-1))
    if is_rotary:
        q, from_q = rotary(q)
        k, from_k = rotary(k)
    o, from_o = kvq.vjp(form, q, k, v, is_causal=True, **(options or {}))
    y, from_merged = linear(kvq.merge_heads(o), p["out.weight"], p["out.bias"])

    def pullback(dy: Array) -> tuple[Array, dict[str, Array]]:
        grads = {}
        dmerged, grads["out.weight"], grads["out.bias"] = from_merged(dy)
        dq, dk, dv, *_ = from_o(np.ascontiguousarray(kvq.split_heads(dmerged, heads)))
        if is_rotary:
            dq, dk = from_q(dq), from_k(dk)
        dqkv = np.concatenate([kvq.merge_heads(grad) for grad in (dq, dk, dv)], axis=-1)
        dx, grads["qkv.weight"], grads["qkv.bias"] = from_qkv(dqkv)
        return dx, grads

    return y, pullback
