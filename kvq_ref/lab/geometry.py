"""Which keys are attended to, by the angle between query and key.

Keys stand all around the unit circle, the query at angle 0. With the identity
as values the output of a form *is* its row of weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import kvq_ref as kvq
from kvq_ref.lab.check import Check

F64 = NDArray[np.float64]

SIZES = (0.5, 2.0, 8.0)
FORMS = ("softmax_attention", "expressive_attention")
BAR = 1e-12


@dataclass(frozen=True)
class Geometry:
    """Weights around the circle.

    Attributes
    ----------
    degrees : array, shape (keys,)
        The angle between query and key, 0 to 359.
    sizes : tuple of float
        The values of |q| |k|.
    weights : dict of array, shape (sizes, keys)
        By form, in units of the weight that all keys would have if all had the same.
    checks : list of Check
    """

    degrees: F64
    sizes: tuple[float, ...]
    weights: dict[str, F64]
    checks: list[Check]


def measure_geometry(sizes: tuple[float, ...] = SIZES) -> Geometry:
    """Softmax and expressive attention's weights against the angle.

    Parameters
    ----------
    sizes : tuple of float
        Values of |q| |k|, with scale = 1.

    Returns
    -------
    Geometry

    Examples
    --------
    >>> geometry = measure_geometry()
    >>> expressive = geometry.weights["expressive_attention"][1]
    >>> bool(expressive[0] == expressive.max() > 1e6 * expressive[90])
    True
    """
    degrees = np.arange(360.0)
    angles = np.deg2rad(degrees)
    keys = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    queries = np.array(sizes)[:, None] * np.array([1.0, 0.0])

    def weights(form: str, q: F64) -> F64:
        return np.asarray(getattr(kvq, form)(q, keys, np.eye(360), scale=1.0)) * 360

    measured = {form: weights(form, queries) for form in FORMS}
    turned = weights("expressive_attention", -queries)
    soft, expressive = measured["softmax_attention"], measured["expressive_attention"]
    peak = expressive.max(axis=-1)
    at_peak = degrees[expressive.argmax(axis=-1)]
    checks = [
        Check("geometry: softmax attends most at 0 degrees (off by)", _worst(_apart(degrees[soft.argmax(-1)], 0)), 0.0),
        Check(
            "geometry: softmax attends least at 180 degrees (off by)",
            _worst(_apart(degrees[soft.argmin(-1)], 180)),
            0.0,
        ),
        Check(
            "geometry: expressive attends most at 0 or 180 degrees (off by)",
            _worst(np.minimum(_apart(at_peak, 0), _apart(at_peak, 180))),
            0.0,
        ),
        Check(
            "geometry: expressive weight at 90 and 270 degrees over the largest",
            _worst(expressive[:, [90, 270]] / peak[:, None]),
            BAR,
        ),
        Check(
            "geometry: expressive attention is even, change under q -> -q",
            _worst(np.abs(turned - expressive) / peak[:, None]),
            BAR,
        ),
    ]
    return Geometry(degrees, sizes, measured, checks)


def _apart(a: F64, b: float) -> F64:
    """Degrees between two directions."""
    return np.abs((a - b + 180) % 360 - 180)


def _worst(x: F64) -> float:
    return float(np.max(x))
