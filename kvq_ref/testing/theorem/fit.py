"""Intention is the least-squares fit, and gradient descent gets there; its first step is linear attention.

The weights W of an implementation are read off with the identity as queries: I_alpha(I, K, V) = W.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import kvq_ref as kvq
from kvq_ref.testing.theorem.bounds import F64, Bound, Form, spectral_norm


def weights(k: F64, v: F64, alpha: float, *, intention: Form = kvq.intention) -> F64:
    """W of an implementation of Intention.

    Parameters
    ----------
    k, v : array, shapes (Tk, d), (Tk, dv)
    alpha : float
        0 or above.
    intention : callable

    Returns
    -------
    array, shape (d, dv)

    Examples
    --------
    >>> weights(np.array([[2.0]]), np.array([[3.0]]), alpha=0.0)
    array([[1.5]])
    """
    return np.asarray(intention(np.eye(k.shape[1]), k, v, alpha=alpha), np.float64)


def interpolation(k: F64, v: F64, *, intention: Form = kvq.intention) -> Bound:
    """I_0(K, K, V) = V for linearly independent keys.

    *Proof.* See :func:`kvq_ref.testing.theorem.exact.interpolation`.

    Parameters
    ----------
    k, v : array, shapes (Tk, d), (Tk, dv)
        Keys of rank Tk.
    intention : callable

    Returns
    -------
    Bound
        Nothing is allowed but rounding.

    Examples
    --------
    >>> interpolation(np.eye(2, 3), np.ones((2, 1))).holds(slack=1e-14)
    True
    """
    return Bound(spectral_norm(np.asarray(intention(k, k, v, alpha=0.0)) - v), np.float64(0.0))


def normal_equations(k: F64, v: F64, alpha: float, *, intention: Form = kvq.intention) -> Bound:
    """K^T (V - K W) = alpha W: the gradient of the ridge loss is zero at the W of an implementation.

    Parameters
    ----------
    k, v : array, shapes (Tk, d), (Tk, dv)
    alpha : float
        0 or above.
    intention : callable

    Returns
    -------
    Bound
        Nothing is allowed but rounding.

    Examples
    --------
    >>> normal_equations(np.ones((2, 1)), np.ones((2, 1)), alpha=2.0).holds(slack=1e-15)
    True
    """
    w = weights(k, v, alpha, intention=intention)
    return Bound(spectral_norm(k.T @ (v - k @ w) - alpha * w), np.float64(0.0))


def ridge_loss(k: F64, v: F64, alpha: float, w: F64) -> Any:
    """|v - k W|^2 / 2 + alpha |W|^2 / 2.

    >>> float(ridge_loss(np.ones((1, 1)), 3 * np.ones((1, 1)), 1.0, np.ones((1, 1))))
    2.5
    """
    return (np.sum((v - k @ w) ** 2) + alpha * np.sum(w**2)) / 2


def no_better_fit(k: F64, v: F64, alpha: float, step: F64, *, intention: Form = kvq.intention) -> Bound:
    """loss(W) <= loss(W + D) - (|K D|^2 + alpha |D|^2) / 2: no step D away from W pays.

    *Proof.* See :func:`kvq_ref.testing.theorem.exact.least_squares`; it is an equality.

    Parameters
    ----------
    k, v : array, shapes (Tk, d), (Tk, dv)
    alpha : float
        0 or above.
    step : array, shape (d, dv)
        D.
    intention : callable

    Returns
    -------
    Bound

    Examples
    --------
    >>> k, v = np.ones((2, 1)), np.array([[1.0], [2.0]])
    >>> no_better_fit(k, v, alpha=2.0, step=np.array([[-0.5]]))
    Bound(measured=np.float64(1.375), allowed=np.float64(1.375))
    """
    w = weights(k, v, alpha, intention=intention)
    cost = (np.sum((k @ step) ** 2) + alpha * np.sum(step**2)) / 2
    return Bound(ridge_loss(k, v, alpha, w), ridge_loss(k, v, alpha, w + step) - cost)


def descend(k: F64, v: F64, alpha: float, eta: float, steps: int) -> F64:
    """W_0 = 0, W_1, ..., W_steps of gradient descent on the ridge loss.

    Parameters
    ----------
    k, v : array, shapes (Tk, d), (Tk, dv)
    alpha : float
    eta : float
        The step size.
    steps : int

    Returns
    -------
    array, shape (steps + 1, d, dv)

    Examples
    --------
    >>> descend(np.ones((1, 1)), 8 * np.ones((1, 1)), alpha=0.0, eta=0.5, steps=3).ravel()
    array([0., 4., 6., 7.])
    """
    path = [np.zeros((k.shape[1], v.shape[1]))]
    for _ in range(steps):
        w = path[-1]
        path.append(w - eta * (k.T @ (k @ w - v) + alpha * w))
    return np.stack(path)


def eigenvalues(k: F64) -> F64:
    """The eigenvalues of G = K^T K on the span of the keys, largest first: min(Tk, d) of them.

    >>> eigenvalues(np.array([[0.0, 2.0, 0.0]]))
    array([4.])
    """
    return np.square(np.linalg.svd(np.asarray(k, np.float64), compute_uv=False))


def best_step(k: F64, alpha: float) -> float:
    """The step size that converges fastest, eta = 2 / (lambda_min + lambda_max + 2 alpha).

    It makes the two ends of the spectrum equally slow: |1 - eta (lambda + alpha)| is (kappa - 1) / (kappa + 1) for
    both, where kappa = (lambda_max + alpha) / (lambda_min + alpha).

    >>> best_step(np.diag([1.0, 2.0]), alpha=0.0)
    0.4
    """
    spectrum = eigenvalues(k)
    return float(2 / (spectrum[0] + spectrum[-1] + 2 * alpha))


def first_step(q: F64, k: F64, v: F64, alpha: float, eta: float, *, linear: Form = kvq.linear_attention) -> Bound:
    """Q W_1 = eta L: one step of gradient descent from zero is linear attention times the step size.

    *Proof.* At W = 0 the gradient K^T (K W - V) + alpha W is -K^T V.

    Parameters
    ----------
    q, k, v : array, shapes (Tq, d), (Tk, d), (Tk, dv)
    alpha, eta : float
    linear : callable

    Returns
    -------
    Bound
        Nothing is allowed but rounding.

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> first_step(one, one, one, alpha=7.0, eta=0.5).holds()
    True
    """
    difference = q @ descend(k, v, alpha, eta, steps=1)[1] - eta * np.asarray(linear(q, k, v))
    return Bound(spectral_norm(difference), np.float64(0.0))


def gradient_descent(k: F64, v: F64, alpha: float, eta: float, steps: int, *, intention: Form = kvq.intention) -> Bound:
    """|W_n - W| <= rho^n |W| with rho = max |1 - eta (lambda + alpha)|, over the :func:`eigenvalues` lambda of G.

    *Proof.* W_n - W = -(I - eta (G + alpha I))^n W. The columns of W lie in the span of the keys, which the matrix maps
    into itself, and rho is its spectral norm there.

    Parameters
    ----------
    k, v : array, shapes (Tk, d), (Tk, dv)
    alpha : float
        Above 0; or 0, if the rows or the columns of ``k`` are independent.
    eta : float
        The step size. Descent converges for 0 < eta < 2 / (lambda_max + alpha).
    steps : int
    intention : callable

    Returns
    -------
    Bound
        Of shape (steps + 1,): at n = 0, 1, ..., steps.

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> gradient_descent(one, one, alpha=1.0, eta=0.25, steps=2)
    Bound(measured=array([0.5  , 0.25 , 0.125]), allowed=array([0.5  , 0.25 , 0.125]))
    """
    rho = np.max(np.abs(1 - eta * (eigenvalues(k) + alpha)))
    u, s, vt = np.linalg.svd(k, full_matrices=False)
    expected = vt.T @ (s[:, None] / (s**2 + alpha)[:, None] * (u.T @ v))
    left = descend(k, v, alpha, eta, steps) - weights(k, v, alpha, intention=intention)
    return Bound(spectral_norm(left), rho ** np.arange(steps + 1) * spectral_norm(expected))
