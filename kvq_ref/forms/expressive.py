"""Expressive attention (EA).

    z_ij  = scale * q_i . k_j                                a score for every pair
    w_ij  = m_ij * exp(b_ij) * f(z_ij),  f(z) = z^2/(1+z^2)  a weight between 0 and 1
    out_i = sum_j w_ij v_j / sum_j w_ij                      a weighted mean of the values

Softmax attends to keys that point the same way as the query and ignores those
that point the other way. Here both are attended to, and it is the *orthogonal*
keys that are suppressed: f is even and f(0) = 0. A query that is orthogonal to
every key it sees has no weight to give; its output is zero, and so is its
gradient.

A choice made here: the abstract states that attention is "based on the
squared dot product"; f(z) = z^2/(1+z^2) with scale = 1, normalised by the row
sum, is the bounded form of it that this package uses.

Cost: time O(Tq Tk (d + dv)), memory O(Tq Tk).
Source: Gros 2024, "Climbing the complexity ladder with expressive attention" (arXiv 2407.18601).
"""

from __future__ import annotations

from kvq_ref.arrays import namespace, transpose
from kvq_ref.masks import row_divisor, row_max, visible_pairs
from kvq_ref.types import Array, Grads

Saved = tuple[Array, Array, Array, Array, Array, Array, float, bool]


def score(z: Array) -> tuple[Array, Array]:
    """f(z) = z^2 / (1 + z^2) and its derivative f'(z) = 2 z / (1 + z^2)^2.

    For |z| > 1 both are written in r = 1/z, so that z^2 never overflows.
    """
    xp = namespace(z)
    large = xp.abs(z) > 1
    r = xp.where(large, 1 / xp.where(large, z, xp.ones_like(z)), z)
    r2 = r * r
    f = xp.where(large, xp.ones_like(z), r2) / (1 + r2)
    df = 2 * r * xp.where(large, r2, xp.ones_like(z)) / (1 + r2) ** 2
    return f, df


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
    scale = 1.0 if scale is None else scale
    visible = visible_pairs(mask, is_causal, q, k)

    z = scale * (q @ transpose(k))
    f, df = score(z)
    if visible is not None:
        # The mask acts on the weight and never on z: f(-1e30) is 1, not 0.
        f = xp.where(visible, f, xp.zeros_like(f))
        df = xp.where(visible, df, xp.zeros_like(df))
    if bias is not None:
        # The largest bias of a row cancels in the normalisation; without it exp stays in range.
        shifted = bias - row_max(bias, visible)
        if visible is not None:
            shifted = xp.where(visible, shifted, xp.zeros_like(shifted))
        f, df = xp.exp(shifted) * f, xp.exp(shifted) * df
    row_sum = row_divisor(xp.sum(f, axis=-1, keepdims=True))
    p = f / row_sum
    out = p @ v
    return out, (q, k, v, p, df / row_sum, out, scale, bias is not None)


def backward(dout: Array, saved: Saved) -> Grads:
    xp = namespace(dout)
    q, k, v, p, slope, out, scale, has_bias = saved

    # out = p v
    dv = transpose(p) @ dout
    dp = dout @ transpose(v)
    # p = w / sum w, as in softmax attention: sum_j p_ij dp_ij is dout_i . out_i
    excess = dp - xp.sum(dout * out, axis=-1, keepdims=True)
    # w = exp(b) f(z): p itself is the derivative by b, slope that by z
    dbias = p * excess
    dz = slope * excess
    zero = xp.zeros_like(dz)  # without weight, without gradient: also where a hidden v made dp overflow
    dbias, dz = xp.where(p > 0, dbias, zero), xp.where(slope != 0, dz, zero)
    # z = scale q k^T
    dq = scale * (dz @ k)
    dk = scale * (transpose(dz) @ q)
    return Grads(q=dq, k=dk, v=dv, bias=dbias if has_bias else None)
