"""What the weights are: a distribution over the keys that a query sees, and what does not change it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from hypothesis import strategies as st

from kvq_ref.testing.calls import SIMPLE, Call
from kvq_ref.testing.laws.law import BIASED, MAY_VANISH, PLAIN, SUMS, WEIGHTED_MEANS, Comparison, law, suppose
from kvq_ref.testing.laws.measured import Measured, ask, ask_gradients, exactly, same, weights
from kvq_ref.testing.rounding import representable
from kvq_ref.testing.target import Target


@law(
    r"P \ge 0,\quad P \mathbf{1} = \mathbf{1},\quad P_{ij} = 0 \text{ where hidden}",
    forms=WEIGHTED_MEANS,
    hint="rows are not divided by their sum, or hidden keys are counted in it",
)
def weights_are_a_distribution(target: Target, call: Call) -> Iterator[Comparison]:
    """The weights are not negative, zero where hidden, and the sum of a row is one, or zero if all its weights are."""
    p = weights(target, call)
    visible = call.visible()
    yield Comparison("weights, against none below zero", p.value, np.maximum(p.value, 0.0))
    yield Comparison("weights of hidden keys", np.where(visible, 0.0, p.value), np.zeros(p.value.shape))
    total = p.sum(-1)
    has_none = (p.value == 0).all(axis=-1)
    yield same("sums of the rows of weights", total, exactly(np.where(has_none, 0.0, 1.0)))


@law(r"O = P V", hint="the values are not what is averaged")
def the_output_is_the_weights_times_the_values(target: Target, call: Call) -> Iterator[Comparison]:
    """The weights, found with unit vectors for values, give the output of any values."""
    p = weights(target, call)
    out = Measured(p.value @ call.v, p.unit @ np.abs(call.v), p.limit)
    yield same("weights times values", out, ask(target, call))


@law(
    r"\min_j V_{jc} \le O_{ic} \le \max_j V_{jc}",
    forms=WEIGHTED_MEANS,
    hint="weights do not sum to one, are negative, or fall on keys that the query does not see",
)
def output_lies_in_the_hull_of_visible_values(target: Target, call: Call) -> Iterator[Comparison]:
    """The output is between the least and the largest value that its query sees, in every column.

    A query whose weights are all zero gives zero, inside the hull or not.
    """
    out = ask(target, call)
    visible = call.visible()[..., None]
    values = call.v[..., None, :, :]
    least = np.min(np.where(visible, values, math.inf), axis=-2)
    largest = np.max(np.where(visible, values, -math.inf), axis=-2)
    # Zero is right where all weights are zero.
    may_be_zero = (out.value == 0) & (target.form in MAY_VANISH)
    inside = np.where(may_be_zero, 0.0, np.clip(out.value, least, largest))
    yield Comparison("output, against the nearest point of the hull", out.value, inside, out.unit, out.limit)


@law(
    r"f(B + c\mathbf{1}^\top) = f(B)",
    forms=WEIGHTED_MEANS,
    sets={"bias"},
    more={"size": st.sampled_from([1.0, 32.0, 8192.0])},
    hint="the largest bias of a row is not taken off before exp",
)
def constant_bias_of_a_row_changes_nothing(target: Target, call: Call, size: float) -> Iterator[Comparison]:
    """It cancels in the normalisation, however large it is; so the gradients of a row of biases sum to zero."""
    rng = call.rng()
    bias = call.options.get("bias", np.zeros((*call.q.shape[:-1], call.k.shape[-2])))
    shift = size * rng.choice([-1.0, -0.5, 0.5, 1.0], (*call.q.shape[:-1], 1))
    large = representable(bias + shift, target.dtype)
    small = large - shift  # exact, and for the dtype too: it has the digits of the larger
    shifted = ask(target, call.but(bias=large))
    yield same("output for a shifted bias", shifted, ask(target, call.but(bias=small)))
    if target.has_gradient:
        grads = ask_gradients(target, call.but(bias=small), call.dout())
        if "bias" in grads:
            total = grads["bias"].sum(-1)
            yield same("sum of a row of gradients of bias", total, exactly(np.zeros(total.value.shape)))


@law(r"f(Q, K + \mathbf{1}c^\top, V) = f(Q, K, V)", forms=["softmax_attention"], hint="the scores are not q.k")
def a_shift_of_all_keys_changes_nothing(target: Target, call: Call) -> Iterator[Comparison]:
    """The same vector added to all keys shifts the scores of a row alike; so the gradients of the keys sum to zero."""
    k = np.round(16 * call.k) / 16  # so that no sum below is rounded, in any dtype
    c = np.round(16 * call.rng().choice(SIMPLE, (*call.k.shape[:-2], 1, call.k.shape[-1]))) / 16
    yield same("output for shifted keys", ask(target, call.but(k=k + c)), ask(target, call.but(k=k)))
    if target.has_gradient:
        total = ask_gradients(target, call, call.dout())["k"].sum(-2)
        yield same("sum of the gradients of the keys", total, exactly(np.zeros(total.value.shape)))


@law(
    r"f(K, k_n; V, v_n) = \frac{f(K; V) + p_n v_n}{1 + p_n}",
    forms=WEIGHTED_MEANS & PLAIN,
    needs={"keys apart"},
    draw={"causal": False},
)
def a_key_twice_has_twice_the_weight(target: Target, call: Call) -> Iterator[Comparison]:
    """A key and its value given twice count twice: with p the weight of the key, (1 + p) out' = out + p v."""
    Tk = call.k.shape[-2]
    j = int(call.rng().integers(Tk))
    indicator = np.zeros(call.v.shape)
    indicator[..., j, :] = 1.0
    p = ask(target, call.but(v=indicator))
    twice = ask(target, call.keys([*range(Tk), j]))
    yield same(f"key {j} twice", (exactly(1.0) + p) * twice, ask(target, call) + p * call.v[..., j : j + 1, :])


