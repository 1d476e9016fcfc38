"""Feature maps phi for linear attention, each with its derivative.

A feature map turns q and k into phi(q) and phi(k) before their product, so
that linear attention's weight is phi(q).phi(k). A positive map makes the
weights positive, which ``normalize=True`` needs to be safe.

To use one of your own, pass a pair ``(phi, dphi)`` of elementwise functions,
or a :class:`FeatureMap` if it mixes or changes dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from kvq_ref.arrays import namespace
from kvq_ref.types import Array


class FeatureMap(NamedTuple):
    """A map of the last axis, phi: (..., d) -> (..., m), and the adjoint of its derivative.

    Attributes
    ----------
    apply : callable
        x -> phi(x).
    vjp : callable or None
        (x, dphi) -> dx, the gradient of x given that of phi(x). None for a map
        that is used in forward calls only.

    Examples
    --------
    >>> import numpy as np
    >>> square = FeatureMap(apply=lambda x: x**2, vjp=lambda x, dphi: 2 * x * dphi)
    >>> square.vjp(np.array([3.0]), np.array([1.0]))
    array([6.])
    """

    apply: Callable[[Array], Array]
    vjp: Callable[[Array, Array], Array] | None


def elementwise(phi: Callable[[Array], Array], dphi: Callable[[Array], Array]) -> FeatureMap:
    """A feature map from an elementwise function and its derivative.

    >>> import numpy as np
    >>> elementwise(np.sin, np.cos).vjp(np.array([0.0]), np.array([2.0]))
    array([2.])
    """
    return FeatureMap(apply=phi, vjp=lambda x, d: dphi(x) * d)


def _elu_plus_one(x: Array) -> Array:
    xp = namespace(x)
    return xp.where(x > 0, x + 1, _exp_of_negative(x))


def _elu_plus_one_derivative(x: Array) -> Array:
    xp = namespace(x)
    return xp.where(x > 0, xp.ones_like(x), _exp_of_negative(x))


def _exp_of_negative(x: Array) -> Array:
    """exp(min(x, 0)): the branch that where() throws away must not overflow."""
    xp = namespace(x)
    return xp.exp(xp.where(x > 0, xp.zeros_like(x), x))


def _relu(x: Array) -> Array:
    xp = namespace(x)
    return xp.where(x > 0, x, xp.zeros_like(x))


def _step(x: Array) -> Array:
    xp = namespace(x)
    return xp.astype(x > 0, x.dtype)


FEATURE_MAPS: dict[str, FeatureMap] = {
    "identity": FeatureMap(apply=lambda x: x, vjp=lambda x, d: d),
    "elu+1": elementwise(_elu_plus_one, _elu_plus_one_derivative),  # Katharopoulos et al. 2020, arXiv 2006.16236
    "relu": elementwise(_relu, _step),
}

FeatureMapLike: TypeAlias = (
    str | FeatureMap | Callable[[Array], Array] | tuple[Callable[[Array], Array], Callable[[Array], Array]]
)
"""What ``feature_map=`` takes: a name, a :class:`FeatureMap`, phi alone, or a pair (phi, dphi)."""
