"""The theorem in exact arithmetic: each function returns sides that are equal, entry by entry.

Matrices hold fractions (:mod:`~kvq_ref.testing.theorem.rational`), so equal means ``==``.
None of the functions asserts anything; whoever calls them compares. In all of them

    q (Tq, d)   k (Tk, d)   v (Tk, dv)      queries, keys, values as rows
    alpha                                   the ridge penalty; 0 means the fit of minimum norm
    L       = q k^T v                       linear attention
    I_alpha = q (G + alpha I)^-1 k^T v      Intention, with G = k^T k

An instance shows that an identity holds there, its proof that it holds everywhere. Still,
instances are good at finding mistakes. Times the determinants, an identity between rational
functions is one between polynomials, and one of degree D that is wrong holds for at most a part
D / S of the instances whose variables are drawn from S numbers each (Schwartz-Zippel).
"""

from __future__ import annotations

from fractions import Fraction
from typing import TypeAlias

import numpy as np

from kvq_ref.testing.theorem.exact_forms import descend, fit, hessian, intention, linear, loss, square
from kvq_ref.testing.theorem.rational import Matrix, Rational, equal, identity, matrix, rank, solve, zeros

Sides: TypeAlias = tuple[Matrix, ...]


# ---- What Intention is ---------------------------------------------------


def least_squares(k: Matrix, v: Matrix, alpha: Rational, step: Matrix) -> Sides:
    """loss(W + D) = loss(W) + (|K D|^2 + alpha |D|^2) / 2 for every D: no other W does better.

    *Proof.* The loss is quadratic, so loss(W + D) = loss(W) + <gradient(W), D> + (|K D|^2 +
    alpha |D|^2) / 2, and the gradient K^T (K W - V) + alpha W = (G + alpha I) W - K^T V is zero.
    At alpha = 0, W = K^+ V and K^T K K^+ = K^T.

    >>> k, v = matrix([[1], [2]]), matrix([[1], [1]])
    >>> equal(*least_squares(k, v, 1, step=matrix([[7]])))
    True
    """
    w = fit(k, v, alpha)
    above = loss(k, v, alpha, w) + (square(k @ step) + alpha * square(step)) / 2
    return matrix([[loss(k, v, alpha, w + step)]]), matrix([[above]])


def primal_dual(q: Matrix, k: Matrix, v: Matrix, alpha: Rational) -> Sides:
    """Q (K^T K + alpha I)^-1 K^T V = Q K^T (K K^T + alpha I)^-1 V = linear attention of Q (K^T K + alpha I)^-1.

    *Proof.* K^T (K K^T + alpha I) = (K^T K + alpha I) K^T; multiply by the two inverses, one from
    each side (the push-through identity). The third is the first, bracketed the other way.

    Raises LinAlgError at alpha = 0, unless K is square and invertible.

    >>> equal(*primal_dual(matrix([[1, 1]]), matrix([[1, 2]]), matrix([[3]]), 1))
    True
    """
    dual = q @ k.T @ solve(k @ k.T + alpha * identity(len(k)), v)
    preconditioned = solve(hessian(k, alpha), q.T).T
    return q @ solve(hessian(k, alpha), k.T @ v), dual, linear(preconditioned, k, v)


def interpolation(k: Matrix, v: Matrix) -> Sides:
    """I_0(K, K, V) = V for linearly independent keys: an associative memory without error.

    *Proof.* K K^+ projects onto the column space of K, which is everything if its rows are
    independent.

    >>> equal(*interpolation(matrix([[1, 2]]), matrix([[3]])))
    True
    """
    return intention(k, k, v, 0), v


