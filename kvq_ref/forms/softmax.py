"""Softmax attention, or scaled dot-product attention (DPA).

    z_ij  = scale * q_i . k_j                                a score for every pair
    w_ij  = m_ij * exp(b_ij) * exp(z_ij)                     a positive weight
    out_i = sum_j w_ij v_j / sum_j w_ij                      a weighted mean of the values

Every output lies in the convex hull of the values that its query sees.

Cost: time O(Tq Tk (d + dv)), memory O(Tq Tk).
Source: Vaswani et al. 2017, "Attention is all you need" (arXiv 1706.03762).
"""

from __future__ import annotations

import math

from kvq_ref.arrays import namespace, transpose
from kvq_ref.masks import row_divisor, row_max, visible_pairs
from kvq_ref.types import Array, Grads

Saved = tuple[Array, Array, Array, Array, Array, float, bool]


def forward(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> tuple[Array, Saved]:
    xp = namespace(q)
    scale = 1 / math.sqrt(max(q.shape[-1], 1)) if scale is None else scale
    visible = visible_pairs(mask, is_causal, q, k)

    z = scale * (q @ transpose(k))
    if bias is not None:
        z = z + bias
    # Shifting a row changes nothing once it is normalised, and keeps exp in range.
    z = z - row_max(z, visible)
    if visible is None:
        w = xp.exp(z)
    else:
        zero = xp.zeros_like(z)
        w = xp.where(visible, xp.exp(xp.where(visible, z, zero)), zero)  # a hidden z may be as large as it likes
    p = w / row_divisor(xp.sum(w, axis=-1, keepdims=True))
    out = p @ v
    return out, (q, k, v, p, out, scale, bias is not None)


def backward(dout: Array, saved: Saved) -> Grads:
    xp = namespace(dout)
    q, k, v, p, out, scale, has_bias = saved

    # out = p v
    dv = transpose(p) @ dout
    dp = dout @ transpose(v)
    # p = w / sum w: what a row gains in one place it loses in the others.
    # sum_j p_ij dp_ij is dout_i . out_i, so no second (Tq, Tk) sum is needed.
    dz = p * (dp - xp.sum(dout * out, axis=-1, keepdims=True))
    dz = xp.where(p > 0, dz, xp.zeros_like(dz))  # also where a hidden v made dp overflow
    # z = scale q k^T + b
    dq = scale * (dz @ k)
    dk = scale * (transpose(dz) @ q)
    return Grads(q=dq, k=dk, v=dv, bias=dz if has_bias else None)
