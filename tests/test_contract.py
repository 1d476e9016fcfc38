"""One contract over all forms x implementations x array libraries."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from cases import (
    LIBRARIES,
    Case,
    cases,
    convert,
    each_form,
    each_implementation,
    library,
    oracle_options,
    public,
    relative_error,
    skip_if_missing,
)

import kvq_ref as kvq
from kvq_ref.dispatch import Form
from kvq_ref.grid import GRID
from kvq_ref.masks import visible_pairs
from kvq_ref.testing import ORACLES, check_vjp

BARS = {"float64": 1e-12, "float32": 1e-5}


def alpha_of(form: Form) -> dict[str, Any]:
    return {"alpha": 0.5} if "alpha" in form.options else {}


def random_qkv(
    rng: np.random.Generator, T: int = 6, d: int = 3, dv: int = 4, dtype: str = "float64"
) -> list[np.ndarray]:
    return [rng.standard_normal((T, n)).astype(dtype) for n in (d, d, dv)]


def grads_of(form: Form, q: Any, k: Any, v: Any, dout: Any, **options: Any) -> tuple[Any, Any]:
    out, pullback = kvq.vjp(public(form), q, k, v, **options)
    return out, pullback(dout)


# ---- Values --------------------------------------------------------------------------


def conditioning(form: Form, case: Case) -> float:
    """How much a least-squares form amplifies rounding: the condition number of G + alpha I."""
    if "alpha" not in form.options:
        return 1.0
    gram_max = float(np.max(np.linalg.eigvalsh(np.swapaxes(case.k, -1, -2) @ case.k)))
    return 1 + gram_max / float(np.min(case.options["alpha"]))


@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("library_name", LIBRARIES)
@each_implementation
def test_forward_equals_brute_force(
    form: Form, implementation: str, library_name: str, dtype: str, rng: np.random.Generator
) -> None:
    skip_if_missing(form, implementation)
    lib = library(library_name)
    if implementation == "compiled" and library_name != "numpy":
        pytest.skip("kernels take NumPy arrays")
    for case in cases(form, rng):
        q, k, v = (lib.make(x.astype(dtype)) for x in (case.q, case.k, case.v))
        out = public(form)(q, k, v, implementation=implementation, **convert(case.options, lib, dtype))
        rounded = [x.astype(dtype) for x in (case.q, case.k, case.v)]
        options = oracle_options(convert(case.options, library("numpy"), dtype))
        expected = ORACLES[form.name](*rounded, **options)
        assert type(out) is type(q)
        assert out.dtype == q.dtype
        assert tuple(out.shape) == expected.shape, case.name
        bar = BARS[dtype]
        if dtype == "float32":
            bar = max(bar, 10 * np.finfo(dtype).eps * conditioning(form, case))
        assert relative_error(lib.back(out), expected) <= bar, case.name


@each_implementation
def test_gradients_equal_central_differences(form: Form, implementation: str, rng: np.random.Generator) -> None:
    skip_if_missing(form, implementation)
    for case in cases(form, rng, sizes=(3, 4, 2, 2)):
        errors = check_vjp(public(form), case.q, case.k, case.v, implementation=implementation, **case.options)
        assert set(errors) >= set(case.arrays()) | ({"alpha"} if "alpha" in form.options else set())
        assert max(errors.values()) < 1e-6, (case.name, errors)


@pytest.mark.parametrize("library_name", LIBRARIES[1:])
@each_form
def test_gradients_agree_between_libraries(form: Form, library_name: str, rng: np.random.Generator) -> None:
    lib = library(library_name)
    for case in cases(form, rng):
        options = case.options | {"implementation": "reference"}
        expected_out, pullback = kvq.vjp(public(form), case.q, case.k, case.v, **options)
        dout = rng.standard_normal(expected_out.shape)
        expected = pullback(dout)
        arrays = [lib.make(x) for x in (case.q, case.k, case.v)]
        _, pullback = kvq.vjp(public(form), *arrays, **convert(case.options, lib, "float64"))
        got = pullback(lib.make(dout))
        for name, x in case.arrays().items():
            grad = getattr(got, name)
            assert type(grad) is type(arrays[0])
            assert tuple(grad.shape) == x.shape
            assert relative_error(lib.back(grad), getattr(expected, name)) < 1e-10, (case.name, name)


KERNEL_SIZES = ((5, 7, 3, 4), (67, 130, 17, 33), (130, 67, 64, 64), (1, 1, 1, 1))  # around the kernels' tiles


@each_implementation
def test_compiled_equals_reference_in_float64(form: Form, implementation: str, rng: np.random.Generator) -> None:
    if implementation == "reference":
        pytest.skip("it is the reference")
    skip_if_missing(form, implementation)
    for sizes in KERNEL_SIZES:
        for case in cases(form, rng, sizes):
            arrays = (case.q, case.k, case.v)
            reference, pullback = kvq.vjp(public(form), *arrays, implementation="reference", **case.options)
            dout = rng.standard_normal(reference.shape)
            expected = pullback(dout)
            compiled = grads_of(form, *arrays, dout, implementation="compiled", **case.options)
            bar = 1e-10 * max(1.0, math.sqrt(conditioning(form, case)))
            for name, error in errors(compiled, (reference, expected)).items():
                assert error < bar, (sizes, case.name, name)


@each_implementation
def test_compiled_equals_reference_in_float32(form: Form, implementation: str, rng: np.random.Generator) -> None:
    """The float32 kernels have tiles of their own, so their gradients are checked on their own.

    How much float32 can lose in a gradient depends on the problem. A mean over one key has the gradient zero, as a
    difference of equal terms, and where its score z is almost zero the square magnifies what is left of it by 1/z: such
    rows are given the gradient zero from above. For the others the bar is one that a wrong tile cannot pass, and eight
    times what the reference loses on the same problem; exactness is held by the forward against brute force, and by the
    test in float64. The gradient of alpha is left to float64: it is one number, a sum that cancels, and made by the
    same code from dq*.
    """
    if implementation == "reference":
        pytest.skip("it is the reference")
    skip_if_missing(form, implementation)
    numpy = library("numpy")
    for sizes in KERNEL_SIZES[:-1]:  # a single key has nothing but such rows
        for case in cases(form, rng, sizes):
            arrays = [x.astype("float32") for x in (case.q, case.k, case.v)]
            options = convert(case.options, numpy, "float32")
            wide, wide_options = [x.astype("float64") for x in arrays], convert(options, numpy, "float64")
            shape = public(form)(*arrays, **options).shape
            dout = rng.standard_normal(shape).astype("float32")
            seen = visible_pairs(options.get("mask"), options.get("is_causal", False), *arrays[:2])
            if GRID[form.name].row == "mean" and seen is not None:
                dout *= seen.sum(axis=-1, keepdims=True) != 1
            exact = grads_of(form, *wide, dout.astype("float64"), implementation="reference", **wide_options)
            reference = grads_of(form, *arrays, dout, implementation="reference", **options)
            compiled = grads_of(form, *arrays, dout, implementation="compiled", **options)
            bar = 1e-4 + 8 * max(errors(reference, exact).values())
            for name, error in errors(compiled, exact).items():
                if name == "alpha":
                    continue
                assert error < bar, (sizes, case.name, name)


def errors(got: tuple[Any, Any], exact: tuple[Any, Any]) -> dict[str, float]:
    """The largest error of the output and of each gradient, relative to the largest entry of that gradient.

    A gradient that is small against the others is a difference of large terms: it is measured against a tenth of the
    largest of all.
    """
    named = dict(zip(("out", *got[1]._fields), zip((got[0], *got[1]), (exact[0], *exact[1]), strict=True), strict=True))
    given = {name: (a, b) for name, (a, b) in named.items() if b is not None}
    largest = max(float(np.max(np.abs(b), initial=0.0)) for _, b in given.values())
    return {
        name: float(np.max(np.abs(a - b), initial=0.0))
        / max(float(np.max(np.abs(b), initial=0.0)), 0.1 * largest, 1e-30)
        for name, (a, b) in given.items()
    }


@each_implementation
def test_large_scores_stay_finite(form: Form, implementation: str, rng: np.random.Generator) -> None:
    skip_if_missing(form, implementation)
    q, k, v = random_qkv(rng, dtype="float32")
    z = np.abs(q @ k.T).max()
    q *= 1e4 / z  # scores up to 1e4 for the forms without a preconditioner
    scale = {"scale": 1.0} if "scale" in form.options else {}
    out, pullback = kvq.vjp(public(form), q, k, v, implementation=implementation, **alpha_of(form), **scale)
    bounded = ("expressive_attention", "quadratic_attention", "taylor_attention")  # others lose digits in exp or a sum
    expected = ORACLES[form.name](q, k, v, **alpha_of(form)) if form.name in bounded else None
    grads = pullback(np.ones_like(out))
    assert all(np.isfinite(x).all() for x in (out, grads.q, grads.k, grads.v))
    if expected is not None:
        assert relative_error(out, expected) < 1e-5


# ---- Edges ---------------------------------------------------------------------------


@pytest.mark.parametrize("library_name", LIBRARIES)
@pytest.mark.parametrize("sizes", [(0, 3, 2, 2), (3, 0, 2, 2), (3, 3, 0, 2), (3, 3, 2, 0), (0, 0, 0, 0), (1, 1, 1, 1)])
@each_implementation
def test_empty_and_single(
    form: Form, implementation: str, sizes: tuple[int, int, int, int], library_name: str, rng: np.random.Generator
) -> None:
    skip_if_missing(form, implementation)
    lib = library(library_name)
    if implementation == "compiled" and library_name != "numpy":
        pytest.skip("kernels take NumPy arrays")
    Tq, Tk, d, dv = sizes
    for leading in ((), (2,), (0,)):
        for is_causal in (False, True):
            arrays = [rng.standard_normal((*leading, *shape)) for shape in ((Tq, d), (Tk, d), (Tk, dv))]
            options = alpha_of(form) | {"is_causal": is_causal}
            if "bias" in form.options:
                options["bias"] = rng.standard_normal((Tq, Tk))
            out, pullback = kvq.vjp(
                public(form), *map(lib.make, arrays), implementation=implementation, **convert(options, lib, "float64")
            )
            assert tuple(out.shape) == (*leading, Tq, dv)
            assert relative_error(lib.back(out), ORACLES[form.name](*arrays, **options)) < 1e-12
            grads = pullback(out)
            for grad, x in zip((grads.q, grads.k, grads.v), arrays, strict=True):
                assert tuple(grad.shape) == x.shape
                assert np.isfinite(lib.back(grad)).all()


@each_implementation
def test_inputs_are_left_alone(form: Form, implementation: str, rng: np.random.Generator) -> None:
    skip_if_missing(form, implementation)
    for case in cases(form, rng):
        # Every second entry of a larger array, transposed in memory, and read-only.
        strided = []
        for x in (case.q, case.k, case.v):
            room = np.full((*x.shape[:-2], 2 * x.shape[-1], 3 * x.shape[-2]), np.nan)
            view = np.swapaxes(room, -1, -2)[..., ::3, ::2]
            view[...] = x
            view.flags.writeable = False
            strided.append(view)
        copies = [x.copy() for x in strided]
        out, pullback = kvq.vjp(public(form), *strided, implementation=implementation, **case.options)
        plain = public(form)(case.q, case.k, case.v, implementation=implementation, **case.options)
        assert relative_error(out, plain) < 1e-13
        dout = np.ones_like(out)
        dout.flags.writeable = False
        first = pullback(dout)
        second = pullback(dout)
        for a, b in zip(first[:3], second[:3], strict=True):
            np.testing.assert_array_equal(a, b)  # a pullback can be called again
        for x, copy in zip(strided, copies, strict=True):
            np.testing.assert_array_equal(x, copy)
        assert not any(np.shares_memory(out, x) for x in strided)


@pytest.mark.parametrize("library_name", ["numpy", pytest.param("torch", marks=pytest.mark.oracle)])
@each_implementation
def test_result_may_be_written_into(
    form: Form, implementation: str, library_name: str, rng: np.random.Generator
) -> None:
    """out -= target is how a gradient is often made; the pullback must not see it."""
    skip_if_missing(form, implementation)
    lib = library(library_name)
    if implementation == "compiled" and library_name != "numpy":
        pytest.skip("kernels take NumPy arrays")
    q, k, v = map(lib.make, random_qkv(rng))
    options = alpha_of(form) | {"implementation": implementation}
    out, pullback = kvq.vjp(public(form), q, k, v, **options)
    dout = lib.make(rng.standard_normal(tuple(out.shape)))
    expected = pullback(dout)
    out -= 3.0
    for a, b in zip(pullback(dout)[:3], expected[:3], strict=True):
        np.testing.assert_array_equal(lib.back(a), lib.back(b))


@each_implementation
def test_misaligned_inputs(form: Form, implementation: str, rng: np.random.Generator) -> None:
    """Arrays that begin at an odd byte, as a field of a packed record does."""
    skip_if_missing(form, implementation)

    def misaligned(x: np.ndarray) -> np.ndarray:
        view = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
        view[...] = x
        return view

    q, k, v = random_qkv(rng)
    options = alpha_of(form) | ({"bias": rng.standard_normal((6, 6))} if "bias" in form.options else {})
    odd = {name: misaligned(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}
    dout = rng.standard_normal((6, 4))
    out, grads = grads_of(form, q, k, v, dout, implementation=implementation, **options)
    same, same_grads = grads_of(form, *map(misaligned, (q, k, v, dout)), implementation=implementation, **odd)
    assert relative_error(same, out) < 1e-13
    for a, b in zip(same_grads[:3], grads[:3], strict=True):
        assert relative_error(a, b) < 1e-12


@pytest.mark.parametrize("library_name", LIBRARIES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@each_form
def test_dtype_in_is_dtype_out(form: Form, dtype: str, library_name: str, rng: np.random.Generator) -> None:
    lib = library(library_name)
    if library_name == "array_api_strict" and dtype in ("float16", "bfloat16"):
        pytest.skip("the standard has no half precision")
    if library_name == "cupy" and dtype == "bfloat16":
        pytest.skip("CuPy has no bfloat16")
    arrays64 = random_qkv(rng)
    if "beta" in form.options:  # steps of one, or its state may grow beyond float16
        arrays64[1] /= np.linalg.norm(arrays64[1], axis=-1, keepdims=True)
    if library_name == "torch":
        torch = pytest.importorskip("torch")
        q, k, v = (torch.asarray(x).to(getattr(torch, dtype)) for x in arrays64)
    else:
        numpy_dtype = pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype
        q, k, v = (lib.make(x.astype(numpy_dtype)) for x in arrays64)
    out, pullback = kvq.vjp(public(form), q, k, v, **alpha_of(form))
    grads = pullback(out)
    assert out.dtype == grads.q.dtype == grads.k.dtype == grads.v.dtype == q.dtype
    # One rounding at the end: as near to the exact result as the dtype allows, up to float32's own error.
    exact = ORACLES[form.name](*(np.asarray(lib.back(x), np.float64) for x in (q, k, v)), **alpha_of(form))
    eps = {"float16": 2**-11, "bfloat16": 2**-8, "float32": 1e-5, "float64": 1e-12}[dtype]
    assert relative_error(np.asarray(lib.back(out), np.float64), exact) <= eps * 1.1


@pytest.mark.parametrize("has_state", [False, True], ids=["", "state"])
@pytest.mark.parametrize("is_causal", [False, True], ids=["all", "causal"])
@each_implementation
def test_gradient_of_a_state_that_queries_share(
    form: Form, implementation: str, is_causal: bool, has_state: bool, rng: np.random.Generator
) -> None:
    """q has axes that k, v and the state have not: what the state's gradient gives to k and v counts once."""
    if not form.has_state:
        pytest.skip("has no state")
    skip_if_missing(form, implementation)
    q, k, v = (rng.standard_normal(shape) for shape in ((2, 3, 5, 4), (3, 5, 4), (5, 2)))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)  # along longer keys the delta rule grows beyond what differences see
    options = alpha_of(form) | {"implementation": implementation, "is_causal": is_causal, "output_final_state": True}
    if has_state:
        options["initial_state"] = public(form)(q[0], k, v, **options)[1]
    (out, state), pullback = kvq.vjp(public(form), q, k, v, **options)
    dout, dstate = rng.standard_normal(out.shape), type(state)(*(rng.standard_normal(x.shape) for x in state))
    if "gram" in state._fields:  # a gram is symmetric
        dstate = dstate._replace(gram=dstate.gram + dstate.gram.swapaxes(-1, -2))
    grads = pullback((dout, dstate))
    step = 1e-6
    for name in ("k", "v"):
        direction = rng.standard_normal({"k": k, "v": v}[name].shape)

        def along(sign: float, name: str = name, direction: np.ndarray = direction) -> float:
            moved = {"k": k, "v": v} | {name: {"k": k, "v": v}[name] + sign * step * direction}
            out, state = public(form)(q, **moved, **options)
            return float(np.sum(out * dout)) + sum(float(np.sum(a * b)) for a, b in zip(state, dstate, strict=True))

        expected = (along(1.0) - along(-1.0)) / (2 * step)
        assert float(np.sum(getattr(grads, name) * direction)) == pytest.approx(expected, rel=1e-6, abs=1e-6), name