def prefixes(q: Matrix, k: Matrix, v: Matrix, alpha: Rational) -> Sides:
    """Causal Intention, three ways: each prefix from scratch, from sums, and by recursive least squares.

    Row t of all three is q_t (sum_{j<=t} k_j k_j^T + alpha I)^-1 sum_{j<=t} k_j v_j^T, for every t that has
    a query and a key; alpha > 0. The last row is Intention on all keys.

    *Proof.* Of the recursion: P_t = P - P k_t k_t^T P / (1 + k_t^T P k_t), with P = P_{t-1}, is the
    inverse of P^-1 + k_t k_t^T (Sherman-Morrison; multiply out). And P_t^-1 W_t =
    P^-1 W_{t-1} + k_t v_t^T gives W_t = W_{t-1} + P_t k_t (v_t - k_t W_{t-1}).

    >>> x = matrix([[1], [2]])
    >>> equal(*prefixes(x, x, x, 1))
    True
    """
    alpha = Fraction(alpha)
    d, dv = k.shape[1], v.shape[1]
    tokens = range(min(len(q), len(k)))
    scratch = [intention(q[t : t + 1], k[: t + 1], v[: t + 1], alpha) for t in tokens]

    sums, recursive = [], []
    h, s = alpha * identity(d), zeros(d, dv)
    p, w = identity(d) / alpha, zeros(d, dv)
    for t in tokens:
        q_t, k_t, v_t = q[t : t + 1], k[t : t + 1], v[t : t + 1]
        h, s = h + k_t.T @ k_t, s + k_t.T @ v_t
        sums.append(q_t @ solve(h, s))
        pk = p @ k_t.T
        p = p - pk @ solve(identity(1) + k_t @ pk, pk.T)
        w = w + p @ k_t.T @ (v_t - k_t @ w)
        recursive.append(q_t @ w)
    return np.vstack(scratch), np.vstack(sums), np.vstack(recursive)


# ---- Where linear attention is within it ---------------------------------


def resolvent(q: Matrix, k: Matrix, v: Matrix, alpha: Rational) -> Sides:
    """alpha I_alpha = L - Q G (G + alpha I)^-1 K^T V, for alpha > 0.

    *Proof.* alpha (G + alpha I)^-1 = (G + alpha I - G)(G + alpha I)^-1 = I - G (G + alpha I)^-1. Multiply by
    Q from the left and by K^T V from the right.

    >>> one = matrix([[1]])
    >>> equal(*resolvent(one, one, one, 1))
    True
    """
    correction = q @ (k.T @ k) @ solve(hessian(k, alpha), k.T @ v)
    return alpha * intention(q, k, v, alpha), linear(q, k, v) - correction


def orthonormal_keys(q: Matrix, k: Matrix, v: Matrix, alpha: Rational) -> Sides:
    """(1 + alpha) I_alpha = L, if the rows or the columns of K are orthonormal; alpha >= 0.

    *Proof.* Columns: G = I. Rows: K K^T = I, and the dual form has K K^T + alpha I = (1 + alpha) I.

    Raises ValueError if neither is orthonormal.

    >>> x = matrix([["3/5", "4/5"]])
    >>> equal(*orthonormal_keys(x, x, matrix([[7]]), 2))
    True
    """
    if not (equal(k @ k.T, identity(len(k))) or equal(k.T @ k, identity(k.shape[1]))):
        raise ValueError("k: neither its rows nor its columns are orthonormal")
    return (1 + alpha) * intention(q, k, v, alpha), linear(q, k, v)


def first_gradient_step(q: Matrix, k: Matrix, v: Matrix, alpha: Rational, eta: Rational) -> Sides:
    """Q W_1 = eta L: one step of gradient descent from W = 0 *is* linear attention, times the step size.

    *Proof.* At W = 0 the gradient K^T (K W - V) + alpha W is -K^T V, so W_1 = eta K^T V.

    The third side has the gradient from differences of the loss itself, (loss(E) - loss(-E)) / 2
    for each unit matrix E. Of a quadratic these are exact, however long the step.

    >>> one = matrix([[1]])
    >>> print(first_gradient_step(one, one, 6 * one, alpha=1, eta=Fraction(1, 2))[1])
    [[Fraction(3, 1)]]
    """
    gradient = zeros(k.shape[1], v.shape[1])
    for place in np.ndindex(*gradient.shape):
        e = zeros(*gradient.shape)
        e[place] = Fraction(1)
        gradient[place] = (loss(k, v, alpha, e) - loss(k, v, alpha, -e)) / 2
    return eta * linear(q, k, v), q @ descend(k, v, alpha, eta, steps=1), -eta * (q @ gradient)


