"""The forms in plain NumPy, as one would write them first: what the mutants are small edits of.

Correct, in few steps, and without protection against anything but overflow and empty rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray


def t(x: Array) -> Array:
    return np.swapaxes(x, -1, -2)


def sees(q: Array, k: Array, mask: Array | None = None, is_causal: bool = False, shift: int = 0) -> Array:
    """Which query sees which key, shape (..., Tq, Tk)."""
    Tq, Tk = q.shape[-2], k.shape[-2]
    seen = np.ones((Tq, Tk), bool) if mask is None else np.broadcast_to(mask, (*np.shape(mask)[:-2], Tq, Tk))
    return seen & np.tri(Tq, Tk, k=shift, dtype=bool) if is_causal else seen


def default_scale(q: Array, scale: float | None) -> float:
    """Of softmax attention."""
    return float(q.shape[-1] ** -0.5 if scale is None else scale)


def exp_rows(z: Array, seen: Array) -> Array:
    """exp(z - the row's maximum), and 0 where a key is hidden."""
    z = np.where(seen, z, -np.inf)
    top = np.max(z, axis=-1, keepdims=True)
    return np.exp(z - np.where(np.isfinite(top), top, 0)).astype(z.dtype)


def expressive_weight(z: Array) -> Array:
    """z^2 / (1 + z^2), without overflow."""
    r = 1 / np.maximum(np.abs(z), 1)
    small = np.minimum(np.abs(z), 1)
    return np.where(np.abs(z) > 1, 1 / (1 + r * r), small**2 / (1 + small**2)).astype(z.dtype)


def mean(w: Array, v: Array) -> Array:
    """The values' mean under these weights; zero where there is no weight."""
    total = np.sum(w, axis=-1, keepdims=True)
    return (w / np.where(total == 0, 1, total).astype(w.dtype)) @ v


def grams(k: Array, seen: Array) -> Array:
    """For each query the sum of k_j k_j^T over the keys that it sees, shape (..., Tq, d, d)."""
    return np.einsum("...ij,...jd,...je->...ide", seen.astype(k.dtype), k, k)


def precondition(q: Array, k: Array, alpha: Any, seen: Array) -> Array:
    """(sum_j k_j k_j^T + alpha I)^-1 q_i for each query; worked in float64, where the mutants' bugs are not."""
    h = grams(k.astype(np.float64), seen) + np.asarray(alpha)[..., None, None, None] * np.eye(k.shape[-1])
    return np.linalg.solve(h, q[..., None].astype(np.float64))[..., 0].astype(q.dtype)


def softmax(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Array:
    z = default_scale(q, scale) * q @ t(k) + (0 if bias is None else bias)
    return mean(exp_rows(z, sees(q, k, mask, is_causal)), v)


def expressive(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Array:
    seen = sees(q, k, mask, is_causal)
    w = expressive_weight((scale or 1) * q @ t(k)) * (1 if bias is None else exp_rows(bias, seen))
    return mean(np.where(seen, w, 0), v)


def quadratic(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Array:
    seen = sees(q, k, mask, is_causal)
    z = np.where(seen, (scale or 1) * q @ t(k), 0) * (1 if bias is None else np.sqrt(exp_rows(bias, seen)))
    top = np.max(np.abs(z), axis=-1, keepdims=True)
    return mean((z / np.where(top == 0, 1, top)).astype(q.dtype) ** 2, v)


def taylor(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Array:
    seen = sees(q, k, mask, is_causal)
    z = np.where(seen, (scale or 1) * q @ t(k), 0)
    c = np.maximum(np.max(np.abs(z), axis=-1, keepdims=True), 1)
    w = (1 / c**2 + z / c / c + (z / c) ** 2 / 2) * (1 if bias is None else exp_rows(bias, seen))
    return mean(np.where(seen, w, 0).astype(q.dtype), v)


def sigmoid(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    offset: float = 0.0,
) -> Array:
    z = (1 if scale is None else scale) * q @ t(k) + offset
    seen = sees(q, k, mask, is_causal)
    factor = 1 if bias is None else np.exp(np.where(seen, bias, 0))
    w = np.exp(np.minimum(z, 0)) / (1 + np.exp(-np.abs(z))) * factor
    return np.where(seen, w, 0).astype(q.dtype) @ v


def local_linear(
    q: Array,
    k: Array,
    v: Array,
    *,
    alpha: Any,
    mask: Array | None = None,
    bias: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Array:
    seen = sees(q, k, mask, is_causal)
    q, k, v, alpha = (
        np.asarray(x, np.float64) for x in (q, k, v, alpha)
    )  # in float64, where the mutants' bugs are not
    w = exp_rows(default_scale(q, scale) * q @ t(k) + (0 if bias is None else bias), seen)
    return line(mean(w, np.eye(k.shape[-2])), q, k, v, alpha)


def line(p: Array, q: Array, k: Array, v: Array, alpha: Array) -> Array:
    """The weighted ridge regression of each query under the weights p, at the query."""
    mu = p @ k
    c = k[..., None, :, :] - mu[..., None, :]
    s = np.einsum("...ij,...ijd,...ije->...ide", p, c, c) + alpha[..., None, None, None] * np.eye(k.shape[-1])
    y = np.linalg.solve(s, (q - mu)[..., None])
    return (p * (1 + (c @ y)[..., 0])) @ v


def feature(x: Array, feature_map: str | None) -> Array:
    """phi(x): x itself, or elu(x) + 1."""
    return x if feature_map is None else np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def linear(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    feature_map: str | None = None,
    normalize: bool = False,
) -> Array:
    w = (1 if scale is None else scale) * feature(q, feature_map) @ t(feature(k, feature_map))
    w = np.where(sees(q, k, mask, is_causal), w, 0)
    return mean(w, v) if normalize else w @ v


def intention(q: Array, k: Array, v: Array, *, alpha: Any, mask: Array | None = None, is_causal: bool = False) -> Array:
    seen = sees(q, k, mask, is_causal)
    return np.where(seen, precondition(q, k, alpha, seen) @ t(k), 0) @ v


def sigma(
    q: Array,
    k: Array,
    v: Array,
    *,
    alpha: Any,
    mask: Array | None = None,
    bias: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Array:
    y = precondition(q, k, alpha, sees(q, k, mask, is_causal))
    return softmax(y, k, v, mask=mask, bias=bias, is_causal=is_causal, scale=1.0 if scale is None else scale)


def expressive_intention(
    q: Array,
    k: Array,
    v: Array,
    *,
    alpha: Any,
    mask: Array | None = None,
    bias: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Array:
    y = precondition(q, k, alpha, sees(q, k, mask, is_causal))
    return expressive(y, k, v, mask=mask, bias=bias, is_causal=is_causal, scale=scale)


def rows_of(k: Array, x: Any) -> Array:
    """A step or a decay for each key; 1 where none is given."""
    x = np.ones((k.shape[-2], 1), k.dtype) if x is None else np.asarray(x)
    return np.broadcast_to(x, (*x.shape[:-2], k.shape[-2], x.shape[-1]))


def delta(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    beta: Any = None,
) -> Array:
    """One state for each query."""
    seen, beta = sees(q, k, mask, is_causal), rows_of(k, beta)
    lead = np.broadcast_shapes(*(x.shape[:-2] for x in (q, k, v, seen, beta)))
    s = np.zeros((*lead, q.shape[-2], k.shape[-1], v.shape[-1]), np.float32 if q.dtype == np.float16 else q.dtype)
    for j in range(k.shape[-2]):
        k_j, v_j, beta_j = (x[..., None, j, :] for x in (k, v, beta))
        wrong = v_j - (k_j[..., None, :] @ s)[..., 0, :]
        step = k_j[..., :, None] * (beta_j * wrong)[..., None, :]
        s = s + np.where(seen[..., j, None, None], step, 0)
    return ((1 if scale is None else scale) * (q[..., None, :] @ s)[..., 0, :]).astype(q.dtype)


def gated(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    decay: Any = None,
) -> Array:
    """One state for each query."""
    seen, decay = sees(q, k, mask, is_causal), rows_of(k, decay)
    lead = np.broadcast_shapes(*(x.shape[:-2] for x in (q, k, v, seen, decay)))
    s = np.zeros((*lead, q.shape[-2], k.shape[-1], v.shape[-1]), np.float32 if q.dtype == np.float16 else q.dtype)
    for j in range(k.shape[-2]):
        k_j, v_j, decay_j = (x[..., None, j, :] for x in (k, v, decay))
        s = np.where(seen[..., j, None, None], decay_j[..., :, None] * s + k_j[..., :, None] * v_j[..., None, :], s)
    return ((1 if scale is None else scale) * (q[..., None, :] @ s)[..., 0, :]).astype(q.dtype)


def left(seen: Array, decay: Array) -> Array:
    """What is left of each key for each query, (..., Tq, Tk): the decays of the keys after it that the query sees."""
    fades = np.where(seen, t(decay).astype(np.float64), 1)
    after = np.concatenate([fades[..., 1:], np.ones_like(fades[..., :1])], axis=-1)
    return np.where(seen, np.cumprod(after[..., ::-1], axis=-1)[..., ::-1], 0)


def faded_fit(q: Array, k: Array, v: Array, alpha: Any, in_h: Array, in_w: Array) -> Array:
    """q (H + alpha I)^-1 W, with so much of each key in H, and in W; worked in float64."""
    k = k.astype(np.float64)
    h = np.einsum("...ij,...jd,...je->...ide", in_h, k, k) + np.asarray(alpha)[..., None, None, None] * np.eye(
        k.shape[-1]
    )
    y = np.linalg.solve(h, q[..., None].astype(np.float64))[..., 0]
    return (((y @ t(k)) * in_w) @ v).astype(q.dtype)


def mesa(
    q: Array,
    k: Array,
    v: Array,
    *,
    alpha: Any,
    mask: Array | None = None,
    is_causal: bool = False,
    decay: Any = None,
) -> Array:
    c = left(sees(q, k, mask, is_causal), rows_of(k, decay))
    return faded_fit(q, k, v, alpha, c, c)
