"""Softmax attention with a bug: in the scale, the mask, causality, the normalisation or the bias."""

from __future__ import annotations

from typing import Any

import numpy as np

from testing.mutants import plain
from testing.mutants.mutant import mutant
from testing.mutants.plain import Array, default_scale, exp_rows, mean, sees, t

# ---- Scale ---------------------------------------------------------------------------


@mutant("softmax", "the scores are multiplied by 1")
def no_scale(q: Array, k: Array, v: Array, *, scale: float | None = None, **options: Any) -> Array:
    """The scores are not divided by sqrt(d)."""
    return plain.softmax(q, k, v, scale=1.0 if scale is None else scale, **options)


@mutant("softmax", "multiplied by the scale twice")
def scale_twice(q: Array, k: Array, v: Array, *, scale: float | None = None, **options: Any) -> Array:
    """The scale is applied to q when it is loaded, and to the scores again."""
    scale = default_scale(q, scale)
    return plain.softmax(q * np.asarray(scale, q.dtype), k, v, scale=scale, **options)


@mutant("softmax", "1/d")
def scale_by_d(q: Array, k: Array, v: Array, *, scale: float | None = None, **options: Any) -> Array:
    """The default scale is 1/d in place of 1/sqrt(d)."""
    return plain.softmax(q, k, v, scale=1 / q.shape[-1] if scale is None else scale, **options)


@mutant("softmax", "the option scale is ignored")
def scale_ignored(q: Array, k: Array, v: Array, *, scale: float | None = None, **options: Any) -> Array:
    """A scale that is given is not passed on to the kernel."""
    return plain.softmax(q, k, v, **options)


@mutant("softmax", "after the softmax")
def scale_after_softmax(q: Array, k: Array, v: Array, *, scale: float | None = None, **options: Any) -> Array:
    """The output is scaled, and not the scores."""
    return np.asarray(default_scale(q, scale), q.dtype) * plain.softmax(q, k, v, scale=1.0, **options)


@mutant("softmax", "multiplied by ln 2", "exp2")
def exp2_for_exp(q: Array, k: Array, v: Array, *, scale: float | None = None, **options: Any) -> Array:
    """Exp is computed as exp2, and the scores are not multiplied by log2(e)."""
    if options.get("bias") is not None:
        options["bias"] = options["bias"] * np.log(2).astype(q.dtype)
    return plain.softmax(q, k, v, scale=default_scale(q, scale) * float(np.log(2)), **options)


@mutant("softmax", breaks="large scores do not overflow")
def scores_clamped(
    q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False, scale: float | None = None
) -> Array:
    """Scores are clamped to +-10, "for stability"."""
    z = np.clip(default_scale(q, scale) * q @ t(k), -10, 10)
    return mean(exp_rows(z, sees(q, k, mask, is_causal)), v)


# ---- Masks ---------------------------------------------------------------------------


@mutant("softmax", "the mask is inverted: True hides")
def mask_inverted(q: Array, k: Array, v: Array, *, mask: Array | None = None, **options: Any) -> Array:
    """True means hidden, as in PyTorch's MultiheadAttention."""
    return plain.softmax(q, k, v, mask=None if mask is None else ~mask, **options)


@mutant("softmax", "the mask is ignored")
def mask_ignored(q: Array, k: Array, v: Array, *, mask: Array | None = None, **options: Any) -> Array:
    """The mask never reaches the kernel."""
    return plain.softmax(q, k, v, **options)


@mutant("softmax", "the mask is ignored where the call is causal")
def mask_lost_if_causal(
    q: Array, k: Array, v: Array, *, mask: Array | None = None, is_causal: bool = False, **options: Any
) -> Array:
    """The causal path of the kernel does not read the mask."""
    return plain.softmax(q, k, v, mask=None if is_causal else mask, is_causal=is_causal, **options)


@mutant("softmax", "causality is ignored where a mask is given")
def causal_lost_if_masked(
    q: Array, k: Array, v: Array, *, mask: Array | None = None, is_causal: bool = False, **options: Any
) -> Array:
    """A mask that is given replaces the causal one."""
    return plain.softmax(q, k, v, mask=mask, is_causal=is_causal and mask is None, **options)


