"""Quadratic attention.

    z_ij  = scale * q_i . k_j                                a score for every pair
    w_ij  = m_ij * exp(b_ij) * z_ij^2                        a weight that grows without bound
    out_i = sum_j w_ij v_j / sum_j w_ij                      a weighted mean of the values

Expressive attention where its scores are small: z^2 / (1 + z^2) is z^2 there. As
there a query that is orthogonal to every key it sees has no weight to give; its
output is zero, and so is its gradient.

Linear attention too, normalised, of phi(x) = vec(x x^T), for phi(q).phi(k) = (q.k)^2:
a state of d^2 (dv + 1) numbers would hold all that the past leaves behind. This
file takes the (Tq, Tk) weights, which are cheaper until Tk is about d^2.

A common factor of a row cancels, so neither scale nor the length of a query has
any effect; scale is there because every score form has it.

A choice made here: the abstract states an alteration to the kernel of Based (see
taylor.py). That the altered kernel is the square is the public definition; the
learned normalisation and shift of queries and keys before it are left out.

Cost: time O(Tq Tk (d + dv)), memory O(Tq Tk).
Source: Aksenov et al. 2024, "Linear Transformers with Learnable Kernel Functions are Better In-Context Models"
(arXiv 2402.10644).
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
    has_weight = z != 0 if visible is None else (z != 0) & visible
    root = xp.where(has_weight, z, xp.zeros_like(z))
    slope = xp.where(has_weight, xp.ones_like(z), xp.zeros_like(z))
    if bias is not None:
        # The largest bias of a row cancels: that of a key with weight, or the others' might all underflow.
        shifted = bias - row_max(bias, has_weight)
        half = xp.exp(xp.where(has_weight, shifted, xp.zeros_like(z)) / 2)
        root, slope = half * root, half * slope
    # w = root^2. A row's largest root cancels too. Divided by it the largest weight of a row is 1: its square neither
    # overflows nor underflows, and one that underflows beside it is too small to count.
    largest = row_divisor(xp.max(xp.abs(root), axis=-1, keepdims=True))
    root, slope = root / largest, slope / largest
    w = root * root
    row_sum = row_divisor(xp.sum(w, axis=-1, keepdims=True))
    p = w / row_sum
    out = p @ v
    return out, (q, k, v, p, 2 * root * slope / row_sum, out, scale, bias is not None)


def backward(dout: Array, saved: Saved) -> Grads:
    xp = namespace(dout)
    q, k, v, p, slope, out, scale, has_bias = saved

    # out = p v
    dv = transpose(p) @ dout
    dp = dout @ transpose(v)
    # p = w / sum w, as in softmax attention: sum_j p_ij dp_ij is dout_i . out_i
    excess = dp - xp.sum(dout * out, axis=-1, keepdims=True)
    # w = exp(b) z^2: p itself is the derivative by b, slope = 2 p / z that by z
    zero = xp.zeros_like(p)  # without weight, without gradient: also where a hidden v made dp overflow
    dbias = xp.where(p > 0, p * excess, zero)
    dz = xp.where(slope != 0, slope * excess, zero)
    # z = scale q k^T
    dq = scale * (dz @ k)
    dk = scale * (transpose(dz) @ q)
    return Grads(q=dq, k=dk, v=dv, bias=dbias if has_bias else None)
