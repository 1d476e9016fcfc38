"""What the floating-point statements have in common: a measured number, an allowed one, and norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

F64: TypeAlias = NDArray[np.float64]

Form: TypeAlias = Callable[..., Any]
"""A form of this package, or anything that is called like it: form(q, k, v, **options) -> out."""


class Bound(NamedTuple):
    """What was measured, and the most that it may be in exact arithmetic.

    Rounding comes on top: whoever compares the two says how much of it there is.

    Attributes
    ----------
    measured, allowed : array
        Of one shape, or of shapes that broadcast.

    Examples
    --------
    >>> Bound(measured=np.float64(1.5), allowed=np.float64(2.0)).holds()
    True
    >>> Bound(measured=np.float64(np.nan), allowed=np.float64(2.0)).holds(slack=1e9)
    False
    """

    measured: F64 | np.float64
    allowed: F64 | np.float64

    def holds(self, slack: Any = 0.0) -> bool:
        """Whether measured <= allowed + slack everywhere; NaN does not hold."""
        return bool(np.all(self.measured <= self.allowed + slack))


def spectral_norm(x: Any) -> Any:
    """The largest singular value of each matrix in the last two axes.

    >>> float(spectral_norm(np.diag([3.0, -4.0])))
    4.0
    """
    return np.linalg.norm(np.asarray(x, np.float64), 2, axis=(-2, -1))


def length(x: Any) -> Any:
    """The Euclidean length of each row.

    >>> float(length(np.array([3.0, 4.0])))
    5.0
    """
    return np.linalg.norm(np.asarray(x, np.float64), axis=-1)


def transpose(x: F64) -> F64:
    """Exchange the last two axes.

    >>> transpose(np.zeros((5, 2, 3))).shape
    (5, 3, 2)
    """
    return np.swapaxes(x, -1, -2)


def shrinkage(k: F64, alpha: Any) -> Any:
    """|G (G + alpha I)^-1| = lambda_max / (lambda_max + alpha), where G = K^T K: how far from linear attention.

    The eigenvalues are lambda / (lambda + alpha), and that grows with lambda.

    Parameters
    ----------
    k : array, shape (..., Tk, d)
    alpha : float or array, shape (...)
        Above 0.

    Returns
    -------
    array, shape (...)

    Examples
    --------
    >>> float(shrinkage(np.ones((1, 1)), alpha=3.0))
    0.25
    """
    largest = spectral_norm(k) ** 2
    return largest / (largest + alpha)


def prefix_sums(x: F64, y: F64, Tq: int) -> F64:
    """sum_{j <= i} x_j y_j^T for each query i; queries past the last key see all of them.

    Parameters
    ----------
    x, y : array, shapes (..., Tk, m) and (..., Tk, n)
    Tq : int

    Returns
    -------
    array, shape (..., Tq, m, n)

    Examples
    --------
    >>> x = np.array([[1.0], [2.0]])
    >>> prefix_sums(x, x, Tq=3).ravel()
    array([1., 5., 5.])
    """
    sums: F64 = np.cumsum(x[..., :, :, None] * y[..., :, None, :], axis=-3)
    return sums[..., np.minimum(np.arange(Tq), x.shape[-2] - 1), :, :]
