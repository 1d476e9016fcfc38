"""Local linear attention with a bug: in the intercept, in alpha, in where the line is read off."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from testing.mutants import plain
from testing.mutants.gradients import right
from testing.mutants.mutant import mutant, wrong_gradient
from testing.mutants.plain import Array, default_scale, exp_rows, mean, sees, t


def in_its_dtype(function: Callable[..., Array]) -> Callable[..., Array]:
    """What is computed in float64 is returned in the dtype of q."""

    @functools.wraps(function)
    def wrapped(q: Array, *arguments: Any, **options: Any) -> Array:
        return np.asarray(function(q, *arguments, **options)).astype(q.dtype)

    return wrapped


def weights(q: Array, k: Array, *, mask: Any = None, bias: Any = None, is_causal: bool = False, **how: Any) -> Array:
    """exp of the scores, in float64, and not divided by their sum."""
    z = default_scale(q, how.get("scale")) * q.astype(np.float64) @ t(k) + (0 if bias is None else bias)
    return exp_rows(z, sees(q, k, mask, is_causal))


@mutant("local_linear")
@in_its_dtype
def line_without_intercept(q: Array, k: Array, v: Array, *, alpha: Any, **options: Any) -> Array:
    """The line goes through the origin: keys and values are not centred."""
    w = weights(q, k, **options)
    p = w / np.maximum(w.sum(axis=-1, keepdims=True), 1e-300)
    s = np.einsum("...ij,...jd,...je->...ide", p, k, k) + np.asarray(alpha)[..., None, None, None] * np.eye(k.shape[-1])
    return np.asarray(p * (k[..., None, :, :] @ np.linalg.solve(s, q[..., None]))[..., 0]) @ v


@mutant("local_linear")
@in_its_dtype
def alpha_beside_a_sum(q: Array, k: Array, v: Array, *, alpha: Any, **options: Any) -> Array:
    """The weights in the covariance are not divided by their sum: alpha is too small by that."""
    w = weights(q, k, **options)
    total = np.maximum(w.sum(axis=-1, keepdims=True), 1e-300)
    mu = w @ k / total
    c = k[..., None, :, :] - mu[..., None, :]
    s = np.einsum("...ij,...ijd,...ije->...ide", w, c, c)
    s = s + np.asarray(alpha)[..., None, None, None] * np.eye(k.shape[-1])
    slope = np.einsum("...ij,...ijd,...jv->...idv", w, c, v)
    return w @ v / total + np.einsum("...id,...idv->...iv", np.linalg.solve(s, (q - mu)[..., None])[..., 0], slope)


@mutant("local_linear", breaks="values that are all the same are returned")
@in_its_dtype
def intercept_penalised(q: Array, k: Array, v: Array, *, alpha: Any, **options: Any) -> Array:
    """The penalty is on the intercept too: constants are shrunk."""
    w = weights(q, k, **options)
    p = w / np.maximum(w.sum(axis=-1, keepdims=True), 1e-300)
    off = k[..., None, :, :] - q[..., :, None, :]
    known = np.concatenate([np.ones((*off.shape[:-1], 1)), off], axis=-1)
    s = np.einsum("...ij,...ija,...ijb->...iab", p, known, known)
    s = s + np.asarray(alpha)[..., None, None, None] * np.eye(s.shape[-1])
    first = np.linalg.solve(s, np.eye(s.shape[-1])[:, :1])
    return np.asarray(p * (known @ first)[..., 0]) @ v


@mutant("local_linear", breaks="values on a plane are continued")
@in_its_dtype
def read_off_at_the_origin(q: Array, k: Array, v: Array, **options: Any) -> Array:
    """The line is read off at zero, and not at the query: keys were not centred there."""
    p = mean(weights(q, k, **{name: x for name, x in options.items() if name != "alpha"}), np.eye(k.shape[-2]))
    return plain.line(p, 0.0 * q, k, v, np.asarray(options["alpha"], float))


@mutant("local_linear")
def slope_left_out(q: Array, k: Array, v: Array, *, alpha: Any, **options: Any) -> Array:
    """Softmax attention: the level alone is fitted."""
    return plain.softmax(q, k, v, **options)


@wrong_gradient("local_linear")
def gradient_through_the_scores_alone(dout: Array, q: Array, k: Array, v: Array, **options: Any) -> dict[str, Array]:
    """The query also says where the line is read off; that part of its gradient is left out."""
    grads = right("local_linear_attention", dout, q, k, v, **options)
    at_once = right("local_linear_attention", dout, q, k, v, **{**options, "scale": 0.0})
    return grads | {"q": grads["q"] - at_once["q"]}
