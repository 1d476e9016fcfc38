"""However the keys are cut, and in whatever order the pieces are merged, a fold is the form.

It is held against the readable reference, which is given all keys at once. How near the two must be is computed: from
the bound of kvq_ref.testing.rounding or, for options that this does not know, from what a small change of the inputs
does to the output.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from cases import ALL_FORMS, LIBRARIES, Options, cases, convert, library, public, relative_error
from hypothesis import given
from hypothesis import strategies as st

import kvq_ref as kvq
from kvq_ref.dispatch import FORMS, Form
from kvq_ref.grid import GRID
from kvq_ref.partials import FOLDS, MeanPartial, Piece, fold, merge_means, split
from kvq_ref.testing.calls import OPTIONAL, calls
from kvq_ref.testing.rounding import rounding

NOT_JAX = [x for x in LIBRARIES if "jax" not in getattr(x, "values", (x,))]
Merge = Callable[[Any, Any], Any]
Gather = Callable[[Merge, list[Any]], Any]
Arrays = Sequence[np.ndarray]


def takes_bias(form: Form) -> bool:
    return "bias" in form.options


def is_mean(form: Form) -> bool:
    return GRID[form.name].row == "mean"


def is_least_squares(form: Form) -> bool:
    return "alpha" in form.options


def is_preconditioned(form: Form) -> bool:
    return GRID[form.name].query == "preconditioned"


def assert_close(got: np.ndarray, expected: np.ndarray, bound: float) -> None:
    assert got.shape == expected.shape
    error = float(np.max(np.abs(got - expected), initial=0.0))
    assert error <= bound, f"differs by {error}, more than {bound}"


def forms_that(applies: Callable[[Form], bool]) -> Any:
    forms = [form for form in ALL_FORMS if not form.is_sequential and applies(form)]
    return pytest.mark.parametrize("form", forms, ids=lambda form: form.name)


each_form = forms_that(lambda form: True)
biased_forms = forms_that(takes_bias)
means = forms_that(is_mean)
preconditioned_forms = forms_that(is_preconditioned)
forms_with_state = forms_that(lambda form: form.has_state)


def whole(form: Form, q: Any, k: Any, v: Any, **options: Any) -> Any:
    return public(form)(q, k, v, implementation="reference", **options)


def alpha_of(form: Form) -> Options:
    return {"alpha": 0.5} if is_least_squares(form) else {}


def random_qkv(rng: np.random.Generator, T: int = 6, d: int = 3, dv: int = 4) -> list[np.ndarray]:
    return [rng.standard_normal((T, n)) for n in (d, d, dv)]


def cut(k: Any, v: Any, at: Sequence[int], options: Options) -> tuple[list[Piece], Options]:
    """The pieces of a call, and the options that are not theirs."""
    columns = {name: x for name, x in options.items() if name in ("mask", "bias")}
    return split(k, v, at, **columns), {name: x for name, x in options.items() if name not in columns}


def random_cuts(rng: np.random.Generator, Tk: int) -> list[int]:
    """Where pieces begin; one place twice, for an empty piece."""
    cuts = [int(x) for x in rng.integers(0, Tk + 1, 4)]
    return sorted([*cuts, cuts[0]])


def random_tree(rng: np.random.Generator) -> Gather:
    """Merges two partials drawn at random, until one is left."""

    def gather(merge: Merge, parts: list[Any]) -> Any:
        parts = list(parts)
        while len(parts) > 1:
            a, b = (parts.pop(rng.integers(len(parts))) for _ in range(2))
            parts.append(merge(a, b))
        return parts[0]

    return gather


def fold_at_random(
    form: Form, rng: np.random.Generator, arrays: Sequence[Any], at: Sequence[int], **options: Any
) -> Any:
    """A call in pieces, in random order, merged as a random tree."""
    q, k, v = arrays
    pieces, options = cut(k, v, at, options)
    order = rng.permutation(len(pieces))
    return fold(form.name, q, [pieces[i] for i in order], gather=random_tree(rng), **options)


def allowed(form: Form, rng: np.random.Generator, arrays: Arrays, dtype: str = "float64", **options: Any) -> float:
    """How large the relative error of two evaluations may be.

    Rounding acts like a change of the inputs by a few eps, which the form amplifies: by how much is seen from the
    output at inputs that are changed a little. Sums of products with K^T K also have its condition number.
    """
    out, step, amplification = whole(form, *arrays, **options), 1e-7, 1.0
    for _ in range(4):
        near = [x * (1 + step * rng.standard_normal(x.shape)) for x in arrays]
        amplification = max(amplification, relative_error(whole(form, *near, **options), out) / step)
    if is_least_squares(form):
        k = arrays[1]
        amplification += 1 + float(np.max(np.sum(k * k, axis=(-2, -1)))) / float(np.min(options["alpha"]))
    return 30 * float(np.finfo(dtype).eps) * amplification


# ---- A fold is the form --------------------------------------------------------------


def test_every_form_has_a_fold() -> None:
    """But those whose keys have an order: they are fed in pieces by their state."""
    assert set(FOLDS) == set(FORMS)
    for name, form in FORMS.items():
        module, rounds = FOLDS[name]
        assert module is form.module
        assert bool(rounds) != form.is_sequential
        if form.is_sequential:
            assert form.has_state
            with pytest.raises(ValueError, match=f"form: .*merged in any order.*{name}.*initial_state"):
                fold(name, np.ones((2, 2)), [(np.ones((2, 2)), np.ones((2, 2)))])


@each_form
@given(data=st.data())
def test_any_split_merged_in_any_order_is_the_whole(form: Form, data: st.DataObject) -> None:
    """Empty pieces, and pieces that some queries or all of them cannot see; masks, bias, scale and the causal rule."""
    call = data.draw(calls(form.name, frozenset(form.options) & frozenset(OPTIONAL), empty_rows=True))
    places = st.integers(0, call.k.shape[-2])
    cuts = sorted(data.draw(st.lists(places, max_size=6), label="cuts"))  # one place as often as it comes
    out = fold_at_random(form, call.rng(), (call.q, call.k, call.v), cuts, **call.options)
    error = np.abs(out - whole(form, call.q, call.k, call.v, **call.options))
    assert (error <= rounding(form.name, call).allowed()).all()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("library_name", NOT_JAX)
@each_form
def test_every_option_in_every_library(form: Form, library_name: str, dtype: str, rng: np.random.Generator) -> None:
    """Feature maps, an alpha for each batch entry, every broadcasting: and the result is of the kind of the inputs."""
    lib, numpy = library(library_name), library("numpy")
    for case in cases(form, rng):
        arrays = [x.astype(dtype) for x in (case.q, case.k, case.v)]
        options = convert(case.options, numpy, dtype)
        exact_arrays, exact_options = [x.astype("float64") for x in arrays], convert(options, numpy, "float64")
        expected = whole(form, *exact_arrays, **exact_options)
        made = [lib.make(x) for x in arrays]
        out = fold_at_random(form, rng, made, random_cuts(rng, case.k.shape[-2]), **convert(options, lib, dtype))
        assert type(out) is type(made[0])
        assert out.dtype == made[0].dtype
        assert out.device == made[0].device
        assert tuple(out.shape) == expected.shape, case.name
        bar = allowed(form, rng, exact_arrays, dtype, **exact_options)
        assert relative_error(lib.back(out), expected) <= bar, case.name


@pytest.mark.oracle
@each_form
def test_jax(form: Form, rng: np.random.Generator) -> None:
    """One call, with pieces of the same shape: JAX compiles every operation for every shape."""
    lib = library("jax")
    arrays = [lib.make(x) for x in random_qkv(rng)]
    options = alpha_of(form) | {"mask": rng.random((6, 6)) < 0.8, "is_causal": True}
    out = fold_at_random(form, rng, arrays, [3], **convert(options, lib, "float64"))
    exact = [np.asarray(x) for x in arrays]
    assert type(out) is type(arrays[0])
    assert relative_error(lib.back(out), whole(form, *exact, **options)) <= allowed(form, rng, exact, **options)


@pytest.mark.parametrize("library_name", ["numpy", pytest.param("torch", marks=pytest.mark.oracle)])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@each_form
def test_half_precision_is_rounded_once(form: Form, dtype: str, library_name: str, rng: np.random.Generator) -> None:
    """As near to the exact result as the dtype allows, also after two rounds."""
    lib = library(library_name)
    if library_name == "torch":
        torch = pytest.importorskip("torch")
        arrays = [torch.asarray(x).to(getattr(torch, dtype)) for x in random_qkv(rng)]
    else:
        kind = pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype
        arrays = [x.astype(kind) for x in random_qkv(rng)]
    # A large scale, so that queries which were rounded between the rounds would be far off.
    options = {"alpha": 0.5, "scale": 50.0} if len(FOLDS[form.name][1]) > 1 else alpha_of(form)
    out = fold_at_random(form, rng, arrays, [2, 3], **options)
    assert out.dtype == arrays[0].dtype
    exact = [np.asarray(lib.back(x), np.float64) for x in arrays]
    expected = whole(form, *exact, **options)
    eps = {"float16": 2**-11, "bfloat16": 2**-8}[dtype]
    slack = allowed(form, rng, exact, "float32", **options)
    assert relative_error(np.asarray(lib.back(out), np.float64), expected) <= eps + slack


@each_form
def test_pieces_need_not_be_alike(form: Form, rng: np.random.Generator) -> None:
    """One without a mask, one with a mask of keys, one with a mask of pairs; one with a bias, the others without."""
    q, k, v = random_qkv(rng, T=9)
    masks = [None, rng.random((1, 3)) < 0.6, rng.random((9, 3)) < 0.6]
    biases = [None, rng.standard_normal((9, 3)), None] if "bias" in form.options else [None] * 3
    pieces = [
        Piece(k[s], v[s], m, b) for s, m, b in zip((slice(0, 3), slice(3, 6), slice(6, 9)), masks, biases, strict=True)
    ]

    def all_columns(columns: list[np.ndarray | None], otherwise: np.ndarray) -> np.ndarray:
        return np.concatenate([np.broadcast_to(otherwise if x is None else x, (9, 3)) for x in columns], axis=1)

    options = alpha_of(form) | {"mask": all_columns(masks, np.asarray(True))}
    if "bias" in form.options:
        options["bias"] = all_columns(biases, np.asarray(0.0))
    out = fold(form.name, q, pieces, **alpha_of(form))
    assert relative_error(out, whole(form, q, k, v, **options)) <= allowed(form, rng, (q, k, v), **options)


@each_form
def test_arguments_are_left_alone(form: Form, rng: np.random.Generator) -> None:
    for case in cases(form, rng):
        given_arrays = [case.q, case.k, case.v, *(x for x in case.options.values() if isinstance(x, np.ndarray))]
        before = [x.copy() for x in given_arrays]
        for x in given_arrays:
            x.flags.writeable = False
        out = fold_at_random(form, rng, (case.q, case.k, case.v), [1, 2], **case.options)
        for x, copy in zip(given_arrays, before, strict=True):
            np.testing.assert_array_equal(x, copy)
            assert not np.shares_memory(out, x)


@each_form
def test_empty_in_every_axis(form: Form, rng: np.random.Generator) -> None:
    """No queries, no keys in any piece, no dimensions, no columns in v, no batch."""
    for Tq, Tk, d, dv in ((0, 3, 2, 2), (3, 0, 2, 2), (3, 3, 0, 2), (3, 3, 2, 0), (0, 0, 0, 0), (1, 1, 1, 1)):
        for leading in ((), (2,), (0,)):
            for is_causal in (False, True):
                q, k, v = (rng.standard_normal((*leading, *shape)) for shape in ((Tq, d), (Tk, d), (Tk, dv)))
                options = alpha_of(form) | {"is_causal": is_causal}
                if "bias" in form.options:
                    options["bias"] = rng.standard_normal((Tq, Tk))
                out = fold_at_random(form, rng, (q, k, v), [0, Tk // 2], **options)
                expected = whole(form, q, k, v, **options)
                assert out.shape == expected.shape
                assert relative_error(out, expected) < 1e-10


# ---- The algebra of a merge ----------------------------------------------------------


def pieces_beside_nothing(form: Form, rng: np.random.Generator) -> tuple[np.ndarray, list[Piece], list[Piece]]:
    """Queries, pieces that they see, and pieces of which they see nothing."""
    q, k, v = random_qkv(rng, T=9)
    seen = split(k[:6], v[:6], [2, 4])
    hidden = [
        Piece(k[:0], v[:0], start=0),
        Piece(k[6:], v[6:], mask=np.zeros((1, 3), bool), start=0),
        Piece(k[6:], v[6:], mask=np.zeros((9, 3), bool), start=0),
        Piece(k[6:], v[6:], start=1000),
    ]
    if takes_bias(form) and not is_preconditioned(form):
        hidden.append(Piece(k[6:], v[6:], bias=np.full((1, 3), -math.inf), start=0))
    return q, seen, hidden


def assert_equal(a: tuple[np.ndarray, ...], b: tuple[np.ndarray, ...]) -> None:
    assert type(a) is type(b)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(*np.broadcast_arrays(x, y))


@each_form
def test_nothing_is_the_neutral_element(form: Form, rng: np.random.Generator) -> None:
    """No keys, keys behind a mask, in the future or without weight: to merge them changes no bit, from either side."""
    q, seen, hidden = pieces_beside_nothing(form, rng)
    rounds = 0

    def gather(merge: Merge, parts: list[Any]) -> Any:
        nonlocal rounds
        rounds += 1
        one = functools.reduce(merge, parts[: len(seen)])
        for nothing in parts[len(seen) :]:
            assert_equal(merge(one, nothing), one)
            assert_equal(merge(nothing, one), one)
            assert_equal(merge(nothing, nothing), nothing)
        return one

    options = alpha_of(form) | {"is_causal": True, "start": 100}
    out = fold(form.name, q, seen + hidden, gather=gather, **options)
    np.testing.assert_array_equal(out, fold(form.name, q, seen, **options))
    assert rounds == len(FOLDS[form.name][1])


@each_form
def test_merge_is_commutative_and_associative(form: Form, rng: np.random.Generator) -> None:
    """The first to the last bit, the second up to the rounding of sums."""
    q, seen, _ = pieces_beside_nothing(form, rng)

    def gather(merge: Merge, parts: list[Any]) -> Any:
        a, b, c = parts
        assert_equal(merge(a, b), merge(b, a))
        left, right = merge(merge(a, b), c), merge(a, merge(b, c))
        for x, y, *terms in zip(left, right, a, b, c, strict=True):
            size = sum(float(np.max(np.abs(term))) for term in terms)
            assert_close(x, y, 20 * float(np.finfo(float).eps) * size)
        return left

    fold(form.name, q, seen, gather=gather, **alpha_of(form))


def test_state_is_the_partial_of_all_keys(rng: np.random.Generator) -> None:
    """What the public functions call a state is what a fold keeps where all queries see the same keys."""
    q, k, v = random_qkv(rng)
    for form, options in ((FORMS["linear_attention"], {"feature_map": "elu+1"}), (FORMS["intention"], {"alpha": 0.5})):
        _, state = whole(form, q, k, v, output_final_state=True, **options)

        def gather(merge: Merge, parts: list[Any], state: Any = state) -> Any:
            part = functools.reduce(merge, parts)
            assert type(part) is type(state)
            for x, y in zip(part, state, strict=True):
                assert relative_error(x[0], y) < 1e-13
            return part

        fold(form.name, q, split(k, v, [1, 4]), gather=gather, **options)


# ---- Masks, and what they hide -------------------------------------------------------


@biased_forms
def test_bias_of_minus_infinity(form: Form, rng: np.random.Generator) -> None:
    """No weight, for some pairs, for all keys of a query and for all of a piece; but still in the regression."""
    q, k, v = random_qkv(rng)
    bias = np.where(rng.random((6, 6)) < 0.6, rng.standard_normal((6, 6)), -math.inf)
    bias[1] = -math.inf
    bias[:, 2:4] = -math.inf
    for options in ({"bias": bias}, {"bias": bias[5:]}, {"bias": bias, "is_causal": True}):
        everything = alpha_of(form) | options
        out = fold_at_random(form, rng, (q, k, v), [2, 4], **everything)
        bar = allowed(form, rng, (q, k, v), **everything)
        assert relative_error(out, whole(form, q, k, v, **everything)) <= bar


@pytest.mark.parametrize("library_name", LIBRARIES[:2])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1.7e308])
@each_form
def test_nothing_leaks_from_behind_the_mask(
    form: Form, poison: float, library_name: str, rng: np.random.Generator
) -> None:
    lib = library(library_name)
    q, k, v = (rng.standard_normal((2, 6, n)) for n in (3, 3, 4))
    hidden = np.array([1, 5])
    key_mask = np.ones((2, 1, 6), bool)
    key_mask[..., hidden] = False
    pair_mask = np.broadcast_to(key_mask, (2, 6, 6)).copy()
    pair_mask[:, 0, 0] = False
    bad_k, bad_v = k.copy(), v.copy()
    bad_k[:, hidden], bad_v[:, hidden] = poison, poison
    bias = np.where(key_mask, 0.3, -math.inf)
    hiding: list[Options] = [{"mask": mask, "is_causal": c} for mask in (key_mask, pair_mask) for c in (False, True)]
    if takes_bias(form):
        hiding.append({"mask": key_mask, "bias": np.where(key_mask, 0.3, poison)})
        hiding += [] if is_preconditioned(form) else [{"bias": bias}]
    for options in hiding:
        made = alpha_of(form) | convert(options, lib, "float64")
        clean, dirty = (
            lib.back(fold_at_random(form, rng, [lib.make(x) for x in arrays], [1, 3], **made))
            for arrays in ((q, k, v), (q, bad_k, bad_v))
        )
        np.testing.assert_allclose(dirty, clean, rtol=1e-10, atol=1e-11)


@each_form
def test_future_does_not_leak(form: Form, rng: np.random.Generator) -> None:
    """Pieces in the future of all queries may hold anything."""
    q, k, v = random_qkv(rng, T=8)
    expected = whole(form, q[:3], k[:3], v[:3], is_causal=True, **alpha_of(form))
    k[3:], v[3:] = math.nan, 1.7e308
    out = fold_at_random(form, rng, (q[:3], k, v), [1, 3, 6], is_causal=True, **alpha_of(form))
    bar = allowed(form, rng, (q[:3], k[:3], v[:3]), is_causal=True, **alpha_of(form))
    assert relative_error(out, expected) <= bar


@each_form
def test_overflow_stays_with_those_who_see_it(form: Form, rng: np.random.Generator) -> None:
    """Scores or products of keys that overflow, to infinity or (times zero) to NaN: other queries are as before."""
    for scale in ({}, {"scale": 0.0}) if "scale" in form.options else ({},):
        q, k, v = random_qkv(rng)
        q[:, 0] = 2.0
        mask = np.ones((6, 6), bool)
        mask[:4, 4] = False
        options = alpha_of(form) | scale
        clean = fold(form.name, q, split(k, v, [3], mask=mask), **options)
        k[4], v[4] = [1.7e308, 0.0, 0.0], 1.7e308
        with np.errstate(all="ignore"):
            out = fold(form.name, q, split(k, v, [3], mask=mask), **options)
        np.testing.assert_array_equal(out[:4], clean[:4])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@each_form
def test_visible_nan_is_reported_where_it_is_seen(form: Form, bad: float, rng: np.random.Generator) -> None:
    """In a key, a value, a query or a bias: NaN in the same rows as in the whole, and in no others."""
    variants: list[Options] = [alpha_of(form)]
    if "feature_map" in form.options:
        variants.append({"feature_map": "relu"})
    for where, options in itertools.product(("q", "k", "v", "bias"), variants):
        arrays = dict(zip("qkv", random_qkv(rng), strict=True))
        options = options | {"mask": rng.random((6, 6)) < 0.6, "is_causal": bool(rng.integers(2))}
        if where == "bias":
            if not takes_bias(form):
                continue
            options["bias"] = rng.standard_normal((6, 6))
            options["bias"][2, 1] = bad
        else:
            arrays[where][2, 1] = bad
        options["mask"][2] &= rng.integers(2) == 1
        expected = whole(form, *arrays.values(), **options)
        out = fold_at_random(form, rng, list(arrays.values()), [1, 3], **options)
        np.testing.assert_array_equal(np.isnan(out), np.isnan(expected))
        assert not np.isinf(out).any()


@each_form
def test_query_that_sees_nothing_is_zero(form: Form, rng: np.random.Generator) -> None:
    """In no piece; whatever the query holds."""
    q, k, v = random_qkv(rng)
    mask = np.ones((6, 6), bool)
    mask[2:4] = False
    q[3] = math.nan
    for options in ({"mask": mask}, {"mask": mask, "is_causal": True}):
        out = fold_at_random(form, rng, (q, k, v), [2, 2, 5], **options, **alpha_of(form))
        np.testing.assert_array_equal(out[2:4], 0.0)
        assert np.isfinite(out).all()
    out = fold(form.name, q, [Piece(k[:0], v[:0]), Piece(k, v, mask=np.zeros((1, 6), bool))], **alpha_of(form))
    np.testing.assert_array_equal(out, 0.0)


# ---- Large and small -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@each_form
def test_large_scores_stay_finite(form: Form, dtype: str, rng: np.random.Generator) -> None:
    """Scores up to 1e4 for the forms without a preconditioner."""
    q, k, v = (x.astype(dtype) for x in random_qkv(rng, T=12))
    q *= np.asarray(1e4, dtype) / np.abs(q @ k.T).max()
    options = alpha_of(form) | ({"scale": 1.0} if "scale" in form.options else {})
    out = fold_at_random(form, rng, (q, k, v), [3, 7, 9], **options)
    assert np.isfinite(out).all()
    exact = [x.astype("float64") for x in (q, k, v)]
    expected = whole(form, *exact, **options)
    assert relative_error(out, expected) <= allowed(form, rng, exact, dtype, **options)


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_softmax_keeps_pieces_of_very_different_size(size: float) -> None:
    """The largest scores win wherever they are; and pieces with low ones alone are not lost beside an empty one."""
    low, high = (Piece(np.full((2, 1), x), np.full((2, 1), x)) for x in (-size, size))
    q = np.ones((1, 1))
    for pieces in itertools.permutations([low, high, Piece(low.k[:0], low.v[:0])]):
        expected = size * math.tanh(size)
        assert fold("softmax_attention", q, pieces)[0, 0] == pytest.approx(expected, rel=1e-14)
    hidden = high._replace(mask=np.zeros((1, 2), bool))
    for pieces in itertools.permutations([low, hidden, Piece(low.k[:0], low.v[:0])]):
        np.testing.assert_array_equal(fold("softmax_attention", q, pieces), [[-size]])


@means
def test_large_bias_stays_finite(form: Form, rng: np.random.Generator) -> None:
    """A bias of +-1e4 that differs by pieces: those with the largest have all the weight."""
    q, k, v = random_qkv(rng)
    for sizes in itertools.permutations((-1e4, 0.0, 1e4)):
        bias = rng.standard_normal((6, 6)) + np.repeat(sizes, 2)
        options = alpha_of(form) | {"bias": bias}
        out = fold_at_random(form, rng, (q, k, v), [2, 4], **options)
        # bias is of size 1e4, and its sum with a score rounded as such
        bar = 1e4 * allowed(form, rng, (q, k, v), **options)
        assert relative_error(out, whole(form, q, k, v, **options)) <= bar


def test_weights_too_small_for_a_reciprocal() -> None:
    """1 / sum w overflows where the sum is subnormal; the mean is still there."""
    q, k, v = np.array([[1e-155]]), np.ones((4, 1)), np.array([[1.0], [2.0], [3.0], [4.0]])
    out = fold("expressive_attention", q, split(k, v, [1, 3]))
    np.testing.assert_allclose(out, [[2.5]], rtol=1e-10)


# ---- Three machines ------------------------------------------------------------------


@each_form
def test_tiles(form: Form, rng: np.random.Generator) -> None:
    """FlashAttention's two loops: blocks of queries at their places, tiles of keys, backwards as well."""
    q, k, v = (rng.standard_normal((2, 11, n)) for n in (3, 3, 4))
    options = alpha_of(form) | {"mask": rng.random((2, 11, 11)) < 0.8, "is_causal": True}
    expected = whole(form, q, k, v, **options)
    bar = allowed(form, rng, (q, k, v), **options)
    for size in (3, 4, 11):
        for begin in range(0, 11, size):
            rows = slice(begin, begin + size)
            tiles = split(k, v, range(size, 11, size), mask=options["mask"][:, rows])
            out = fold(form.name, q[:, rows], tiles[::-1], start=begin, is_causal=True, **alpha_of(form))
            # relative to the whole output
            assert float(np.max(np.abs(out - expected[:, rows]))) <= bar * max(float(np.max(np.abs(expected))), 1e-3)


