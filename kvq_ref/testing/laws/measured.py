"""What a target computed, together with how exact it can be: laws calculate with both at once.

A value carries the unit of its rounding and how many of them it may be off, and
sums, products and reorderings of values carry theirs along. So the tolerance of a
law is never written down: it follows from the law's own formula.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvq_ref.testing.calls import F64, PER_KEY, Call
from kvq_ref.testing.laws.law import Comparison
from kvq_ref.testing.target import Target

FLOAT64 = 2.0**-53


@dataclass(frozen=True)
class Measured:
    """A value within ``limit`` times ``unit`` of the truth, entry by entry.

    What a law computes with it, it computes in float64; that adds a rounding or two
    to the dozens that the limit allows in the value itself.

    >>> a = Measured(np.array([1.0, 2.0]), np.array([0.1, 0.1]), 4.0)
    >>> (2 * a + a[::-1]).unit
    array([0.3, 0.3])
    """

    value: F64
    unit: F64
    limit: float

    def map(self, move: Callable[[F64], F64]) -> Measured:
        """The entries elsewhere, or sums of them."""
        return Measured(move(self.value), move(self.unit), self.limit)

    def __getitem__(self, at: Any) -> Measured:
        return self.map(lambda x: x[at])

    def sum(self, axis: Any, keepdims: bool = False) -> Measured:
        return self.map(lambda x: np.sum(x, axis=axis, keepdims=keepdims))

    def __add__(self, other: Measured) -> Measured:
        return Measured(self.value + other.value, self.unit + other.unit, max(self.limit, other.limit))

    def __sub__(self, other: Measured) -> Measured:
        return self + -1.0 * other

    def __mul__(self, other: Any) -> Measured:
        b = other if isinstance(other, Measured) else exactly(other)
        limit = max(self.limit, b.limit)
        unit = self.unit * np.abs(b.value) + np.abs(self.value) * b.unit + limit * self.unit * b.unit
        return Measured(self.value * b.value, unit, limit)

    __array_ufunc__ = None  # an array times this is for this to compute
    __rmul__ = __mul__


def exactly(x: Any) -> Measured:
    """A value without error."""
    x = np.asarray(x, np.float64)
    return Measured(x, np.zeros(x.shape), 0.0)


def computed(x: F64, size: Any) -> Measured:
    """A value that the law computed itself, in float64, out of terms of the given size."""
    return Measured(x, FLOAT64 * np.broadcast_to(size, x.shape), 0.0)


def ask(target: Target, call: Call) -> Measured:
    """The output of a target."""
    bound = target.rounding(call)
    return Measured(target(call), bound.unit["out"], bound.limit["out"])


def ask_gradients(target: Target, call: Call, dout: F64) -> dict[str, Measured]:
    """The gradients of a target, by name."""
    bound = target.rounding(call, dout)
    return {name: Measured(g, bound.unit[name], bound.limit[name]) for name, g in target.gradients(call, dout).items()}


def same(what: str, a: Measured, b: Measured) -> Comparison:
    """Both are the same but for rounding."""
    return Comparison(what, a.value, b.value, a.unit + b.unit, max(a.limit, b.limit))


def at_most(what: str, a: Measured, bound: F64) -> Comparison:
    """The one is not larger than the other but for rounding."""
    return Comparison(what, a.value, np.minimum(a.value, bound), a.unit, a.limit)


def keys_of(name: str, gradient: Measured, at: Any) -> Measured:
    """The part of a gradient that belongs to some of the keys; all of that of a query or of alpha."""
    is_row = name in ("k", "v", *PER_KEY)
    return gradient[..., at, :] if is_row else gradient[..., at] if name == "bias" else gradient


def queries_of(name: str, gradient: Measured, at: Any) -> Measured:
    """The part of a gradient that belongs to some of the queries."""
    return gradient[..., at, :] if name in ("q", "bias") else gradient


def unseen(call: Call) -> dict[str, NDArray[np.bool_]]:
    """By name, which entries no output depends on: keys and values that no query sees, biases of hidden pairs."""
    visible = call.visible()
    key = ~np.any(visible, axis=-2, keepdims=True).swapaxes(-1, -2)
    return {"k": key, "v": key, "bias": ~visible, **dict.fromkeys(PER_KEY, key)}


def weights(target: Target, call: Call) -> Measured:
    """The weights, shape (..., Tq, Tk): the output where the value of each key is a unit vector.

    They are asked for dv at a time, so that no array has another shape than in the call.
    """
    _, Tk, _, dv = call.sizes
    parts = []
    for start in range(0, Tk, dv):
        v = np.broadcast_to(np.eye(Tk, dv, -start), call.v.shape).copy()
        parts.append(ask(target, call.but(v=v)))
    return Measured(
        np.concatenate([p.value for p in parts], axis=-1)[..., :Tk],
        np.concatenate([p.unit for p in parts], axis=-1)[..., :Tk],
        parts[0].limit,
    )