@each_implementation
def test_row_that_sees_nothing_is_zero(form: Form, implementation: str, rng: np.random.Generator) -> None:
    skip_if_missing(form, implementation)
    q, k, v = random_qkv(rng)
    mask = np.ones((6, 6), bool)
    mask[2] = False
    bias = {"bias": rng.standard_normal((6, 6))} if "bias" in form.options else {}
    for masked in ({"mask": mask}, {"mask": np.zeros((1, 6), bool)}, {"mask": mask, "is_causal": True}):
        options = alpha_of(form) | bias | masked
        out, pullback = kvq.vjp(public(form), q, k, v, implementation=implementation, **options)
        hidden = ~options["mask"].any(axis=-1) | np.zeros(6, bool)
        np.testing.assert_array_equal(out[hidden], 0.0)
        only_hidden = np.where(hidden[:, None], rng.standard_normal(out.shape), 0.0)
        for grad in pullback(only_hidden):
            if grad is not None:
                np.testing.assert_array_equal(grad, 0.0)


@each_implementation
def test_orthogonal_query_is_zero_where_rows_may_vanish(
    form: Form, implementation: str, rng: np.random.Generator
) -> None:
    if not GRID[form.name].may_vanish:
        pytest.skip("only a weight of z^2, or z^2 / (1 + z^2), can vanish on a whole row")
    skip_if_missing(form, implementation)
    q, k = np.array([[0.0, 1.0], [1.0, 1.0]]), np.array([[1.0, 0.0], [2.0, 0.0]])
    v = rng.standard_normal((2, 3))
    out, pullback = kvq.vjp(public(form), q, k, v, implementation=implementation, **alpha_of(form))
    np.testing.assert_array_equal(out[0], 0.0)
    grads = pullback(np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]))
    for grad in grads[:3]:
        np.testing.assert_array_equal(grad, 0.0)