@each_form
def test_streaming(form: Form, rng: np.random.Generator) -> None:
    """One query at a time, with a cache of pieces that grows: causal attention, row by row."""
    q, k, v = random_qkv(rng, T=8)
    expected = whole(form, q, k, v, is_causal=True, **alpha_of(form))
    bar = allowed(form, rng, (q, k, v), is_causal=True, **alpha_of(form)) * float(np.max(np.abs(expected)))
    cache: list[Piece] = []
    for t in range(8):
        cache.append(Piece(k[t : t + 1], v[t : t + 1], start=t))
        out = fold(form.name, q[t : t + 1], cache, **alpha_of(form))
        assert_close(out, expected[t : t + 1], bar)
        everything = split(k, v, range(1, 8))  # those to come may be there already
        out = fold(form.name, q[t : t + 1], everything, start=t, is_causal=True, **alpha_of(form))
        assert_close(out, expected[t : t + 1], bar)


@forms_with_state
def test_streaming_without_a_cache(form: Form, rng: np.random.Generator) -> None:
    """Where a partial is a sum over keys alone, what has been merged so far is all that a new query needs."""
    q, k, v = random_qkv(rng, T=8)
    expected = whole(form, q, k, v, is_causal=True, **alpha_of(form))
    bar = allowed(form, rng, (q, k, v), is_causal=True, **alpha_of(form)) * float(np.max(np.abs(expected)))
    kept: list[Any] = []

    def gather(merge: Merge, parts: list[Any]) -> Any:
        kept[:] = [functools.reduce(merge, [*kept, *parts])]
        return kept[0]

    for t in range(8):
        out = fold(form.name, q[t : t + 1], [(k[t : t + 1], v[t : t + 1])], gather=gather, **alpha_of(form))
        assert_close(out, expected[t : t + 1], bar)


