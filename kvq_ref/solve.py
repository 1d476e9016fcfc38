"""Least squares: ridge regression from keys to values, and the preconditioner, with their adjoints.

Two jobs, both about G + alpha I with G = K^T K:

    ridge          W  = (G + alpha I)^-1 K^T V         shapes (d, dv): one regression, used by many queries
    precondition   q* = (G_i + alpha I)^-1 q_i         G_i sums over the keys that query i sees

At alpha = 0 an inverse means the pseudo-inverse, so W is the minimum-norm
solution whatever the rank of the keys.

No inverse is ever formed; :mod:`kvq_ref.solvers` has the ways to apply one, and
the adjoint of each job is another solve with the same factor.
"""

from __future__ import annotations

import math
from typing import Any

from kvq_ref.arrays import device, namespace, transpose
from kvq_ref.masks import hide_keys, is_key_mask, visible_pairs
from kvq_ref.solvers import SOLVERS, Solve, any_zero, solver_of_gram
from kvq_ref.types import Array

Saved = tuple[Any, ...]


# ---- Ridge, for all queries at once --------------------------------------------------


def ridge(k: Array, v: Array, alpha: Array, *, solver: str = "auto") -> tuple[Array, Saved]:
    """W = argmin_W |v - k W|^2 + alpha |W|^2, of minimum norm where that leaves a choice."""
    factor = SOLVERS[solver](k, alpha[..., None, None])
    w = factor.fit(v)
    return w, (k, v, alpha, w, factor)


def ridge_backward(dw: Array, saved: Saved) -> tuple[Array, Array, Array]:
    """(dk, dv, dalpha). From (G + alpha I) W = K^T V: the adjoint solves with the same matrix."""
    xp = namespace(dw)
    k, v, alpha, w, factor = saved
    z = factor.solve(dw)
    dv = k @ z
    dk = (v - k @ w) @ transpose(z) - dv @ transpose(w)
    if any_zero(alpha):
        # Minimum norm: W lies in the span of the keys, and the span moves with them.
        outside = dw - factor.solve(transpose(k) @ (k @ dw))
        turn = k @ factor.solve(w) @ transpose(outside)
        dk = dk + xp.where(alpha[..., None, None] == 0, turn, xp.zeros_like(turn))
    return dk, dv, -xp.sum(z * w, axis=(-2, -1))


# ---- One system for each query -------------------------------------------------------


def solver_of_each(matrices: Array, alpha: Array) -> Solve:
    """x -> (M_i + alpha I)^-1 x_i for every query i, of (..., Tq, d, d) matrices that need not be regular."""
    alpha = alpha[..., None, None, None]
    solve = solver_of_gram(matrices + namespace(alpha).zeros_like(alpha), alpha, "auto")
    return lambda x: solve(x[..., None])[..., 0]


# ---- The preconditioner --------------------------------------------------------------


def precondition(
    q: Array,
    k: Array,
    alpha: Array,
    *,
    mask: Array | None = None,
    is_causal: bool = False,
    solver: str = "auto",
    gram: Array | None = None,
) -> tuple[Array, Saved]:
    """q*_i = (gram + sum_{i sees j} k_j k_j^T + alpha I)^-1 q_i; gram is what a state brings along."""
    if is_key_mask(mask):
        (k,) = hide_keys(mask, k)
    visible = None if is_key_mask(mask) and not is_causal else visible_pairs(mask, is_causal, q, k)
    if visible is None:
        inverse, times_gram = _shared_regression(k, alpha[..., None, None], solver, gram)
    else:
        prefixes = is_key_mask(mask)
        inverse, times_gram = _own_regressions(q, k, alpha[..., None, None, None], visible, prefixes, solver, gram)
    q_star = inverse(q)
    return q_star, (q, k, alpha, visible, inverse, times_gram, q_star)


def precondition_backward(dq_star: Array, saved: Saved) -> tuple[Array, Array, Array, Array]:
    """(dq, dk, dalpha, dgram). From H_i q*_i = q_i: dH_i = -dq_i q*_i^T, which is linear attention's algebra."""
    xp = namespace(dq_star)
    q, k, alpha, visible, inverse, times_gram, q_star = saved
    dq = inverse(dq_star)
    dalpha = -xp.sum(dq * q_star, axis=(-2, -1))
    dk, dgram = _gram_backward(-dq, q_star, k, visible)
    if any_zero(alpha):
        # The pseudo-inverse also depends on the span of the keys (Golub & Pereyra 1973).
        at_zero = alpha[..., None, None] == 0
        for a, b in ((inverse(dq), q), (inverse(q_star), dq_star)):
            outside = b - inverse(times_gram(b))
            a = xp.where(at_zero, a, xp.zeros_like(a))
            turned_k, turned_gram = _gram_backward(a, outside, k, visible)
            dk, dgram = dk + turned_k, dgram + turned_gram
    return dq, dk, dalpha, dgram


