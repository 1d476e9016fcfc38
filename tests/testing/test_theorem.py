"""The bounds of the theorem hold for the forms of this package, up to rounding, and are broken by wrong ones.

How much rounding is allowed is computed, by a first-order analysis; see :class:`Rounding`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kvq_ref as kvq
from kvq_ref.testing.theorem import Bound, fit, layers, limits, scores, strictness
from kvq_ref.testing.theorem.bounds import prefix_sums, spectral_norm

EPS = float(np.finfo(np.float64).eps)
F64 = np.ndarray

seeds = st.integers(0, 2**32 - 1)
alphas = st.sampled_from([1e-2, 1.0, 1e2, 1e4, 1e8])


# ---- What is drawn -------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """Gaussian queries, keys and values."""

    q: F64
    k: F64
    v: F64
    rng: np.random.Generator

    @property
    def arrays(self) -> tuple[F64, F64, F64]:
        return self.q, self.k, self.v


@st.composite
def problems(draw: st.DrawFn, *, batch: bool = True, keys: str = "any", self_attention: bool = False) -> Problem:
    """Of drawn sizes; keys "any", "orthonormal", or "independent": a condition number of 10 at most."""
    rng = np.random.default_rng(draw(seeds, label="seed"))
    Tq, Tk, d, dv = (draw(st.integers(1, n), label=name) for name, n in (("Tq", 5), ("Tk", 7), ("d", 5), ("dv", 3)))
    leading = draw(st.sampled_from([(), (2,)]), label="leading") if batch else ()
    if keys == "independent":
        Tk = min(Tk, d)
    k = rng.standard_normal((*leading, Tk, d))
    if keys != "any":
        left, s, right = np.linalg.svd(k, full_matrices=False)
        s = np.ones_like(s) if keys == "orthonormal" else rng.uniform(0.1, 1.0, s.shape)
        k = (left * s[..., None, :]) @ right
    q = rng.standard_normal((*leading, Tk if self_attention else Tq, d))
    return Problem(q, k, rng.standard_normal((*leading, Tk, dv)), rng)


# ---- How much rounding is allowed ----------------------------------------------------


@dataclass(frozen=True)
class Rounding:
    """First-order bounds on the rounding errors of a problem, with Frobenius norms |.|.

    - A product of matrices of inner size n has an error of at most n eps times the product of the norms, which
      bounds the norm of the product of the entries' magnitudes. n is the largest of all sizes here, plus 2
      for what is done to each entry besides.
    - A backward stable solve multiplies relative errors by the condition number, at most 1 + |K|^2 / alpha.
    - 16 is for the two evaluations that are compared, and for the constants of the parts.
    """

    unit: float
    q: float
    k: float
    v: float
    condition: float

    @property
    def linear(self) -> float:
        """Of linear attention; also of alpha Intention, but for its solve."""
        return self.unit * self.q * self.k * self.v

    @property
    def solved(self) -> float:
        """Of alpha Intention: |(G + alpha I)^-1| <= 1 / alpha, so alpha W is at most |K| |V|."""
        return self.linear * self.condition

    @property
    def score(self) -> float:
        """Of a score, of alpha times a preconditioned query and a key."""
        return self.unit * self.q * self.k * self.condition


def rounding(p: Problem, alpha: float = np.inf) -> Rounding:
    norms = [float(np.linalg.norm(x)) for x in p.arrays]
    n = 2 + max(*p.q.shape[-2:], *p.k.shape[-2:], *p.v.shape[-2:])
    return Rounding(16 * n * EPS, *norms, 1 + norms[1] ** 2 / alpha)


def assert_holds(bound: Bound, slack: Any) -> None:
    """The bound is itself computed: its norms are right up to a few times their size times eps."""
    own = 64 * EPS * np.where(np.isfinite(bound.allowed), np.abs(bound.allowed), 0.0)
    assert bound.holds(slack + own), f"{bound.measured} is more than {bound.allowed} + {slack}"


# ---- Limits --------------------------------------------------------------------------


@given(p=problems(), alpha=alphas)
def test_large_alpha(p: Problem, alpha: float) -> None:
    bound = limits.large_alpha(*p.arrays, alpha)
    assert bound.measured.shape == p.q.shape[:-2]
    assert_holds(bound, rounding(p, alpha).solved)
    # The weaker form, with the smallest eigenvalue.
    gram = np.swapaxes(p.k, -1, -2) @ p.k
    states = np.swapaxes(p.k, -1, -2) @ p.v
    least = np.linalg.eigvalsh(gram)[..., 0].clip(min=0)
    weaker = spectral_norm(p.q) * spectral_norm(gram) * spectral_norm(states) / (alpha + least)
    assert np.all(bound.allowed <= weaker * (1 + 64 * EPS))


@given(seed=seeds, alpha=alphas)
def test_large_alpha_is_attained(seed: int, alpha: float) -> None:
    """With d = 1 the bound is an equality, so no smaller one is true."""
    rng = np.random.default_rng(seed)
    p = Problem(*(rng.standard_normal(s) for s in ((3, 1), (4, 1), (4, 2))), rng)
    measured, allowed = limits.large_alpha(*p.arrays, alpha)
    assert abs(measured - allowed) <= rounding(p, alpha).solved


@given(p=problems(), alpha=alphas)
def test_causal_large_alpha(p: Problem, alpha: float) -> None:
    bound = limits.causal_large_alpha(*p.arrays, alpha)
    assert bound.measured.shape == p.q.shape[:-1]
    assert_holds(bound, rounding(p, alpha).solved)


@given(p=problems(batch=False), exponent=st.sampled_from([1.0, 2.0, 3.0, 4.0]))
def test_slope_tends_to_one(p: Problem, exponent: float) -> None:
    """An error r in a distance e moves log e by at most -log(1 - r / e)."""
    top = spectral_norm(p.k) ** 2
    pair = (top * 10**exponent, top * 10 ** (exponent + 1))
    r = rounding(p, pair[0]).solved
    errors = [float(limits.large_alpha(*p.arrays, alpha).measured) for alpha in pair]
    if min(errors) <= 2 * r:
        return  # the distance is rounding: there is nothing to measure
    slack = -sum(np.log1p(-r / e) for e in errors) / np.log(10)
    bound = limits.slope(*p.arrays, pair)
    # E - D, of a difference, has the error of E.
    e = spectral_norm(p.q @ (p.k.T @ p.k) @ (p.k.T @ p.v))
    own = rounding(p).linear * rounding(p).k ** 2 * 4 / e
    assert_holds(bound, slack + own)


def test_slope_gets_closer_to_one(rng: np.random.Generator) -> None:
    """Ten times the alpha, a tenth of what is allowed: the corridor closes."""
    p = rng.standard_normal((3, 6, 3))
    top = spectral_norm(p[1]) ** 2
    allowed = [float(limits.slope(*p, (top * a, top * a * 10)).allowed) for a in (1e4, 1e5, 1e6)]
    assert allowed[2] < 0.11 * allowed[1] < 0.11**2 * allowed[0]
    with pytest.raises(ValueError, match="do not differ"):
        limits.slope(0 * p[0], p[1], p[2], (1.0, 2.0))


@given(p=problems(keys="orthonormal"), alpha=st.sampled_from([0.0, 1e-2, 1.0, 1e2, 1e6]))
def test_orthonormal_keys(p: Problem, alpha: float) -> None:
    """Keys from a singular value decomposition are orthonormal up to rounding; there is nothing to amplify it."""
    r = rounding(p, 1 + alpha)  # all eigenvalues that matter are 1 + alpha
    assert_holds(limits.orthonormal_keys(*p.arrays, alpha), r.solved)


@given(p=problems(), alpha=alphas)
def test_gradients_large_alpha(p: Problem, alpha: float) -> None:
    """The solve is used twice, so the condition number enters once more."""
    dout = p.rng.standard_normal((*p.q.shape[:-1], p.v.shape[-1]))
    r, n_out = rounding(p, alpha), float(np.linalg.norm(dout))
    unit = r.unit * r.condition**2
    slack = {
        "dq": unit * n_out * r.k * r.v,
        "dk": unit * n_out * r.q * r.v * (1 + 2 * r.k**2 / alpha),
        "dv": unit * n_out * r.q * r.k,
    }
    bounds = limits.gradients_large_alpha(*p.arrays, dout, alpha)
    assert set(bounds) == set(slack)
    for name, bound in bounds.items():
        assert_holds(bound, slack[name])


# ---- Least squares and gradient descent ----------------------------------------------


@given(p=problems(batch=False, keys="independent"))
def test_interpolation(p: Problem) -> None:
    """Solved with the smaller Gram matrix, or better: errors grow with the condition number squared, at most 100."""
    r = rounding(p)
    assert_holds(fit.interpolation(p.k, p.v), r.unit * 100 * r.v * np.sqrt(len(p.k)))


@given(p=problems(batch=False), alpha=alphas)
def test_normal_equations(p: Problem, alpha: float) -> None:
    """An error in W comes back times |G + alpha I| <= |K|^2 + alpha."""
    r = rounding(p, alpha)
    slack = r.unit * r.condition * r.k * r.v * (1 + r.k**2 / alpha) * np.sqrt(p.k.shape[1])
    assert_holds(fit.normal_equations(p.k, p.v, alpha), slack)


@given(p=problems(batch=False), alpha=alphas, size=st.sampled_from([1e-3, 1.0, 1e3]))
def test_no_better_fit(p: Problem, alpha: float, size: float) -> None:
    """An error E in W costs <E, (G + alpha I) D> to first order; the loss is a sum with errors of its own."""
    step = size * p.rng.standard_normal((p.k.shape[1], p.v.shape[1]))
    bound = fit.no_better_fit(p.k, p.v, alpha, step)
    r = rounding(p, alpha)
    error = r.unit * r.condition * r.k * r.v / alpha * np.sqrt(p.k.shape[1])
    largest = (r.v + r.k * (r.k * r.v / alpha + np.linalg.norm(step))) ** 2
    largest += alpha * (r.k * r.v / alpha + np.linalg.norm(step)) ** 2
    slack = error * (r.k**2 + alpha) * np.linalg.norm(step) + r.unit * largest
    assert_holds(bound, slack)
    assert_holds(Bound(*bound[::-1]), slack)  # it is an equality


@given(p=problems(batch=False), alpha=alphas, eta=st.sampled_from([1e-3, 1.0, 10.0]))
def test_first_step(p: Problem, alpha: float, eta: float) -> None:
    assert_holds(fit.first_step(*p.arrays, alpha, eta), eta * rounding(p).linear)


@given(p=problems(batch=False), alpha=st.sampled_from([1e-1, 1.0, 1e2]), part=st.sampled_from([0.1, 0.5, 1.0]))
def test_gradient_descent(p: Problem, alpha: float, part: float) -> None:
    """Each step adds errors of size eta |K| (|K| |W| + |V|), where |W| <= |K| |V| / alpha, and none is amplified."""
    eta, steps = part * fit.best_step(p.k, alpha), 60
    r = rounding(p, alpha)
    size = r.k * r.v / alpha
    per_step = r.unit * (size + eta * (r.k * (r.k * size + r.v) + alpha * size))
    bound = fit.gradient_descent(p.k, p.v, alpha, eta, steps)
    assert bound.measured.shape == (steps + 1,)
    slack = np.arange(steps + 1) * per_step + r.unit * r.condition * size * np.sqrt(p.k.shape[1])
    assert_holds(bound, slack)


@given(p=problems(batch=False, keys="independent"))
def test_gradient_descent_without_penalty(p: Problem) -> None:
    """It ends at the fit of minimum norm. The least singular value is 0.1, so |W| <= 10 |V|."""
    eta, steps = fit.best_step(p.k, 0.0), 60
    r = rounding(p)
    size = 10 * r.v
    per_step = r.unit * (size + eta * r.k * (r.k * size + r.v))
    slack = np.arange(steps + 1) * per_step + r.unit * 100 * size * np.sqrt(p.k.shape[1])
    assert_holds(fit.gradient_descent(p.k, p.v, 0.0, eta, steps), slack)


@given(p=problems(batch=False), alpha=st.sampled_from([1e-1, 1.0, 1e2]))
def test_best_step_makes_both_ends_equally_slow(p: Problem, alpha: float) -> None:
    spectrum = np.linalg.eigvalsh(p.k @ p.k.T if p.k.shape[0] < p.k.shape[1] else p.k.T @ p.k) + alpha
    kappa = spectrum[-1] / spectrum[0]
    rates = np.abs(1 - fit.best_step(p.k, alpha) * spectrum)
    np.testing.assert_allclose(rates[[0, -1]], (kappa - 1) / (kappa + 1), atol=64 * EPS * kappa)
    assert rates.max() <= rates[0] + 64 * EPS * kappa


# ---- sigma-Intention and expressive Intention ----------------------------------------

scales = st.sampled_from([0.5, 1.0, -1.25])
causal = st.booleans()


@given(p=problems(), alpha=alphas, s=scales, is_causal=causal)
def test_sigma_large_alpha(p: Problem, alpha: float, s: float, is_causal: bool) -> None:
    """An error dz in the scores moves the output by tanh(dz / 2) times the range of the values: the law itself."""
    r = rounding(p, alpha)
    slack = (abs(s) * r.score + r.unit) * np.max(np.abs(p.v)) * 2
    bound = scores.sigma_large_alpha(*p.arrays, alpha, s, is_causal=is_causal)
    assert bound.measured.shape == (*p.q.shape[:-1], p.v.shape[-1])
    assert_holds(bound, slack)


@given(p=problems(), alpha=alphas, s=scales, is_causal=causal)
def test_expressive_large_alpha(p: Problem, alpha: float, s: float, is_causal: bool) -> None:
    """An error dz in the scores moves the output by at most c Tk dz / F times the range, here too."""
    r = rounding(p, alpha)
    moved = scores.STEEPEST * p.k.shape[-2] * abs(s) * r.score
    total = scores.expressive_total(p.q, p.k, s, is_causal=is_causal)
    slack = (moved / total + r.unit) * np.max(np.abs(p.v)) * 2
    assert_holds(scores.expressive_large_alpha(*p.arrays, alpha, s, is_causal=is_causal), slack)


def test_expressive_without_weight() -> None:
    """A query orthogonal to all keys gets zeros from both, and no more than that is allowed."""
    q, k, v = np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]]), np.ones((1, 1))
    assert scores.expressive_large_alpha(q, k, v, 1.0, 1.0) == Bound(np.zeros((1, 1)), np.zeros((1, 1)))


def test_steepest_slope_of_the_expressive_weight() -> None:
    z = np.linspace(0, 5, 100_001)
    slope = 2 * z / (1 + z**2) ** 2
    # Between the points of a grid of step h the maximum is missed by at most h^2 max|f'''| / 8 < h^2.
    assert -EPS <= scores.STEEPEST - slope.max() <= 5e-5**2


@pytest.mark.parametrize(
    "pair",
    [(kvq.sigma_intention, kvq.softmax_attention), (kvq.expressive_intention, kvq.expressive_attention)],
    ids=["sigma", "expressive"],
)
@given(p=problems(keys="orthonormal"), alpha=st.sampled_from([0.0, 1e-2, 1.0, 1e2]), s=scales)
def test_preconditioned_forms_with_orthonormal_keys(pair: tuple[Any, Any], p: Problem, alpha: float, s: float) -> None:
    bound = scores.orthonormal_keys(*p.arrays, alpha, s, preconditioned=pair[0], plain=pair[1])
    r = rounding(p, 1 + alpha)
    moved = abs(s) * r.score
    if pair[0] is kvq.expressive_intention:
        moved = scores.STEEPEST * p.k.shape[-2] * moved / scores.expressive_total(p.q, p.k, s)
    assert_holds(bound, (moved + r.unit) * np.max(np.abs(p.v)) * 2)


# ---- Strictness ----------------------------------------------------------------------

factors = st.sampled_from([-3.0, 0.1, 0.5, 2.0, 7.0])


@given(p=problems(), c=factors)
def test_linear_degree(p: Problem, c: float) -> None:
    assert_holds(strictness.linear_degree(*p.arrays, c), abs(c) * rounding(p).linear)


@given(p=problems(), c=factors, alpha=st.sampled_from([0.1, 1.0, 10.0]))
def test_intention_degree(p: Problem, c: float, alpha: float) -> None:
    """(c K)^T (c K) + c^2 alpha I has the condition number of K^T K + alpha I."""
    assert_holds(strictness.intention_degree(*p.arrays, c, alpha), rounding(p, alpha).solved / alpha)


@given(p=problems(keys="independent"), c=factors)
def test_intention_degree_without_penalty(p: Problem, c: float) -> None:
    """A condition number of 10 at most, squared, and a least singular value of 0.1 at least."""
    r = rounding(p)
    assert_holds(strictness.intention_degree(*p.arrays, c), r.unit * 100 * r.q * r.v / 0.1)


@given(p=problems(batch=False), c=st.sampled_from([0.5, 2.0, -3.0]), alpha=st.sampled_from([0.1, 1.0]), heads=seeds)
def test_no_linear_attention_is_closer_than_the_least_error(p: Problem, c: float, alpha: float, heads: int) -> None:
    """Not with random projections, not Intention's own limit, and not what is right at K and linear from there."""
    rng = np.random.default_rng(heads)
    d, dv = p.k.shape[1], p.v.shape[1]
    at, scaled = (kvq.intention(p.q, k, p.v, alpha=alpha) for k in (p.k, c * p.k))
    least = strictness.least_error(at, scaled, c)
    wq, wk, wv = rng.standard_normal((d, d)), rng.standard_normal((d, d)), rng.standard_normal((dv, dv))

    def projected(k: F64) -> Any:
        return kvq.linear_attention(p.q @ wq, k @ wk, p.v @ wv)

    def limit(k: F64) -> Any:
        return kvq.linear_attention(p.q, k, p.v) / alpha

    def secant(k: F64) -> Any:
        return at if k is p.k else c * at  # right at K, and of degree 1

    for candidate in (projected, limit, secant):
        errors = [spectral_norm(candidate(k) - out) for k, out in ((p.k, at), (c * p.k, scaled))]
        assert_holds(Bound(least, np.float64(max(errors))), 64 * EPS * (max(errors) + spectral_norm(at) * abs(c)))