@each_form
def test_sharding(form: Form, rng: np.random.Generator) -> None:
    """Two levels: each machine folds its own tiles, and the machines' partials are merged in any order."""
    q, k, v = random_qkv(rng, T=16)
    options = alpha_of(form) | {"mask": rng.random((1, 16)) < 0.8}
    pieces, rest = cut(k, v, range(2, 16, 2), options)

    def gather(merge: Merge, parts: list[Any]) -> Any:
        machines = [parts[:3], parts[3:4], parts[4:]]
        own = [functools.reduce(merge, tiles) for tiles in machines]
        return functools.reduce(merge, [own[i] for i in rng.permutation(3)])

    out = fold(form.name, q, pieces, gather=gather, **rest)
    assert relative_error(out, whole(form, q, k, v, **options)) <= allowed(form, rng, (q, k, v), **options)


def test_partials_of_another_kernel(rng: np.random.Generator) -> None:
    """What a split-K kernel leaves behind, in whatever units, merges with what is kept here."""
    z, v = rng.standard_normal((3, 6)), rng.standard_normal((6, 4))
    parts = []
    for s in (slice(0, 2), slice(2, 6)):
        shift = 10 * rng.standard_normal((3, 1))  # not the maximum, but a bound will do
        w = np.exp(z[:, s] - shift)
        parts.append(MeanPartial(shift, w @ v[s], w.sum(axis=-1, keepdims=True)))
    _, numerator, denominator = merge_means(*parts)
    w = np.exp(z)
    np.testing.assert_allclose(numerator / denominator, w @ v / w.sum(axis=-1, keepdims=True), rtol=1e-11, atol=1e-12)


