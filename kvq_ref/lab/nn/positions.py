"""How a model knows the order of its tokens.

none        it does not, beyond who sees whom
learned     a row of a table is added to each token
sinusoidal  waves of many lengths are added (Vaswani et al. 2017)
rotary      queries and keys are turned by an angle that grows with the place (Su et al. 2021)
alibi       a weight is multiplied by exp(-slope x distance) (Press et al. 2021); as a bias, for every score form
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from kvq_ref.lab.nn.compiled import function
from kvq_ref.types import Array

POSITIONS = ("none", "learned", "sinusoidal", "rotary", "alibi")
LONGEST = 10_000.0  # wave length, in tokens


def _angles(T: int, waves: int) -> Array:
    """Place times frequency, shape (T, waves)."""
    frequencies = LONGEST ** (-np.arange(waves) / max(waves, 1))
    return np.arange(T)[:, None] * frequencies


def sinusoidal(T: int, width: int) -> Array:
    """Sines and cosines of the place: an array of float64 to add to T tokens.

    Parameters
    ----------
    T, width : int

    Returns
    -------
    array, shape (T, width)

    Examples
    --------
    >>> sinusoidal(2, 4)[0]
    array([0., 0., 1., 1.])
    """
    angles = _angles(T, (width + 1) // 2)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)[:, :width]


def rotary(x: Array) -> tuple[Array, Callable[[Array], Array]]:
    """Turn pairs of coordinates (c, c + d/2) of token t by t times their frequency.

    The product of a query and a key then depends on their distance alone.

    Parameters
    ----------
    x : array, shape (..., T, d)
        d even.

    Returns
    -------
    y : array, shape (..., T, d)
    pullback : callable
        dy to dx: the turn back.

    Raises
    ------
    ValueError
        If d is odd.

    Examples
    --------
    >>> y, pullback = rotary(np.ones((3, 2)))
    >>> bool(np.allclose(pullback(y), 1))
    True
    """
    T, d = x.shape[-2:]
    if d % 2:
        raise ValueError(f"x: rotary positions need an even number of dimensions a head, got {d}")
    cos, sin = (np.asarray(wave, like=x) for wave in _waves(T, d // 2, np.dtype(x.dtype).name))
    return turn(x, cos, sin), lambda dy: turn(dy, cos, -sin)


@functools.lru_cache(maxsize=16)
def _waves(T: int, waves: int, dtype: str) -> tuple[Array, Array]:
    """Cosine and sine of place times frequency; shared, so not to be written to."""
    angles = _angles(T, waves)
    cos, sin = np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)
    cos.flags.writeable = sin.flags.writeable = False
    return cos, sin


@function
def turn(x: Array, cos: Array, sin: Array) -> Array:
    """(left, right) to (left cos - right sin, right cos + left sin), where left and right are the halves of each row.

    Examples
    --------
    >>> turn(np.array([[3.0, 4.0]]), np.array([[0.0]]), np.array([[1.0]]))
    array([[-4.,  3.]])
    """
    half = x.shape[-1] // 2
    left, right = x[..., :half], x[..., half:]
    return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
