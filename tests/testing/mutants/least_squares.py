"""Intention and its two variants with a bug: in alpha, in the Gram matrix, or in which keys a regression uses."""

from __future__ import annotations

from typing import Any

import numpy as np

from testing.mutants import plain
from testing.mutants.mutant import mutant
from testing.mutants.plain import Array, grams, precondition, sees, t

# ---- alpha ---------------------------------------------------------------------------


@mutant("intention", "alpha is subtracted")
def alpha_subtracted(q: Array, k: Array, v: Array, *, alpha: Any, **options: Any) -> Array:
    """Alpha is on the wrong side: K^T K - alpha I."""
    return plain.intention(q, k, v, alpha=-np.asarray(alpha), **options)


@mutant("intention", "alpha is squared")
def alpha_squared(q: Array, k: Array, v: Array, *, alpha: Any, **options: Any) -> Array:
    """Alpha is squared, as where it is taken for a standard deviation."""
    return plain.intention(q, k, v, alpha=np.asarray(alpha) ** 2, **options)


@mutant("intention", "alpha is multiplied by the number of keys")
def alpha_per_key(q: Array, k: Array, v: Array, *, alpha: Any, **options: Any) -> Array:
    """The loss is a mean over the keys, not a sum: alpha is multiplied by their number."""
    return plain.intention(q, k, v, alpha=np.asarray(alpha) * k.shape[-2], **options)


@mutant("sigma_intention", "alpha is ignored")
def alpha_ignored(q: Array, k: Array, v: Array, *, alpha: Any, **options: Any) -> Array:
    """A small number is added to the diagonal, whatever alpha is."""
    return plain.sigma(q, k, v, alpha=1e-4 + 0 * np.asarray(alpha), **options)


@mutant("intention", "alpha of batch entry 0", strict=True, breaks="each entry of a batch may have its alpha")
def alpha_of_first_batch(q: Array, k: Array, v: Array, *, alpha: Any, **options: Any) -> Array:
    """The first sequence's alpha is used for all."""
    return plain.intention(q, k, v, alpha=np.asarray(alpha).flat[0] + 0 * np.asarray(alpha), **options)


@mutant("intention", "the regression is multiplied by alpha")
def alpha_times_the_inverse(q: Array, k: Array, v: Array, *, alpha: Any, **options: Any) -> Array:
    """(K^T K / alpha + I)^-1, which is alpha times what it should be."""
    return np.asarray(alpha, q.dtype)[..., None, None] * plain.intention(q, k, v, alpha=alpha, **options)


@mutant("intention", "alpha multiplies the diagonal")
def alpha_on_the_diagonal_of_the_gram(
    q: Array, k: Array, v: Array, *, alpha: Any, mask: Any = None, is_causal: bool = False
) -> Array:
    """The diagonal is multiplied by 1 + alpha, as in Levenberg-Marquardt."""
    seen = sees(q, k, mask, is_causal)
    h = grams(k.astype(np.float64), seen)
    h = h + np.asarray(alpha)[..., None, None, None] * h * np.eye(k.shape[-1]) + 1e-12 * np.eye(k.shape[-1])
    y = np.linalg.solve(h, q[..., None])[..., 0].astype(q.dtype)
    return np.where(seen, y @ t(k), 0) @ v


@mutant("expressive_intention", "alpha is halved")
def alpha_halved(q: Array, k: Array, v: Array, *, alpha: Any, **options: Any) -> Array:
    """The penalty is taken for alpha/2 |W|^2 beside the plain sum of squares."""
    return plain.expressive_intention(q, k, v, alpha=np.asarray(alpha) / 2, **options)


# ---- The Gram matrix -----------------------------------------------------------------


@mutant("intention", "of all keys", "leaks the future")
def future_in_the_gram(q: Array, k: Array, v: Array, *, alpha: Any, mask: Any = None, is_causal: bool = False) -> Array:
    """The scores of the form without a mask are masked: every query's regression has used all keys."""
    return np.where(sees(q, k, mask, is_causal), precondition(q, k, alpha, sees(q, k)) @ t(k), 0) @ v


@mutant("sigma_intention", "of all keys", "leaks the future")
def future_in_the_gram_of_sigma(q: Array, k: Array, v: Array, *, alpha: Any, **options: Any) -> Array:
    """As above: causal softmax attention of queries that were preconditioned by all keys."""
    y = precondition(q, k, alpha, sees(q, k))
    return plain.softmax(y, k, v, **{**options, "scale": options.get("scale") or 1.0})


@mutant("expressive_intention", "of all keys", "leaks the future")
def future_in_the_gram_of_expressive(
    q: Array, k: Array, v: Array, *, alpha: Any, mask: Any = None, is_causal: bool = False, **options: Any
) -> Array:
    """As above, where the call is causal; a mask is minded."""
    y = precondition(q, k, alpha, sees(q, k, mask))
    return plain.expressive(y, k, v, mask=mask, is_causal=is_causal, **options)


@mutant("intention", "the weights", "hidden")
def mask_in_the_gram_alone(
    q: Array, k: Array, v: Array, *, alpha: Any, mask: Any = None, is_causal: bool = False
) -> Array:
    """Hidden keys are left out of the Gram matrix, and have their weight all the same."""
    return precondition(q, k, alpha, sees(q, k, mask, is_causal)) @ t(k) @ v