@given(seed=seeds, heads=st.sampled_from([1, 2]), c=st.sampled_from([0.5, 2.0]))
def test_layers_have_degree_three_in_their_tokens(seed: int, heads: int, c: float) -> None:
    """A layer of linear attention has no least error there, one of Intention has."""
    layer, x, _ = drawn_layer(seed, heads, 4)
    linear = [layers.apply(layer, y) for y in (x, c * x)]
    least = [layers.apply(layer, y, kvq.intention, alpha=1.0) for y in (x, c * x)]
    slack = layers.rounding(layer, float(np.max(np.linalg.norm(x, axis=1))), len(x), alpha=np.inf)
    assert strictness.least_error(*linear, c, degree=3) <= slack
    assert strictness.least_error(*least, c, degree=3) > 0


SOFT = [kvq.softmax_attention, kvq.expressive_attention, kvq.sigma_intention, kvq.expressive_intention]


@pytest.mark.parametrize("form", SOFT, ids=lambda form: form.__name__)
@given(p=problems(), is_causal=causal)
def test_weighted_means_stay_in_the_hull(form: Any, p: Problem, is_causal: bool) -> None:
    """The weights sum to 1 up to n eps, and the mean adds as much."""
    options = {"alpha": 1.0} if "intention" in form.__name__ else {}
    out = form(*p.arrays, is_causal=is_causal, **options)
    directions = p.rng.standard_normal((7, p.v.shape[-1]))
    size = np.max(np.linalg.norm(p.v, axis=-1)) * np.max(np.linalg.norm(directions, axis=-1))
    assert_holds(strictness.hull(out, p.v, directions), rounding(p).unit * size)
    assert_holds(strictness.hull(out, p.v), rounding(p).unit * np.max(np.abs(p.v)))


