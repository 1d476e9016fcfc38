"""How a model knows the order of its tokens.

none        it does not, beyond who sees whom
learned     a row of a table is added to each token
sinusoidal  waves of many lengths are added (Vaswani et al. 2017)
rotary      queries and keys are turned by an angle that grows with the place (Su et al. 2021)
alibi       a weight is multiplied by exp(-slope x distance) (Press et al. 2021); as a bias, for every score form
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

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
    angles = _angles(T, d // 2)
    # in the dtype and on the device of x
    cos, sin = (np.asarray(wave(angles).astype(x.dtype), like=x) for wave in (np.cos, np.sin))

    def turn(x: Array, sin: Array) -> Array:
        left, right = x[..., : d // 2], x[..., d // 2 :]
        return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)

    return turn(x, sin), lambda dy: turn(dy, -sin)
