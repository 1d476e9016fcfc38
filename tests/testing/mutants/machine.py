"""Bugs that are of the machine and not of the mathematics: precision, memory, dtypes, what is kept between calls."""

from __future__ import annotations

from typing import Any

import numpy as np

from kvq_ref.testing.rounding import representable
from testing.mutants import plain
from testing.mutants.mutant import mutant
from testing.mutants.plain import Array, default_scale, exp_rows, sees, t

# ---- Precision -----------------------------------------------------------------------


@mutant("softmax", "float16")
def accumulated_in_float16(q: Array, k: Array, v: Array, **options: Any) -> Array:
    """The weighted sum is accumulated in float16."""
    z = default_scale(q, options.get("scale")) * q @ t(k) + (0 if options.get("bias") is None else options["bias"])
    w = exp_rows(z, sees(q, k, options.get("mask"), options.get("is_causal", False)))
    total = w.sum(axis=-1, keepdims=True)
    p, out = (w / np.where(total == 0, 1, total)).astype(np.float16), np.float16(0)
    for j in range(k.shape[-2]):
        out = out + p[..., j : j + 1] * v[..., j : j + 1, :].astype(np.float16)
    return np.asarray(out).astype(q.dtype)


@mutant("expressive", "bfloat16")
def inputs_in_bfloat16(q: Array, k: Array, v: Array, **options: Any) -> Array:
    """Inputs are rounded to bfloat16 on the way in."""
    q, k, v = (representable(x, "bfloat16").astype(x.dtype) for x in (q, k, v))
    return plain.expressive(q, k, v, **options)


@mutant("softmax", "float16")
def inputs_in_float16(q: Array, k: Array, v: Array, **options: Any) -> Array:
    """Inputs are rounded to float16, to spare bandwidth."""
    q, k, v = (x.astype(np.float16).astype(x.dtype) for x in (q, k, v))
    return plain.softmax(q, k, v, **options)


@mutant("softmax", "ten bits")
def inputs_in_tf32(q: Array, k: Array, v: Array, **options: Any) -> Array:
    """Tensor cores multiply float32 matrices with ten bits of mantissa, unless they are told otherwise."""
    q, k = ((x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) for x in (q, k))
    return plain.softmax(q, k, v, **options)


@mutant("softmax", "float32", dtype="float64")
def computed_in_float32(q: Array, k: Array, v: Array, **options: Any) -> Array:
    """Doubles are worked in single precision."""
    options = {
        n: x.astype(np.float32) if isinstance(x, np.ndarray) and x.dtype != bool else x for n, x in options.items()
    }
    return plain.softmax(*(x.astype(np.float32) for x in (q, k, v)), **options).astype(np.float64)


# ---- NaN and infinity ----------------------------------------------------------------


@mutant("softmax", "0 x NaN", strict=True, breaks="a mask hides nan")
def hidden_nan_leaks(
    q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False, scale: float | None = None
) -> Array:
    """A weight of zero multiplies a hidden value of NaN."""
    with np.errstate(invalid="ignore"):
        return plain.softmax(q, k, v, mask=mask, is_causal=is_causal, scale=scale)


@mutant("softmax", strict=True, breaks="nan is passed on")
def nan_is_made_zero(q: Array, k: Array, v: Array, **options: Any) -> Array:
    """nan_to_num hides a NaN that a query sees."""
    with np.errstate(all="ignore"):
        return plain.softmax(*(np.nan_to_num(x) for x in (q, k, v)), **options)


# ---- Memory --------------------------------------------------------------------------


@mutant("softmax", "writes to its inputs", breaks="conduct")
def query_scaled_in_place(q: Array, k: Array, v: Array, *, scale: float | None = None, **options: Any) -> Array:
    """The query is multiplied by the scale in place."""
    q *= np.asarray(default_scale(q, scale), q.dtype)
    return plain.softmax(q, k, v, scale=1.0, **options)


@mutant("softmax", "shares memory", breaks="conduct")
def view_of_a_value(q: Array, k: Array, v: Array, **options: Any) -> Array:
    """The softmax of one key is its value: no copy is made."""
    if k.shape[-2] == 1 and q.shape[-2] == 1 and options.get("mask") is None:
        return v
    return plain.softmax(q, k, v, **options)


@mutant("expressive", "another dtype")
def wrong_dtype(q: Array, k: Array, v: Array, *, is_causal: bool = False) -> Array:
    """The causal mask is an array of float64, and turns all that it meets into that."""
    w = plain.expressive_weight(q @ t(k))
    return plain.mean(w * np.tri(*w.shape[-2:]) if is_causal else w, v)


@mutant("intention")
def batch_axis_dropped(q: Array, k: Array, v: Array, **options: Any) -> Array:
    """Leading axes of length one are squeezed out."""
    out = plain.intention(q, k, v, **options)
    return out.squeeze(-3) if out.ndim > 3 and out.shape[-3] == 1 else out


_BUFFERS: dict[tuple[int, ...], Array] = {}


@mutant("softmax", breaks="conduct")
def output_is_a_shared_buffer(q: Array, k: Array, v: Array, **options: Any) -> Array:
    """The output is a workspace that the next call of the same shape overwrites."""
    out = plain.softmax(q, k, v, **options)
    buffer = _BUFFERS.setdefault(out.shape, np.empty_like(out))
    buffer[...] = out
    return buffer


# ---- What is kept --------------------------------------------------------------------

_KEPT: dict[Any, Any] = {}


@mutant("softmax", "kept from")
def keys_are_cached(q: Array, k: Array, v: Array, **options: Any) -> Array:
    """Keys are cached by their shape, and not updated."""
    return plain.softmax(q, _KEPT.setdefault(("k", k.shape), k), v, **options)


@mutant("linear", "kept from")
def state_survives_the_call(q: Array, k: Array, v: Array, *, is_causal: bool = False) -> Array:
    """A causal call goes on from the state of the last one of its shape."""
    if not is_causal:
        return plain.linear(q, k, v)
    shape = (*k.shape, v.shape[-1])
    past = _KEPT.get(shape, np.zeros_like(t(k) @ v))
    _KEPT[shape] = past + t(k) @ v
    return plain.linear(q, k, v, is_causal=True) + q @ past


@mutant("sigma_intention", "kept from")
def gram_accumulates(q: Array, k: Array, v: Array, *, alpha: Any, scale: float | None = None) -> Array:
    """The Gram matrix is added to a workspace that is not cleared."""
    g = _KEPT.get(("gram", k.shape), 0) + np.asarray(t(k).astype(np.float64) @ k)
    _KEPT["gram", k.shape] = g
    y = q @ np.linalg.inv(g + np.asarray(alpha)[..., None, None] * np.eye(k.shape[-1]))
    return plain.softmax(y.astype(q.dtype), k, v, scale=1.0 if scale is None else scale)


@mutant("softmax", "is not deterministic")
def dropout_left_on(q: Array, k: Array, v: Array, **options: Any) -> Array:
    """Dropout is active at inference."""
    kept = np.random.default_rng().random(v.shape[-2:-1]) < 0.9
    return plain.softmax(q, k, v * kept[:, None].astype(v.dtype), **options)
