"""Softmax attention is the limit of sigma-Intention, expressive attention that of expressive Intention.

The preconditioned query (G + alpha I)^-1 q tends to q / alpha. With scale = alpha s the scores are
s q^T R k_j, where R = alpha (G + alpha I)^-1, and those of the plain form with scale s have I in the
place of R. So score ij is off by at most

    e_ij = |s| |q_i| |k_j| lambda_max / (lambda_max + alpha)

and the rest is the question how far a weighted mean moves if its scores do.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import kvq_ref as kvq
from kvq_ref.testing.theorem.bounds import F64, Bound, Form, length, prefix_sums, shrinkage, spectral_norm, transpose

STEEPEST = 3 * math.sqrt(3) / 8
"""The largest slope of f(z) = z^2 / (1 + z^2): f' = 2 z / (1 + z^2)^2 has its maximum at z = 1 / sqrt(3)."""


def sigma_large_alpha(
    q: F64,
    k: F64,
    v: F64,
    alpha: float,
    s: float,
    *,
    is_causal: bool = False,
    sigma: Form = kvq.sigma_intention,
    softmax: Form = kvq.softmax_attention,
) -> Bound:
    """sigma-Intention of scale alpha s is softmax attention of scale s, up to tanh(e_i / 2) (max v - min v).

    e_i is the largest e_ij; maximum and minimum are taken in each column, over the keys that query i sees.

    *Proof.* Let every score move by at most e, z -> z + tau delta with tau from 0 to 1. For any set A of keys, the
    log-odds log sum_A exp z - log sum_notA exp z have the derivative E_A[delta] - E_notA[delta], so they move by
    at most 2 e, and the probability of A by at most sigmoid(e) - sigmoid(-e) = tanh(e / 2). Two distributions
    that differ by so much on every set differ in the mean of v by at most that times max v - min v.

    Parameters
    ----------
    q, k, v : array, shapes (..., Tq, d), (..., Tk, d), (..., Tk, dv)
    alpha : float
        Above 0.
    s : float
        Scale of the limit.
    is_causal : bool, default False
    sigma, softmax : callable
        The implementations in question.

    Returns
    -------
    Bound
        Of shape (..., Tq, dv).

    Examples
    --------
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 5, 2))
    >>> sigma_large_alpha(q, k, v, alpha=1e3, s=1.0).holds()
    True
    """
    a = np.asarray(sigma(q, k, v, alpha=alpha, scale=alpha * s, is_causal=is_causal))
    b = np.asarray(softmax(q, k, v, scale=s, is_causal=is_causal))
    e = _query_error(q, k, alpha, s, is_causal) * _seen(length(k)[..., None], q, is_causal, np.maximum)
    return Bound(np.abs(a - b), np.tanh(e / 2) * _range(q, v, is_causal))


def expressive_large_alpha(
    q: F64,
    k: F64,
    v: F64,
    alpha: float,
    s: float,
    *,
    is_causal: bool = False,
    expressive_intention: Form = kvq.expressive_intention,
    expressive: Form = kvq.expressive_attention,
) -> Bound:
    """Expressive Intention of scale alpha s, less expressive attention of scale s: c sum_j e_ij / F_i (max v - min v).

    F_i = sum_j f(z_ij) is what the plain form divides by, c = 3 sqrt(3) / 8 the steepest slope of f.

    *Proof.* Let f_j' be the weights at the scores that have moved, and out' their output. It is a mean of the
    values, sum_j f_j' (v_j - out') = 0, so

        out - out' = sum_j f_j (v_j - out') / F = sum_j (f_j - f_j') (v_j - out') / F

    where |f_j - f_j'| <= c e_ij and |v_j - out'| <= max v - min v. No weight at all, F_i = 0, means K q_i = 0. Then
    (G + alpha I)^-1 q_i = q_i / alpha has no weight either, and both outputs are zero.

    Parameters
    ----------
    q, k, v : array, shapes (..., Tq, d), (..., Tk, d), (..., Tk, dv)
    alpha : float
        Above 0.
    s : float
        Scale of the limit.
    is_causal : bool, default False
    expressive_intention, expressive : callable
        The implementations in question.

    Returns
    -------
    Bound
        Of shape (..., Tq, dv).

    Examples
    --------
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 5, 2))
    >>> expressive_large_alpha(q, k, v, alpha=1e3, s=1.0).holds()
    True
    """
    a = np.asarray(expressive_intention(q, k, v, alpha=alpha, scale=alpha * s, is_causal=is_causal))
    b = np.asarray(expressive(q, k, v, scale=s, is_causal=is_causal))
    e = _query_error(q, k, alpha, s, is_causal) * _seen(length(k)[..., None], q, is_causal, np.add)
    total = expressive_total(q, k, s, is_causal=is_causal)
    moved = np.divide(STEEPEST * e, total, out=np.zeros_like(total), where=total > 0)
    return Bound(np.abs(a - b), np.minimum(moved, 1.0) * _range(q, v, is_causal))


