"""The definitions once more, in a few lines of array code and float64: for calls that are too long for loops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import kvq_ref
from kvq_ref.dispatch import FORMS
from kvq_ref.grid import GRID
from kvq_ref.testing.calls import F64, Call
from kvq_ref.testing.lines import Lines
from kvq_ref.testing.walks import out_in_order

PLAIN_FORM = {
    "intention": "linear_attention",
    "sigma_intention": "softmax_attention",
    "expressive_intention": "expressive_attention",
}
PHI: Mapping[str, Callable[[F64], F64]] = {
    "identity": lambda x: x,
    "elu+1": lambda x: np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))),
    "relu": lambda x: np.maximum(x, 0),
}


def transpose(x: F64) -> F64:
    return np.swapaxes(x, -1, -2)


def preconditioned(call: Call) -> F64:
    """The queries (G_i + alpha I)^-1 q_i."""
    gram, _ = call.sums_seen()
    alpha = np.broadcast_to(np.asarray(call.options["alpha"], float), call.q.shape[:-2])[..., None, None, None]
    h = gram + alpha * np.eye(gram.shape[-1])
    if np.any(alpha == 0):
        return np.asarray((np.linalg.pinv(h, hermitian=True) @ call.q[..., None])[..., 0])
    return np.asarray(np.linalg.solve(h, call.q[..., None])[..., 0])


def scores(form: str, call: Call) -> F64:
    """The scores z, of hidden pairs too."""
    q, k = call.q, call.k
    if GRID[form].query == "preconditioned":
        q = preconditioned(call)
    if call.get("feature_map") is not None:
        phi = PHI[call.get("feature_map")]
        q, k = phi(q), phi(k)
    return np.asarray(scale_of(form, call) * q @ transpose(k) + call.options.get("offset", 0.0))


def scale_of(form: str, call: Call) -> float:
    scale = call.get("scale")
    return GRID[form].default_scale(call.q.shape[-1]) if scale is None else float(scale)


SCORES: Mapping[str, Callable[[F64], F64]] = {
    "z": lambda z: z,
    "z^2/(1+z^2)": lambda z: z**2 / (1 + z**2),
    "z^2": lambda z: z**2,
    "1+z+z^2/2": lambda z: 1 + z + z**2 / 2,
    "sigmoid": lambda z: np.exp(np.minimum(z, 0)) / (1 + np.exp(-np.abs(z))),
}


def dense(form: str, call: Call) -> F64:
    """The output."""
    if FORMS[form].is_sequential and "alpha" in FORMS[form].options:
        return np.asarray(preconditioned(call) @ transpose(call.k) * call.left() @ call.v)
    if FORMS[form].is_sequential:
        return out_in_order(form, call)
    place, visible, z = GRID[form], call.visible(), scores(form, call)
    b = np.zeros(z.shape) + call.options.get("bias", 0.0)
    exponent = np.where(visible, z + b if place.score == "exp" else b, -np.inf)
    if place.row != "sum":
        top = np.max(exponent, axis=-1, keepdims=True)
        exponent = exponent - np.where(np.isfinite(top), top, 0.0)
    w = np.exp(exponent)
    w = w if place.score == "exp" else np.where(visible, w * SCORES[place.score](z), 0.0)
    total = np.sum(w, axis=-1, keepdims=True)
    if place.row == "line":
        return np.asarray(Lines.of(call, w / np.where(total == 0, 1.0, total)).weights() @ call.v)
    is_normalized = place.row == "mean" or call.get("normalize")
    return np.asarray(w @ call.v / np.where(total == 0, 1.0, total) if is_normalized else w @ call.v)


def reference_gradients(form: str, call: Call, dout: F64) -> dict[str, F64]:
    """The gradients of the readable form, in float64."""
    options: dict[str, Any] = {**call.options, "implementation": "reference"}
    _, pullback = kvq_ref.vjp(getattr(kvq_ref, form), call.q, call.k, call.v, **options)
    return {name: np.asarray(g) for name, g in pullback(dout)._asdict().items() if g is not None}