@law(
    r"f(K, k_n; V, v_n) = f(K; V) + w_n v_n",
    forms=SUMS & PLAIN,
    needs={"keys apart"},
    draw={"causal": False, "features": False},
    hint="the weights are divided by their sum, or depend on each other",
)
def a_key_twice_is_a_term_twice(target: Target, call: Call) -> Iterator[Comparison]:
    """A key and its value given twice add their term once more; no other weight changes."""
    Tk = call.k.shape[-2]
    j = int(call.rng().integers(Tk))
    alone = call.but(v=np.where(np.arange(Tk)[:, None] == j, call.v, 0.0))
    twice = ask(target, call.keys([*range(Tk), j]))
    yield same(f"key {j} twice", twice, ask(target, call) + ask(target, alone))


@law(
    r"f(b_{in} + \log 2) = f(K, k_n; V, v_n)",
    forms=BIASED & PLAIN,
    needs={"keys apart"},
    sets={"bias"},
    draw={"causal": False},
    hint="bias is not the logarithm of a factor of the weight",
)
def a_bias_of_log_two_is_a_second_key(target: Target, call: Call) -> Iterator[Comparison]:
    """A key and its value given twice are the key once with log 2 more of bias.

    log 2 and its sum with a bias are rounded to the dtype. That changes a weight by a
    factor exp(+-r), r the rounding, and a weighted mean by at most 2 (exp(r) - 1) max|v|;
    a sum, whose weight is at most exp(b), by exp(b) times that.
    """
    Tk = call.k.shape[-2]
    double = call.keys([*range(Tk), Tk - 1])
    bias = np.zeros((*call.q.shape[:-1], Tk)) + call.options.get("bias", 0.0)
    exact = bias[..., -1] + math.log(2)
    bias[..., -1] = representable(exact, target.dtype)
    got, expected = ask(target, call.but(bias=bias)), ask(target, double)
    r = np.abs(bias[..., -1] - exact) + 2.0**-53
    r = np.expm1(r) * (1.0 if target.form in WEIGHTED_MEANS else np.exp(exact))
    moved = 2 * r[..., None] * np.max(np.abs(call.v), axis=(-2, -1), keepdims=True)
    limit = max(got.limit, expected.limit)
    unit = got.unit + expected.unit + moved / limit
    yield Comparison("bias of log 2", got.value, expected.value, unit, limit)


@law(
    r"f(K, k_n, k_n, k_n; V, v_n, v_n, v_n) = f(K + e_n k_n; V + e_n v_n)",
    forms=["linear_attention", "intention"],
    needs={"keys apart"},
    draw={"causal": False, "features": False},
)
def a_key_four_times_is_twice_as_long(target: Target, call: Call) -> Iterator[Comparison]:
    """A key and its value four times are twice the key and twice the value, once: K^T K and K^T V are the same."""
    Tk = call.k.shape[-2]
    four = call.keys([*range(Tk), Tk - 1, Tk - 1, Tk - 1])
    k, v = call.k.copy(), call.v.copy()
    k[..., -1, :] *= 2
    v[..., -1, :] *= 2
    yield same("a key four times", ask(target, four), ask(target, call.but(k=k, v=v)))


@law(
    r"Q k_j = 0 \Rightarrow p_j = 0",
    forms=MAY_VANISH & PLAIN,
    needs={"keys apart"},
    draw={"causal": False},
    hint="the weight of a score of zero is not zero, as that of softmax is not",
)
def orthogonal_keys_are_suppressed(target: Target, call: Call) -> Iterator[Comparison]:
    """Keys orthogonal to every query have no weight: to leave them out changes nothing; softmax would not agree."""
    rng, (_, Tk, d, _) = call.rng(), call.sizes
    suppose(d > 1)
    orthogonal = rng.random(Tk) < 0.5
    suppose(bool((call.visible() & ~orthogonal).any(axis=-1).all()))
    q, k = call.q.copy(), call.k.copy()
    q[..., -1] = 0.0
    k[..., orthogonal, :-1] = 0.0
    k[..., orthogonal, -1] = 4.0
    full = call.but(q=q, k=k)
    yield same("output with orthogonal keys", ask(target, full), ask(target, full.keys(~orthogonal)))


WEIGHTS = (
    weights_are_a_distribution,
    the_output_is_the_weights_times_the_values,
    output_lies_in_the_hull_of_visible_values,
    constant_bias_of_a_row_changes_nothing,
    a_shift_of_all_keys_changes_nothing,
    a_key_twice_has_twice_the_weight,
    a_bias_of_log_two_is_a_second_key,
    a_key_twice_is_a_term_twice,
    a_key_four_times_is_twice_as_long,
    orthogonal_keys_are_suppressed,
)