# ---- Least squares -------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["auto", "cholesky", "svd", "cg"])
@preconditioned_forms
def test_solvers(form: Form, solver: str, rng: np.random.Generator) -> None:
    """Those that can do with K^T K give the same, with one matrix for all queries and with one for each."""
    q, k, v = random_qkv(rng, T=8)
    for options in ({}, {"is_causal": True}, {"mask": rng.random((8, 8)) < 0.7}):
        everything = alpha_of(form) | options
        expected = whole(form, q, k, v, **everything)
        out = fold_at_random(form, rng, (q, k, v), [3, 5], solver=solver, **everything)
        assert relative_error(out, expected) <= allowed(form, rng, (q, k, v), **everything)


@pytest.mark.parametrize("solver", ["auto", "cholesky", "svd", "cg"])
@preconditioned_forms
def test_without_penalty(form: Form, solver: str, rng: np.random.Generator) -> None:
    """alpha = 0 and independent keys: as the whole, up to the square of the keys' condition number."""
    q, k, v = random_qkv(rng, T=12)
    k[:3] += 3 * np.eye(3)
    expected = whole(form, q, k, v, alpha=0.0)
    out = fold_at_random(form, rng, (q, k, v), [3, 5], alpha=0.0, solver=solver)
    assert relative_error(out, expected) < 1e-9


