r"""How far two correct evaluations of a call may be apart.

A tolerance is not chosen here but computed from the dtype, the lengths, the
scores and the condition number at hand, by first-order error analysis
(N. Higham, *Accuracy and Stability of Numerical Algorithms*, ch. 3 and 4).

**Unit.** One rounding of everything on the way: of the inputs, the scores,
the weights, the sum. It is about the best that any computation in the dtype can
do, and errors are reported as multiples of it. With u the unit roundoff,
z the scores and w the weights of N = sum w,

    dz_ij  = u cond_i |q_i| |k_j| |scale|                              error of a score
    e_ij   = |w'(z_ij)| dz_ij + w_ij u (|b_ij| + 1)                    error of a weight
    unit   = (sum_j e_ij |v_j| + |out_i| sum_j e_ij + u sum_j w_ij |v_j|) / N

where cond_i = (lambda_max(G_i) + alpha) / (lambda_min(G_i) + alpha) for least squares, 1 for
the other forms. Intention may also be fitted first, and then rounds as least squares do. Where
a weight is not well described by its slope, the whole change of it is taken instead.
Gradients: the same, line by line through the backward pass.

**Limit.** A sum of n products has n roundings, so the longest way through a call
has 2 Tk + 4 d + 8 (the last for exp, quotients and products), and a comparison
has two sides. In float16 and bfloat16 the arithmetic is float32's: the unit is
one rounding of the weights, or of the result, to the dtype, on top of float32's
whole allowance; there are two such in an output (weights, result), four in
a gradient (weights, output, their gradient, result).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from kvq_ref.dispatch import FORMS
from kvq_ref.grid import GRID
from kvq_ref.testing.calls import F64, Call
from kvq_ref.testing.lines import units_of_line
from kvq_ref.testing.rounding_in_order import units_in_order

ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
LARGEST = {"float64": 2.0**1023, "float32": 2.0**127, "float16": 2.0**15, "bfloat16": 2.0**127}  # a power of two
SMALLEST = {"float64": 2.0**-1022, "float32": 2.0**-126, "float16": 2.0**-24, "bfloat16": 2.0**-126}
HALF = ("float16", "bfloat16")


@dataclass(frozen=True)
class Rounding:
    """Of one evaluation of a call.

    Attributes
    ----------
    unit : mapping of str to array
        By name, of "out" and of the gradients "q", "k", "v", "bias", "alpha".
    limit : mapping of str to float
        How many units the difference of two evaluations may have.
    """

    unit: Mapping[str, F64]
    limit: Mapping[str, float]

    def allowed(self, name: str = "out") -> F64:
        return self.limit[name] * self.unit[name]


def rounding(form: str, call: Call, dtype: str = "float64", dout: F64 | None = None) -> Rounding:
    """The unit and the limit of a call.

    Parameters
    ----------
    form : str
        A name in ``kvq_ref.dispatch.FORMS``.
    call : Call
        The call.
    dtype : {"float64", "float32", "float16", "bfloat16"}
        Of the arrays.
    dout : array, optional
        The gradient from above; without it there are no units for gradients.

    Returns
    -------
    Rounding

    Examples
    --------
    >>> call = Call(np.ones((1, 1)), np.ones((2, 1)), np.array([[1.0], [3.0]]))
    >>> bound = rounding("softmax_attention", call, "float32")
    >>> bool(bound.unit["out"] < 1e-6), bound.limit["out"]
    (True, 32.0)
    """
    limit = longest(call)
    u = ROUNDOFF["float32" if dtype in HALF else dtype]
    if "beta" in FORMS[form].options:
        units, sizes, counts = units_in_order(call, u, dout)
    else:
        units, sizes, counts = _units(form, call, u, limit, dout)
    # An underflow to zero loses the smallest number there is, not a part of the number.
    lost = {name: SMALLEST[dtype] * counts[name] for name in units}
    if dtype not in HALF:
        return Rounding({name: units[name] + lost[name] for name in units}, dict.fromkeys(units, limit))
    once = {name: ROUNDOFF[dtype] * sizes[name] + lost[name] for name in units}
    stages = {name: 2.0 * (2 if name == "out" else 4) for name in units}
    return Rounding({name: once[name] + units[name] * limit / stages[name] for name in units}, stages)


def longest(call: Call) -> float:
    """Roundings on the longest way through both sides of a comparison."""
    _, Tk, d, _ = call.sizes
    return 2.0 * (2 * Tk + 4 * d + 8)


ByName = dict[str, F64]

# What a score becomes: f, its slope, the most that bends it nearby, and the size of what is summed for f over f.
FUNCTIONS: Mapping[str, Callable[[F64], tuple[F64, F64, F64, F64]]] = {
    "z^2/(1+z^2)": lambda z: (z**2 / (1 + z**2), 2 * z / (1 + z**2) ** 2, 2.0 + 0 * z, 1.0 + 0 * z),
    "z^2": lambda z: (z**2, 2 * z, 2.0 + 0 * z, 1.0 + 0 * z),
    "1+z+z^2/2": lambda z: (
        1 + z + z**2 / 2,
        1 + z,
        1.0 + 0 * z,
        (1 + np.abs(z) + z**2 / 2) / (1 + z + z**2 / 2),
    ),
    "sigmoid": lambda z: (_sigmoid(z), _sigmoid(z) * _sigmoid(-z), 0.1 + 0 * z, 1.0 + 0 * z),
}


def _units(form: str, call: Call, u: float, limit: float, dout: F64 | None) -> tuple[ByName, ByName, ByName]:
    """The units in a dtype of roundoff u, the size of what is summed, and how much of an underflow reaches the result.

    Those of a line are in :mod:`kvq_ref.testing.lines`.
    ``limit`` many units are allowed, and that is how far a weight is followed where it is curved.
    The third is the change of a result if each weight, each gradient of a score and the
    result itself are off by one.
    """
    _, _, d, _ = call.sizes
    place = GRID[form]
    is_softmax = place.score == "exp"
    is_normalized = place.row == "mean" or bool(call.get("normalize"))
    visible = call.visible()
    scale = call.get("scale")
    scale = place.default_scale(d) if scale is None else scale
    q, k, v = call.q, call.k, np.abs(call.v)
    if call.get("feature_map") == "elu+1":
        q, k = (np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))) for x in (q, k))
    elif call.get("feature_map") == "relu":
        q, k = np.maximum(q, 0), np.maximum(k, 0)
    k_length = np.linalg.norm(k, axis=-1)

    # y: the query that meets the keys; its length, and the largest part of it that can be rounding.
    solve = Solve.of(call) if place.query == "preconditioned" else None
    y = q if solve is None else solve.y
    y_length = np.linalg.norm(y, axis=-1) if solve is None else solve.length
    cond = np.ones(y_length.shape) if solve is None else solve.cond

    # The weights, their slope in z, and their errors.
    offset = call.options.get("offset", 0.0)
    z = scale * y @ _t(k) + offset
    z_size = abs(scale) * y_length[..., :, None] * k_length[..., None, :] + abs(offset)
    bias = np.zeros(z.shape) + call.options.get("bias", 0.0)
    finite = visible & np.isfinite(bias)
    bias = np.where(finite, bias, 0.0)
    dz = u * cond[..., None] * z_size
    if place.row == "line":
        return units_of_line(call, z, dz, u, limit, dout)
    relative = u * (np.abs(bias) + 1)  # of exp(b), and of a weight as it is formed
    if place.score == "z":  # a decay of at most 1 only shrinks
        w, slope, curve, relative = np.abs(z), np.ones(z.shape), np.zeros(z.shape), 0.0 * z
    elif is_softmax:
        exponent = np.where(finite, z + bias, -np.inf)
        w = np.exp(exponent - np.max(exponent, axis=-1, initial=-1e300, keepdims=True))
        slope = curve = w
        # A score is off by limit dz, and the weight by a factor.
        dz = np.expm1(np.minimum(limit * (dz + u * np.abs(bias)), 50.0)) / limit
        relative = u + 0.0 * z
    else:
        # The largest bias of a row cancels in a mean.
        shift = np.max(np.where(finite, bias, -np.inf), axis=-1, initial=-1e300, keepdims=True)
        shift = shift if is_normalized else 0.0
        factor = np.exp(np.where(finite, bias - shift, 0.0))
        f, df, ddf, terms = FUNCTIONS[place.score](z)
        w, slope, curve = factor * f, factor * np.abs(df), factor * ddf
        relative = relative * terms  # as a sum rounds at the size of its terms
    w, slope, curve, dz, relative, z_size = (np.where(finite, x, 0.0) for x in (w, slope, curve, dz, relative, z_size))
    e = slope * dz + (0.0 if is_softmax else curve * limit * dz**2) + relative * w + u * w
    e_slope = curve * dz + (relative + u) * slope
    total = np.sum(w, axis=-1, keepdims=True) if is_normalized else np.ones((*z.shape[:-1], 1))
    # Where all scores are zero but for rounding, the weights are rounding, and their mean any mean.
    total = np.where(total != 0, total, np.sum(e, axis=-1, keepdims=True))
    per_row = 1 / np.where(total != 0, np.abs(total), 1.0)
    magnitude = z_size if place.score == "z" and not is_normalized else w  # of what is summed
    p, e, slope, e_slope = magnitude * per_row, e * per_row, slope * per_row, e_slope * per_row
    lost = np.sum(e, axis=-1, keepdims=True) if is_normalized else 0.0 * total  # relative, of the row's sum

    out = p @ v
    seen = finite.astype(float)
    units = {"out": e @ v + out * lost + u * out}
    sizes = {"out": out}
    counts = {"out": 1 + seen @ v}
    e_w = None
    if form == "intention" and solve is not None:
        # The fit W by least squares on [K; sqrt(alpha) I] and [V; 0]: its error is one of V, however short the keys.
        e_w = (u * cond * np.sqrt(solve.inverse))[..., None] * np.sqrt(seen @ v**2)
        units["out"] = units["out"] + np.linalg.norm(q, axis=-1, keepdims=True) * e_w
    if dout is None:
        return units, sizes, counts

    # Backward: out = p v
    d_abs = np.abs(dout)
    e_p = e + p * lost + u * p
    units["v"], sizes["v"], counts["v"] = _t(e_p) @ d_abs, _t(p) @ d_abs, 1 + _t(seen) @ d_abs
    # dz = slope (dout . v - dout . out)
    from_out = np.sum(d_abs * out, axis=-1, keepdims=True) if is_normalized else 0.0 * total
    from_e = np.sum(d_abs * units["out"], axis=-1, keepdims=True) if is_normalized else 0.0 * total
    excess = np.where(finite, d_abs @ _t(v) + from_out, 0.0)
    e_dz = (e_slope + slope * lost + u * slope) * excess + slope * from_e
    dz_size, count = slope * excess, seen * (1 + excess)
    if "bias" in call.options:
        units["bias"], sizes["bias"], counts["bias"] = e_p * excess + p * from_e, p * excess, count
    # dy = scale dz k, dk = scale dz^T y
    e_dz, dz_size, count = abs(scale) * e_dz, abs(scale) * dz_size, abs(scale) * count
    e_y = np.broadcast_to((u * cond * y_length)[..., None], y.shape)
    y_size = np.broadcast_to(y_length[..., None], y.shape) if solve is not None else np.abs(y)
    e_dy = (e_dz + u * dz_size) @ np.abs(k)
    units["q"], sizes["q"], counts["q"] = e_dy, dz_size @ np.abs(k), 1 + count @ np.abs(k)
    units["k"] = _t(e_dz + u * dz_size) @ y_size + _t(dz_size) @ (e_y if solve is not None else 0 * e_y)
    sizes["k"], counts["k"] = _t(dz_size) @ y_size, 1 + _t(count) @ y_size
    if "decay" in call.options and solve is None:
        # decay_l multiplies what is left of the keys before it: |q_i| |k_j| |dout_i . v_j| of each that query i sees.
        reach = abs(scale) * y_length[..., None] * seen
        size = _of_decays(call, reach, k_length[..., None, :] * excess)
        units["decay"], sizes["decay"] = 2 * u * size, size
        counts["decay"] = 1 + _of_decays(call, 1 + reach, seen * (1 + k_length[..., None, :]) * (1 + excess))
    if solve is None:
        return units, sizes, counts

    # Through y = H^-1 q: x = H^-1 dy, dq = x, dk -= x (y.k) + y (x.k), dalpha = -sum x.y
    # hypot, as the square of a weight that has almost vanished is zero
    dy, e_dy_length, count_dy = (np.hypot.reduce(a["q"], axis=-1) for a in (sizes, units, counts))
    x = dy * solve.inverse
    e_x = (e_dy_length + u * cond * dy) * solve.inverse
    count_x = 1 + count_dy * solve.inverse
    e_xy = e_x * y_length + x * u * (cond + 1) * y_length
    alpha = np.asarray(call.options["alpha"])
    for found, of_x, of_xy in (
        (units, e_x, e_xy),
        (sizes, x, x * y_length),
        (counts, count_x, count_x * y_length),
    ):
        found["q"] = np.broadcast_to(of_x[..., None], q.shape)
        found["k"] = found["k"] + 2 * k_length[..., None] * (_t(visible.astype(float)) @ of_xy[..., None])
        found["alpha"] = np.sum(of_xy * d, axis=tuple(range(alpha.ndim, of_xy.ndim)))
    if "decay" in call.options:
        # As above, and through H: what is left of the keys before it, |x| |y| |k_j|^2 of each.
        spread = np.where(visible, k_length[..., None, :] ** 2, 0.0)
        along = k_length[..., None, :] * excess
        for found, of_xy, of_y, once in (
            (units, e_xy, u * (cond + 1) * y_length, 0.0),
            (sizes, x * y_length, y_length, 0.0),
            (counts, count_x * y_length, 1 + y_length, 1.0),
        ):
            through_h = _of_decays(call, of_xy[..., None] * visible, spread)
            found["decay"] = once + through_h + _of_decays(call, of_y[..., None] * visible, once * visible + along)
    if e_w is not None:
        q_length = np.linalg.norm(q, axis=-1)
        through = np.sum(d_abs * e_w, axis=-1)
        of_k = (through * q_length * solve.inverse)[..., None]
        units["q"] = units["q"] + through[..., None]
        units["k"] = units["k"] + k_length[..., None] * (_t(seen) @ of_k)
        units["v"] = units["v"] + _t(seen) @ ((u * cond * np.sqrt(solve.inverse) * q_length)[..., None] * d_abs)
        units["alpha"] = units["alpha"] + np.sum(of_k[..., 0], axis=tuple(range(alpha.ndim, q_length.ndim)))
    return units, sizes, counts


def _of_decays(call: Call, reach: F64, terms: F64) -> F64:
    """sum_i reach_il sum_{j < l} terms_ij for the decay of key l."""
    before = np.cumsum(terms, axis=-1) - terms
    size = np.sum(reach * before, axis=-2)[..., None]
    return np.broadcast_to(size, (*size.shape[:-1], call.options["decay"].shape[-1]))


@dataclass(frozen=True)
class Solve:
    """y_i = (G_i + alpha I)^-1 q_i, a bound on its length however it is bracketed, and the condition of the system."""

    y: F64
    length: F64
    cond: F64
    inverse: F64

    @classmethod
    def of(cls, call: Call) -> Solve:
        gram, _ = call.sums_seen()
        values, vectors = np.linalg.eigh(gram)
        alpha = np.broadcast_to(np.asarray(call.options["alpha"], float), call.q.shape[:-2])[..., None]
        largest = np.maximum(values[..., -1], 0.0)
        # Zero up to rounding is zero: the pseudo-inverse leaves such directions out.
        values = np.where(values > 1e-12 * largest[..., None], values, 0.0)
        shifted = values + alpha[..., None]
        inverse = np.where(shifted > 0, 1 / np.where(shifted > 0, shifted, 1.0), 0.0)
        coefficients = np.einsum("...de,...d->...e", vectors, call.q)
        y = np.einsum("...de,...e->...d", vectors, inverse * coefficients)
        bound = np.max(inverse, axis=-1)
        return cls(
            y=y,
            # (q H^-1) K^T V and q (H^-1 K^T V) round differently; the second at the length of all of H^-1.
            length=bound * np.linalg.norm(call.q, axis=-1),
            cond=np.maximum((largest + alpha) * bound, 1.0),
            inverse=bound,
        )


def _sigmoid(z: F64) -> F64:
    return np.asarray(np.exp(np.minimum(z, 0)) / (1 + np.exp(-np.abs(z))))


def _t(x: F64) -> F64:
    return np.swapaxes(x, -1, -2)


def representable(x: F64, dtype: str) -> F64:
    """The nearest numbers that the dtype holds, as float64.

    >>> representable(np.array([1.0, 1.001]), "bfloat16").tolist()
    [1.0, 1.0]
    """
    if dtype != "bfloat16":
        return np.asarray(x).astype(dtype).astype(np.float64)
    bits = np.asarray(x).astype(np.float32).view(np.uint32)
    to_even = ((bits >> 16) & 1) + np.uint32(0x7FFF)
    rounded = ((bits + to_even) & np.uint32(0xFFFF0000)).view(np.float32)
    return np.where(np.isfinite(x), rounded, x).astype(np.float64)