# ---- What is hidden does not leak ----------------------------------------------------


@pytest.mark.parametrize("library_name", LIBRARIES)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e300])
@each_implementation
def test_nothing_leaks_from_behind_the_mask(
    form: Form, implementation: str, poison: float, library_name: str, rng: np.random.Generator
) -> None:
    skip_if_missing(form, implementation)
    lib = library(library_name)
    if implementation == "compiled" and library_name != "numpy":
        pytest.skip("kernels take NumPy arrays")
    q, k, v = (rng.standard_normal((2, 6, n)) for n in (3, 3, 4))
    dout = rng.standard_normal((2, 6, 4))
    hidden = np.array([1, 4])
    key_mask = np.ones((2, 1, 6), bool)
    key_mask[..., hidden] = False
    pair_mask = np.broadcast_to(key_mask, (2, 6, 6)).copy()
    pair_mask[:, 0, 0] = False
    bad_k, bad_v = k.copy(), v.copy()
    bad_k[:, hidden], bad_v[:, hidden] = poison, poison
    for mask in (key_mask, pair_mask):
        for is_causal in (False, True):
            options = alpha_of(form) | {"mask": lib.make(mask), "is_causal": is_causal}
            options["implementation"] = implementation
            clean = grads_of(form, *map(lib.make, (q, k, v, dout)), **options)
            dirty = grads_of(form, *map(lib.make, (q, bad_k, bad_v, dout)), **options)
            np.testing.assert_allclose(lib.back(dirty[0]), lib.back(clean[0]), rtol=1e-13, atol=1e-14)
            for got, expected in zip(dirty[1], clean[1], strict=True):
                if got is not None:
                    np.testing.assert_allclose(lib.back(got), lib.back(expected), rtol=1e-12, atol=1e-13)


