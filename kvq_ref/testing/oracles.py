"""Brute force: every form as loops over queries and keys, in float64.

Written from the equations alone, one number at a time and as slow as that
sounds, so that a mistake in the forms' array code has nowhere to hide. The
only linear algebra is that of the regression of one query: ``numpy.linalg.solve``,
``pinv`` and ``lstsq``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]
Oracle = Callable[..., F64]


def softmax_attention(q: ArrayLike, k: ArrayLike, v: ArrayLike, *, scale: float | None = None, **options: Any) -> F64:
    """Loops for :func:`kvq_ref.softmax_attention`, without its protection against overflow."""
    d = np.shape(q)[-1]
    scale = 1 / math.sqrt(d or 1) if scale is None else scale
    return _loop(q, k, v, lambda q_i, k_j: math.exp(scale * _dot(q_i, k_j)), normalize=True, **options)


def expressive_attention(
    q: ArrayLike, k: ArrayLike, v: ArrayLike, *, scale: float | None = None, **options: Any
) -> F64:
    """Loops for :func:`kvq_ref.expressive_attention`."""
    scale = 1.0 if scale is None else scale

    def weight(q_i: F64, k_j: F64) -> float:
        z = scale * _dot(q_i, k_j)
        return z * z / (1 + z * z)

    return _loop(q, k, v, weight, normalize=True, **options)


def quadratic_attention(q: ArrayLike, k: ArrayLike, v: ArrayLike, *, scale: float | None = None, **options: Any) -> F64:
    """Loops for :func:`kvq_ref.quadratic_attention`."""
    scale = 1.0 if scale is None else scale
    return _loop(q, k, v, lambda q_i, k_j: (scale * _dot(q_i, k_j)) ** 2, normalize=True, **options)


def taylor_attention(q: ArrayLike, k: ArrayLike, v: ArrayLike, *, scale: float | None = None, **options: Any) -> F64:
    """Loops for :func:`kvq_ref.taylor_attention`."""
    scale = 1.0 if scale is None else scale

    def weight(q_i: F64, k_j: F64) -> float:
        z = scale * _dot(q_i, k_j)
        return 1 + z + z * z / 2

    return _loop(q, k, v, weight, normalize=True, **options)


def sigmoid_attention(
    q: ArrayLike, k: ArrayLike, v: ArrayLike, *, scale: float | None = None, offset: float = 0.0, **options: Any
) -> F64:
    """Loops for :func:`kvq_ref.sigmoid_attention`, without its protection against overflow."""
    scale = 1.0 if scale is None else scale

    def weight(q_i: F64, k_j: F64) -> float:
        return 1 / (1 + math.exp(-(scale * _dot(q_i, k_j) + offset)))

    return _loop(q, k, v, weight, normalize=False, **options)


def local_linear_attention(
    q: ArrayLike, k: ArrayLike, v: ArrayLike, *, alpha: ArrayLike, scale: float | None = None, **options: Any
) -> F64:
    """Loops for :func:`kvq_ref.local_linear_attention`: each fit by ``numpy.linalg.lstsq``."""
    return softmax_attention(q, k, v, scale=scale, line=alpha, **options)


def linear_attention(q: ArrayLike, k: ArrayLike, v: ArrayLike, *, scale: float | None = None, **options: Any) -> F64:
    """Loops for :func:`kvq_ref.linear_attention`; ``phi`` is a function of one number."""
    scale = 1.0 if scale is None else scale
    phi = options.pop("phi", lambda x: x)

    def weight(q_i: F64, k_j: F64) -> float:
        return scale * float(sum(phi(float(a)) * phi(float(b)) for a, b in zip(q_i, k_j, strict=True)))

    return _loop(q, k, v, weight, normalize=options.pop("normalize", False), **options)


def intention(q: ArrayLike, k: ArrayLike, v: ArrayLike, *, alpha: ArrayLike, **options: Any) -> F64:
    """Loops for :func:`kvq_ref.intention`."""
    return _loop(q, k, v, _dot, normalize=False, alpha=alpha, **options)


def sigma_intention(
    q: ArrayLike, k: ArrayLike, v: ArrayLike, *, alpha: ArrayLike, scale: float | None = None, **options: Any
) -> F64:
    """Loops for :func:`kvq_ref.sigma_intention`."""
    return softmax_attention(q, k, v, alpha=alpha, scale=1.0 if scale is None else scale, **options)


def expressive_intention(
    q: ArrayLike, k: ArrayLike, v: ArrayLike, *, alpha: ArrayLike, scale: float | None = None, **options: Any
) -> F64:
    """Loops for :func:`kvq_ref.expressive_intention`."""
    return expressive_attention(q, k, v, alpha=alpha, scale=scale, **options)


def delta_rule(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    scale: float | None = None,
    beta: ArrayLike | None = None,
    initial_state: tuple[ArrayLike] | None = None,
    **options: Any,
) -> F64:
    """Loops for :func:`kvq_ref.delta_rule`."""
    d, dv = np.shape(q)[-1], np.shape(v)[-1]

    def write(s: F64, k_j: F64, v_j: F64, step: F64) -> None:
        wrong = [float(v_j[c]) - sum(float(k_j[a]) * float(s[a, c]) for a in range(d)) for c in range(dv)]
        for a in range(d):
            for c in range(dv):
                s[a, c] += float(step[0]) * float(k_j[a]) * wrong[c]

    past = None if initial_state is None else initial_state[0]
    return _walk(q, k, v, write, _times(scale), [1.0 if beta is None else beta], past, dv, **options)


def gated_linear_attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    scale: float | None = None,
    decay: ArrayLike | None = None,
    **options: Any,
) -> F64:
    """Loops for :func:`kvq_ref.gated_linear_attention`."""
    rows: list[ArrayLike] = [1.0 if decay is None else decay]
    return _walk(q, k, v, _fade_and_add, _times(scale), rows, None, np.shape(v)[-1], **options)


def mesa_attention(
    q: ArrayLike, k: ArrayLike, v: ArrayLike, *, alpha: ArrayLike, decay: ArrayLike | None = None, **options: Any
) -> F64:
    """Loops for :func:`kvq_ref.mesa_attention`: the state is K^T K and K^T V side by side."""
    d, dv = np.shape(q)[-1], np.shape(v)[-1]

    def write(s: F64, k_j: F64, v_j: F64, decay_j: F64) -> None:
        _fade_and_add(s, k_j, np.concatenate([k_j, v_j]), decay_j)

    def read(q_i: F64, s: F64, penalty: float) -> F64:
        h, w = s[:, :d] + penalty * np.eye(d), s[:, d:]
        y = np.asarray(np.linalg.solve(h, q_i) if penalty > 0 or d == 0 else np.linalg.pinv(h, hermitian=True) @ q_i)
        return np.array([_dot(y, w[:, c]) for c in range(dv)])

    rows: list[ArrayLike] = [1.0 if decay is None else decay]
    return _walk(q, k, v, write, read, rows, None, d + dv, alpha=alpha, **options)


def _fade_and_add(s: F64, k_j: F64, v_j: F64, decay_j: F64) -> None:
    for a in range(s.shape[0]):
        for c in range(s.shape[1]):
            s[a, c] = float(decay_j[a if len(decay_j) > 1 else 0]) * float(s[a, c]) + float(k_j[a]) * float(v_j[c])


ORACLES: dict[str, Oracle] = {
    f.__name__: f
    for f in (
        softmax_attention,
        expressive_attention,
        quadratic_attention,
        taylor_attention,
        sigmoid_attention,
        local_linear_attention,
        linear_attention,
        intention,
        sigma_intention,
        expressive_intention,
        delta_rule,
        gated_linear_attention,
        mesa_attention,
    )
}


def _loop(
    q_: ArrayLike,
    k_: ArrayLike,
    v_: ArrayLike,
    weight: Callable[[F64, F64], float],
    *,
    normalize: bool,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    is_causal: bool = False,
    alpha: ArrayLike | None = None,
    line: ArrayLike | None = None,
) -> F64:
    q, k, v = (np.asarray(x, np.float64) for x in (q_, k_, v_))
    Tq, Tk = q.shape[-2], k.shape[-2]
    masks = np.asarray(True if mask is None else mask)
    biases = np.asarray(0.0 if bias is None else bias, np.float64)
    penalty = alpha if line is None else line
    alphas = np.asarray(0.0 if penalty is None else penalty, np.float64)
    batch = np.broadcast_shapes(
        q.shape[:-2], k.shape[:-2], v.shape[:-2], masks.shape[:-2], biases.shape[:-2], alphas.shape
    )
    q, k, v = (np.broadcast_to(x, batch + x.shape[-2:]) for x in (q, k, v))
    masks, biases = (np.broadcast_to(x, (*batch, Tq, Tk)) for x in (masks, biases))
    alphas = np.broadcast_to(alphas, batch)

    out = np.zeros((*batch, Tq, v.shape[-1]))
    for b in np.ndindex(*batch):
        for i in range(Tq):
            seen = [j for j in range(Tk) if masks[b][i, j] and (j <= i or not is_causal)]
            query = q[b][i] if alpha is None else _precondition(q[b][i], [k[b][j] for j in seen], float(alphas[b]))
            weights = [math.exp(biases[b][i, j]) * weight(query, k[b][j]) for j in seen]
            total = sum(weights) if normalize else 1.0
            if total != 0 and line is not None:
                p = [w / total for w in weights]
                out[b][i] = _line(query, [k[b][j] for j in seen], [v[b][j] for j in seen], p, float(alphas[b]))
            elif total != 0:
                for w, j in zip(weights, seen, strict=True):
                    out[b][i] += w * v[b][j] / total
    return out


def _walk(
    q_: ArrayLike,
    k_: ArrayLike,
    v_: ArrayLike,
    write: Callable[..., None],
    read: Callable[..., F64],
    per_key: list[ArrayLike],
    past: ArrayLike | None,
    columns: int,
    *,
    mask: ArrayLike | None = None,
    is_causal: bool = False,
    alpha: ArrayLike = 0.0,
) -> F64:
    """Each query walks along the keys that it sees with a state (d, columns), and reads it in the end."""
    q, k, v = (np.asarray(x, np.float64) for x in (q_, k_, v_))
    Tq, Tk, d = q.shape[-2], k.shape[-2], q.shape[-1]
    masks, alphas = np.asarray(True if mask is None else mask), np.asarray(alpha, np.float64)
    rows = [np.atleast_2d(np.asarray(x, np.float64)) for x in per_key]
    start = np.zeros((d, columns)) if past is None else np.asarray(past, np.float64)
    batch = np.broadcast_shapes(*(x.shape[:-2] for x in (q, k, v, masks, start, *rows)), alphas.shape)
    q, k, v, start = (np.broadcast_to(x, batch + x.shape[-2:]) for x in (q, k, v, start))
    masks, alphas = np.broadcast_to(masks, (*batch, Tq, Tk)), np.broadcast_to(alphas, batch)
    rows = [np.broadcast_to(x, (*batch, Tk, x.shape[-1])) for x in rows]

    out = np.zeros((*batch, Tq, v.shape[-1]))
    for b in np.ndindex(*batch):
        for i in range(Tq):
            s = start[b].copy()
            for j in range(Tk):
                if masks[b][i, j] and (j <= i or not is_causal):
                    write(s, k[b][j], v[b][j], *(x[b][j] for x in rows))
            out[b][i] = read(q[b][i], s, float(alphas[b]))
    return out


def _times(scale: float | None) -> Callable[..., F64]:
    factor = 1.0 if scale is None else scale
    return lambda q_i, s, _: np.array([factor * _dot(q_i, s[:, c]) for c in range(s.shape[1])])


def _precondition(q_i: F64, keys: list[F64], alpha: float) -> F64:
    """(sum_j k_j k_j^T + alpha I)^-1 q_i, a pseudo-inverse at alpha = 0."""
    d = len(q_i)
    if alpha > 0:
        h = alpha * np.eye(d)
        for k_j in keys:
            h += np.outer(k_j, k_j)
        return np.asarray(np.linalg.solve(h, q_i), np.float64)
    if not keys:
        return np.zeros(d)
    inverse = np.asarray(np.linalg.pinv(np.array(keys)), np.float64)
    return inverse @ (inverse.T @ q_i)


def _line(q_i: F64, keys: list[F64], values: list[F64], p: list[float], alpha: float) -> F64:
    """The b of argmin_(b, W) sum_j p_j |v_j - b - (k_j - q_i) W|^2 + alpha |W|^2, the W of least norm at alpha = 0."""
    d, root = len(q_i), np.sqrt(p)[:, None]
    if alpha > 0:
        known = np.array([[1.0, *(k_j - q_i)] for k_j in keys])
        penalty = math.sqrt(alpha) * np.eye(d, d + 1, 1)
        left, right = (
            np.concatenate([root * known, penalty]),
            [*(root * np.array(values)), *np.zeros((d, len(values[0])))],
        )
        return np.asarray(np.linalg.lstsq(left, np.array(right), rcond=None)[0][0], np.float64)
    # With b fitted first, W is a regression of what is left of the values on what is left of the keys.
    key_mean = sum((p_j * k_j for p_j, k_j in zip(p, keys, strict=True)), np.zeros(d))
    value_mean = sum((p_j * v_j for p_j, v_j in zip(p, values, strict=True)), np.zeros(len(values[0])))
    w = np.linalg.lstsq(root * (np.array(keys) - key_mean), root * (np.array(values) - value_mean), rcond=None)[0]
    return np.asarray(value_mean + (q_i - key_mean) @ w, np.float64)


def _dot(a: F64, b: F64) -> float:
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
