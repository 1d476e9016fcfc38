"""Softmax and expressive attention: fused and tiled; beyond 64 keys, no array of (Tq, Tk)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from kvq_ref.arrays import broadcast_leading
from kvq_ref.kernels import all_finite, empty, flatten, missing, num_threads, plain
from kvq_ref.types import Array, Grads

if missing is None:
    from kvq_ref.kernels import tiled_ext

Saved = tuple[Any, ...]
SCORES = {} if missing else {"softmax": tiled_ext.SOFTMAX, "expressive": tiled_ext.EXPRESSIVE}


def forward(
    score: str,
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> tuple[Array, Saved]:
    """Fused attention of one score form; the (Tq, Tk) weights are stored for at most 64 keys, and never beyond."""
    if scale is None:
        scale = 1 / math.sqrt(max(q.shape[-1], 1)) if score == "softmax" else 1.0
    if bias is not None and not all_finite(bias):  # what is -inf has no weight
        seen = bias > -np.inf
        mask, bias = seen if mask is None else mask & seen, np.where(seen, bias, 0).astype(bias.dtype, copy=False)
    leading = broadcast_leading(*(x.shape[:-2] for x in (q, k, v, mask, bias) if x is not None))
    flat_q, flat_k, flat_v = (flatten(x, leading) for x in (q, k, v))
    pairs = (q.shape[-2], k.shape[-2])
    flat_mask, flat_bias = (None if x is None else _flatten_pairs(x, leading, pairs) for x in (mask, bias))

    flat_out = empty((*flat_q.shape[:2], v.shape[-1]), q.dtype)
    arguments = (flat_mask, flat_bias, is_causal, scale)
    kept = tiled_ext.forward(SCORES[score], flat_q, flat_k, flat_v, *arguments, flat_out, num_threads())
    out = flat_out.reshape(*leading, *flat_out.shape[1:])
    return out, (score, leading, flat_q, flat_k, flat_v, flat_out, kept, arguments)


def backward(dout: Array, saved: Saved) -> Grads:
    score, leading, q, k, v, out, kept, (mask, bias, is_causal, scale) = saved
    dq, dk, dv = (empty(x.shape, x.dtype) for x in (q, k, v))
    dbias = None if bias is None else empty((q.shape[0], q.shape[1], k.shape[1]), q.dtype)
    flat_dout = plain(dout).reshape(out.shape)
    tiled_ext.backward(
        SCORES[score], flat_dout, q, k, v, out, kept, mask, bias, is_causal, scale, dq, dk, dv, dbias, num_threads()
    )
    dq, dk, dv, dbias = (None if x is None else x.reshape(*leading, *x.shape[1:]) for x in (dq, dk, dv, dbias))
    return Grads(q=dq, k=dk, v=dv, bias=dbias)


def quick(score: str, q: Array, k: Array, v: Array, options: dict[str, Any]) -> Array | None:
    """A whole public call that is plain, checks and all, in a microsecond; None if it is not plain."""
    if options["mask"] is not None or options["bias"] is not None:
        return None
    return tiled_ext.quick(
        SCORES[score], q, k, v, options["is_causal"], options["scale"], options["out"], num_threads, False
    )


def quick_vjp(
    score: str, q: Array, k: Array, v: Array, options: dict[str, Any]
) -> tuple[Array, Callable[[Any], Grads | None]] | None:
    """The same with its pullback, which gives None for a gradient that is not plain."""
    if options["mask"] is not None or options["bias"] is not None:
        return None
    number, is_causal, scale = SCORES[score], options["is_causal"], options["scale"]
    done = tiled_ext.quick(number, q, k, v, is_causal, scale, options["out"], num_threads, True)
    if done is None:
        return None
    out, copy, kept = done

    def pullback(dout: Any) -> Grads | None:
        if type(dout) is np.ndarray and not dout.flags.c_contiguous:
            dout = plain(dout)
        grads = tiled_ext.quick_backward(number, dout, q, k, v, copy, kept, is_causal, scale, num_threads)
        return None if grads is None else Grads(*grads)

    return out, pullback


def _flatten_pairs(x: Array, leading: tuple[int, ...], pairs: tuple[int, int]) -> Array:
    """A mask or bias to (batch, Tq, Tk); axes along which it does not change keep stride 0."""
    x = x if x.flags.aligned else np.array(x)
    x = x.reshape((1,) * (2 - x.ndim) + x.shape)
    batch = math.prod(leading)
    if math.prod(x.shape[:-2]) == 1:
        x = x.reshape(1, *x.shape[-2:])
    else:
        x = np.broadcast_to(x, (*leading, *x.shape[-2:])).reshape(batch, *x.shape[-2:])
    return np.broadcast_to(x, (batch, *pairs))
