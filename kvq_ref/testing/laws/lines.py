"""Local linear attention is a regression: planes go through, and its limits are softmax attention and ridge."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from hypothesis import strategies as st

from kvq_ref.testing.calls import SIMPLE, Call
from kvq_ref.testing.laws.dense import dense, scores
from kvq_ref.testing.laws.law import LINES, Comparison, law
from kvq_ref.testing.laws.measured import ask, at_most, computed, exactly, same
from kvq_ref.testing.laws.scores import distance
from kvq_ref.testing.lines import Lines, softmax_weights
from kvq_ref.testing.target import Target

LARGE = {"alpha": st.sampled_from([2.0**n for n in (-3, 0, 7, 13, 20)])}
FACTORS = {"c": st.sampled_from([0.125, 0.5, 2.0, 8.0])}


def lines_of(target: Target, call: Call) -> Lines:
    return Lines.of(call, softmax_weights(call, scores(target.form, call)))


@law(
    r"f(Q, K, \mathbf{1} a^\top) = \mathbf{1} a^\top",
    forms=LINES,
    hint="the intercept is penalised, or left out; or the weights do not sum to one",
)
def values_that_are_all_the_same_are_returned(target: Target, call: Call) -> Iterator[Comparison]:
    """The weights of the values, negative ones among them, sum to one: a constant is fitted without error."""
    a = call.rng().choice(SIMPLE, call.v.shape[-1])
    yield same("output", ask(target, call.but(v=a + 0.0 * call.v)), exactly(a + np.zeros(call.dout().shape)))


@law(
    r"f(Q, K, KA + \mathbf{1}a^\top) = QA + \mathbf{1}a^\top - \alpha\, Y A,\quad y_i = S_i^{-1}(q_i - \mu_i)",
    forms=LINES,
    needs={"widths apart"},
    hint="the line is not read off at the query, or not fitted to the keys under the weights",
)
def values_on_a_plane_are_continued(target: Target, call: Call) -> Iterator[Comparison]:
    """Values that are affine in the keys give the same function of the queries, but for alpha Y A: as alpha tends
    to 0, exactly.

    With Cov(k, v) = C A the slope is S^-1 C A = A - alpha S^-1 A. The numbers are short, so that no value is rounded.
    """
    rng, (_, _, d, dv) = call.rng(), call.sizes
    slope, a = rng.choice([-1.0, -0.5, 0.0, 0.5, 1.0], (d, dv)), rng.choice([-1.0, -0.5, 0.0, 1.0], dv)
    k = np.round(8 * call.k) / 8
    call = call.but(k=k, v=k @ slope + a)
    alpha = np.asarray(call.options["alpha"])
    y = lines_of(target, call).y
    size = np.abs(call.q) @ np.abs(slope) + np.abs(a) + alpha * np.abs(y) @ np.abs(slope)
    expected = call.q @ slope + a - alpha * y @ slope
    yield same("output", ask(target, call), computed(expected, 8 * size))


@law(
    r"|f_\alpha - f_{\text{softmax}}| \le \tfrac{|q - \mu|}{\alpha} \textstyle\sum_j p_j |k_j - \mu|\,|v_j - \mu_v|",
    forms=LINES,
    needs={"alpha"},
    more=LARGE,
)
def lines_tend_to_softmax_attention(target: Target, call: Call, alpha: float) -> Iterator[Comparison]:
    """As alpha grows the line is level: the output tends to softmax attention's, with an error of order 1/alpha.

    It is mu_v + Cov(v, k) S^-1 (q - mu), and |S^-1| <= 1 / alpha.
    """
    call = call.but(alpha=alpha)
    mean = dense("softmax_attention", call.but(alpha=None))
    found = lines_of(target, call)
    off = np.abs(call.v[..., None, :, :] - mean[..., :, None, :])
    spread = np.sum((found.p * np.linalg.norm(found.c, axis=-1))[..., None] * off, axis=-2)
    bound = np.linalg.norm(call.q - found.mean, axis=-1, keepdims=True) / alpha * spread
    yield at_most("distance to softmax attention", distance(ask(target, call), mean), bound)


@law(
    r"f(Q, K, V; s = 0) = \bar V + (Q - \bar K)(K_c^\top P K_c + \alpha I)^{-1} K_c^\top P V",
    forms=LINES,
    sets={"scale"},
    hint="the weights are not those of softmax attention of the scaled scores",
)
def without_scale_it_is_ridge_with_an_intercept(target: Target, call: Call) -> Iterator[Comparison]:
    """With scale = 0 all keys that are seen weigh the same, or exp(bias): ordinary ridge regression with an intercept.

    Solved here as least squares of [1, K - q] and, for the penalty, [0, sqrt(alpha) I].
    """
    call = call.but(scale=0.0)
    p, out = lines_of(target, call).p, ask(target, call)
    d, expected = call.sizes[2], np.zeros(out.value.shape)
    for at in np.ndindex(*p.shape[:-1]):
        root, k, v = np.sqrt(p[at])[:, None], call.k[at[:-1]], call.v[at[:-1]]
        left = np.concatenate([root * np.column_stack([np.ones(len(k)), k - call.q[at]]), np.eye(d, d + 1, 1)])
        left[len(k) :] *= np.sqrt(call.options["alpha"])
        expected[at] = np.linalg.lstsq(left, np.concatenate([root * v, np.zeros((d, v.shape[-1]))]), rcond=None)[0][0]
    yield Comparison("output", out.value, expected, out.unit, out.limit)


@law(
    r"f(cQ, cK; s / c^2, c^2 \alpha) = f(Q, K; s, \alpha)",
    forms=LINES,
    needs={"alpha"},
    sets={"scale"},
    more=FACTORS,
    hint="alpha is not added to the keys' covariance",
)
def lines_do_not_know_units(target: Target, call: Call, c: float) -> Iterator[Comparison]:
    """Queries and keys times c, with scale / c^2 and c^2 alpha, are the same call."""
    scale = call.sizes[2] ** -0.5 if call.get("scale") is None else call.options["scale"]
    changed = call.but(q=c * call.q, k=c * call.k, scale=scale / c**2, alpha=c**2 * call.options["alpha"])
    yield same("output in other units", ask(target, changed), ask(target, call))


@law(r"f(Q + \mathbf{1}a^\top, K + \mathbf{1}a^\top; s = 0) = f(Q, K; s = 0)", forms=LINES, sets={"scale"})
def ridge_with_an_intercept_has_no_origin(target: Target, call: Call) -> Iterator[Comparison]:
    """With scale = 0, queries and keys may be shifted alike: the regression is centred."""
    q, k = (np.round(16 * x) / 16 for x in (call.q, call.k))  # so that no sum below is rounded, in any dtype
    a = np.round(16 * call.rng().choice(SIMPLE, (*call.k.shape[:-2], 1, call.k.shape[-1]))) / 16
    call = call.but(q=q, k=k, scale=0.0)
    yield same("output of a shifted call", ask(target, call.but(q=q + a, k=k + a)), ask(target, call))


LINE_FITS = (
    values_that_are_all_the_same_are_returned,
    values_on_a_plane_are_continued,
    lines_tend_to_softmax_attention,
    without_scale_it_is_ridge_with_an_intercept,
    lines_do_not_know_units,
    ridge_with_an_intercept_has_no_origin,
)
