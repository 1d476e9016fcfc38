"""Local linear attention: for each query a weighted ridge regression, centred at the query.

    p_ij  = softmax_j(scale * q_i . k_j + b_ij)              softmax attention's weights, of the keys that it sees
    out_i = b of  argmin_(b, W)  sum_j p_ij |v_j - b - (k_j - q_i) W|^2 + alpha |W|^2

Softmax attention fits a constant to the values near the query; this fits a line, and reads it off at the query. So
a slope in the data is no bias, not even where all keys lie on one side. Solved, with mu_i = sum_j p_ij k_j and
c_ij = k_j - mu_i:

    S_i   = sum_j p_ij c_ij c_ij^T + alpha I                 the keys' covariance under p
    out_i = sum_j g_ij v_j,   g_ij = p_ij (1 + c_ij . S_i^-1 (q_i - mu_i))

The weights g of a row sum to one, but may be negative: the output can leave the hull of the values. As alpha grows
it tends to softmax attention; values that are an affine function of the keys are returned exactly as alpha tends to
0; with scale = 0 all weights are equal, and it is ordinary ridge regression with an intercept. At alpha = 0 a line
that the keys leave open has the least slope: a query that sees a single key gets its value.

Choices made here: the abstract states that local linear attention is derived from nonparametric statistics, through
the lens of test-time regression; the ridge penalty, on W alone and beside weights of sum one, is this package's. scale
is 1/sqrt(d) by default, softmax attention's, for that is the form it tends to.

Cost: time O(Tq Tk d (d + dv) + Tq d^3), memory O(Tq Tk d + Tq d^2).
Source: Zuo et al. 2025, "Local Linear Attention: An Optimal Interpolation of Linear and Softmax Attention For
Test-Time Regression" (arXiv 2510.01450); Cleveland 1979, local regression.
"""

from __future__ import annotations

from typing import Any

from kvq_ref.arrays import namespace, transpose
from kvq_ref.forms import softmax
from kvq_ref.solve import solver_of_each
from kvq_ref.types import Array, Grads

Saved = tuple[Any, ...]


def times(matrix: Array, x: Array) -> Array:
    """M_i x_i for every query i."""
    return (matrix @ x[..., None])[..., 0]


def forward(
    q: Array,
    k: Array,
    v: Array,
    *,
    alpha: Array,
    mask: Array | None = None,
    bias: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> tuple[Array, Saved]:
    xp = namespace(q)
    _, (_, _, _, p, _, scale, has_bias) = softmax.forward(
        q, k, v, mask=mask, bias=bias, is_causal=is_causal, scale=scale
    )

    mu = p @ k
    # (..., Tq, Tk, d), for the difference of sum p k k^T and mu mu^T would lose the digits of a small covariance.
    c = k[..., None, :, :] - mu[..., :, None, :]
    c = xp.where((p > 0)[..., None], c, xp.zeros_like(c))  # one that is hidden may be as large as it likes
    c = c - p[..., None, :] @ c  # the rounding of mu, which a query far away would magnify
    covariance = transpose(p[..., None] * c) @ c
    inverse = solver_of_each(covariance, alpha)

    r = q - mu
    y = inverse(r)
    tilt = times(c, y)
    g = p * (1 + tilt)
    out = g @ v
    return out, (q, k, v, p, c, alpha, covariance, inverse, r, y, tilt, g, scale, has_bias)


def backward(dout: Array, saved: Saved) -> Grads:
    xp = namespace(dout)
    q, k, v, p, c, alpha, covariance, inverse, r, y, tilt, g, scale, has_bias = saved

    # out = g v
    dv = transpose(g) @ dout
    dg = dout @ transpose(v)
    dg = xp.where(p > 0, dg, xp.zeros_like(dg))  # a hidden v may have made it overflow
    # g = p (1 + tilt),  tilt = c . y
    dp, dtilt = dg * (1 + tilt), dg * p
    dy = times(transpose(c), dtilt)
    # S y = r: dS = -u y^T, and S = sum_j p c c^T + alpha I
    u = inverse(dy)
    lean = times(c, u)
    dp = dp - lean * tilt
    dalpha = -xp.sum(u * y, axis=(-2, -1))
    # c = k - mu in both, which is dk here; of dmu only one part is left, as sum_j p_ij c_ij = 0
    dk = transpose(dtilt - p * lean) @ y - transpose(p * tilt) @ u
    dmu = -u - xp.sum(dtilt, axis=-1, keepdims=True) * y
    at_zero = alpha[..., None, None] == 0
    if bool(xp.any(at_zero)):
        # The least slope lies in the span of the keys, and the span moves with them (Golub & Pereyra 1973).
        outside = r - times(covariance, y)
        outside = xp.where(at_zero, outside, xp.zeros_like(outside))
        dk = dk + transpose(p * times(c, inverse(u))) @ outside
    # r = q - mu,  mu = p k; what all of a row have in common is nothing to p, so c stands for k
    dk = dk + transpose(p) @ dmu
    dp = dp + times(c, dmu)
    # p = softmax(scale q k^T + b)
    dz = p * (dp - xp.sum(p * dp, axis=-1, keepdims=True))
    dq = scale * (dz @ k) + u
    dk = dk + scale * (transpose(dz) @ q)
    return Grads(q=dq, k=dk, v=dv, bias=dz if has_bias else None, alpha=dalpha)