def gradient_descent(k: Matrix, v: Matrix, alpha: Rational, eta: Rational, steps: int) -> Sides:
    """W_n - W = -(I - eta (G + alpha I))^n W: what n steps from W_0 = 0 have left to go.

    *Proof.* (G + alpha I) W = K^T V, so W_{n+1} - W = (I - eta (G + alpha I)) (W_n - W); and W_0 - W = -W.
    At alpha = 0 too: W = K^+ V solves G W = K^T V.

    >>> k, v = matrix([[1, 2]]), matrix([[3]])
    >>> equal(*gradient_descent(k, v, alpha=1, eta=Fraction(1, 4), steps=3))
    True
    """
    w = fit(k, v, alpha)
    left = w
    for _ in range(steps):
        left = left - eta * (hessian(k, alpha) @ left)
    return descend(k, v, alpha, eta, steps) - w, -left


# ---- What separates the two ----------------------------------------------


def linear_degree(q: Matrix, k: Matrix, v: Matrix, c: Rational) -> Sides:
    """L(Q, c K, V) = c L(Q, K, V): linear attention is homogeneous of degree 1 in the keys.

    *Proof.* It is a product in which K stands once.

    >>> one = matrix([[1]])
    >>> equal(*linear_degree(one, one, one, 2))
    True
    """
    return linear(q, c * k, v), c * linear(q, k, v)


def intention_degree(q: Matrix, k: Matrix, v: Matrix, alpha: Rational, c: Rational) -> Sides:
    """c I_{c^2 alpha}(Q, c K, V) = I_alpha(Q, K, V): degree -1 in the keys at alpha = 0; c is not 0.

    *Proof.* (c^2 G + c^2 alpha I)^-1 c K^T V = c^-1 (G + alpha I)^-1 K^T V; at alpha = 0, (c K)^+ = c^-1 K^+.

    >>> one = matrix([[1]])
    >>> equal(*intention_degree(one, one, one, alpha=0, c=2))
    True
    """
    return c * intention(q, c * k, v, c * c * alpha), intention(q, k, v, alpha)


def linear_coordinates(q: Matrix, k: Matrix, v: Matrix, a: Matrix) -> Sides:
    """L(Q A^-T, K A, V) = L(Q, K, V) for every invertible A: queries are covectors of keys.

    *Proof.* Q A^-T (K A)^T = Q A^-T A^T K^T = Q K^T.

    Raises LinAlgError if ``a`` is singular.

    >>> one = matrix([[1]])
    >>> equal(*linear_coordinates(one, one, one, a=2 * one))
    True
    """
    return linear(q @ solve(a, identity(len(a))).T, k @ a, v), linear(q, k, v)


def intention_coordinates(q: Matrix, k: Matrix, v: Matrix, a: Matrix) -> Sides:
    """I_0(Q A, K A, V) = I_0(Q, K, V) for every invertible A, if the columns of K are independent.

    Queries are vectors in the space of the keys, and which coordinates both are written in does
    not matter: a prediction of least squares is about points, not about their names.

    *Proof.* Then (K A)^+ = A^-1 K^+, since it solves the normal equations of K A, whose solution is
    unique. So Q A (K A)^+ V = Q K^+ V.

    Raises LinAlgError if ``a`` is singular or the columns of ``k`` are not independent.

    >>> one = matrix([[1]])
    >>> equal(*intention_coordinates(one, one, one, a=2 * one))
    True
    """
    for name, x in (("a", a), ("k", k)):
        if rank(x) < len(a):
            raise np.linalg.LinAlgError(f"{name}: expected independent columns, got rank {rank(x)} of {len(a)}")
    return intention(q @ a, k @ a, v, 0), intention(q, k, v, 0)
