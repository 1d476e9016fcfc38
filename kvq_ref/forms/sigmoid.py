"""Sigmoid attention.

    z_ij  = scale * q_i . k_j                                a score for every pair
    w_ij  = m_ij * exp(b_ij) / (1 + exp(-(z_ij + offset)))   a weight of its own, whatever the others are
    out_i = sum_j w_ij v_j                                   a sum of the values, not a mean

Nothing is divided by the sum of a row, so keys do not compete: each is let in or
not, and two that are alike count twice. The output grows with the number n of
keys, unless the offset holds it back: with offset = -log n the weights of scores
near zero sum to about one. Far below zero a weight is exp(z + offset): there it is
softmax attention without its normalisation.

The bias is this package's: it multiplies the weight by exp(b), in every form. What
is elsewhere called the bias, the number inside the sigmoid, is the offset here. As
nothing is normalised, exp(b) can overflow: the output is then infinite (or NaN,
where two infinities meet), which is what the equation says.

A choice made here: the abstract states no formula; this is the public definition.
scale is 1 by default, as in all forms but softmax attention, and elsewhere 1/sqrt(d).

Cost: time O(Tq Tk (d + dv)), memory O(Tq Tk).
Source: Ramapuram et al. 2024, "Theory, Analysis, and Best Practices for Sigmoid Self-Attention" (arXiv 2409.04431).
"""

from __future__ import annotations

from kvq_ref.arrays import namespace, transpose
from kvq_ref.masks import visible_pairs
from kvq_ref.types import Array, Grads

Saved = tuple[Array, Array, Array, Array, Array, float, bool]


def score(z: Array, bias: Array) -> tuple[Array, Array]:
    """w = exp(bias) / (1 + exp(-z)) and its derivative by z, which is w / (1 + exp(z)).

    Only what is negative is exponentiated, but for the bias; and the two exponents are added first, for the one may
    overflow where the other underflows.
    """
    xp = namespace(z)
    zero = xp.zeros_like(z)
    below = xp.where(z < 0, z, zero)
    at_most_two = 1 + xp.exp(-xp.abs(z))
    w = xp.exp(bias + below) / at_most_two
    return w, w * (xp.exp(below - z) / at_most_two)


def forward(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    offset: float = 0.0,
) -> tuple[Array, Saved]:
    xp = namespace(q)
    scale = 1.0 if scale is None else scale
    visible = visible_pairs(mask, is_causal, q, k)

    z = scale * (q @ transpose(k)) + offset
    zero = xp.zeros_like(z)
    b = zero if bias is None else bias
    if visible is not None:  # what is hidden may be as large as it likes
        z, b = xp.where(visible, z, zero), xp.where(visible, b, zero)
    w, dw = score(z, b)
    if visible is not None:
        w, dw = xp.where(visible, w, zero), xp.where(visible, dw, zero)
    out = w @ v
    return out, (q, k, v, w, dw, scale, bias is not None)


def backward(dout: Array, saved: Saved) -> Grads:
    xp = namespace(dout)
    q, k, v, w, slope, scale, has_bias = saved

    # out = w v
    dv = transpose(w) @ dout
    dw = dout @ transpose(v)
    # w = exp(b) sigmoid(z + offset): w itself is the derivative by b, slope that by z
    zero = xp.zeros_like(w)  # without weight, without gradient: also where a hidden v made dw overflow
    dbias = xp.where(w > 0, w * dw, zero)
    dz = xp.where(slope > 0, slope * dw, zero)
    # z = scale q k^T
    dq = scale * (dz @ k)
    dk = scale * (transpose(dz) @ q)
    return Grads(q=dq, k=dk, v=dv, bias=dbias if has_bias else None)
