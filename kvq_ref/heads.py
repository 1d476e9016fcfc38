"""Between the one layout of this package, heads as a leading axis, and packed features."""

from __future__ import annotations

import numbers

from kvq_ref.arrays import namespace
from kvq_ref.types import Array


def split_heads(x: Array, heads: int) -> Array:
    """(..., T, heads * d) to (..., heads, T, d).

    Parameters
    ----------
    x : array, shape (..., T, heads * d)
    heads : int
        Number of heads, which must divide the last axis.

    Returns
    -------
    array, shape (..., heads, T, d)

    Raises
    ------
    TypeError
        If ``heads`` is no integer.
    ValueError
        If ``heads`` does not divide the last axis, or ``x`` has fewer than two axes.

    Examples
    --------
    >>> import numpy as np
    >>> split_heads(np.arange(8.0).reshape(2, 4), heads=2)[1]
    array([[2., 3.],
           [6., 7.]])
    """
    if x.ndim < 2:
        raise ValueError(f"x: expected shape (..., T, heads * d), got {tuple(x.shape)}")
    if not isinstance(heads, numbers.Integral) or isinstance(heads, bool):
        raise TypeError(f"heads: expected an integer, got {type(heads).__name__}")
    *leading, T, width = x.shape
    if heads < 1 or width % heads:
        raise ValueError(f"heads: expected a divisor of the last axis, {width}, got {heads}")
    xp = namespace(x)
    apart = xp.reshape(x, (*leading, T, heads, width // heads))
    return xp.moveaxis(apart, -2, -3)


def merge_heads(x: Array) -> Array:
    """(..., heads, T, d) to (..., T, heads * d): the inverse of :func:`split_heads`.

    Parameters
    ----------
    x : array, shape (..., heads, T, d)

    Returns
    -------
    array, shape (..., T, heads * d)

    Raises
    ------
    ValueError
        If ``x`` has fewer than three axes.

    Examples
    --------
    >>> import numpy as np
    >>> merge_heads(split_heads(np.arange(8.0).reshape(2, 4), heads=2))
    array([[0., 1., 2., 3.],
           [4., 5., 6., 7.]])
    """
    if x.ndim < 3:
        raise ValueError(f"x: expected shape (..., heads, T, d), got {tuple(x.shape)}")
    *leading, heads, T, d = x.shape
    xp = namespace(x)
    return xp.reshape(xp.moveaxis(x, -3, -2), (*leading, T, heads * d))