# ---- Mistakes ------------------------------------------------------------------------

x = np.ones((4, 2))
MISTAKES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "form": (lambda: fold("softmax", x, [(x, x)]), ValueError, "form: expected one of 'softmax_attention'"),
    "no piece": (lambda: fold("intention", x, [], alpha=1.0), ValueError, "pieces: expected at least one, got none"),
    "a piece that is none": (
        lambda: fold("intention", x, [x], alpha=1.0),
        TypeError,
        "pieces: expected Pieces or tuples",
    ),
    "keys alone": (lambda: fold("intention", x, [(x,)], alpha=1.0), TypeError, "pieces: expected Pieces or tuples"),
    "one piece": (lambda: fold("intention", x, Piece(x, x), alpha=1.0), TypeError, "pieces: expected Pieces or tuples"),
    "no alpha": (lambda: fold("intention", x, [(x, x)]), TypeError, "'alpha'"),
    "alpha": (lambda: fold("intention", x, [(x, x)], alpha=-1.0), ValueError, "alpha: expected a finite number >= 0"),
    "unknown option": (lambda: fold("softmax_attention", x, [(x, x)], alpha=1.0), TypeError, "'alpha'"),
    "no bias here": (lambda: fold("linear_attention", x, [(x, x, None, x @ x.T)]), TypeError, "'bias'"),
    "scale": (lambda: fold("sigma_intention", x, [(x, x)], alpha=1.0, scale="1"), TypeError, "scale: expected a real"),
    "flag": (
        lambda: fold("softmax_attention", x, [(x, x)], is_causal=1),
        TypeError,
        "is_causal: expected True or False",
    ),
    "state": (
        lambda: fold("linear_attention", x, [(x, x)], initial_state=kvq.LinearState(x[:2], x[:2, :1])),
        TypeError,
        "initial_state: expected none",
    ),
    "solver": (
        lambda: fold("intention", x, [(x, x)], alpha=1.0, solver="qr"),
        ValueError,
        "solver: expected one of 'auto', 'cholesky', 'svd', 'cg', got 'qr'",
    ),
    "no position": (
        lambda: fold("softmax_attention", x, [(x, x)], is_causal=True),
        TypeError,
        "start: expected an integer, .* got NoneType",
    ),
    "position": (
        lambda: fold("softmax_attention", x, split(x, x, [2]), is_causal=True, start=0.5),
        TypeError,
        "start: expected an integer, .* got float",
    ),
    "dtype": (
        lambda: fold("softmax_attention", x, [(x, x), (x.astype("f4"), x)]),
        TypeError,
        "k: expected dtype float64",
    ),
    "kind of mask": (lambda: fold("softmax_attention", x, [(x, x, x @ x.T)]), TypeError, "mask: expected dtype bool"),
    "mask": (
        lambda: fold("softmax_attention", x, [(x, x, np.ones((4, 3), bool))]),
        ValueError,
        r"mask: expected a shape that broadcasts to \(..., 4, 4\), got \(4, 3\)",
    ),
    "two masks": (
        lambda: fold("softmax_attention", x, [(x, x, x > 0)], mask=x > 0),
        TypeError,
        "multiple values for keyword argument 'mask'",
    ),
    "columns of v": (
        lambda: fold("softmax_attention", x, [(x, x), (x, x[:, :1])]),
        ValueError,
        r"v: expected dv = 2 columns, as in pieces\[0\], got 1",
    ),
    "places": (lambda: split(x, x, [3, 2]), ValueError, r"at: expected places that ascend from 0 to 4, got \[3, 2\]"),
    "places outside": (lambda: split(x, x, [5]), ValueError, "at: expected places that ascend from 0 to 4"),
    "rows of v": (lambda: split(x, x[1:], [2]), ValueError, "v: expected Tk = 4 rows"),
    "mask of other keys": (
        lambda: split(x, x, [2], mask=np.ones((4, 3), bool)),
        ValueError,
        r"mask: expected a shape that broadcasts to \(..., 4, 4\)",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told(mistake: str) -> None:
    """The message names the argument, what it was and what was expected."""
    call, error, message = MISTAKES[mistake]
    with pytest.raises(error) as caught:
        call()
    assert re.search(message, str(caught.value)), caught.value


def test_the_piece_is_told() -> None:
    with pytest.raises(ValueError, match="k: expected last axis") as caught:
        fold("softmax_attention", x, [(x, x), (x[:, :1], x)])
    assert caught.value.__notes__ == ["in pieces[1]"]


# ---- Cutting -------------------------------------------------------------------------


def test_split(rng: np.random.Generator) -> None:
    """Columns that are stretched over the keys are left as they are, and put together the pieces are the whole."""
    k, v = rng.standard_normal((2, 5, 3)), rng.standard_normal((5, 1))
    mask, bias = rng.random((4, 5)) < 0.5, rng.standard_normal((4, 1))
    pieces = split(k, v, [0, 2, 2], mask=mask, bias=bias)
    assert [piece.k.shape[-2] for piece in pieces] == [0, 2, 0, 3]
    assert [piece.start for piece in pieces] == [0, 0, 2, 2]
    assert all(piece.bias is bias for piece in pieces)
    for whole_array, axis, name in ((k, -2, "k"), (v, -2, "v"), (mask, -1, "mask")):
        parts = [getattr(piece, name) for piece in pieces]
        np.testing.assert_array_equal(np.concatenate(parts, axis=axis), whole_array)
    (alone,) = split(k, v, [])
    assert alone.mask is None
    assert alone.bias is None