@each_implementation
def test_padded_queries_do_not_leak(form: Form, implementation: str, rng: np.random.Generator) -> None:
    skip_if_missing(form, implementation)
    q, k, v = random_qkv(rng)
    dout = rng.standard_normal((6, 4))
    mask = np.ones((6, 6), bool)
    mask[4:] = False
    options = alpha_of(form) | {"mask": mask, "implementation": implementation}
    _, clean = grads_of(form, q, k, v, dout, **options)
    bad_q, bad_dout = q.copy(), dout.copy()
    bad_q[4:], bad_dout[4:] = math.nan, math.inf
    out, dirty = grads_of(form, bad_q, k, v, bad_dout, **options)
    np.testing.assert_array_equal(out[4:], 0.0)
    for got, expected in zip(dirty[:3], clean[:3], strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-13)


@each_implementation
def test_visible_nan_is_reported_where_it_is_seen(form: Form, implementation: str, rng: np.random.Generator) -> None:
    skip_if_missing(form, implementation)
    q, k, v = random_qkv(rng)
    v[3] = math.nan
    out, pullback = kvq.vjp(public(form), q, k, v, is_causal=True, implementation=implementation, **alpha_of(form))
    assert np.isfinite(out[:3]).all()
    assert np.isnan(out[3:]).all()
    grads = pullback(np.ones_like(out))
    assert np.isfinite(grads.q[:3]).all()
    assert np.isnan(grads.q[3:]).all()
    assert np.isnan(grads.v).all()  # every key is seen by a query that saw the NaN


