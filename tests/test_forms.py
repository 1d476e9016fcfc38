"""What the files of single forms say of them, beyond the laws: rates of approach, and the ends of the range."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cases import cases, convert, each_form, library, oracle_options, public, relative_error

import kvq_ref as kvq
from kvq_ref.dispatch import Form
from kvq_ref.testing import ORACLES
from kvq_ref.testing.gradients import numerical_vjp

Function = Callable[..., Any]


@each_form
def test_float32_agrees_with_the_definition_to_1e6(form: Form, rng: np.random.Generator) -> None:
    """Loops over the equation in float64, on all kinds of call.

    Where a system is solved, single calls amplify rounding by its condition number: there it is the median that is
    within 1e-6, and the contract bounds the others. The delta rule is given keys of length 1, as it asks for: longer
    ones make each step I - beta k k^T, and with it what was rounded before, larger than 1.
    """
    errors = []
    for case in cases(form, rng):
        k = case.k / np.linalg.norm(case.k, axis=-1, keepdims=True) if "beta" in form.options else case.k
        arrays = [x.astype("float32") for x in (case.q, k, case.v)]
        options = convert(case.options, library("numpy"), "float32")
        expected = ORACLES[form.name](*arrays, **oracle_options(options))
        errors.append(relative_error(public(form)(*arrays, **options), expected))
    assert (np.median(errors) if "alpha" in form.options else max(errors)) <= 1e-6


# ---- Scores --------------------------------------------------------------------------


def rate(form: Function, limit: Function, arrays: np.ndarray, order: int) -> float:
    """By which power of the scale two forms approach each other, measured between 1/64 and 1/128."""
    far, near = (np.abs(form(*arrays, scale=c) - limit(*arrays, scale=c)).max() for c in (2.0**-6, 2.0**-7))
    assert near < 2.0 ** (-6 * order)
    return float(np.log2(far / near))


def test_taylor_attention_is_softmax_attention_up_to_the_third_order(rng: np.random.Generator) -> None:
    measured = rate(kvq.taylor_attention, kvq.softmax_attention, rng.uniform(-1, 1, (3, 8, 4)), 3)
    assert measured == pytest.approx(3, abs=0.1)


def test_expressive_attention_is_quadratic_attention_up_to_the_second_order(rng: np.random.Generator) -> None:
    measured = rate(kvq.expressive_attention, kvq.quadratic_attention, rng.uniform(-1, 1, (3, 8, 4)), 2)
    assert measured == pytest.approx(2, abs=0.1)


def test_quadratic_attention_is_linear_attention_of_products(rng: np.random.Generator) -> None:
    """phi(x) = vec(x x^T), and its gradients."""
    q, k, v = rng.standard_normal((3, 2, 7, 3))

    def products(x: np.ndarray) -> np.ndarray:
        return (x[..., :, None] * x[..., None, :]).reshape(*x.shape[:-1], 9)

    def vjp(x: np.ndarray, dphi: np.ndarray) -> np.ndarray:
        d = dphi.reshape(*x.shape, 3)
        return ((d + np.swapaxes(d, -1, -2)) @ x[..., None])[..., 0]

    phi = kvq.FeatureMap(apply=products, vjp=vjp)
    out, pullback = kvq.vjp(kvq.quadratic_attention, q, k, v, is_causal=True)
    same, same_pullback = kvq.vjp(kvq.linear_attention, q, k, v, is_causal=True, feature_map=phi, normalize=True)
    np.testing.assert_allclose(out, same, rtol=1e-9, atol=1e-9)
    dout = rng.standard_normal(out.shape)
    for got, expected in zip(pullback(dout)[:3], same_pullback(dout)[:3], strict=True):
        assert relative_error(got, expected) < 1e-8


def test_taylor_attention_is_linear_attention_of_a_longer_feature(rng: np.random.Generator) -> None:
    """phi(x) = (1, x, vec(x x^T) / sqrt(2))."""
    q, k, v = rng.standard_normal((3, 7, 3))

    def phi(x: np.ndarray) -> np.ndarray:
        products = (x[..., :, None] * x[..., None, :]).reshape(*x.shape[:-1], 9)
        return np.concatenate([np.ones((*x.shape[:-1], 1)), x, products / np.sqrt(2)], axis=-1)

    out = kvq.linear_attention(q, k, v, feature_map=phi, normalize=True)
    np.testing.assert_allclose(kvq.taylor_attention(q, k, v), out, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", [kvq.quadratic_attention, kvq.taylor_attention])
@pytest.mark.parametrize("size", [1e-30, 1e-15, 1e15, 1e30])
def test_no_row_loses_its_weight(form: Function, size: float, rng: np.random.Generator) -> None:
    """The square of such a score is no float32; the mean is there all the same, and with a bias against the largest."""
    q, v = np.full((1, 1), size, np.float32), rng.standard_normal((4, 2)).astype("float32")
    k = np.array([[1.0], [2.0], [-1.0], [0.5]], np.float32)
    for bias in (None, np.array([[0.0, -90.0, -3.0, 1.0]], np.float32)):
        out, pullback = kvq.vjp(form, q, k, v, bias=bias)
        wide = [x.astype("float64") for x in (q, k, v)]
        expected = form(*wide, bias=None if bias is None else bias.astype("float64"))
        assert relative_error(out, expected) < 1e-6
        assert all(np.isfinite(g).all() for g in pullback(np.ones_like(out)) if g is not None)


def test_scale_of_quadratic_attention_cancels(rng: np.random.Generator) -> None:
    q, k, v = rng.standard_normal((3, 5, 3))
    out = kvq.quadratic_attention(q, k, v)
    np.testing.assert_array_equal(kvq.quadratic_attention(q, k, v, scale=-4.0), out)
    np.testing.assert_array_equal(kvq.quadratic_attention(q, k, v, scale=0.0), 0.0)


# ---- Sigmoid attention: a sum --------------------------------------------------------


def test_sigmoid_attention_is_a_sum_of_gates(rng: np.random.Generator) -> None:
    """The output for all keys is the sum of those for each alone; with offset -log n it is of the size of a mean."""
    q, k, v = rng.standard_normal((3, 6, 4))
    parts = [kvq.sigmoid_attention(q, k[j : j + 1], v[j : j + 1], offset=0.3) for j in range(6)]
    np.testing.assert_allclose(kvq.sigmoid_attention(q, k, v, offset=0.3), sum(parts), rtol=1e-13, atol=1e-13)
    k, v = np.zeros((1000, 4)), np.ones((1000, 1))
    assert kvq.sigmoid_attention(q, k, v, offset=-np.log(1000))[0, 0] == pytest.approx(1, abs=2e-3)


def test_large_bias_of_sigmoid_attention_overflows_where_it_is_seen() -> None:
    """exp(bias) is not normalised away: infinity, as the equation says; unless the score is as far below."""
    q, k, v = np.ones((3, 1)), np.array([[1.0], [-2000.0]]), np.ones((2, 1))
    bias = np.array([[0.0, 0.0], [1000.0, 0.0], [-np.inf, 1990.0]])
    with np.errstate(over="ignore"):
        out = kvq.sigmoid_attention(q, k, v, bias=bias)
    sigmoid = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(out, [[sigmoid], [np.inf], [np.exp(-10)]], rtol=1e-12)
    hidden = kvq.sigmoid_attention(q, k, v, bias=bias, mask=np.array([[True, True], [False, True], [True, True]]))
    np.testing.assert_allclose(hidden[1], 0.0, atol=1e-300)


# ---- Local linear attention ----------------------------------------------------------


@pytest.mark.parametrize("is_causal", [False, True])
def test_local_linear_attention_without_penalty_continues_a_plane(is_causal: bool, rng: np.random.Generator) -> None:
    """At alpha = 0 and for affine values, wherever a query sees more keys than there are dimensions."""
    q, k = rng.standard_normal((2, 12, 3))
    slope, level = rng.standard_normal((3, 2)), rng.standard_normal(2)
    out = kvq.local_linear_attention(q, k, k @ slope + level, alpha=0.0, scale=0.3, is_causal=is_causal)
    exact = slice(6, None) if is_causal else slice(None)  # of the first few keys the covariance is barely regular
    np.testing.assert_allclose(out[exact], (q @ slope + level)[exact], rtol=1e-7, atol=1e-7)
    if is_causal:
        np.testing.assert_allclose(out[0], k[0] @ slope + level, rtol=1e-13)  # a single key: its value


@pytest.mark.parametrize(("Tk", "d"), [(9, 3), (2, 4), (1, 2)])
def test_gradients_of_local_linear_attention_without_penalty(Tk: int, d: int, rng: np.random.Generator) -> None:
    """At alpha = 0 as well, and where the keys leave the slope open: the least one moves with them."""
    arrays = {"q": rng.standard_normal((3, d)), "k": rng.standard_normal((Tk, d)), "v": rng.standard_normal((Tk, 2))}
    out, pullback = kvq.vjp(kvq.local_linear_attention, **arrays, alpha=0.0, scale=0.5)
    dout = rng.standard_normal(out.shape)
    grads = pullback(dout)
    for name, x in arrays.items():

        def moved(y: np.ndarray, name: str = name) -> np.ndarray:
            return kvq.local_linear_attention(**arrays | {name: y}, alpha=0.0, scale=0.5)

        assert relative_error(getattr(grads, name), numerical_vjp(moved, x, dout)) < 1e-5, name


def test_local_linear_attention_tends_to_softmax_attention(rng: np.random.Generator) -> None:
    """With an error of order 1 / alpha, measured."""
    q, k, v = rng.standard_normal((3, 8, 3))
    limit = kvq.softmax_attention(q, k, v)
    far, near = (np.abs(kvq.local_linear_attention(q, k, v, alpha=a) - limit).max() for a in (1e4, 2e4))
    assert far / near == pytest.approx(2, abs=0.01)


def test_local_linear_attention_of_a_small_cloud_far_from_the_origin(rng: np.random.Generator) -> None:
    """Keys 1e3 away and 1e-2 apart, in float32: their covariance is not the difference of two large numbers."""
    k = 1e3 + 1e-2 * rng.standard_normal((20, 2))
    q, v = k[:5] + 1e-2, rng.standard_normal((20, 3))
    rounded = [x.astype("float32") for x in (q, k, v)]
    out = kvq.local_linear_attention(*rounded, alpha=1e-5, scale=0.0)
    expected = kvq.local_linear_attention(*(x.astype("float64") for x in rounded), alpha=1e-5, scale=0.0)
    assert relative_error(out, expected) < 0.05  # float32 has 6e-5 beside 1e3: what it holds of a key is good to 1 %
