"""Units of measure: which factors of queries, keys, scale and alpha cancel, and large ones that must not overflow."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from hypothesis import strategies as st

from kvq_ref.dispatch import FORMS
from kvq_ref.testing.calls import Call
from kvq_ref.testing.laws.dense import dense, reference_gradients, scale_of
from kvq_ref.testing.laws.law import (
    BIASED,
    LEAST_SQUARES,
    LINES,
    PLAIN,
    SCALED,
    SUMS,
    WEIGHTED_MEANS,
    Comparison,
    law,
    suppose,
)
from kvq_ref.testing.laws.measured import ask, ask_gradients, same
from kvq_ref.testing.rounding import HALF, LARGEST, ROUNDOFF, Solve, longest
from kvq_ref.testing.target import Target

# A step of size beta measures keys by themselves.
HOMOGENEOUS = PLAIN - {name for name, form in FORMS.items() if "beta" in form.options}

# Powers of two: to multiply by them rounds nothing.
FACTORS = {"c": st.sampled_from([0.125, 0.5, 2.0, 8.0])}


@law(
    r"f(cQ, K/c; s) = f(cQ, K; s/c) = f(Q, cK; s/c) = f(Q, K; s)",
    forms=HOMOGENEOUS,
    draw={"features": False},
    more=FACTORS,
    hint="scale is fixed, applied twice, or acts on something else than the scores",
)
def only_the_product_of_scale_query_and_key_counts(target: Target, call: Call, c: float) -> Iterator[Comparison]:
    """A factor of the queries that the keys, or scale, are divided by changes nothing; nor does one of the keys."""
    out = ask(target, call)
    yield same("output for (c q, k / c)", ask(target, call.but(q=c * call.q, k=call.k / c)), out)
    if "scale" in target.accepts:
        scale = scale_of(target.form, call) / c
        yield same("output for (c q, scale / c)", ask(target, call.but(q=c * call.q, scale=scale)), out)
        yield same("output for (c k, scale / c)", ask(target, call.but(k=c * call.k, scale=scale)), out)


@law(
    r"f(Q, K; -s) = f(-Q, K; s)",
    forms=SCALED - LINES,  # there the query is a place too
    sets={"scale"},
    draw={"features": False},
    strict=True,
    hint="the square root of scale multiplies q and k",
)
def scale_may_be_negative(target: Target, call: Call) -> Iterator[Comparison]:
    """A negative scale is the positive one for the queries turned round, in the output and in the gradients."""
    s = scale_of(target.form, call)
    negative, turned = call.but(scale=-s), call.but(q=-call.q, scale=s)
    yield same("output for -scale", ask(target, negative), ask(target, turned))
    if target.has_gradient:
        expected = ask_gradients(target, turned, call.dout())
        for name, g in ask_gradients(target, negative, call.dout()).items():
            yield same(f"gradient of {name} for -scale", g, (-1.0 if name == "q" else 1.0) * expected[name])


@law(
    r"f(cQ, cK; c^2 \alpha) = f(Q, K; \alpha)",
    forms=LEAST_SQUARES,
    needs={"alpha"},
    more=FACTORS,
    hint="alpha is multiplied by the number of keys, or added to something else than K^T K",
)
def alpha_is_in_units_of_keys_squared(target: Target, call: Call, c: float) -> Iterator[Comparison]:
    """Queries and keys times c, with c^2 alpha, are the same call."""
    changed = call.but(q=c * call.q, k=c * call.k, alpha=c**2 * call.options["alpha"])
    yield same("output for (c q, c k, c^2 alpha)", ask(target, changed), ask(target, call))


@law(r"f(Q, cK, V; c^2 \alpha) = f(Q, K, V; \alpha) / c", forms=["intention"], needs={"alpha"}, more=FACTORS)
def intention_is_inverse_to_the_keys(target: Target, call: Call, c: float) -> Iterator[Comparison]:
    """Keys times c, with c^2 alpha, divide the output by c."""
    changed = call.but(k=c * call.k, alpha=c**2 * call.options["alpha"])
    yield same("c times the output for (c k, c^2 alpha)", c * ask(target, changed), ask(target, call))


@law(
    r"f(Q, cK, V; 0) = f(Q, K, V; 0) / c",
    forms=["intention"],
    needs={"alpha"},
    draw={"causal": False, "masks": ("none", "keys")},
    more=FACTORS,
    strict=True,
    hint="alpha = 0 is not the fit of minimum norm, or small singular values are cut off at a fixed size",
)
def least_squares_is_inverse_to_the_keys(target: Target, call: Call, c: float) -> Iterator[Comparison]:
    """At alpha = 0 keys times c divide the output by c, whatever the rank of the keys.

    The keys are multiples of 1/64, and their singular values 0 or above 1e-3 of the
    largest: so dependent keys are so in every dtype, and nobody cuts off what another keeps.
    """
    k = np.round(64 * call.k) / 64
    call = call.but(k=k, alpha=0.0)
    mask = np.swapaxes(call.options["mask"], -1, -2) if "mask" in call.options else True
    s = np.linalg.svd(np.where(mask, k, 0.0), compute_uv=False)
    largest = np.max(s, axis=-1, keepdims=True)
    suppose(bool(((s > 1e-3 * largest) | (s < 1e-12 * largest) | (largest == 0)).all()))
    yield same("c times the output for c k", c * ask(target, call.but(k=c * k)), ask(target, call))


@law(
    r"|z| \le 10^4 \Rightarrow O \text{ as in float64}",
    forms=WEIGHTED_MEANS | SUMS & BIASED,
    more={"largest": st.sampled_from([64.0, 512.0, 8192.0])},
    hint="exp of a score without its row's maximum, or a square that overflows",
)
def large_scores_do_not_overflow(target: Target, call: Call, largest: float) -> Iterator[Comparison]:
    """For scores of up to 10^4 the output is finite, a mean in the hull and what float64 gives; so are the gradients.

    The queries are multiplied by a power of two, and no more than keeps the score's
    own rounding small: there is nothing to compare where all digits are lost.
    """
    visible = call.visible()
    size = np.linalg.norm(call.q, axis=-1)
    if "alpha" in call.options:
        solve = Solve.of(call)
        size = solve.length * solve.cond
    z = abs(scale_of(target.form, call)) * size[..., :, None] * np.linalg.norm(call.k, axis=-1)[..., None, :]
    z_max, q_max = float(np.max(np.where(visible, z, 0.0))), float(np.max(np.abs(call.q)))
    suppose(z_max > 0)
    u = ROUNDOFF["float32" if target.dtype in HALF else target.dtype]
    most = min(largest, 0.25 / (u * longest(call)))
    n = min(math.floor(math.log2(most / z_max)), math.floor(math.log2(LARGEST["float16"] / q_max)))
    suppose(n > 0)
    call = call.but(q=2.0**n * call.q)
    out, expected = ask(target, call), dense(target.form, call)
    yield Comparison("output", out.value, expected, out.unit, out.limit)
    if target.form in WEIGHTED_MEANS:
        inside = np.clip(out.value, np.min(call.v), np.max(call.v))
        yield Comparison("output, against the hull", out.value, inside * (out.value != 0), out.unit, out.limit)
    if target.has_gradient:
        grads = reference_gradients(target.form, call, call.dout())
        if max(np.max(np.abs(g)) for g in grads.values()) < LARGEST["float16"] / 4:  # or float16 has no such number
            for name, g in ask_gradients(target, call, call.dout()).items():
                yield Comparison(f"gradient of {name}", g.value, grads[name], g.unit, g.limit)


@law(
    r"f(Q, K, 2^n V) = 2^n f(Q, K, V)",
    forms=WEIGHTED_MEANS,
    hint="the sum of weighted values overflows although their mean does not",
)
def large_values_do_not_overflow(target: Target, call: Call) -> Iterator[Comparison]:
    """Values near the largest number of the dtype, with room for the sum of all of them, are averaged as others are.

    The room is for weights of up to exp(2), the largest factor of a bias.
    """
    n = math.floor(math.log2(LARGEST[target.dtype])) - 8
    yield same("output of large values", ask(target, call.but(v=2.0**n * call.v)), 2.0**n * ask(target, call))


SCALES = (
    only_the_product_of_scale_query_and_key_counts,
    scale_may_be_negative,
    alpha_is_in_units_of_keys_squared,
    intention_is_inverse_to_the_keys,
    least_squares_is_inverse_to_the_keys,
    large_scores_do_not_overflow,
    large_values_do_not_overflow,
)