@each_implementation
def test_minus_infinite_bias_takes_all_weight(form: Form, implementation: str, rng: np.random.Generator) -> None:
    """As brute force has it: no weight, but still in the regression; without one it is the same as a mask."""
    if "bias" not in form.options:
        pytest.skip("takes no bias")
    skip_if_missing(form, implementation)
    q, k, v = random_qkv(rng)
    mask = rng.random((6, 6)) < 0.6
    mask[1] = False
    bias = rng.standard_normal((6, 6))
    options = alpha_of(form) | {"implementation": implementation}
    dout = rng.standard_normal((6, 4))
    hiding = np.where(mask, bias, -math.inf)
    out, grads = grads_of(form, q, k, v, dout, bias=hiding, **options)
    assert relative_error(out, ORACLES[form.name](q, k, v, bias=hiding, **alpha_of(form))) < 1e-12
    assert all(np.isfinite(x).all() for x in grads if x is not None)
    np.testing.assert_array_equal(grads.bias[~mask], 0.0)
    if GRID[form.name].query != "preconditioned":
        same, same_grads = grads_of(form, q, k, v, dout, mask=mask, bias=bias, **options)
        np.testing.assert_array_equal(out, same)
        for x, y in zip(grads[:4], same_grads[:4], strict=True):
            np.testing.assert_array_equal(x, y)
    for shape in ((6,), (1, 6), (6, 1), (1, 1)):
        hiding = np.where(rng.random(shape) < 0.5, 0.3, -math.inf)
        out = grads_of(form, q, k, v, dout, bias=hiding, **options)[0]
        assert relative_error(out, ORACLES[form.name](q, k, v, bias=hiding, **alpha_of(form))) < 1e-12


