"""What a score becomes: how quadratic, Taylor and other weights stand to those of exp and of z^2 / (1 + z^2)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from hypothesis import strategies as st

from kvq_ref.testing.calls import F64, Call
from kvq_ref.testing.laws.dense import dense, scale_of, transpose
from kvq_ref.testing.laws.law import Comparison, law
from kvq_ref.testing.laws.measured import FLOAT64, Measured, ask, at_most, computed, same, weights
from kvq_ref.testing.target import Target

QUADRATIC, TAYLOR, SIGMOID = ("quadratic_attention",), ("taylor_attention",), ("sigmoid_attention",)
SMALL = {"c": st.sampled_from([1.0, 2.0**-2, 2.0**-4, 2.0**-6])}


def largest_score(call: Call, scale: float) -> F64:
    """The largest |z| that each query sees, shape (..., Tq, 1)."""
    z = np.abs(scale * call.q @ transpose(call.k))
    return np.asarray(np.max(np.where(call.visible(), z, 0.0), axis=-1, keepdims=True))


def spread(call: Call) -> F64:
    """How far apart the values are that each query sees, shape (..., Tq, dv)."""
    visible, v = call.visible()[..., None], call.v[..., None, :, :]
    largest = np.max(np.where(visible, v, -np.inf), axis=-2)
    least = np.min(np.where(visible, v, np.inf), axis=-2)
    return np.asarray(np.maximum(largest - least, 0.0))


def distance(a: Measured, b: F64) -> Measured:
    """How far a value is from another, which was computed in float64."""
    return Measured(np.abs(a.value - b), a.unit + FLOAT64 * np.abs(b), a.limit)


@law(
    r"f(Q, K, V) = \mathrm{Linear}(\phi(Q), \phi(K), V) / \text{row sum},\quad \phi(x) = \mathrm{vec}(x x^\top)",
    forms=QUADRATIC,
    draw={"bias": False},
    hint="the weight is not the square of the score",
)
def quadratic_attention_is_linear_in_products_of_coordinates(target: Target, call: Call) -> Iterator[Comparison]:
    """Quadratic attention is linear attention, normalised, of all products of two coordinates.

    vec(q q^T) . vec(k k^T) = (q.k)^2. Here this is a sum with terms of both signs: it rounds at (|q| |k|)^2.
    """
    visible = call.visible()
    phi_q, phi_k = ((x[..., :, None] * x[..., None, :]).reshape(*x.shape[:-1], -1) for x in (call.q, call.k))
    w = np.where(visible, phi_q @ transpose(phi_k), 0.0)
    has_weight = largest_score(call, scale_of(target.form, call)) > 0
    total = np.where(has_weight, np.sum(w, axis=-1, keepdims=True), 1.0)
    expected = np.where(has_weight, w @ call.v / total, 0.0)
    q_length, k_length = (np.linalg.norm(x, axis=-1) for x in (call.q, call.k))
    size = visible * (q_length[..., :, None] * k_length[..., None, :]) ** 2
    terms = (size @ np.abs(call.v) + np.sum(size, axis=-1, keepdims=True) * np.abs(expected)) / np.abs(total)
    yield same("output", ask(target, call), computed(expected, 4 * call.sizes[2] * terms))


@law(
    r"|f_{z^2} - f_{z^2/(1+z^2)}| \le \tfrac{\epsilon}{1 + \epsilon}\,(\max v - \min v),\quad \epsilon = \max z^2",
    forms=QUADRATIC,
    more=SMALL,
)
def expressive_attention_of_small_scores_is_quadratic(target: Target, call: Call, c: float) -> Iterator[Comparison]:
    """Expressive attention tends to quadratic attention as its scale tends to 0, with the square of the scores.

    Its weight is z^2 (1 - t) with t = z^2 / (1 + z^2) between 0 and t_max. So its mean is off by
    sum w t (v - o) / sum w (1 - t), o the output, which is at most t_max / (1 - t_max) = max z^2 times |v - o|.
    It stays in the hull as well.
    """
    out, limit = ask(target, call), dense("expressive_attention", call.but(scale=c))
    small = np.minimum(largest_score(call, c) ** 2, 1.0)
    yield at_most("distance to expressive attention", distance(out, limit), small * spread(call))


@law(
    r"|f_T - f_{\exp}| \le \tfrac{\epsilon}{1 - \epsilon}\,(\max v - \min v),"
    r"\quad \epsilon = \tfrac{1}{6}\max|z|^3 e^{\max|z|}",
    forms=TAYLOR,
    needs={"scale"},
    more=SMALL,
)
def taylor_attention_of_small_scores_is_softmax_attention(target: Target, call: Call, c: float) -> Iterator[Comparison]:
    """Taylor attention differs from softmax attention by the third power of the scores.

    1 + z + z^2/2 is exp(z) (1 - t), with t the integral of x^2 exp(-x) / 2 from 0 to z, so |t| <= |z|^3 exp(|z|) / 6.
    So the mean is off by sum w t (v - o) / sum w (1 - t), w and o those of softmax attention.
    """
    out, limit = ask(target, call.but(scale=c)), dense("softmax_attention", call.but(scale=c))
    z = np.minimum(largest_score(call, c), 10.0)
    t = z**3 * np.exp(z) / 6
    far = np.where(t < 0.5, t / (1 - np.minimum(t, 0.5)), 1.0)
    yield at_most("distance to softmax attention", distance(out, limit), far * spread(call))


@law(
    r"0 \le W_{ij} \le e^{b_{ij}}", forms=SIGMOID, hint="the weights are normalised, or the bias is inside the sigmoid"
)
def sigmoid_weights_are_below_that_of_the_bias(target: Target, call: Call) -> Iterator[Comparison]:
    """The weights are between 0 and exp(bias), each whatever the others are; and 0 where hidden."""
    w = weights(target, call)
    most = np.where(call.visible(), np.exp(np.zeros(w.value.shape) + call.options.get("bias", 0.0)), 0.0)
    yield at_most("weights, against exp(bias)", w, most * (1 + FLOAT64))
    yield Comparison("weights, against none below zero", w.value, np.maximum(w.value, 0.0))


@law(
    r"f(Q; o) + f(-Q; -o) = \textstyle\sum_j m_{ij} e^{b_{ij}} v_j",
    forms=SIGMOID,
    needs={"offset"},
    hint="the function of the score is not the sigmoid, or offset is not added to the score",
)
def a_score_and_its_opposite_share_the_weight(target: Target, call: Call) -> Iterator[Comparison]:
    """sigmoid(z) + sigmoid(-z) = 1: with queries and offset turned round the outputs add up to sum exp(b) v."""
    offset = call.options.get("offset", 0.0)
    both = ask(target, call) + ask(target, call.but(q=-call.q, offset=-offset))
    w = np.where(
        call.visible(), np.exp(np.zeros((*call.q.shape[:-1], call.sizes[1])) + call.options.get("bias", 0.0)), 0
    )
    yield same("sum of both outputs", both, computed(w @ call.v, w @ np.abs(call.v)))


@law(
    r"|e^{-o} f(o) - \textstyle\sum_j m e^{b + z} v| \le \textstyle\sum_j m e^{b + 2 z + o} |v|",
    forms=SIGMOID,
    needs={"offset"},
    more={"offset": st.sampled_from([-2.0, -4.0, -8.0])},
)
def sigmoid_attention_of_low_offset_is_exponential(target: Target, call: Call, offset: float) -> Iterator[Comparison]:
    """Far below zero the sigmoid is exp: exp(-offset) times the output tends to softmax attention's numerator.

    exp(-o) sigmoid(z + o) = exp(z) / (1 + exp(z + o)), which is exp(z) less at most exp(2 z + o).
    """
    out = ask(target, call.but(offset=offset))
    z = scale_of(target.form, call) * call.q @ transpose(call.k)
    w = np.where(call.visible(), np.exp(z + call.options.get("bias", 0.0)), 0.0)
    far = (w * np.exp(z + offset)) @ np.abs(call.v)
    limit = computed(w @ call.v, 2 * w @ np.abs(call.v) * (1 + np.max(np.abs(z))))
    error = float(np.exp(-offset)) * out - limit
    yield at_most("distance to sum exp(b + z) v", Measured(np.abs(error.value), error.unit, error.limit), far)


SCORES = (
    quadratic_attention_is_linear_in_products_of_coordinates,
    expressive_attention_of_small_scores_is_quadratic,
    taylor_attention_of_small_scores_is_softmax_attention,
    sigmoid_weights_are_below_that_of_the_bias,
    a_score_and_its_opposite_share_the_weight,
    sigmoid_attention_of_low_offset_is_exponential,
)