@mutant("softmax", "hidden scores are lowered", breaks="a query that sees nothing gives zero")
def mask_minus_1e4(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Any = None,
    bias: Any = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Array:
    """Hidden scores are lowered by 1e4, which is not enough where scores are large or all are hidden."""
    z = default_scale(q, scale) * q @ t(k) + (0 if bias is None else bias)
    z = z + np.where(sees(q, k, mask, is_causal), 0, -1e4).astype(q.dtype)
    return mean(exp_rows(z, np.True_), v)


@mutant("softmax", "the mask is read with queries and keys exchanged")
def mask_transposed(q: Array, k: Array, v: Array, *, mask: Array | None = None, **options: Any) -> Array:
    """The mask is read as (Tk, Tq) where it is square."""
    if mask is not None and mask.shape[-1] == mask.shape[-2]:
        mask = t(mask)
    return plain.softmax(q, k, v, mask=mask, **options)


@mutant("softmax", "the mask of batch entry 0")
def mask_of_first_batch(q: Array, k: Array, v: Array, *, mask: Array | None = None, **options: Any) -> Array:
    """The stride of the mask's batch axis is 0."""
    if mask is not None and mask.ndim > 2:
        mask = mask[:1]
    return plain.softmax(q, k, v, mask=mask, **options)


# ---- Causal --------------------------------------------------------------------------


@mutant("softmax", "lower right")
def causal_lower_right(
    q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False, **options: Any
) -> Array:
    """The last query sees all keys, as in FlashAttention 2.1 and later, where Tq and Tk differ."""
    seen = sees(q, k, mask, is_causal, shift=k.shape[-2] - q.shape[-2])
    return plain.softmax(q, k, v, mask=seen, **options)


@mutant("softmax", "not see its own")
def causal_without_itself(
    q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False, **options: Any
) -> Array:
    """A token does not see itself: < in place of <=."""
    return plain.softmax(q, k, v, mask=sees(q, k, mask, is_causal, shift=-1), **options)


@mutant("softmax", "one key too many")
def causal_one_ahead(
    q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False, **options: Any
) -> Array:
    """A token sees the next one."""
    return plain.softmax(q, k, v, mask=sees(q, k, mask, is_causal, shift=1), **options)


@mutant("softmax", "is_causal is ignored")
def causal_ignored(q: Array, k: Array, v: Array, *, is_causal: bool = False, **options: Any) -> Array:
    """The causal flag is not passed on."""
    return plain.softmax(q, k, v, **options)


@mutant("softmax", "always causal")
def always_causal(q: Array, k: Array, v: Array, *, is_causal: bool = False, **options: Any) -> Array:
    """A kernel written for decoders is causal whatever it is told."""
    return plain.softmax(q, k, v, is_causal=True, **options)


@mutant("softmax", "causal over tiles")
def causal_by_tiles(
    q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False, **options: Any
) -> Array:
    """Whole tiles above the diagonal are skipped, but the diagonal tile itself is not masked."""
    i, j = np.arange(q.shape[-2])[:, None], np.arange(k.shape[-2])
    seen = sees(q, k, mask)
    return plain.softmax(q, k, v, mask=seen & (j // 4 <= i // 4) if is_causal else seen, **options)


@mutant("softmax")
def causal_window(q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False, **options: Any) -> Array:
    """A sliding window of four keys is left on."""
    seen = sees(q, k, mask, is_causal)
    return plain.softmax(q, k, v, mask=seen & ~sees(q, k, None, True, shift=-4) if is_causal else seen, **options)


# ---- Normalisation -------------------------------------------------------------------


@mutant("softmax", "exp overflows", breaks="large scores do not overflow")
def no_maximum(
    q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False, scale: float | None = None
) -> Array:
    """The row's maximum is not taken out before exp."""
    with np.errstate(over="ignore", invalid="ignore"):
        return mean(np.where(sees(q, k, mask, is_causal), np.exp(default_scale(q, scale) * q @ t(k)), 0), v)


@mutant("softmax", "its own maximum", breaks="large scores do not overflow")
def maximum_of_all(
    q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False, scale: float | None = None
) -> Array:
    """One maximum for all rows: a row whose scores are far below it vanishes."""
    z = default_scale(q, scale) * q @ t(k)
    return mean(np.where(sees(q, k, mask, is_causal), np.exp(z - z.max()), 0), v)


@mutant("softmax", "over the queries")
def softmax_over_queries(
    q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False, scale: float | None = None
) -> Array:
    """The softmax runs along the wrong axis."""
    z = np.where(sees(q, k, mask, is_causal), default_scale(q, scale) * q @ t(k), -np.inf)
    top = z.max(axis=-2, keepdims=True)
    w = np.exp(z - np.where(np.isfinite(top), top, 0))
    total = w.sum(axis=-2, keepdims=True)
    return (w / np.where(total == 0, 1, total)) @ v


@mutant("softmax", "not divided by their sum")
def not_normalised(
    q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False, scale: float | None = None
) -> Array:
    """The sum of the weights is not divided out."""
    return exp_rows(default_scale(q, scale) * q @ t(k), sees(q, k, mask, is_causal)) @ v


@mutant("softmax", "0/0", breaks="a query that sees nothing gives zero")
def empty_row_is_nan(
    q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False, scale: float | None = None
) -> Array:
    """A row that sees nothing is -inf - (-inf)."""
    z = np.where(sees(q, k, mask, is_causal), default_scale(q, scale) * q @ t(k), -np.inf)
    with np.errstate(invalid="ignore"):
        w = np.exp(z - z.max(axis=-1, keepdims=True))
        return (w / w.sum(axis=-1, keepdims=True)) @ v


@mutant("softmax", "mean of the values", breaks="a query that sees nothing gives zero")
def empty_row_is_mean(
    q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False, scale: float | None = None
) -> Array:
    """Hidden scores are the smallest number there is: where all are hidden, all are equal."""
    z = default_scale(q, scale) * q @ t(k)
    z = np.where(sees(q, k, mask, is_causal), z, np.finfo(z.dtype).min)
    return mean(exp_rows(z, np.True_), v)


@mutant("softmax", "is added to the sum")
def small_number_in_the_sum(
    q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False, scale: float | None = None
) -> Array:
    """1e-3 is added to the sum, against division by zero."""
    w = exp_rows(default_scale(q, scale) * q @ t(k), sees(q, k, mask, is_causal))
    return (w / (w.sum(axis=-1, keepdims=True) + w.dtype.type(1e-3))) @ v


@mutant("softmax", "is added to the sum", dtype="float64")
def tiny_number_in_the_sum(
    q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False, scale: float | None = None
) -> Array:
    """1e-6 is added to the sum: float64 shows it."""
    w = exp_rows(default_scale(q, scale) * q @ t(k), sees(q, k, mask, is_causal))
    return (w / (w.sum(axis=-1, keepdims=True) + 1e-6)) @ v


# ---- Bias ----------------------------------------------------------------------------


@mutant("softmax", "the bias is ignored")
def bias_ignored(q: Array, k: Array, v: Array, *, bias: Array | None = None, **options: Any) -> Array:
    """The bias never reaches the kernel."""
    return plain.softmax(q, k, v, **options)


@mutant("softmax", "the bias is subtracted")
def bias_subtracted(q: Array, k: Array, v: Array, *, bias: Array | None = None, **options: Any) -> Array:
    """The bias has the wrong sign, as a slope times a distance that is negative."""
    return plain.softmax(q, k, v, bias=None if bias is None else -bias, **options)


@mutant("softmax", "the bias is multiplied by the scale")
def bias_scaled(
    q: Array, k: Array, v: Array, *, bias: Array | None = None, scale: float | None = None, **options: Any
) -> Array:
    """The bias is added before the scores are scaled."""
    scale = default_scale(q, scale)
    return plain.softmax(
        q, k, v, bias=None if bias is None else bias * np.asarray(scale, q.dtype), scale=scale, **options
    )


@mutant("softmax", "the bias is added to the weights after")
def bias_after_softmax(q: Array, k: Array, v: Array, *, bias: Array | None = None, **options: Any) -> Array:
    """The bias is added to the weights after their normalisation."""
    out = plain.softmax(q, k, v, **options)
    seen = sees(q, k, options.get("mask"), options.get("is_causal", False))
    return out if bias is None else out + np.where(seen, bias, 0) @ v


@mutant("softmax", "the bias of batch entry 0")
def bias_of_first_batch(q: Array, k: Array, v: Array, *, bias: Array | None = None, **options: Any) -> Array:
    """The first sequence's bias is used for all."""
    return plain.softmax(q, k, v, bias=bias[:1] if bias is not None and bias.ndim > 2 else bias, **options)


# ---- Indices -------------------------------------------------------------------------


@mutant("softmax", "the keys of batch entry 0")
def keys_of_first_batch(q: Array, k: Array, v: Array, **options: Any) -> Array:
    """The first sequence's keys are used for all."""
    return plain.softmax(q, k[:1] if k.ndim > 2 else k, v, **options)


@mutant("softmax", "the values of batch entry 0")
def values_of_first_batch(q: Array, k: Array, v: Array, **options: Any) -> Array:
    """The first sequence's values are used for all."""
    return np.broadcast_to(plain.softmax(q, k, v[:1] if v.ndim > 2 else v, **options), (*q.shape[:-1], v.shape[-1]))


@mutant("softmax", "heads and positions are mixed up", layout="bthd")
def heads_reshaped(q: Array, k: Array, v: Array, **options: Any) -> Array:
    """(B, T, H, d) is reshaped to (B, H, T, d), where it has to be transposed."""
    q, k, v = (x.reshape(x.shape[0], x.shape[2], x.shape[1], x.shape[3]) for x in (q, k, v))
    return np.swapaxes(plain.softmax(q, k, v, **options), 1, 2)


@mutant("softmax", "key of the sequence is dropped", "multiple")
def last_keys_dropped(q: Array, k: Array, v: Array, *, is_causal: bool = False, scale: float | None = None) -> Array:
    """Keys beyond the last whole tile of four are dropped."""
    n = k.shape[-2] // 4 * 4 or k.shape[-2]
    return plain.softmax(q, k[..., :n, :], v[..., :n, :], is_causal=is_causal, scale=scale)


@mutant("softmax", "multiple of 64", breaks="long sequences")
def last_keys_dropped_of_64(
    q: Array, k: Array, v: Array, *, is_causal: bool = False, scale: float | None = None
) -> Array:
    """Keys beyond the last whole tile of 64 are dropped: short sequences do not show it."""
    n = k.shape[-2] // 64 * 64 or k.shape[-2]
    return plain.softmax(q, k[..., :n, :], v[..., :n, :], is_causal=is_causal, scale=scale)


@mutant("softmax", "rows of the output are zero")
def last_queries_dropped(q: Array, k: Array, v: Array, **options: Any) -> Array:
    """Queries beyond the last whole tile of four are never written."""
    out = plain.softmax(q, k, v, **options)
    n = q.shape[-2] // 4 * 4 or q.shape[-2]
    out[..., n:, :] = 0
    return out


@mutant("softmax", "the last feature")
def odd_feature_dropped(q: Array, k: Array, v: Array, *, scale: float | None = None, **options: Any) -> Array:
    """Features are read in pairs, and the odd one is left out."""
    scale, n = default_scale(q, scale), q.shape[-1] // 2 * 2 or 1
    return plain.softmax(q[..., :n], k[..., :n], v, scale=scale, **options)


@mutant("softmax", "rescaled")
def rescale_forgotten(
    q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False, scale: float | None = None
) -> Array:
    """Online softmax over tiles of four: a new maximum rescales the sum, but not the output so far."""
    z, seen = default_scale(q, scale) * q @ t(k), sees(q, k, mask, is_causal)
    z = np.where(seen, z, -1e30).astype(q.dtype)
    top, total = np.full((*z.shape[:-1], 1), -1e30, q.dtype), np.zeros((*z.shape[:-1], 1), q.dtype)
    out = np.zeros((*q.shape[:-1], v.shape[-1]), q.dtype)
    for j in range(0, k.shape[-2], 4):
        tile = slice(j, j + 4)
        new = np.maximum(top, z[..., tile].max(axis=-1, keepdims=True))
        w = np.where(np.broadcast_to(seen, z.shape)[..., tile], np.exp(z[..., tile] - new), 0)
        total = total * np.exp(top - new) + w.sum(axis=-1, keepdims=True)
        out = out + w @ v[..., tile, :]
        top = new
    return out / np.where(total == 0, 1, total)