@pytest.mark.parametrize("big", [1e160, math.nan])
@pytest.mark.parametrize("general", [False, True], ids=["causal", "general mask"])
@each_implementation
def test_overflow_stays_with_those_who_see_it(
    form: Form, implementation: str, general: bool, big: float, rng: np.random.Generator
) -> None:
    """A key so large that k k^T overflows, and a value as large: out and dq of those who do not see them are finite."""
    skip_if_missing(form, implementation)
    q, k, v = random_qkv(rng)
    mask = np.tril(np.ones((6, 6), bool))
    seen: dict[str, Any] = {"mask": mask} if general else {"is_causal": True}
    if "bias" in form.options:
        seen["bias"] = rng.standard_normal((6, 6))
    options = alpha_of(form) | seen | {"implementation": implementation}
    dout = rng.standard_normal((6, 4))
    out, grads = grads_of(form, q, k, v, dout, **options)
    k[4], v[4] = big, 1e308
    with np.errstate(all="ignore"):
        changed, changed_grads = grads_of(form, q, k, v, dout * 1024, **options)
    np.testing.assert_array_equal(changed[:4], out[:4])
    if GRID[form.name].query == "preconditioned" and big == 1e160:
        assert np.isnan(changed[4:]).all()  # and not a number made up
    assert relative_error(changed_grads.q[:4] / 1024, grads.q[:4]) < 1e-12


