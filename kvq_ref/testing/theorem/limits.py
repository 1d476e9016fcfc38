"""Linear attention is the limit of Intention: explicit bounds, for any implementation.

    alpha I_alpha - L = -Q G (G + alpha I)^-1 K^T V,    |G (G + alpha I)^-1| = lambda_max / (lambda_max + alpha) =: s

with G = K^T K, lambda_max its largest eigenvalue and |.| the spectral norm. For large alpha, s is
lambda_max / alpha. Each function below measures one distance with the implementation that it
is given, and says how large that may be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

import kvq_ref as kvq
from kvq_ref.testing.theorem.bounds import F64, Bound, Form, length, prefix_sums, shrinkage, spectral_norm, transpose

Gradients: TypeAlias = Callable[..., tuple[Any, Any, Any]]
"""gradients(q, k, v, dout, **options) -> (dq, dk, dv)."""


def large_alpha(
    q: F64, k: F64, v: F64, alpha: float, *, intention: Form = kvq.intention, linear: Form = kvq.linear_attention
) -> Bound:
    """|alpha I_alpha - L| <= |Q| |K^T V| lambda_max / (lambda_max + alpha).

    *Proof.* The resolvent identity, and |A B| <= |A| |B|. With d = 1 and one query and value it
    is an equality. A weaker form, |Q| |G| |K^T V| / (alpha + lambda_min), follows.

    Parameters
    ----------
    q, k, v : array, shapes (..., Tq, d), (..., Tk, d), (..., Tk, dv)
    alpha : float
        Above 0.
    intention, linear : callable
        The implementations in question.

    Returns
    -------
    Bound
        Of shape (...).

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> bound = large_alpha(one, one, one, alpha=3.0)
    >>> float(bound.measured), float(bound.allowed)
    (0.25, 0.25)
    """
    difference = alpha * np.asarray(intention(q, k, v, alpha=alpha)) - np.asarray(linear(q, k, v))
    return Bound(spectral_norm(difference), spectral_norm(q) * spectral_norm(transpose(k) @ v) * shrinkage(k, alpha))


def causal_large_alpha(
    q: F64, k: F64, v: F64, alpha: float, *, intention: Form = kvq.intention, linear: Form = kvq.linear_attention
) -> Bound:
    """The bound of :func:`large_alpha` for each row t of the causal forms, with the keys 0..t.

    *Proof.* Row t is the form on the prefix, with one query.

    Parameters
    ----------
    q, k, v : array, shapes (..., Tq, d), (..., Tk, d), (..., Tk, dv)
    alpha : float
        Above 0.
    intention, linear : callable

    Returns
    -------
    Bound
        Of shape (..., Tq).

    Examples
    --------
    >>> one = np.ones((2, 1))
    >>> causal_large_alpha(one, one, one, alpha=1.0)
    Bound(measured=array([0.5       , 1.33333333]), allowed=array([0.5       , 1.33333333]))
    """
    scaled = alpha * np.asarray(intention(q, k, v, alpha=alpha, is_causal=True))
    difference = scaled - np.asarray(linear(q, k, v, is_causal=True))
    grams, states = prefix_sums(k, k, q.shape[-2]), prefix_sums(k, v, q.shape[-2])
    largest = spectral_norm(grams)
    return Bound(length(difference), length(q) * spectral_norm(states) * largest / (largest + alpha))


def slope(
    q: F64,
    k: F64,
    v: F64,
    alphas: tuple[float, float],
    *,
    intention: Form = kvq.intention,
    linear: Form = kvq.linear_attention,
) -> Bound:
    """|slope - 1|, where slope is that of log |alpha I_alpha - L| over log 1/alpha, between two alphas.

    *Proof.* alpha (alpha I_alpha - L) = -Q G K^T V + Q G^2 (G + alpha I)^-1 K^T V. So alpha times the error is
    E = |Q G K^T V|, up to D(alpha) = |Q| |G| s(alpha) |K^T V|, and the slope is 1 + log(a e(a) / (b e(b))) / log(b / a)
    for a < b: between log((E - D(a)) / (E + D(b))) and log((E + D(a)) / (E - D(b))).

    Parameters
    ----------
    q, k, v : array, shapes (Tq, d), (Tk, d), (Tk, dv)
    alphas : pair of float
        Different and above 0. The bound is infinite where they are too small for the limit to show.
    intention, linear : callable

    Returns
    -------
    Bound

    Raises
    ------
    ValueError
        If the two forms do not differ at one of the alphas: there is no slope.

    Examples
    --------
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 5, 2))
    >>> bound = slope(q, k, v, alphas=(1e3, 1e4))
    >>> float(bound.measured) < 0.01, bound.holds()
    (True, True)
    """
    a, b = sorted(alphas)
    errors = [large_alpha(q, k, v, alpha, intention=intention, linear=linear).measured for alpha in (a, b)]
    if not min(errors) > 0:
        raise ValueError("alphas: Intention and linear attention do not differ here, so there is no slope")
    decades = np.log(b / a)
    measured = abs(np.log(errors[0] / errors[1]) / decades - 1)

    gram, state = k.T @ k, k.T @ v
    e = spectral_norm(q @ gram @ state)
    d_a, d_b = (spectral_norm(q) * spectral_norm(gram) * shrinkage(k, x) * spectral_norm(state) for x in (a, b))
    if d_a >= e:
        return Bound(measured, np.float64(np.inf))
    return Bound(measured, max(np.log((e + d_a) / (e - d_b)), np.log((e + d_b) / (e - d_a))) / decades)


def orthonormal_keys(
    q: F64, k: F64, v: F64, alpha: float, *, intention: Form = kvq.intention, linear: Form = kvq.linear_attention
) -> Bound:
    """(1 + alpha) I_alpha = L if the rows or the columns of K are orthonormal.

    *Proof.* See :func:`kvq_ref.testing.theorem.exact.orthonormal_keys`.

    Parameters
    ----------
    q, k, v : array, shapes (..., Tq, d), (..., Tk, d), (..., Tk, dv)
    alpha : float
        0 or above.
    intention, linear : callable

    Returns
    -------
    Bound
        Of shape (...): nothing is allowed but rounding, that of ``k`` included.

    Examples
    --------
    >>> q, k, v = np.ones((1, 2)), np.eye(2), np.ones((2, 1))
    >>> orthonormal_keys(q, k, v, alpha=3.0).holds(slack=1e-15)
    True
    """
    difference = (1 + alpha) * np.asarray(intention(q, k, v, alpha=alpha)) - np.asarray(linear(q, k, v))
    measured = spectral_norm(difference)
    return Bound(measured, np.zeros_like(measured))


def intention_gradients(q: F64, k: F64, v: F64, dout: F64, *, alpha: float) -> tuple[Any, Any, Any]:
    """(dq, dk, dv) of Intention in this package.

    >>> one = np.ones((1, 1))
    >>> [g.item() for g in intention_gradients(one, one, one, one, alpha=3.0)]
    [0.25, 0.125, 0.25]
    """
    dq, dk, dv, *_ = kvq.vjp(kvq.intention, q, k, v, alpha=alpha)[1](dout)
    return dq, dk, dv


def linear_gradients(q: F64, k: F64, v: F64, dout: F64) -> tuple[Any, Any, Any]:
    """(dq, dk, dv) of linear attention in this package.

    >>> one = np.ones((1, 1))
    >>> [g.item() for g in linear_gradients(one, one, one, one)]
    [1.0, 1.0, 1.0]
    """
    dq, dk, dv, *_ = kvq.vjp(kvq.linear_attention, q, k, v)[1](dout)
    return dq, dk, dv


def gradients_large_alpha(
    q: F64,
    k: F64,
    v: F64,
    dout: F64,
    alpha: float,
    *,
    intention: Gradients = intention_gradients,
    linear: Gradients = linear_gradients,
) -> dict[str, Bound]:
    """alpha times the gradients of Intention tend to those of linear attention, at the rate 1/alpha.

        |alpha dQ - dQ_L| <= s |dO| |K^T V|
        |alpha dV - dV_L| <= s |K| |Q^T dO|
        |alpha dK - dK_L| <= (s |V| + 2 |K| |K^T V| / alpha) |Q^T dO|

    *Proof.* With R = alpha (G + alpha I)^-1: |R| <= 1, |R - I| = s. alpha dQ = dO (K^T V)^T R and alpha dV =
    K R Q^T dO, which are those of linear attention at R = I. alpha dK = V (R Q^T dO)^T - (K R K^T V (R Q^T dO)^T +
    K R Q^T dO (R K^T V)^T) / alpha; the first term is that of linear attention at R = I.

    Parameters
    ----------
    q, k, v : array, shapes (..., Tq, d), (..., Tk, d), (..., Tk, dv)
    dout : array, shape (..., Tq, dv)
    alpha : float
        Above 0.
    intention, linear : callable
        Backward passes, called as :func:`intention_gradients` and :func:`linear_gradients`.

    Returns
    -------
    dict of Bound
        By "dq", "dk", "dv", each of shape (...).

    Examples
    --------
    >>> q, k, v, dout = np.random.default_rng(0).standard_normal((4, 5, 2))
    >>> all(bound.holds() for bound in gradients_large_alpha(q, k, v, dout, alpha=1e3).values())
    True
    """
    s, n_k, n_v = shrinkage(k, alpha), spectral_norm(k), spectral_norm(v)
    state, dstate = spectral_norm(transpose(k) @ v), spectral_norm(transpose(q) @ dout)
    allowed = {
        "dq": s * spectral_norm(dout) * state,
        "dk": (s * n_v + 2 * n_k * state / alpha) * dstate,
        "dv": s * n_k * dstate,
    }
    pairs = zip(intention(q, k, v, dout, alpha=alpha), linear(q, k, v, dout), strict=True)
    measured = [spectral_norm(alpha * np.asarray(a) - np.asarray(b)) for a, b in pairs]
    return {name: Bound(m, allowed[name]) for name, m in zip(allowed, measured, strict=True)}