def expressive_total(q: F64, k: F64, s: float, *, is_causal: bool = False) -> F64:
    """F_i = sum_j z_ij^2 / (1 + z_ij^2) over the keys that query i sees, with z = s q k^T.

    Parameters
    ----------
    q, k : array, shapes (..., Tq, d), (..., Tk, d)
    s : float
    is_causal : bool, default False

    Returns
    -------
    array, shape (..., Tq, 1)

    Examples
    --------
    >>> expressive_total(np.ones((1, 1)), np.ones((4, 1)), 1.0)
    array([[2.]])
    """
    z = s * q @ transpose(k)
    f = z**2 / (1 + z**2)
    total: F64 = np.sum(np.tril(f) if is_causal else f, axis=-1, keepdims=True)
    return total


def orthonormal_keys(
    q: F64,
    k: F64,
    v: F64,
    alpha: float,
    s: float,
    *,
    preconditioned: Form = kvq.sigma_intention,
    plain: Form = kvq.softmax_attention,
) -> Bound:
    """With scale (1 + alpha) s, the plain form of scale s, if the rows or the columns of K are orthonormal.

    *Proof.* K (G + alpha I)^-1 = (K K^T + alpha I)^-1 K is K / (1 + alpha) in both cases: the scores are the same.

    Parameters
    ----------
    q, k, v : array, shapes (..., Tq, d), (..., Tk, d), (..., Tk, dv)
    alpha : float
        0 or above.
    s : float
        Scale of the plain form.
    preconditioned, plain : callable
        ``kvq.sigma_intention`` and ``kvq.softmax_attention``, ``kvq.expressive_intention`` and
        ``kvq.expressive_attention``, or others of their kind.

    Returns
    -------
    Bound
        Of shape (..., Tq, dv): nothing is allowed but rounding, that of ``k`` included.

    Examples
    --------
    >>> q, k, v = np.ones((1, 2)), np.eye(2), np.array([[1.0], [2.0]])
    >>> orthonormal_keys(q, k, v, alpha=3.0, s=0.5).holds(slack=1e-15)
    True
    """
    a = np.asarray(preconditioned(q, k, v, alpha=alpha, scale=(1 + alpha) * s))
    difference = np.abs(a - np.asarray(plain(q, k, v, scale=s)))
    return Bound(difference, np.zeros_like(difference))


def _query_error(q: F64, k: F64, alpha: float, s: float, is_causal: bool) -> Any:
    """e_ij / |k_j|, shape (..., Tq, 1)."""
    if is_causal:
        largest = spectral_norm(prefix_sums(k, k, q.shape[-2]))
        shrunk = largest / (largest + alpha)
    else:
        shrunk = np.asarray(shrinkage(k, alpha))[..., None]
    return (abs(s) * length(q) * shrunk)[..., None]


def _seen(x: F64, q: F64, is_causal: bool, combine: np.ufunc) -> Any:
    """The maximum, minimum or sum of x over the keys that each query sees, shape (..., Tq or 1, n)."""
    if not is_causal:
        return combine.reduce(x, axis=-2, keepdims=True)
    last = np.minimum(np.arange(q.shape[-2]), x.shape[-2] - 1)
    return combine.accumulate(x, axis=-2)[..., last, :]


def _range(q: F64, v: F64, is_causal: bool) -> Any:
    """max v - min v over the keys that each query sees."""
    return _seen(v, q, is_causal, np.maximum) - _seen(v, q, is_causal, np.minimum)