@each_form
def test_every_solver_in_every_shape(form: Form, rng: np.random.Generator) -> None:
    """Leading axes that only alpha has, right-hand sides of zero, and no dimensions at all."""
    if "solver" not in form.options:
        pytest.skip("solves nothing")
    alpha = np.array([0.1, 0.2])
    for solver in ("auto", "cholesky", "qr", "svd", "lstsq", "cg"):
        for d in (0, 3):
            for is_causal in (False, True):
                q, k, v = random_qkv(rng, d=d)
                out, pullback = kvq.vjp(public(form), 0 * q, k, 0 * v, alpha=alpha, solver=solver, is_causal=is_causal)
                assert out.shape == (2, 6, 4)
                grads = pullback(np.ones_like(out))
                assert (grads.q.shape, grads.k.shape, grads.alpha.shape) == (q.shape, k.shape, alpha.shape)
        if solver not in ("cholesky", "qr"):
            q, k, v = random_qkv(rng, d=0)
            out = public(form)(q, k, v, alpha=0.0, solver=solver)
            assert relative_error(out, ORACLES[form.name](q, k, v, alpha=0.0)) < 1e-12


def test_feature_map_without_a_value_at_zero(rng: np.random.Generator) -> None:
    """log is -inf at zero: what stands in for a hidden NaN must not be zero."""
    q, k, v = (np.abs(x) + 0.5 for x in random_qkv(rng))
    k[4:] = math.nan
    for options in ({"mask": np.arange(6)[None] < 4}, {"mask": np.ones((6, 1), bool) & (np.arange(6) < 4)}):
        log = (np.log, lambda x: 1 / x)
        out, pullback = kvq.vjp(kvq.linear_attention, q, k, v, feature_map=log, **options)
        grads = pullback(rng.standard_normal(out.shape))
        assert all(np.isfinite(x).all() for x in (out, *grads[:3]))
        np.testing.assert_array_equal(grads.k[4:], 0.0)