def _shared_regression(k: Array, alpha: Array, solver: str, gram: Array | None) -> tuple[Solve, Solve]:
    """All queries see the same keys: one factor, and the queries are the columns of its right-hand side."""
    if gram is None:
        solve, times_gram = SOLVERS[solver](k, alpha).solve, _times_gram_of(k)
    else:
        whole = gram + transpose(k) @ k
        solve, times_gram = solver_of_gram(whole, alpha, solver), _times(whole)

    def on_columns(apply: Solve) -> Solve:
        return lambda x: transpose(apply(transpose(x)))

    return on_columns(solve), on_columns(times_gram)


def _own_regressions(
    q: Array, k: Array, alpha: Array, visible: Array, prefixes: bool, solver: str, gram: Array | None
) -> tuple[Solve, Solve]:
    """Each query has its own keys, so its own factor: the query axis becomes a batch axis."""
    xp = namespace(k)
    by_keys = solver in ("qr", "svd", "lstsq") or (solver in ("auto", "cg") and any_zero(alpha))
    if gram is None and by_keys:
        every = k[..., None, :, :]
        own = xp.where(visible[..., None], every, xp.zeros_like(every))  # (..., Tq, Tk, d)
        solve, times_gram = SOLVERS[solver](own, alpha).solve, _times_gram_of(own)
    else:
        grams = _prefix_grams(k, q.shape[-2]) if prefixes else _masked_grams(k, visible)  # (..., Tq, d, d)
        grams = grams if gram is None else gram[..., None, :, :] + grams
        solve, times_gram = solver_of_gram(grams, alpha, solver), _times(grams)

    def on_each(apply: Solve) -> Solve:
        return lambda x: apply(x[..., None])[..., 0]

    return on_each(solve), on_each(times_gram)


def _times(matrix: Array) -> Solve:
    return lambda b: matrix @ b


def _times_gram_of(k: Array) -> Solve:
    """b -> K^T K b, without K^T K."""
    return lambda b: transpose(k) @ (k @ b)


def _prefix_grams(k: Array, Tq: int) -> Array:
    """sum_{j <= i} k_j k_j^T for every query i: each a sum over the past and nothing else."""
    xp = namespace(k)
    k = k[..., : min(Tq, k.shape[-2]), :]
    prefix = xp.cumulative_sum(k[..., :, None] * k[..., None, :], axis=-3)
    last = k.shape[-2] - 1  # queries past the last key see all of them
    rows = xp.arange(Tq, device=device(k))
    return xp.take(prefix, xp.where(rows > last, xp.full_like(rows, last), rows), axis=-3)


def _masked_grams(k: Array, visible: Array) -> Array:
    """sum_j visible_ij k_j k_j^T for every query i."""
    xp = namespace(k)
    d = k.shape[-1]
    outer = xp.reshape(k[..., :, None] * k[..., None, :], (*k.shape[:-1], d * d)) if d else k
    overflowed = xp.any(~xp.isfinite(outer), axis=-1)  # and must not reach the queries that do not see it
    sums = xp.astype(visible, k.dtype) @ xp.where(overflowed[..., None], xp.zeros_like(outer), outer)
    sees = xp.any(visible & overflowed[..., None, :], axis=-1)
    sums = xp.where(sees[..., None], xp.full_like(sums, math.nan), sums)
    return xp.reshape(sums, (*sums.shape[:-1], d, d))


def _gram_backward(a: Array, b: Array, k: Array, visible: Array | None) -> tuple[Array, Array]:
    """(dk, dgram) where the gradient of query i's G is a_i b_i^T and G_i = gram + sum_{i sees j} k_j k_j^T."""
    xp = namespace(k)
    total = transpose(a) @ b
    total = total + transpose(total)
    if visible is None:
        return k @ total, total / 2
    ka, kb = a @ transpose(k), b @ transpose(k)
    ka, kb = xp.where(visible, ka, xp.zeros_like(ka)), xp.where(visible, kb, xp.zeros_like(kb))
    return transpose(kb) @ a + transpose(ka) @ b, total / 2
