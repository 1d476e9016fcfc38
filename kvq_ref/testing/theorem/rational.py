"""Exact linear algebra on small matrices of fractions.

NumPy arrays of dtype object carry any Python number, and ``@``, ``+``, ``.T``
work on them entry by entry. With :class:`fractions.Fraction` inside, nothing is
ever rounded: the two sides of an equation are the same numbers or they are not.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Matrix: TypeAlias = NDArray[np.object_]
"""A two-dimensional array of :class:`fractions.Fraction`."""

Rational: TypeAlias = Fraction | int


def matrix(rows: Any) -> Matrix:
    """A matrix of fractions.

    Parameters
    ----------
    rows : array or nested sequence, shape (m, n)
        Of integers, fractions, strings such as ``"1/3"``, or floats. A float is taken at
        its exact binary value, so ``matrix(x)`` of a float64 array *is* that array.

    Returns
    -------
    Matrix, shape (m, n)

    Raises
    ------
    ValueError
        If ``rows`` is not a table, or an entry is no finite number.

    Examples
    --------
    >>> print(matrix([[1, "2/4"], [0.25, 0]]))
    [[Fraction(1, 1) Fraction(1, 2)]
     [Fraction(1, 4) Fraction(0, 1)]]
    """
    table = np.array(rows, dtype=object)
    if table.ndim != 2:
        raise ValueError(f"rows: expected two axes, got shape {table.shape}")
    try:
        entries = [Fraction(x) for x in table.flat]
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"rows: {error}") from None
    return np.array(entries, dtype=object).reshape(table.shape)


def zeros(m: int, n: int) -> Matrix:
    """The m x n matrix of zeros.

    >>> print(zeros(1, 2))
    [[Fraction(0, 1) Fraction(0, 1)]]
    """
    return np.full((m, n), Fraction(0), dtype=object)


def identity(n: int) -> Matrix:
    """The n x n unit matrix.

    >>> print(identity(1))
    [[Fraction(1, 1)]]
    """
    return matrix(np.eye(n, dtype=int))


def equal(*sides: Matrix) -> bool:
    """Whether all are one and the same matrix of fractions.

    A float among the entries counts as a difference: 0.5 == Fraction(1, 2), but where a
    float is, something may have been rounded.

    >>> half = matrix([["1/2"]])
    >>> equal(half, half + half - half), equal(half, 2 * half), equal(half, np.array([[0.5]]))
    (True, False, False)
    """
    exact = all(isinstance(x, Fraction) for side in sides for x in side.flat)
    return exact and all(side.shape == sides[0].shape and bool((side == sides[0]).all()) for side in sides)


def row_reduced(a: Matrix) -> tuple[Matrix, list[int]]:
    """The reduced row echelon form, and the columns of its pivots (Gauss-Jordan).

    Parameters
    ----------
    a : Matrix, shape (m, n)

    Returns
    -------
    reduced : Matrix, shape (m, n)
    pivots : list of int
        As many as the rank of ``a``.

    Examples
    --------
    >>> reduced, pivots = row_reduced(matrix([[1, 2], [2, 4]]))
    >>> print(reduced, pivots)
    [[Fraction(1, 1) Fraction(2, 1)]
     [Fraction(0, 1) Fraction(0, 1)]] [0]
    """
    reduced = a.copy()
    pivots: list[int] = []
    for column in range(a.shape[1]):
        row = len(pivots)
        # Without rounding any pivot but 0 is as good as another.
        candidates = [i for i in range(row, len(a)) if reduced[i, column] != 0]
        if not candidates:
            continue
        reduced[[row, candidates[0]]] = reduced[[candidates[0], row]]
        reduced[row] = reduced[row] / reduced[row, column]
        for other in range(len(a)):
            if other != row:
                reduced[other] = reduced[other] - reduced[other, column] * reduced[row]
        pivots.append(column)
    return reduced, pivots


def rank(a: Matrix) -> int:
    """The number of linearly independent rows, or columns.

    >>> rank(matrix([[1, 2], [2, 4]]))
    1
    """
    return len(row_reduced(a)[1])


def solve(a: Matrix, b: Matrix) -> Matrix:
    """x with a x = b.

    Parameters
    ----------
    a : Matrix, shape (n, n)
    b : Matrix, shape (n, m)

    Returns
    -------
    Matrix, shape (n, m)

    Raises
    ------
    ValueError
        If the shapes do not fit.
    numpy.linalg.LinAlgError
        If ``a`` is singular.

    Examples
    --------
    >>> print(solve(matrix([[0, 2], [1, 1]]), matrix([[1], [1]])))
    [[Fraction(1, 2)]
     [Fraction(1, 2)]]
    """
    n = len(a)
    if a.shape != (n, n) or b.ndim != 2 or len(b) != n:
        raise ValueError(f"a, b: expected shapes (n, n) and (n, m), got {a.shape} and {b.shape}")
    reduced, pivots = row_reduced(np.hstack([a, b]))
    if pivots[:n] != list(range(n)):
        raise np.linalg.LinAlgError(f"a: singular, {n} x {n} of rank {rank(a)}")
    return reduced[:, n:]


def pseudo_inverse(a: Matrix) -> Matrix:
    """The Moore-Penrose inverse: ``pseudo_inverse(k) @ v`` is the least-squares fit of minimum norm.

    The pivot columns C of ``a`` and the rows R of its echelon form that are not zero give
    a = C R, both of full rank, so a^+ = R^T (R R^T)^-1 (C^T C)^-1 C^T.

    Parameters
    ----------
    a : Matrix, shape (m, n)
        Of any rank.

    Returns
    -------
    Matrix, shape (n, m)

    Examples
    --------
    >>> print(pseudo_inverse(matrix([[1], [1]])))
    [[Fraction(1, 2) Fraction(1, 2)]]
    """
    reduced, pivots = row_reduced(a)
    if not pivots:
        return zeros(*a.shape[::-1])
    c, r = a[:, pivots], reduced[: len(pivots)]
    inverse: Matrix = r.T @ solve(r @ r.T, solve(c.T @ c, c.T))
    return inverse


def cayley(s: Matrix) -> Matrix:
    """An orthogonal matrix from a skew one: (I + S)^-1 (I - S).

    I + S is invertible, since x^T (I + S) x = |x|^2; and (I - S)(I + S)^-1 is its own
    transposed inverse because I - S and I + S commute.

    Parameters
    ----------
    s : Matrix, shape (n, n)
        Only what is below the diagonal is read: S = below - below^T.

    Returns
    -------
    Matrix, shape (n, n)

    Examples
    --------
    >>> print(cayley(matrix([[0, 0], [2, 0]])))
    [[Fraction(-3, 5) Fraction(4, 5)]
     [Fraction(-4, 5) Fraction(-3, 5)]]
    """
    below = np.tri(len(s), k=-1, dtype=int) * s
    skew, one = below - below.T, identity(len(s))
    return solve(one + skew, one - skew)
