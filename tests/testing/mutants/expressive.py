"""Expressive attention with a bug: in the weight z^2 / (1 + z^2), the mask on it, and the bias."""

from __future__ import annotations

from typing import Any

import numpy as np

from testing.mutants import plain
from testing.mutants.mutant import mutant
from testing.mutants.plain import Array, expressive_weight, mean, sees, t


@mutant("expressive", "the mask acts on the score")
def mask_on_the_score(q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False) -> Array:
    """Hidden scores are -1e30, for which the weight is 1: what is hidden is attended to the most."""
    z = np.where(sees(q, k, mask, is_causal), q @ t(k), -1e30).astype(q.dtype)
    return mean(expressive_weight(z), v)


@mutant("expressive", "z^2, without")
def no_denominator(q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False) -> Array:
    """The weight is z^2."""
    return mean(np.where(sees(q, k, mask, is_causal), (q @ t(k)) ** 2, 0), v)


@mutant("expressive", "z^2 / (1 + |z|)")
def denominator_not_squared(q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False) -> Array:
    """The weight is z^2 / (1 + |z|)."""
    z = q @ t(k)
    return mean(np.where(sees(q, k, mask, is_causal), z**2 / (1 + np.abs(z)), 0), v)


@mutant("expressive", "|z| / (1 + |z|)")
def nothing_squared(q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False) -> Array:
    """The weight is |z| / (1 + |z|)."""
    z = np.abs(q @ t(k))
    return mean(np.where(sees(q, k, mask, is_causal), z / (1 + z), 0), v)


@mutant("expressive", "keeps the sign of the score")
def sign_kept(q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False) -> Array:
    """The weight is z |z| / (1 + z^2), which is negative for a key that points the other way."""
    z = q @ t(k)
    w = np.where(sees(q, k, mask, is_causal), z * np.abs(z) / (1 + z * z), 0)
    total = np.sum(w, axis=-1, keepdims=True)
    return w / np.where(total == 0, 1, total) @ v


@mutant("expressive", "negative", "weight")
def weight_of_negative_scores_is_zero(
    q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False
) -> Array:
    """Scores go through relu first: a key that points the other way is ignored."""
    z = np.maximum(q @ t(k), 0)
    return mean(np.where(sees(q, k, mask, is_causal), expressive_weight(z), 0), v)


@mutant("expressive", "1/sqrt(d)")
def softmaxs_scale(q: Array, k: Array, v: Array, *, scale: float | None = None, **options: Any) -> Array:
    """The default scale is softmax attention's."""
    return plain.expressive(q, k, v, scale=q.shape[-1] ** -0.5 if scale is None else scale, **options)


@mutant("expressive", "overflow", breaks="large scores do not overflow", dtype="float16")
def square_overflows(q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False) -> Array:
    """z^2 / (1 + z^2) as it is printed: infinity over infinity for a large z."""
    z = q @ t(k)
    with np.errstate(over="ignore", invalid="ignore"):
        return mean(np.where(sees(q, k, mask, is_causal), z * z / (1 + z * z), 0), v)


@mutant("expressive", "0/0")
def no_weight_is_nan(q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False) -> Array:
    """A query that is orthogonal to all its keys divides zero by zero."""
    w = np.where(sees(q, k, mask, is_causal), expressive_weight(q @ t(k)), 0)
    with np.errstate(invalid="ignore"):
        return (w / w.sum(axis=-1, keepdims=True)) @ v


@mutant("expressive", "is added to the sum")
def small_number_in_the_expressive_sum(
    q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False
) -> Array:
    """1e-3 is added to the sum, against division by zero."""
    w = np.where(sees(q, k, mask, is_causal), expressive_weight(q @ t(k)), 0).astype(q.dtype)
    return (w / (w.sum(axis=-1, keepdims=True) + w.dtype.type(1e-3))) @ v


@mutant("expressive", "the bias is added to the score")
def bias_on_the_score(q: Array, k: Array, v: Array, *, mask: Any = None, bias: Any = None) -> Array:
    """The bias is added to the score, as in softmax attention; here it should multiply the weight by exp(bias)."""
    z = q @ t(k) + (0 if bias is None else bias)
    return mean(np.where(sees(q, k, mask), expressive_weight(z), 0), v)


@mutant("expressive", "the weight is multiplied by the bias itself")
def bias_multiplies(q: Array, k: Array, v: Array, *, mask: Any = None, bias: Any = None) -> Array:
    """The weight is multiplied by the bias, and not by its exponential."""
    w = np.where(sees(q, k, mask), expressive_weight(q @ t(k)) * (1 if bias is None else bias), 0)
    total = np.sum(w, axis=-1, keepdims=True)
    return w / np.where(total == 0, 1, total) @ v


@mutant("expressive", "softmax")
def softmax_in_its_place(q: Array, k: Array, v: Array, *, scale: float | None = None, **options: Any) -> Array:
    """The dispatcher falls back to softmax attention."""
    return plain.softmax(q, k, v, scale=1.0 if scale is None else scale, **options)


@mutant("expressive", "lower right")
def expressive_causal_lower_right(
    q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False, scale: float | None = None
) -> Array:
    """The last query sees all keys, where Tq and Tk differ."""
    seen = sees(q, k, mask, is_causal, shift=k.shape[-2] - q.shape[-2])
    return plain.expressive(q, k, v, mask=seen, scale=scale)