@given(seed=seeds, at=st.floats(1.01, 10.0))
def test_intention_leaves_the_hull(seed: int, at: float) -> None:
    """It continues a line beyond the last value, by as much as the line rises."""
    t = np.sort(np.random.default_rng(seed).uniform(0, 1, 5))
    t[[0, -1]] = 0.0, 1.0
    out = kvq.intention(np.array([[1, at]]), np.stack([np.ones(5), t], axis=1), t[:, None], alpha=0.0)
    measured, allowed = strictness.hull(out, t[:, None])
    # Keys (1, t) that hold t = 0 and t = 1 have singular values s from 0.6 to sqrt(10), and |W| <= |t| / s.
    rise = measured[0, 0] - allowed[0, 0]
    assert abs(rise - (at - 1)) <= 16 * 7 * EPS * (10 / 0.6**2) * (1 + at) * np.sqrt(5) / 0.6


# ---- Layers --------------------------------------------------------------------------


def drawn_layer(seed: int, heads: int, T: int) -> tuple[layers.Layer, F64, np.random.Generator]:
    rng = np.random.default_rng(seed)
    m, d, dv, n = rng.integers(1, 5, 4)
    shapes = ((m, heads * d), (m, heads * d), (m, heads * dv), (heads * dv, n))
    return layers.Layer(*(rng.standard_normal(s) for s in shapes), heads), rng.standard_normal((T, m)), rng


