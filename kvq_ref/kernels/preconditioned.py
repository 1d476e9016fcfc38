"""sigma-Intention and expressive Intention: the tiled kernels on preconditioned queries."""

from __future__ import annotations

from typing import Any

import numpy as np

from kvq_ref.arrays import sum_to_shape
from kvq_ref.kernels import all_finite, ridge, tiled
from kvq_ref.types import Array, Grads

Saved = tuple[Any, ...]


def forward(
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
    q_star, fit = ridge.precondition(q, k, alpha, mask=mask, is_causal=is_causal, solver=solver)
    # The kernels take what is finite: a query whose keys overflowed K^T K is set aside, and NaN put in its place.
    lost = None if all_finite(q_star) else ~np.isfinite(q_star).all(axis=-1, keepdims=True)
    q_star = q_star if lost is None else np.where(lost, 0, q_star)
    out, attend = tiled.forward(score, q_star, k, v, mask=mask, bias=bias, is_causal=is_causal, scale=scale)
    return out if lost is None else np.where(lost, np.nan, out), (fit, attend, lost)


def backward(dout: Array, saved: Saved) -> Grads:
    fit, attend, lost = saved
    through = tiled.backward(dout if lost is None else np.where(lost, 0, dout), attend)
    if lost is not None:
        everywhere = lost.any(axis=-2, keepdims=True)
        through = Grads(
            q=np.where(lost, np.nan, through.q),
            k=np.where(everywhere, np.nan, through.k),
            v=np.where(everywhere, np.nan, through.v),
            bias=None if through.bias is None else np.where(lost, np.nan, through.bias),
        )
    dq, dk, dalpha, _ = ridge.precondition_backward(through.q, fit)
    # q* need not have all the axes that the values and the bias have
    dk = dk + sum_to_shape(through.k, dk.shape)
    return Grads(q=dq, k=dk, v=through.v, bias=through.bias, alpha=dalpha)
