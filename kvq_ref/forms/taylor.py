"""Taylor attention.

    z_ij  = scale * q_i . k_j                                a score for every pair
    w_ij  = m_ij * exp(b_ij) * (1 + z_ij + z_ij^2 / 2)       a weight of 1/2 or more
    out_i = sum_j w_ij v_j / sum_j w_ij                      a weighted mean of the values

The first three terms of exp(z): where scores are small it is softmax attention up
to terms of the third order. As a polynomial of q.k it is linear attention as well,
normalised, of phi(x) = (1, x, vec(x x^T) / sqrt(2)): a state of (1 + d + d^2) (dv + 1)
numbers would hold all that the past leaves behind. This file takes the (Tq, Tk)
weights, which are cheaper until Tk is about d^2.

The weight is ((1 + z)^2 + 1) / 2. So it is never below 1/2, its least at z = -1, and
a key that points against the query is attended to again: softmax ignores it.

A choice made here: the abstract of ReBased (arXiv 2402.10644) states that the kernel of
Based is inspired by the Taylor expansion of exponential functions; that it is cut after
the second order is the public definition. scale is 1 by default, as in all forms but
softmax attention; 1/sqrt(d) makes the two comparable.

Cost: time O(Tq Tk (d + dv)), memory O(Tq Tk).
Source: Arora et al. 2024, "Simple linear attention language models balance the recall-throughput tradeoff"
(Based, arXiv 2402.18668).
"""

from __future__ import annotations

from kvq_ref.arrays import namespace, transpose
from kvq_ref.masks import row_divisor, row_max, visible_pairs
from kvq_ref.types import Array, Grads

Saved = tuple[Array, Array, Array, Array, Array, Array, float, bool]


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
    one, zero = xp.ones_like(z), xp.zeros_like(z)
    root, half = 1 + z, one
    if bias is not None:
        # The largest bias of a row cancels; without it exp stays in range.
        shifted = bias - row_max(bias, visible)
        half = xp.exp((shifted if visible is None else xp.where(visible, shifted, zero)) / 2)
        root = half * root
    if visible is not None:  # a hidden score may be as large as it likes
        root, half = xp.where(visible, root, zero), xp.where(visible, half, zero)
    # w = (root^2 + half^2) / 2. A row's largest cancels too: divided by it, no square overflows, and what underflows is
    # too small to count. And no digits are lost at z = -1, as they are in 1 + z + z^2/2.
    largest = row_divisor(xp.max(xp.where(half > xp.abs(root), half, xp.abs(root)), axis=-1, keepdims=True))
    root, half = root / largest, half / largest
    w = (root * root + half * half) / 2
    row_sum = row_divisor(xp.sum(w, axis=-1, keepdims=True))
    p = w / row_sum
    out = p @ v
    return out, (q, k, v, p, root * half / row_sum, out, scale, bias is not None)


def backward(dout: Array, saved: Saved) -> Grads:
    xp = namespace(dout)
    q, k, v, p, slope, out, scale, has_bias = saved

    # out = p v
    dv = transpose(p) @ dout
    dp = dout @ transpose(v)
    # p = w / sum w, as in softmax attention: sum_j p_ij dp_ij is dout_i . out_i
    excess = dp - xp.sum(dout * out, axis=-1, keepdims=True)
    # w = exp(b) (1 + z + z^2/2): p itself is the derivative by b, slope = exp(b) (1 + z) / sum w that by z
    zero = xp.zeros_like(p)  # without weight, without gradient: also where a hidden v made dp overflow
    dbias = xp.where(p > 0, p * excess, zero)
    dz = xp.where(slope != 0, slope * excess, zero)
    # z = scale q k^T
    dq = scale * (dz @ k)
    dk = scale * (transpose(dz) @ q)
    return Grads(q=dq, k=dk, v=dv, bias=dbias if has_bias else None)
