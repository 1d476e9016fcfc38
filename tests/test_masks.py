"""Masks, biases, feature maps and heads against loops over their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import LIBRARIES, library

import kvq_ref as kvq
from kvq_ref import masks
from kvq_ref.features import FEATURE_MAPS, FeatureMap, elementwise
from kvq_ref.testing import numerical_vjp

SIZES = [(4, 4), (3, 7), (7, 3), (1, 5), (5, 1), (0, 3), (3, 0)]
each_size = pytest.mark.parametrize(("Tq", "Tk"), SIZES)


def pairs(Tq: int, Tk: int, rule: Any, dtype: Any = bool) -> np.ndarray:
    """rule(i, j) for every pair, one at a time."""
    return np.array([[rule(i, j) for j in range(Tk)] for i in range(Tq)], dtype).reshape(Tq, Tk)


# ---- Masks that users make -----------------------------------------------------------


@each_size
def test_causal(Tq: int, Tk: int) -> None:
    """Query i sees key j if j <= i."""
    mask = masks.causal(Tq, Tk)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, pairs(Tq, Tk, lambda i, j: j <= i))


@pytest.mark.parametrize(("left", "right"), [(0, 0), (1, 0), (0, 2), (2, 1), (100, 100)])
@each_size
def test_window(Tq: int, Tk: int, left: int, right: int) -> None:
    """Query i sees key j if i - left <= j <= i + right."""
    mask = masks.window(Tq, Tk, left, right)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, pairs(Tq, Tk, lambda i, j: i - left <= j <= i + right))


def test_window_of_one_side_is_causal() -> None:
    """right defaults to 0; a window that reaches back to the start is the causal mask."""
    np.testing.assert_array_equal(masks.window(5, 6, left=5), masks.causal(5, 6))


@pytest.mark.parametrize("sides", [{"left": -1}, {"left": 1, "right": -1}])
def test_window_of_negative_size(sides: dict[str, int]) -> None:
    """It names the side."""
    name = "right" if "right" in sides else "left"
    with pytest.raises(ValueError, match=f"^{name} must be >= 0, got -1"):
        masks.window(3, 3, **sides)


@pytest.mark.parametrize("n_keys", [[1, 3], [0, 5], [[1, 2], [3, 4]], [9]], ids=str)
def test_lengths(n_keys: Any) -> None:
    """Sequence b has its first n_keys[b] keys; the rest is padding. Lists and integer arrays alike."""
    mask = masks.lengths(n_keys, 5)
    numbers = np.asarray(n_keys)
    assert mask.dtype == bool
    assert mask.shape == (*numbers.shape, 1, 5)
    for b in np.ndindex(*numbers.shape):
        assert mask[b].tolist() == [[j < numbers[b] for j in range(5)]]
    for dtype in ("int32", "int64", "uint8"):
        np.testing.assert_array_equal(masks.lengths(numbers.astype(dtype), 5), mask)


def test_lengths_are_a_key_mask(rng: np.random.Generator) -> None:
    """Each sequence of a padded batch gives what it gives alone."""
    q, k, v = (rng.standard_normal((3, 5, 2)) for _ in range(3))
    out = kvq.softmax_attention(q, k, v, mask=masks.lengths([2, 5, 1], 5))
    for b, n in enumerate([2, 5, 1]):
        np.testing.assert_allclose(out[b], kvq.softmax_attention(q[b], k[b, :n], v[b, :n]), rtol=1e-13)


@pytest.mark.parametrize("n_keys", [[1.0, 2.0], np.array([1.5]), [True]], ids=str)
def test_lengths_are_integers(n_keys: Any) -> None:
    """Half a key is a mistake."""
    with pytest.raises(TypeError, match=r"^n_keys: expected integers, got dtype"):
        masks.lengths(n_keys, 5)


@pytest.mark.parametrize("library_name", LIBRARIES)
def test_lengths_follow_their_array(library_name: str) -> None:
    """Given an array, the mask is in its library, on its device."""
    lib = library(library_name)
    n_keys = lib.make(np.array([1, 3]))
    mask = masks.lengths(n_keys, 4)
    assert type(mask) is type(n_keys)
    assert mask.device == n_keys.device
    np.testing.assert_array_equal(lib.back(mask) != 0, masks.lengths([1, 3], 4))


@pytest.mark.parametrize("heads", [1, 2, 8])
@each_size
def test_alibi(heads: int, Tq: int, Tk: int) -> None:
    """-slope |i - j| with slopes 2^(-8/heads), 2^(-16/heads), ..., 2^-8."""
    bias = masks.alibi(heads, Tq, Tk)
    assert bias.dtype == np.float64
    assert bias.shape == (heads, Tq, Tk)
    for h in range(heads):
        slope = 2.0 ** (-8 * (h + 1) / heads)
        np.testing.assert_allclose(bias[h], pairs(Tq, Tk, lambda i, j, s=slope: -s * abs(i - j), float), rtol=1e-15)


def test_alibi_serves_every_score_form(rng: np.random.Generator) -> None:
    """As a bias it multiplies the weight by exp(-slope |i - j|), also where the score is not exponentiated."""
    q, k = rng.standard_normal((2, 5, 3)), rng.standard_normal((2, 5, 3))
    weights = kvq.expressive_attention(q, k, np.broadcast_to(np.eye(5), (2, 5, 5)), bias=masks.alibi(2, 5, 5))
    z = q @ np.swapaxes(k, -1, -2)
    expected = np.exp(masks.alibi(2, 5, 5)) * z**2 / (1 + z**2)
    np.testing.assert_allclose(weights, expected / expected.sum(axis=-1, keepdims=True), rtol=1e-12)


# ---- What the forms need to know about a mask ----------------------------------------


@pytest.mark.parametrize("shape", [(6,), (1, 6), (4, 6), (4, 1), (1, 1), (2, 1, 6), (2, 4, 6), (1,)], ids=str)
def test_with_key_axis(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    """At least two axes, all keys in the last; it says the same of every pair."""
    mask = rng.random(shape) < 0.5
    ready = masks.with_key_axis(mask, 6)
    assert ready.ndim >= 2
    assert ready.shape[-1] == 6
    np.testing.assert_array_equal(np.broadcast_to(ready, (2, 4, 6)), np.broadcast_to(mask, (2, 4, 6)))
    assert masks.is_key_mask(ready) == (len(shape) < 2 or shape[-2] == 1)


def test_no_mask_is_a_key_mask() -> None:
    """None hides nothing from anyone."""
    assert masks.with_key_axis(None, 3) is None
    assert masks.is_key_mask(None)


def test_hide_keys(rng: np.random.Generator) -> None:
    """A hidden row becomes zero, whatever it held; the others keep their bits."""
    k = rng.standard_normal((2, 4, 3))
    k[:, 1] = np.nan
    mask = np.array([[True, False, True, False]])
    (hidden,) = masks.hide_keys(mask, k)
    for j in range(4):
        np.testing.assert_array_equal(hidden[:, j], k[:, j] if mask[0, j] else np.zeros((2, 3)))
    assert np.isnan(k[:, 1]).all()


def test_row_max(rng: np.random.Generator) -> None:
    """The largest visible entry, and 0 for a row that sees nothing or nothing finite."""
    x = rng.standard_normal((5, 4)) - 3
    visible = rng.random((5, 4)) < 0.5
    visible[0], visible[1] = False, True
    x[1] = -np.inf
    x[~visible] = 1e300
    expected = [[max((x[i, j] for j in range(4) if visible[i, j]), default=0.0)] for i in range(5)]
    expected[1] = [0.0]
    np.testing.assert_array_equal(masks.row_max(x, visible), expected)
    np.testing.assert_array_equal(masks.row_max(x, None)[2:], x[2:].max(axis=-1, keepdims=True))


def test_row_divisor() -> None:
    """x / n, and 0 for n = 0, without a warning."""
    np.testing.assert_array_equal(3 / masks.row_divisor(np.array([2.0, 0.0, -0.0, -4.0])), [1.5, 0.0, 0.0, -0.75])


# ---- Feature maps --------------------------------------------------------------------

DEFINITIONS = {
    "identity": lambda x: x,
    "elu+1": lambda x: x + 1 if x > 0 else float(np.exp(x)),
    "relu": lambda x: max(x, 0.0),
}


def test_every_feature_map_has_a_definition_here() -> None:
    """A map that is added is to be tested."""
    assert set(DEFINITIONS) == set(FEATURE_MAPS)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_feature_map_and_its_derivative(name: str, rng: np.random.Generator) -> None:
    """phi by its definition, and its adjoint by central differences; the arguments stay clear of the corner at 0."""
    x = rng.uniform(0.01, 3.0, (4, 3)) * rng.choice([-1.0, 1.0], (4, 3))
    phi = FEATURE_MAPS[name]
    np.testing.assert_allclose(phi.apply(x), np.vectorize(DEFINITIONS[name])(x), rtol=1e-15)
    d = rng.standard_normal((4, 3))
    assert phi.vjp is not None
    # Central differences of order 6 and step 1e-4: 1e-12 from rounding, less from the series.
    np.testing.assert_allclose(phi.vjp(x, d), numerical_vjp(phi.apply, x, d), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_feature_map_at_the_corner_and_far_away(name: str) -> None:
    """0 and large arguments give finite numbers and no warning; relu has the slope 0 at 0, as is usual."""
    phi = FEATURE_MAPS[name]
    assert phi.vjp is not None
    x = np.array([-1e4, 0.0, 1e4])
    values, slopes = phi.apply(x), phi.vjp(x, np.ones(3))
    expected = {"identity": (x, [1, 1, 1]), "elu+1": ([0, 1, 1e4 + 1], [0, 1, 1]), "relu": ([0, 0, 1e4], [0, 0, 1])}
    np.testing.assert_array_equal(values, expected[name][0])
    np.testing.assert_array_equal(slopes, expected[name][1])
    for dtype in ("float32", "float64"):
        assert phi.apply(x.astype(dtype)).dtype == dtype
        assert phi.vjp(x.astype(dtype), np.ones(3, dtype)).dtype == dtype


def polynomial() -> FeatureMap:
    """(x, x^2): a map that doubles the dimension."""
    return FeatureMap(
        apply=lambda x: np.concatenate([x, x**2], axis=-1),
        vjp=lambda x, d: d[..., : x.shape[-1]] + 2 * x * d[..., x.shape[-1] :],
    )


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(
    "phi", [elementwise(np.sin, np.cos), (np.sin, np.cos), polynomial()], ids=["made", "pair", "wider"]
)
def test_feature_map_of_ones_own(phi: Any, is_causal: bool, rng: np.random.Generator) -> None:
    """A pair, or a FeatureMap that changes the dimension: values from the definition, gradients by differences."""
    q, k, v = rng.standard_normal((4, 3)), rng.standard_normal((5, 3)), rng.standard_normal((5, 2))
    apply = np.sin if isinstance(phi, tuple) and not isinstance(phi, FeatureMap) else phi.apply
    visible = np.tri(4, 5) if is_causal else 1.0
    options: dict[str, Any] = {"feature_map": phi, "is_causal": is_causal}
    out, pullback = kvq.vjp(kvq.linear_attention, q, k, v, **options)
    np.testing.assert_allclose(out, (apply(q) @ apply(k).T * visible) @ v, rtol=1e-12, atol=1e-13)
    dout = rng.standard_normal(out.shape)
    grads = pullback(dout)
    expected_q = numerical_vjp(lambda x: kvq.linear_attention(x, k, v, **options), q, dout)
    expected_k = numerical_vjp(lambda x: kvq.linear_attention(q, x, v, **options), k, dout)
    np.testing.assert_allclose(grads.q, expected_q, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(grads.k, expected_k, rtol=1e-6, atol=1e-7)


def test_state_of_wider_features(rng: np.random.Generator) -> None:
    """A map that changes the dimension carries a state of its own width."""
    q, k, v = (rng.standard_normal((6, 3)) for _ in range(3))
    whole = kvq.linear_attention(q, k, v, is_causal=True, feature_map=polynomial())
    _, state = kvq.linear_attention(
        q[:4], k[:4], v[:4], is_causal=True, feature_map=polynomial(), output_final_state=True
    )
    assert state.kv.shape == (6, 3)
    rest = kvq.linear_attention(q[4:], k[4:], v[4:], is_causal=True, feature_map=polynomial(), initial_state=state)
    np.testing.assert_allclose(rest, whole[4:], rtol=1e-12, atol=1e-13)


# ---- Heads ---------------------------------------------------------------------------


@pytest.mark.parametrize("library_name", LIBRARIES)
@pytest.mark.parametrize("leading", [(), (2,), (2, 3), (0,)], ids=str)
@pytest.mark.parametrize("heads", [1, 2, 6])
def test_heads(heads: int, leading: tuple[int, ...], library_name: str, rng: np.random.Generator) -> None:
    """Head h is features h d .. (h + 1) d; merging undoes splitting to the bit."""
    lib = library(library_name)
    x = rng.standard_normal((*leading, 5, 6))
    d = 6 // heads
    split = kvq.split_heads(lib.make(x), heads)
    assert tuple(split.shape) == (*leading, heads, 5, d)
    for h in range(heads):
        np.testing.assert_array_equal(lib.back(split)[..., h, :, :], x[..., h * d : (h + 1) * d])
    np.testing.assert_array_equal(lib.back(kvq.merge_heads(split)), x)


@pytest.mark.parametrize("heads", [0, -1, 4, 7])
def test_heads_that_do_not_divide(heads: int) -> None:
    """It says what there is to divide."""
    with pytest.raises(ValueError, match=f"^heads: expected a divisor of the last axis, 6, got {heads}"):
        kvq.split_heads(np.zeros((5, 6)), heads)


@pytest.mark.parametrize("heads", [1.0, "2", None, True])
def test_heads_are_an_integer(heads: Any) -> None:
    """Nothing else counts heads."""
    with pytest.raises(TypeError, match=r"^heads: expected an integer, got"):
        kvq.split_heads(np.zeros((5, 6)), heads)


def test_heads_of_too_few_axes() -> None:
    """Both directions name the shape that they want."""
    with pytest.raises(ValueError, match=r"^x: expected shape \(\.\.\., T, heads \* d\), got \(6,\)"):
        kvq.split_heads(np.zeros(6), 2)
    with pytest.raises(ValueError, match=r"^x: expected shape \(\.\.\., heads, T, d\), got \(5, 6\)"):
        kvq.merge_heads(np.zeros((5, 6)))


def test_multi_head_attention_is_heads_one_by_one(rng: np.random.Generator) -> None:
    """split, attend, merge equals attention of each slice of the features."""
    q, k, v = (rng.standard_normal((2, 5, 6)) for _ in range(3))
    out = kvq.merge_heads(kvq.softmax_attention(*(kvq.split_heads(x, 3) for x in (q, k, v)), is_causal=True))
    for h in range(3):
        own = (x[..., 2 * h : 2 * h + 2] for x in (q, k, v))
        np.testing.assert_allclose(out[..., 2 * h : 2 * h + 2], kvq.softmax_attention(*own, is_causal=True), rtol=1e-13)