@mutant("intention", "not see its own")
def gram_without_itself(
    q: Array, k: Array, v: Array, *, alpha: Any, mask: Any = None, is_causal: bool = False
) -> Array:
    """The recursion uses the Gram matrix of the step before: a token's own key has a weight but is not fitted."""
    y = precondition(q, k, alpha, sees(q, k, mask, is_causal, shift=-1))
    return np.where(sees(q, k, mask, is_causal), y @ t(k), 0) @ v


@mutant("intention", "applied to the keys")
def keys_preconditioned(q: Array, k: Array, v: Array, *, alpha: Any, is_causal: bool = False) -> Array:
    """In a causal call each key is preconditioned by the keys up to itself, in place of each query."""
    if not is_causal:
        return plain.intention(q, k, v, alpha=alpha)
    return np.where(sees(q, k, None, True), q @ t(precondition(k, k, alpha, sees(k, k, None, True))), 0) @ v


@mutant("intention", "not preconditioned")
def not_preconditioned(q: Array, k: Array, v: Array, *, alpha: Any, **options: Any) -> Array:
    """Linear attention: the solve is left out."""
    return plain.linear(q, k, v, **options)


@mutant("sigma_intention", "not preconditioned")
def sigma_not_preconditioned(q: Array, k: Array, v: Array, *, alpha: Any, **options: Any) -> Array:
    """Softmax attention: the solve is left out."""
    return plain.softmax(q, k, v, **{**options, "scale": options.get("scale") or 1.0})


@mutant("expressive_intention", "preconditioned twice")
def preconditioned_twice(
    q: Array, k: Array, v: Array, *, alpha: Any, mask: Any = None, is_causal: bool = False, **options: Any
) -> Array:
    """The queries are solved for once by the caller and once by the kernel."""
    y = precondition(q, k, alpha, sees(q, k, mask, is_causal))
    return plain.expressive_intention(y, k, v, alpha=alpha, mask=mask, is_causal=is_causal, **options)


@mutant("intention")
def solver_stops_early(q: Array, k: Array, v: Array, *, alpha: Any, mask: Any = None, is_causal: bool = False) -> Array:
    """Conjugate gradients that stop after two steps: enough for d = 2."""
    seen = sees(q, k, mask, is_causal)
    h = grams(k.astype(np.float64), seen) + np.asarray(alpha)[..., None, None, None] * np.eye(k.shape[-1])
    r = q[..., None].astype(np.float64)
    y, step = np.zeros_like(r), r
    for _ in range(2):
        hs, rr = h @ step, np.sum(r * r, axis=-2, keepdims=True)
        a = rr / np.maximum(np.sum(step * hs, axis=-2, keepdims=True), 1e-300)
        y, r = y + a * step, r - a * hs
        step = r + np.sum(r * r, axis=-2, keepdims=True) / np.maximum(rr, 1e-300) * step
    return np.where(seen, y[..., 0].astype(q.dtype) @ t(k), 0) @ v


@mutant("intention", "float32", dtype="float64")
def solved_in_float32(q: Array, k: Array, v: Array, *, alpha: Any, **options: Any) -> Array:
    """The solver works in single precision, and hands back double."""
    q, k, v = (x.astype(np.float32) for x in (q, k, v))
    return plain.intention(q, k, v, alpha=alpha, **options).astype(np.float64)


@mutant("intention")
def last_key_of_the_dual_dropped(q: Array, k: Array, v: Array, *, alpha: Any, **options: Any) -> Array:
    """Where there are fewer keys than dimensions, the dual system is one too small."""
    if options.get("mask") is None and not options.get("is_causal") and 1 < k.shape[-2] < k.shape[-1]:
        k, v = k[..., :-1, :], v[..., :-1, :]
    return plain.intention(q, k, v, alpha=alpha, **options)


# ---- What a score becomes ------------------------------------------------------------


@mutant("sigma_intention", "1/sqrt(d)")
def sigma_softmaxs_scale(q: Array, k: Array, v: Array, *, scale: float | None = None, **options: Any) -> Array:
    """The default scale is softmax attention's; here it is 1."""
    return plain.sigma(q, k, v, scale=q.shape[-1] ** -0.5 if scale is None else scale, **options)


@mutant("sigma_intention", "the bias is ignored")
def sigma_bias_ignored(q: Array, k: Array, v: Array, *, bias: Any = None, **options: Any) -> Array:
    """The bias never reaches the softmax."""
    return plain.sigma(q, k, v, **options)


@mutant("expressive_intention", "the mask acts on the score")
def mask_on_the_score_of_preconditioned(
    q: Array, k: Array, v: Array, *, alpha: Any, mask: Any = None, is_causal: bool = False
) -> Array:
    """Hidden scores are -1e30, for which the weight is 1."""
    seen = sees(q, k, mask, is_causal)
    z = np.where(seen, precondition(q, k, alpha, seen) @ t(k), -1e30)
    return plain.mean(plain.expressive_weight(z).astype(q.dtype), v)


@mutant("expressive_intention", "the bias is added to the score")
def bias_on_the_score_of_preconditioned(
    q: Array, k: Array, v: Array, *, alpha: Any, mask: Any = None, bias: Any = None
) -> Array:
    """The bias is added to the score, where it should multiply the weight by its exponential."""
    seen = sees(q, k, mask)
    z = precondition(q, k, alpha, seen) @ t(k) + (0 if bias is None else bias)
    return plain.mean(np.where(seen, plain.expressive_weight(z), 0), v)