@given(
    seed=seeds,
    heads=st.sampled_from([1, 2, 3]),
    T=st.integers(1, 6),
    eps=st.sampled_from([10.0, 1e-1, 1e-4, 1e-9]),
    radius=st.sampled_from([0.3, 1.0, 5.0]),
    is_causal=causal,
)
def test_layer_is_copied(seed: int, heads: int, T: int, eps: float, radius: float, is_causal: bool) -> None:
    """As many parameters, and an error below eps on tokens of every length up to the radius, and on fewer tokens."""
    layer, x, rng = drawn_layer(seed, heads, T)
    made = layers.copy(layer, eps, radius, T)
    assert made.layer.parameters() == layer.parameters()
    assert [w.shape for w in made.layer[:4]] == [w.shape for w in layer[:4]]
    floor = layers.rounding(layer, radius, T, made.alpha)
    direction = x / np.linalg.norm(x, axis=1, keepdims=True)
    for tokens in (
        radius * direction,
        radius * rng.uniform(0, 1, (T, 1)) * direction,
        radius * np.broadcast_to(direction[:1], x.shape),
        radius * np.stack([direction, -direction]),
        radius * direction[: (T + 1) // 2],
    ):
        bound = layers.copy_error(tokens, layer, made, is_causal=is_causal)
        assert bound.measured.shape == tokens.shape[:-1]
        assert_holds(bound, floor)


@given(seed=seeds, T=st.integers(1, 6), eps=st.sampled_from([10.0, 1e-1, 1e-4]), radius=st.sampled_from([0.3, 5.0]))
def test_alpha_cannot_be_much_smaller(seed: int, T: int, eps: float, radius: float) -> None:
    """All sizes 1, all tokens at the radius: the error is eps / (1 + eps / C)."""
    w = np.random.default_rng(seed).uniform(0.5, 2.0, (4, 1, 1))
    layer = layers.Layer(*w)
    made = layers.copy(layer, eps, radius, T)
    error = layers.copy_error(np.full((T, 1), radius), layer, made).measured
    c = T * radius**3 * np.prod(w)
    np.testing.assert_allclose(error, eps / (1 + eps / c), atol=layers.rounding(layer, radius, T, made.alpha))


@given(seed=seeds, heads=st.sampled_from([1, 2]), beyond=st.sampled_from([1e-20, 1e-60, 1e-200]))
def test_an_alpha_that_is_too_large_does_no_harm(seed: int, heads: int, beyond: float) -> None:
    """An eps below rounding costs nothing, and brings nothing: the error is rounding."""
    layer, x, _ = drawn_layer(seed, heads, 4)
    radius = float(np.max(np.linalg.norm(x, axis=1)))
    made = layers.copy(layer, beyond, radius, 4)
    assert_holds(layers.copy_error(x, layer, made), layers.rounding(layer, radius, 4, made.alpha))


def test_copies_refuse() -> None:
    one = np.ones((1, 1))
    layer = layers.Layer(one, one, one, one)
    for eps in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="eps: expected a number above 0"):
            layers.copy(layer, eps, 1.0, 1)
    with pytest.raises(ValueError, match="eps: 1e-308 needs an alpha too large for float64"):
        layers.copy(layer, 1e-308, 100.0, 100)
    made = layers.copy(layer, 0.5, 1.0, 2)
    for x in (2 * one, np.ones((3, 1))):
        with pytest.raises(ValueError, match="x: the copy is for at most 2 tokens of length at most 1"):
            layers.copy_error(x, layer, made)
    nothing = layer._replace(wo=0 * one)
    assert layers.copy_error(one, nothing, layers.copy(nothing, 0.5, 1.0, 1)).measured == 0


