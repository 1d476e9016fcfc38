r"""Local linear attention in float64: its parts, and how far two correct evaluations may be apart.

As in :mod:`kvq_ref.testing.rounding`, by first-order error analysis, in lengths of vectors. With p the
softmax weights, and e_x the error of x,

    e_mu = sum_j e_p |c_j| + u sum_j p |k_j|                                the keys' mean
    e_S  = sum_j e_p |c_j|^2 + 2 sum_j p |c_j| e_c + u sum_j p |k_j|^2      their covariance
    e_y  = |S^-1| (e_mu + e_S |y|)                                          y = S^-1 (q - mu)
    e_g  = e_p (1 + |c y|) + p (e_c |y| + |c| e_y)                          the weights of the values

The last term of e_S allows for the difference of sum p k k^T and mu mu^T, which is how many would write it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvq_ref.testing.calls import F64, Call


def softmax_weights(call: Call, z: F64) -> F64:
    """The weights of softmax attention for these scores; zero in a row that sees nothing."""
    exponent = np.where(call.visible(), z + call.options.get("bias", 0.0), -np.inf)
    top = np.max(exponent, axis=-1, initial=-1e300, keepdims=True)
    w = np.exp(exponent - top)
    total = np.sum(w, axis=-1, keepdims=True)
    return np.asarray(w / np.where(total == 0, 1.0, total))


@dataclass(frozen=True)
class Lines:
    """The regression of each query: its weights, the keys' mean, what each is off from it, and the slope's part.

    ``inverse`` is S^-1, ``steepest`` its norm, ``largest`` the norm of S, and y = S^-1 (q - mu).
    """

    p: F64
    mean: F64
    c: F64
    y: F64
    inverse: F64
    steepest: F64
    largest: F64

    @classmethod
    def of(cls, call: Call, p: F64) -> Lines:
        mean = p @ call.k
        c = np.where((p > 0)[..., None], call.k[..., None, :, :] - mean[..., :, None, :], 0.0)
        covariance = np.swapaxes(p[..., None] * c, -1, -2) @ c
        alpha = np.broadcast_to(np.asarray(call.options["alpha"], float), call.q.shape[:-2])[..., None, None]
        values, vectors = np.linalg.eigh(covariance)
        values = np.where(values > 1e-12 * np.max(values, axis=-1, keepdims=True), values, 0.0) + alpha
        reciprocal = np.where(values > 0, 1 / np.where(values > 0, values, 1.0), 0.0)
        inverse = (vectors * reciprocal[..., None, :]) @ np.swapaxes(vectors, -1, -2)
        y = _times(inverse, call.q - mean)
        return cls(p, mean, c, y, inverse, np.max(reciprocal, axis=-1), np.max(values, axis=-1))

    def weights(self) -> F64:
        """Those of the values: p (1 + c.y)."""
        return np.asarray(self.p * (1 + _times(self.c, self.y)))


ByName = dict[str, F64]


def units_of_line(
    call: Call, z: F64, dz: F64, u: float, limit: float, dout: F64 | None
) -> tuple[ByName, ByName, ByName]:
    """As ``rounding._units``: the units, the sizes, and how much of an underflow reaches the result.

    z are the scores without the bias, dz their errors.
    """
    found = Lines.of(call, softmax_weights(call, z))
    p, seen = found.p, (found.p > 0).astype(float)
    bias = np.where(seen > 0, np.zeros(z.shape) + call.options.get("bias", 0.0), 0.0)
    factor = np.expm1(np.minimum(limit * (dz + u * np.abs(bias)), 50.0)) / limit
    e_p = p * (factor + u)
    e_p = e_p + p * np.sum(e_p, axis=-1, keepdims=True) + u * p

    k, q, v, mean, c = _lengths(call.k)[..., None, :], _lengths(call.q), np.abs(call.v), _lengths(found.mean), found.c
    c = _lengths(c)
    inverse, alpha = found.steepest, np.broadcast_to(np.asarray(call.options["alpha"], float), q.shape[:-1])
    y = _lengths(found.y)
    e_mean = _sum(e_p * c) + u * _sum(p * k)
    e_c = seen * (e_mean[..., None] + u * (k + mean[..., None]))
    e_s = _sum(e_p * c**2 + 2 * p * c * e_c + u * p * k**2) + u * (found.largest + alpha[..., None])
    e_y = inverse * (e_mean + u * (q + mean) + e_s * y)
    tilt = np.abs(_times(found.c, found.y))
    e_tilt = e_c * y[..., None] + c * e_y[..., None] + u * c * y[..., None]
    g = p * (1 + tilt)
    e_g = e_p * (1 + tilt) + p * e_tilt + u * g
    units, sizes = {"out": e_g @ v + u * (g @ v)}, {"out": g @ v}
    counts = {"out": 1 + (seen * (1 + tilt)) @ v}
    if dout is None:
        return units, sizes, counts

    # Backward, in the order of forms/local_linear.py.
    d_abs, scale = np.abs(dout), abs(_scale_of(call))
    units["v"], sizes["v"] = _t(e_g + u * g) @ d_abs, _t(g) @ d_abs
    counts["v"] = 1 + _t(seen * (1 + tilt)) @ d_abs
    dg = seen * (d_abs @ _t(v))
    dtilt, e_dtilt = p * dg, (e_p + u * p) * dg
    all_dtilt = _sum(dtilt)
    signed = p * (dout @ _t(call.v))
    x = _times(found.inverse, _times(_t(found.c), signed))  # u in that file
    s_u = _lengths(x)
    e_u = inverse * (_sum(e_dtilt * c + dtilt * e_c + u * dtilt * c) + e_s * s_u)
    lean = np.abs(_times(found.c, x))
    e_lean = e_c * s_u[..., None] + c * e_u[..., None] + u * c * s_u[..., None]
    dmean = _lengths(x + _sum(signed)[..., None] * found.y)
    e_dmean = e_u + e_y * all_dtilt + y * _sum(e_dtilt) + u * dmean
    dp = dg * (1 + tilt) + lean * tilt + dmean[..., None] * c
    e_dp = u * (dp + dmean[..., None] * (k + mean[..., None])) + dg * e_tilt + e_lean * tilt + lean * e_tilt
    e_dp = seen * (e_dp + e_dmean[..., None] * c + dmean[..., None] * e_c)
    excess = dp + _sum(p * dp)[..., None]
    dz_size = p * excess
    e_dz = e_p * excess + p * (e_dp + _sum(e_p * dp + p * e_dp)[..., None]) + u * dz_size
    count = seen * (1 + excess)
    if "bias" in call.options:
        units["bias"], sizes["bias"], counts["bias"] = e_dz, dz_size, count
    of_q = (scale * _sum(dz_size * k) + s_u, scale * _sum((e_dz + u * dz_size) * k) + e_u + u * s_u)
    turn, e_turn = dtilt + p * lean, e_dtilt + e_p * lean + p * e_lean + u * p * lean
    twist, e_twist = p * tilt, e_p * tilt + p * e_tilt + u * p * tilt
    of_k = _to_keys(scale * dz_size, q) + _to_keys(turn, y) + _to_keys(twist, s_u) + _to_keys(p, dmean)
    e_k = _to_keys(scale * e_dz, q) + _to_keys(e_turn, y) + _to_keys(turn, e_y) + _to_keys(e_twist, s_u)
    e_k = e_k + _to_keys(twist, e_u) + _to_keys(e_p, dmean) + _to_keys(p, e_dmean) + u * of_k
    for name, x, size, e in (("q", call.q, *of_q), ("k", call.k, of_k, e_k)):
        sizes[name], units[name] = (np.broadcast_to(n[..., None], x.shape) for n in (size, e))
    counts["q"] = np.broadcast_to((1 + scale * _sum(count * k) + inverse)[..., None], call.q.shape)
    counts["k"] = np.broadcast_to((1 + _to_keys(scale * count, q) + _to_keys(seen, y + s_u))[..., None], call.k.shape)
    axes = tuple(range(np.ndim(call.options["alpha"]), q.ndim))
    sizes["alpha"] = np.sum(s_u * y, axis=axes)
    units["alpha"] = np.sum(e_u * y + s_u * e_y + u * s_u * y, axis=axes)
    counts["alpha"] = 1 + 0 * sizes["alpha"]
    return units, sizes, counts


def _scale_of(call: Call) -> float:
    scale = call.get("scale")
    return float(call.q.shape[-1] ** -0.5 if scale is None else scale)


def _lengths(x: F64) -> F64:
    return np.asarray(np.hypot.reduce(x, axis=-1))


def _times(matrix: F64, x: F64) -> F64:
    return np.asarray((matrix @ x[..., None])[..., 0])


def _sum(x: F64) -> F64:
    return np.asarray(np.sum(x, axis=-1))


def _to_keys(x: F64, of_query: F64) -> F64:
    """sum_i x_ij y_i for each key."""
    return np.asarray((_t(x) @ of_query[..., None])[..., 0])


def _t(x: F64) -> F64:
    return np.swapaxes(x, -1, -2)
