"""A form taken apart into its steps, in float64: what a kernel does wrong is another value of one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvq_ref.grid import GRID
from kvq_ref.testing.calls import F64, Call

Bool = NDArray[np.bool_]
Weight = Callable[[F64, F64, Bool], tuple[F64, F64]]


def t(x: F64) -> F64:
    return np.swapaxes(x, -1, -2)


def shifted(x: F64, sees: Bool) -> F64:
    """x less the largest of its row that is seen, -inf where nothing is."""
    x = np.where(sees, x, -np.inf)
    top = np.max(x, axis=-1, keepdims=True, initial=-np.inf)
    return np.asarray(x - np.where(np.isfinite(top), top, 0.0))


def exponential(z: F64, bias: F64, sees: Bool) -> tuple[F64, F64]:
    """exp(z + b), and its slope in z."""
    w = np.exp(shifted(z + bias, sees))
    return w, w


def plain(z: F64, bias: F64, sees: Bool) -> tuple[F64, F64]:
    """z itself."""
    return np.where(sees, z, 0.0), sees.astype(float)


def biased(f: Callable[[F64], F64], df: Callable[[F64], F64]) -> Weight:
    """exp(b) f(z)."""

    def weight(z: F64, bias: F64, sees: Bool) -> tuple[F64, F64]:
        factor = np.exp(shifted(bias + 0.0 * z, sees))
        return np.where(sees, factor * f(z), 0.0), np.where(sees, factor * df(z), 0.0)

    return weight


def gated(offset: float) -> Weight:
    """exp(b) / (1 + exp(-(z + offset)))."""

    def weight(z: F64, bias: F64, sees: Bool) -> tuple[F64, F64]:
        x = z + offset
        w = np.where(sees, np.exp(np.where(sees, bias, 0.0) + np.minimum(x, 0)) / (1 + np.exp(-np.abs(x))), 0.0)
        return w, w * np.exp(np.minimum(-x, 0)) / (1 + np.exp(-np.abs(x)))

    return weight


WEIGHTS: dict[str, Weight] = {
    "z": plain,
    "exp": exponential,
    "z^2/(1+z^2)": biased(lambda z: z**2 / (1 + z**2), lambda z: 2 * z / (1 + z**2) ** 2),
    "z^2": biased(lambda z: z**2, lambda z: 2 * z),
    "1+z+z^2/2": biased(lambda z: 1 + z + z**2 / 2, lambda z: 1 + z),
}

PHI: dict[str, tuple[Callable[[F64], F64], Callable[[F64], F64]]] = {
    "identity": (lambda x: x, np.ones_like),
    "elu+1": (
        lambda x: np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))),
        lambda x: np.where(x > 0, 1.0, np.exp(np.minimum(x, 0))),
    ),
    "elu": (
        lambda x: np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1),
        lambda x: np.where(x > 0, 1.0, np.exp(np.minimum(x, 0))),
    ),
    "relu": (lambda x: np.maximum(x, 0), lambda x: (x > 0).astype(float)),
}


@dataclass(frozen=True)
class Steps:
    """What a form does with a call.

    Attributes
    ----------
    form : str
    call : Call
        As it was asked.
    q, k, v : array
        Broadcast to one set of leading axes.
    phi_q, phi_k : str
        Names of the feature maps.
    scale : float
        Of the scores.
    bias : array
        Zero where there is none.
    sees : array of bool
        Which key has a weight for which query, shape (..., Tq, Tk).
    fits : array of bool
        Which key is in the regression of which query.
    alpha : array or None
        None if the query is not preconditioned.
    weight : callable
        From scores, biases and who is seen to weights and their slopes.
    is_normalized : bool
        Whether the sum of a row's weights is divided out.
    """

    form: str
    call: Call
    q: F64
    k: F64
    v: F64
    phi_q: str
    phi_k: str
    scale: float
    bias: F64
    sees: Bool
    fits: Bool
    alpha: F64 | None
    weight: Weight
    is_normalized: bool

    @classmethod
    def of(cls, form: str, call: Call) -> Steps:
        lead = np.broadcast_shapes(call.q.shape[:-2], call.k.shape[:-2], call.v.shape[:-2])
        q, k, v = (np.broadcast_to(x, (*lead, *x.shape[-2:])) for x in (call.q, call.k, call.v))
        Tq, Tk, _, _ = call.sizes
        sees = np.broadcast_to(visible(call), (*lead, Tq, Tk))
        place, alpha = GRID[form], None
        if place.query == "preconditioned":
            alpha = np.broadcast_to(np.asarray(call.options["alpha"], float), lead)
        phi = call.get("feature_map") or "identity"
        return cls(
            form=form,
            call=call,
            q=q,
            k=k,
            v=v,
            phi_q=phi,
            phi_k=phi,
            scale=default_scale(form, call) if call.get("scale") is None else float(call.options["scale"]),
            bias=np.broadcast_to(np.asarray(call.options.get("bias", 0.0), float), sees.shape),
            sees=sees,
            fits=sees,
            alpha=alpha,
            weight=gated(call.options.get("offset", 0.0)) if place.score == "sigmoid" else WEIGHTS[place.score],
            is_normalized=place.row == "mean" or bool(call.get("normalize")),
        )

    def but(self, **changes: Any) -> Steps:
        return replace(self, **changes)

    @cached_property
    def system(self) -> F64:
        """G_i + alpha I for each query."""
        assert self.alpha is not None
        d = self.k.shape[-1]
        products = (self.k[..., :, None] * self.k[..., None, :]).reshape(*self.k.shape[:-1], d * d)
        gram = (self.fits.astype(float) @ products).reshape(*self.fits.shape[:-1], d, d)
        return np.asarray(gram + self.alpha[..., None, None, None] * np.eye(d))

    def solve(self, x: F64) -> F64:
        """H_i^-1 x_i, a pseudo-inverse where there is none."""
        if self.alpha is not None and np.any(self.alpha == 0):
            return np.asarray((np.linalg.pinv(self.system, hermitian=True) @ x[..., None])[..., 0])
        try:
            return np.asarray(np.linalg.solve(self.system, x[..., None])[..., 0])
        except np.linalg.LinAlgError:  # a suspect's system may be singular where the true one is not
            return np.full(np.broadcast_shapes(x.shape, self.system.shape[:-1]), np.nan)

    @cached_property
    def y(self) -> F64:
        """The query that meets the keys."""
        q = PHI[self.phi_q][0](self.q)
        return q if self.alpha is None else self.solve(q)

    @cached_property
    def keys(self) -> F64:
        return PHI[self.phi_k][0](self.k)

    @cached_property
    def z(self) -> F64:
        return np.asarray(self.scale * self.y @ t(self.keys))

    @cached_property
    def weights(self) -> tuple[F64, F64]:
        """Weights and slopes, before any normalisation."""
        return self.weight(self.z, self.bias, self.sees)

    @cached_property
    def total(self) -> F64:
        """What a row is divided by."""
        if not self.is_normalized:
            return np.ones((*self.z.shape[:-1], 1))
        total = np.sum(self.weights[0], axis=-1, keepdims=True)
        return np.where(total == 0, 1.0, total)

    @cached_property
    def p(self) -> F64:
        return self.weights[0] / self.total

    @cached_property
    def out(self) -> F64:
        return self.p @ self.v

    def backward(self, dout: F64) -> Backward:
        return Backward(self, dout)


@dataclass(frozen=True)
class Backward:
    """The gradients of a form, in parts; a wrong one has other parts."""

    steps: Steps
    dout: F64
    has_row_sum_term: bool = True

    @cached_property
    def excess(self) -> F64:
        """How much more a value is worth to its query than the mean of all."""
        s = self.steps
        dp = self.dout @ t(s.v)
        if not s.is_normalized or not self.has_row_sum_term:
            return np.asarray(dp)
        return np.asarray(dp - np.sum(s.p * dp, axis=-1, keepdims=True))

    @cached_property
    def dz(self) -> F64:
        return np.asarray(self.steps.weights[1] / self.steps.total * self.excess)

    @cached_property
    def dy(self) -> F64:
        return np.asarray(self.steps.scale * self.dz @ self.steps.keys)

    @cached_property
    def u(self) -> F64:
        """The gradient of phi(q)."""
        return self.dy if self.steps.alpha is None else self.steps.solve(self.dy)

    @cached_property
    def direct(self) -> F64:
        """What the keys get from the scores alone."""
        return np.asarray(self.steps.scale * t(self.dz) @ self.steps.y)

    @cached_property
    def through_gram(self) -> tuple[F64, F64]:
        """What the keys get from the Gram matrix, which holds each of them twice."""
        s = self.steps
        if s.alpha is None:
            return np.zeros(s.k.shape), np.zeros(s.k.shape)
        first, second = (np.where(s.fits, a @ t(s.k), 0.0) for a in (s.y, self.u))
        return -t(first) @ self.u, -t(second) @ s.y

    def slopes(self) -> tuple[F64, F64]:
        """Of the feature maps."""
        s = self.steps
        return PHI[s.phi_q][1](s.q), PHI[s.phi_k][1](s.k)

    def grads(self, **parts: F64) -> dict[str, F64]:
        """By name, in the shapes of the call's arrays; parts replace what is right, before the feature maps."""
        s = self.steps
        phi_q, phi_k = self.slopes()
        found = {
            "q": phi_q * parts.get("q", self.u),
            "k": phi_k * parts.get("k", self.direct + sum(self.through_gram)),
            "v": parts.get("v", t(s.p) @ self.dout),
        }
        if s.call.get("bias") is not None:
            found["bias"] = parts.get("bias", s.p * self.excess)
        if s.alpha is not None:
            found["alpha"] = parts.get("alpha", -np.sum(self.u * s.y, axis=(-2, -1)))
        return {name: summed(g, np.shape(s.call.arrays[name])) for name, g in found.items() if name in s.call.arrays}


def default_scale(form: str, call: Call) -> float:
    return GRID[form].default_scale(call.q.shape[-1])


def mask_of(call: Call) -> Bool:
    """The mask alone, shape (..., Tq, Tk)."""
    Tq, Tk, _, _ = call.sizes
    mask = np.asarray(True if call.get("mask") is None else call.options["mask"])
    return np.asarray(np.broadcast_to(mask, np.broadcast_shapes(mask.shape, (Tq, Tk))))


def causal(call: Call, shift: int = 0) -> Bool:
    """Query i sees keys 0 .. i + shift."""
    return np.tri(*call.sizes[:2], k=shift, dtype=bool)


def visible(call: Call) -> Bool:
    return mask_of(call) & causal(call) if call.is_causal else mask_of(call)


def summed(x: F64, shape: tuple[int, ...]) -> F64:
    """Sums over the axes that were broadcast."""
    x = np.sum(x, axis=tuple(range(x.ndim - len(shape)))) if x.ndim > len(shape) else x
    axes = tuple(i for i, n in enumerate(shape) if n == 1 and x.shape[i] != 1)
    return np.asarray(np.broadcast_to(np.sum(x, axis=axes, keepdims=True), shape))