# ---- The statements can fail ---------------------------------------------------------

RNG = np.random.default_rng(0)
Q, K, V, DOUT = RNG.standard_normal((4, 6, 3))
LAYER = layers.Layer(*RNG.standard_normal((3, 3, 4)), RNG.standard_normal((4, 3)), heads=2)


def changed(
    form: Any, change: Callable[..., Any] = lambda *x: x, factor: float = 1.0, **by: Callable[[Any], Any]
) -> Any:
    """A form after a change of its arrays, its output or its options."""

    def wrong(q: F64, k: F64, v: F64, **options: Any) -> Any:
        options = {name: by[name](x) if name in by else x for name, x in options.items()}
        return factor * form(*change(q, k, v), **options)

    return wrong


def future(q: F64, k: F64, v: F64, *, alpha: float, is_causal: bool) -> Any:
    """Scores masked after preconditioning with all keys: the future comes in through G."""
    query = np.linalg.solve(k.T @ k + alpha * np.eye(k.shape[1]), q.T).T
    return kvq.linear_attention(query, k, v, is_causal=is_causal)


def preconditioner_alone(q: F64, k: F64, v: F64, dout: F64, *, alpha: float) -> Any:
    """A backward pass that forgets that the keys are also compared with the query."""
    dq, dk, dv = limits.intention_gradients(q, k, v, dout, alpha=alpha)
    query = np.linalg.solve(k.T @ k + alpha * np.eye(k.shape[1]), q.T).T
    return dq, dk - limits.linear_gradients(query, k, v, dout)[1], dv


