"""The two forms, and gradient descent from one to the other, in rational arithmetic.

Here q (Tq, d), k (Tk, d), v (Tk, dv) are matrices of fractions, and alpha is a fraction or an integer, 0 or above.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from kvq_ref.testing.theorem.rational import Matrix, Rational, identity, pseudo_inverse, solve, zeros


def linear(q: Matrix, k: Matrix, v: Matrix) -> Matrix:
    """Linear attention, q k^T v.

    >>> from kvq_ref.testing.theorem.rational import matrix
    >>> print(linear(matrix([[2]]), matrix([[3]]), matrix([[5]])))
    [[Fraction(30, 1)]]
    """
    out: Matrix = q @ (k.T @ v)
    return out


def fit(k: Matrix, v: Matrix, alpha: Rational) -> Matrix:
    """W = (G + alpha I)^-1 k^T v, of minimum norm at alpha = 0.

    >>> from kvq_ref.testing.theorem.rational import matrix
    >>> print(fit(matrix([[1], [1]]), matrix([[0], [3]]), 0))  # the mean
    [[Fraction(3, 2)]]
    """
    if alpha == 0:
        w: Matrix = pseudo_inverse(k) @ v
        return w
    return solve(hessian(k, alpha), k.T @ v)


def intention(q: Matrix, k: Matrix, v: Matrix, alpha: Rational) -> Matrix:
    """Intention, q W.

    >>> from kvq_ref.testing.theorem.rational import matrix
    >>> print(intention(matrix([[2]]), matrix([[3]]), matrix([[5]]), 1))
    [[Fraction(3, 1)]]
    """
    out: Matrix = q @ fit(k, v, alpha)
    return out


def hessian(k: Matrix, alpha: Rational) -> Matrix:
    """G + alpha I, the second derivative of the loss |v - k W|^2 / 2 + alpha |W|^2 / 2.

    >>> from kvq_ref.testing.theorem.rational import matrix
    >>> print(hessian(matrix([[3]]), 1))
    [[Fraction(10, 1)]]
    """
    h: Matrix = k.T @ k + alpha * identity(k.shape[1])
    return h


def loss(k: Matrix, v: Matrix, alpha: Rational, w: Matrix) -> Fraction:
    """|v - k W|^2 / 2 + alpha |W|^2 / 2.

    >>> from kvq_ref.testing.theorem.rational import matrix
    >>> loss(matrix([[1]]), matrix([[3]]), 1, matrix([[1]]))
    Fraction(5, 2)
    """
    return (square(v - k @ w) + alpha * square(w)) / 2


def descend(k: Matrix, v: Matrix, alpha: Rational, eta: Rational, steps: int) -> Matrix:
    """W after some steps of gradient descent on the loss, from W = 0.

    >>> from kvq_ref.testing.theorem.rational import matrix
    >>> print(descend(matrix([[1]]), matrix([[8]]), 0, Fraction(1, 2), steps=2))
    [[Fraction(6, 1)]]
    """
    w = zeros(k.shape[1], v.shape[1])
    for _ in range(steps):
        w = w - eta * (k.T @ (k @ w - v) + alpha * w)
    return w


def square(x: Matrix) -> Fraction:
    """The sum of the squares of all entries.

    >>> from kvq_ref.testing.theorem.rational import matrix
    >>> square(matrix([[1, -2]]))
    Fraction(5, 1)
    """
    return Fraction(np.sum(x * x))