@pytest.mark.parametrize("change", ["finite", "nan", "inf", "huge"])
@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("library_name", LIBRARIES)
@each_implementation
def test_no_future_token_changes_a_bit(
    form: Form, implementation: str, library_name: str, dtype: str, change: str, rng: np.random.Generator
) -> None:
    skip_if_missing(form, implementation)
    lib = library(library_name)
    if implementation == "compiled" and library_name != "numpy":
        pytest.skip("kernels take NumPy arrays")
    T = 70 if library_name == "numpy" else 12
    q, k, v = (rng.standard_normal((2, T, n)).astype(dtype) for n in (5, 5, 4))
    options = alpha_of(form) | {"is_causal": True, "implementation": implementation}
    out = lib.back(public(form)(*map(lib.make, (q, k, v)), **options))
    for t in rng.integers(0, T - 1, 4):
        k2, v2 = k.copy(), v.copy()
        value = {"finite": None, "nan": math.nan, "inf": math.inf, "huge": 1e30}[change]
        for x in (k2, v2):
            x[:, t + 1 :] = rng.standard_normal(x[:, t + 1 :].shape) if value is None else value
        with np.errstate(over="ignore", invalid="ignore"):  # those that see 1e30 may overflow
            changed = lib.back(public(form)(*map(lib.make, (q, k2, v2)), **options))
        np.testing.assert_array_equal(changed[:, : t + 1], out[:, : t + 1])


# ---- Recurrent use -------------------------------------------------------------------


@pytest.mark.parametrize("library_name", LIBRARIES)
@each_form
def test_pieces_give_the_whole(form: Form, library_name: str, rng: np.random.Generator) -> None:
    if not form.has_state:
        pytest.skip("keeps no state")
    lib = library(library_name)
    T = 33 if library_name == "jax" else 257  # JAX compiles every operation for every length
    if library_name == "jax" and form.is_sequential:  # and these have many: the rows of each piece, apart and together
        T = 9
    q, k, v, dout = (lib.make(rng.standard_normal((2, T, n))) for n in (4, 4, 3, 3))
    mask = lib.make(rng.random((2, 1, T)) < 0.8)
    f = public(form)
    variants: list[dict[str, Any]] = [alpha_of(form), alpha_of(form) | {"mask": mask}]
    if "normalize" in form.options:
        variants.append({"normalize": True, "feature_map": "elu+1"})
    for options in variants:
        keyless = {name: x for name, x in options.items() if name != "mask"}
        whole, pullback = kvq.vjp(f, q, k, v, is_causal=True, **options)
        expected = pullback(dout)
        cuts = [0, *sorted(int(x) for x in rng.choice(np.arange(1, T), 5, replace=False)), T]
        spans = [slice(a, b) for a, b in itertools.pairwise(cuts)]
        state, outs, pullbacks = None, [], []
        for s in spans:
            piece = keyless | ({"mask": mask[..., s]} if "mask" in options else {})
            piece |= {"is_causal": True, "initial_state": state, "output_final_state": True}
            (out, state), back = kvq.vjp(f, q[:, s, :], k[:, s, :], v[:, s, :], **piece)
            outs.append(lib.back(out))
            pullbacks.append(back)
        assert relative_error(np.concatenate(outs, axis=1), lib.back(whole)) < 1e-12
        # And backward: the gradient of a piece's initial state is that of the last piece's final state.
        dstate, pieces = None, []
        for s, back in zip(spans[::-1], pullbacks[::-1], strict=True):
            grads = back((dout[:, s, :], dstate))
            dstate = grads.initial_state
            pieces.append(grads)
        for name in ("q", "k", "v"):
            got = np.concatenate([lib.back(getattr(g, name)) for g in pieces[::-1]], axis=1)
            assert relative_error(got, lib.back(getattr(expected, name))) < 1e-10, name


@each_form
def test_state_without_causality(form: Form, rng: np.random.Generator) -> None:
    if not form.has_state:
        pytest.skip("keeps no state")
    q, k, v = random_qkv(rng, T=9)
    f = public(form)
    _, state = f(q, k[:4], v[:4], output_final_state=True, **alpha_of(form))
    rest, final = f(q, k[4:], v[4:], initial_state=state, output_final_state=True, **alpha_of(form))
    whole, whole_state = f(q, k, v, output_final_state=True, **alpha_of(form))
    assert relative_error(rest, whole) < 1e-12
    for a, b in zip(final, whole_state, strict=True):
        assert relative_error(a, b) < 1e-13