TINY = 1 + 1e-6
WRONG: dict[str, Callable[[], Bound]] = {
    "intention times 1 + 1e-6": lambda: limits.large_alpha(Q, K, V, 1e9, intention=changed(kvq.intention, factor=TINY)),
    "penalty halved": lambda: limits.large_alpha(Q, K, V, 1e3, intention=changed(kvq.intention, alpha=lambda a: a / 2)),
    "penalty squared": lambda: limits.large_alpha(
        Q, K, V, 1e3, intention=changed(kvq.intention, alpha=lambda a: a * a)
    ),
    "linear attention divided by sqrt(d)": lambda: limits.large_alpha(
        Q, K, V, 1e3, linear=changed(kvq.linear_attention, factor=3**-0.5)
    ),
    "keys in the wrong order": lambda: limits.large_alpha(
        Q, K, V, 1e3, intention=changed(kvq.intention, lambda q, k, v: (q, k, v[::-1]))
    ),
    # A leak of short keys has the same limit at the same rate. Long keys after short ones show it.
    "the future comes in": lambda: limits.causal_large_alpha(
        Q, K * 10.0 ** np.arange(6)[:, None], V, 10.0, intention=future
    ),
    "not causal at all": lambda: limits.causal_large_alpha(
        Q, K, V, 1e3, intention=changed(kvq.intention, is_causal=lambda _: False)
    ),
    "converges to something else": lambda: limits.slope(
        Q, K, V, (1e4, 1e5), intention=changed(kvq.intention, factor=1.001)
    ),
    "converges as 1 / sqrt(alpha)": lambda: limits.slope(
        Q, K, V, (1e4, 1e5), intention=lambda q, k, v, alpha: kvq.intention(q, k, v, alpha=alpha**0.5) / alpha**0.5
    ),
    "(2 + alpha) for orthonormal keys": lambda: limits.orthonormal_keys(
        Q, np.eye(3), V[:3], 1.0, intention=changed(kvq.intention, alpha=lambda a: a + 1)
    ),
    "gradient of the keys": lambda: limits.gradients_large_alpha(Q, K, V, DOUT, 1e6, intention=preconditioner_alone)[
        "dk"
    ],
    "gradient of another dout": lambda: limits.gradients_large_alpha(
        Q, K, V, DOUT, 1e6, linear=lambda q, k, v, dout: limits.linear_gradients(q, k, v, -dout)
    )["dv"],
    "interpolation with a penalty": lambda: fit.interpolation(
        K[:3], V[:3], intention=changed(kvq.intention, alpha=lambda _: 1e-6)
    ),
    "normal equations": lambda: fit.normal_equations(
        K, V, 1.0, intention=changed(kvq.intention, alpha=lambda a: a * TINY)
    ),
    "a fit that can be improved": lambda: fit.no_better_fit(
        K, V, 1.0, -1e-3 * V[:3], intention=lambda q, k, v, alpha: q @ (np.linalg.lstsq(k, v)[0] + V[:3])
    ),
    "a step with normalised keys": lambda: fit.first_step(
        Q, K, V, 1.0, 0.1, linear=changed(kvq.linear_attention, factor=TINY)
    ),
    "descent to another minimum": lambda: fit.gradient_descent(
        K, V, 1.0, fit.best_step(K, 1.0), 500, intention=changed(kvq.intention, alpha=lambda a: a * TINY)
    ),
    "sigma without the given scale": lambda: scores.sigma_large_alpha(
        Q, K, V, 1e6, 2.0, sigma=changed(kvq.sigma_intention, scale=lambda s: s / 2)
    ),
    "softmax divided by sqrt(d)": lambda: scores.sigma_large_alpha(
        Q, K, V, 1e6, 1.0, softmax=changed(kvq.softmax_attention, scale=lambda s: s * 3**-0.5)
    ),
    "expressive Intention is given another alpha": lambda: scores.expressive_large_alpha(
        Q, K, V, 1e6, 1.0, expressive_intention=changed(kvq.expressive_intention, alpha=lambda a: a * 1.01)
    ),
    "expressive in the place of softmax": lambda: scores.sigma_large_alpha(
        Q, K, V, 1e6, 1.0, softmax=kvq.expressive_attention
    ),
    "scale alpha s for orthonormal keys": lambda: scores.orthonormal_keys(
        Q, np.eye(3), V[:3], 1.0, 1.0, preconditioned=changed(kvq.sigma_intention, scale=lambda s: s / 2)
    ),
    "Intention is not of degree 1": lambda: strictness.linear_degree(
        Q, K, V, 2.0, linear=lambda q, k, v: kvq.intention(q, k, v, alpha=1.0)
    ),
    "linear attention is not of degree -1": lambda: strictness.intention_degree(
        Q, K, V, 2.0, intention=lambda q, k, v, alpha: kvq.linear_attention(q, k, v)
    ),
    "Intention is not in the hull": lambda: strictness.hull(kvq.intention(3 * Q, K, V, alpha=0.0), V),
    "a copy with too small an alpha": lambda: layers.copy_error(
        np.eye(3), LAYER, layers.copy(LAYER, 1e-3, 1.0, 3)._replace(alpha=1.0)
    ),
    "a copy that drops a head": lambda: layers.copy_error(
        np.eye(3), LAYER, layers.copy(LAYER._replace(wo=LAYER.wo * [[1], [1], [0], [0]]), 1e-3, 1.0, 3)
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_form_breaks_the_bound(mistake: str) -> None:
    """By much more than rounding, which is below 1e-9 for these sizes."""
    assert not WRONG[mistake]().holds(slack=1e-9)


def test_nan_breaks_every_bound() -> None:
    nan = changed(kvq.intention, factor=np.nan)
    assert not limits.causal_large_alpha(Q, K, V, 1.0, intention=nan).holds(slack=1e300)


# ---- The parts -----------------------------------------------------------------------


@given(p=problems())
def test_prefix_sums(p: Problem) -> None:
    """One query after another, and past the last key all keys."""
    sums = prefix_sums(p.k, p.v, p.q.shape[-2])
    for i in range(p.q.shape[-2]):
        expected = np.einsum("...jm,...jn->...mn", p.k[..., : i + 1, :], p.v[..., : i + 1, :])
        r = rounding(p)
        np.testing.assert_allclose(sums[..., i, :, :], expected, atol=r.unit * r.k * r.v)
