"""Quadratic, Taylor and sigmoid attention with a bug: in the weight, in its range, in the bias and in the gradients."""

from __future__ import annotations

from typing import Any

import numpy as np

from testing.mutants import plain
from testing.mutants.gradients import right
from testing.mutants.mutant import mutant, wrong_gradient
from testing.mutants.plain import Array, exp_rows, mean, sees, t

# ---- Quadratic attention -------------------------------------------------------------


@mutant("quadratic", "|z|, not z^2")
def not_squared(q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False) -> Array:
    """The weight is |z|."""
    return mean(np.where(sees(q, k, mask, is_causal), np.abs(q @ t(k)), 0), v)


@mutant("quadratic", "z^2 / (1 + z^2), not z^2")
def square_of_expressive(q: Array, k: Array, v: Array, **options: Any) -> Array:
    """The denominator of expressive attention is left in."""
    return plain.expressive(q, k, v, **options)


@mutant("quadratic")
def half_of_the_products(q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False) -> Array:
    """The feature map has each product of two coordinates once, where a product of different ones counts twice."""
    upper = np.triu_indices(q.shape[-1])
    phi_q, phi_k = ((x[..., :, None] * x[..., None, :])[..., upper[0], upper[1]] for x in (q, k))
    return mean(np.where(sees(q, k, mask, is_causal), phi_q @ t(phi_k), 0), v)


@mutant("quadratic", "overflow", breaks="large scores do not overflow", dtype="float16")
def quadratic_overflows(q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False) -> Array:
    """The square of a large score is infinite in half precision."""
    with np.errstate(over="ignore", invalid="ignore"):
        return mean(np.where(sees(q, k, mask, is_causal), (q @ t(k)) ** 2, 0), v)


@wrong_gradient("quadratic", "0.5 times")
def slope_of_the_square_without_two(dout: Array, q: Array, k: Array, v: Array, **options: Any) -> dict[str, Array]:
    """The derivative of z^2 is taken for z."""
    grads = right("quadratic_attention", dout, q, k, v, **options)
    return grads | {"q": grads["q"] / 2, "k": grads["k"] / 2}


# ---- Taylor attention ----------------------------------------------------------------


@mutant("taylor", "1 + z + z^2, not")
def no_half(q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False) -> Array:
    """The weight is 1 + z + z^2."""
    z = q @ t(k)
    return mean(np.where(sees(q, k, mask, is_causal), 1 + z + z * z, 0), v)


@mutant("taylor", "1 + z + z^2/4")
def half_on_the_features(q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False) -> Array:
    """The second-order features of query and key are both divided by 2, not by sqrt(2): 1 + z + z^2/4."""
    z = q @ t(k)
    return mean(np.where(sees(q, k, mask, is_causal), 1 + z + z * z / 4, 0), v)


@mutant("taylor", "the weight is exp(z)")
def exponential_in_its_place(q: Array, k: Array, v: Array, *, scale: float | None = None, **options: Any) -> Array:
    """The weight is exp(z)."""
    return plain.softmax(q, k, v, scale=1.0 if scale is None else scale, **options)


@mutant("taylor", "the bias is added to the score")
def bias_in_the_series(q: Array, k: Array, v: Array, *, mask: Any = None, bias: Any = None) -> Array:
    """The bias is added to the score, as in softmax attention, where it should multiply the weight by exp(bias)."""
    z = q @ t(k) + (0 if bias is None else bias)
    return mean(np.where(sees(q, k, mask), 1 + z + z * z / 2, 0), v)


@wrong_gradient("taylor")
def slope_of_the_series_without_one(dout: Array, q: Array, k: Array, v: Array, **options: Any) -> dict[str, Array]:
    """The derivative of 1 + z + z^2/2 is taken for z."""
    seen = sees(q, k, options.get("mask"), options.get("is_causal", False))
    scale = 1 if options.get("scale") is None else options["scale"]
    factor = np.where(seen, 1 if options.get("bias") is None else exp_rows(options["bias"] + 0 * (q @ t(k)), seen), 0)
    z = scale * q @ t(k)
    w = factor * (1 + z + z * z / 2)
    total = w.sum(axis=-1, keepdims=True)
    dp = dout @ t(v)
    excess = dp - (w * dp).sum(axis=-1, keepdims=True) / np.where(total == 0, 1, total)
    dz = (factor * z / np.where(total == 0, 1, total) * excess).astype(q.dtype)
    grads = right("taylor_attention", dout, q, k, v, **options)
    return grads | {"q": (scale * dz @ k).astype(q.dtype), "k": (scale * t(dz) @ q).astype(k.dtype)}


# ---- Sigmoid attention ---------------------------------------------------------------


@mutant("sigmoid", "divided by their sum, and should not be")
def sigmoid_normalised(q: Array, k: Array, v: Array, **options: Any) -> Array:
    """The weights are divided by their sum, as in a mean."""
    ones = np.ones((*v.shape[:-1], 1), v.dtype)
    total = plain.sigmoid(q, k, ones, **options)
    return plain.sigmoid(q, k, v, **options) / np.where(total == 0, 1, total)


@mutant("sigmoid", "the offset is ignored")
def offset_ignored(q: Array, k: Array, v: Array, *, offset: float = 0.0, **options: Any) -> Array:
    """The offset never reaches the score."""
    return plain.sigmoid(q, k, v, **options)


@mutant("sigmoid", "the bias is added to the score")
def bias_inside_the_sigmoid(q: Array, k: Array, v: Array, *, mask: Any = None, bias: Any = None) -> Array:
    """The bias is added inside the sigmoid, as is usual elsewhere."""
    z = q @ t(k) + (0 if bias is None else bias)
    return np.where(sees(q, k, mask), 1 / (1 + np.exp(-z)), 0).astype(q.dtype) @ v


@mutant("sigmoid", "(1 + tanh(z)) / 2")
def tanh_of_the_whole(q: Array, k: Array, v: Array, *, mask: Any = None, is_causal: bool = False) -> Array:
    """The sigmoid is made of tanh, whose argument should be z / 2."""
    return np.where(sees(q, k, mask, is_causal), (1 + np.tanh(q @ t(k))) / 2, 0).astype(q.dtype) @ v


@wrong_gradient("sigmoid", "2 times")
def slope_twice(dout: Array, q: Array, k: Array, v: Array, **options: Any) -> dict[str, Array]:
    """The derivative of tanh is taken for that of the sigmoid, and the factor 1/2 is lost."""
    grads = right("sigmoid_attention", dout, q, k, v, **options)
    return grads | {"q": 2 * grads["q"], "k": 2 * grads["k"]}
