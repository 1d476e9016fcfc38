"""The compiled kernels in the dress of a form: forward -> (out, saved), backward(dout, saved) -> Grads.

The kernels proper are C, in the top-level folder ``_ext``; they take arrays of
shape (batch, T, d). This file flattens the leading axes, makes room for the
results, and preconditions the query where the form asks for it. Nothing is
asked of the arguments here: :mod:`kvq_ref.dispatch` sends only what fits.
"""

from __future__ import annotations

import importlib
import math
import os
from typing import Any

import numpy as np

from kvq_ref import solve
from kvq_ref.arrays import broadcast_leading
from kvq_ref.types import Array, Grads

try:
    tiled: Any = importlib.import_module("kvq_ref._ext.tiled")
except ImportError as error:
    missing: str | None = str(error)
else:
    missing = None

Saved = tuple[Any, ...]
SCORES = {} if missing else {"softmax": tiled.SOFTMAX, "expressive": tiled.EXPRESSIVE}


def simd_level() -> str:
    """The instruction set that the kernels use here: "baseline", "avx2", "avx512", ..."""
    level: str = tiled.simd_level()
    return level


def num_threads() -> int:
    """Threads that a kernel may use: OMP_NUM_THREADS if set, else the processors this process may run on."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def all_finite(x: Array) -> bool:
    """Whether ``x`` holds neither NaN nor infinity, in one pass and without an array of answers."""
    answer: bool = tiled.all_finite(_plain(x))
    return answer


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
    """Fused attention of one score form; the (Tq, Tk) weights are never stored."""
    if scale is None:
        scale = 1 / math.sqrt(max(q.shape[-1], 1)) if score == "softmax" else 1.0
    if bias is not None and not all_finite(bias):  # what is -inf has no weight
        seen = bias > -np.inf
        mask, bias = seen if mask is None else mask & seen, np.where(seen, bias, 0).astype(bias.dtype, copy=False)
    leading = broadcast_leading(*(x.shape[:-2] for x in (q, k, v, mask, bias) if x is not None))
    flat_q, flat_k, flat_v = (_flatten(x, leading) for x in (q, k, v))
    pairs = (q.shape[-2], k.shape[-2])
    flat_mask, flat_bias = (None if x is None else _flatten_pairs(x, leading, pairs) for x in (mask, bias))

    flat_out = np.empty((*flat_q.shape[:2], v.shape[-1]), q.dtype)
    arguments = (flat_mask, flat_bias, is_causal, scale)
    stats = tiled.forward(SCORES[score], flat_q, flat_k, flat_v, *arguments, flat_out, num_threads())
    out = flat_out.reshape(*leading, *flat_out.shape[1:])
    return out, (score, leading, flat_q, flat_k, flat_v, flat_out, stats, arguments)


def backward(dout: Array, saved: Saved) -> Grads:
    score, leading, q, k, v, out, stats, (mask, bias, is_causal, scale) = saved
    dq, dk, dv = np.empty_like(q), np.empty_like(k), np.empty_like(v)
    dbias = None if bias is None else np.empty((q.shape[0], q.shape[1], k.shape[1]), q.dtype)
    flat_dout = _plain(dout).reshape(out.shape)
    tiled.backward(
        SCORES[score], flat_dout, q, k, v, out, stats, mask, bias, is_causal, scale, dq, dk, dv, dbias, num_threads()
    )
    dq, dk, dv, dbias = (None if x is None else x.reshape(*leading, *x.shape[1:]) for x in (dq, dk, dv, dbias))
    return Grads(q=dq, k=dk, v=dv, bias=dbias)


def preconditioned_forward(
    score: str,
    q: Array,
    k: Array,
    v: Array,
    *,
    alpha: Array,
    mask: Array | None = None,
    bias: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    solver: str = "auto",
) -> tuple[Array, Saved]:
    """The same on q*, as in forms/sigma_intention.py and forms/expressive_intention.py."""
    scale = 1.0 if scale is None else scale
    q_star, fit = solve.precondition(q, k, alpha, mask=mask, is_causal=is_causal, solver=solver)
    # The kernels take what is finite: a query whose keys overflowed K^T K is set aside, and NaN put in its place.
    lost = None if all_finite(q_star) else ~np.isfinite(q_star).all(axis=-1, keepdims=True)
    q_star = q_star if lost is None else np.where(lost, 0, q_star)
    out, attend = forward(score, q_star, k, v, mask=mask, bias=bias, is_causal=is_causal, scale=scale)
    return out if lost is None else np.where(lost, np.nan, out), (fit, attend, lost)


def preconditioned_backward(dout: Array, saved: Saved) -> Grads:
    fit, attend, lost = saved
    through = backward(dout if lost is None else np.where(lost, 0, dout), attend)
    if lost is not None:
        everywhere = lost.any(axis=-2, keepdims=True)
        through = Grads(
            q=np.where(lost, np.nan, through.q),
            k=np.where(everywhere, np.nan, through.k),
            v=np.where(everywhere, np.nan, through.v),
            bias=None if through.bias is None else np.where(lost, np.nan, through.bias),
        )
    dq, dk, dalpha, _ = solve.precondition_backward(through.q, fit)
    return Grads(q=dq, k=through.k + dk, v=through.v, bias=through.bias, alpha=dalpha)


def _flatten(x: Array, leading: tuple[int, ...]) -> Array:
    """(..., T, d) to a contiguous (batch, T, d)."""
    whole = x if x.shape[:-2] == leading else np.broadcast_to(x, (*leading, *x.shape[-2:]))
    return _plain(whole).reshape(math.prod(leading), *x.shape[-2:])


def _plain(x: Array) -> Array:
    """As the kernels read it: contiguous and aligned."""
    return x if x.flags.c_contiguous and x.flags.aligned else np.array(x, order="C")


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
