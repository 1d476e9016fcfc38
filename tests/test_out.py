"""``out=``: the result goes into an array of the caller's, bit for bit what it would have been."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cases import LIBRARIES, Library, cases, convert, each_form, each_implementation, library, public, skip_if_missing

import kvq_ref as kvq
from kvq_ref.dispatch import Form

WRITEABLE = [x for x in LIBRARIES if getattr(x, "values", (x,))[0] != "jax"]


def empty_like(x: Any, lib: Library) -> Any:
    """Room for x, full of NaN."""
    return lib.make(np.full(tuple(x.shape), np.nan, lib.back(x).dtype))


def alpha_of(form: Form) -> dict[str, Any]:
    return {"alpha": 0.5} if "alpha" in form.options else {}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("library_name", WRITEABLE)
@each_implementation
def test_result_is_written_into_out(
    form: Form, implementation: str, library_name: str, dtype: str, rng: np.random.Generator
) -> None:
    """In every kind of call; from vjp too, whose pullback does not see what is written there later."""
    skip_if_missing(form, implementation)
    lib = library(library_name)
    if implementation == "compiled" and library_name != "numpy":
        pytest.skip("kernels take NumPy arrays")
    for case in cases(form, rng):
        arrays = [lib.make(x.astype(dtype)) for x in (case.q, case.k, case.v)]
        options = convert(case.options, lib, dtype) | {"implementation": implementation}
        plain = public(form)(*arrays, **options)
        out = empty_like(plain, lib)
        assert public(form)(*arrays, out=out, **options) is out
        np.testing.assert_array_equal(lib.back(out), lib.back(plain), err_msg=case.name)

        _, pullback = kvq.vjp(public(form), *arrays, **options)
        out = empty_like(plain, lib)
        result, pullback_of_out = kvq.vjp(public(form), *arrays, out=out, **options)
        assert result is out
        np.testing.assert_array_equal(lib.back(out), lib.back(plain), err_msg=case.name)
        out[...] = lib.make(rng.standard_normal(tuple(out.shape)).astype(dtype))
        dout = lib.make(rng.standard_normal(tuple(out.shape)).astype(dtype))
        for a, b in zip(pullback_of_out(dout), pullback(dout), strict=True):
            if b is not None:
                np.testing.assert_array_equal(lib.back(a), lib.back(b), err_msg=case.name)


@each_form
def test_out_in_half_precision(form: Form, rng: np.random.Generator) -> None:
    q, k, v = (rng.standard_normal((5, 3)).astype("float16") for _ in range(3))
    out = np.empty((5, 3), "float16")
    assert public(form)(q, k, v, out=out, **alpha_of(form)) is out
    np.testing.assert_array_equal(out, public(form)(q, k, v, **alpha_of(form)))


@each_form
def test_out_with_a_state(form: Form, rng: np.random.Generator) -> None:
    """(out, state), where the state may have leading axes of its own; out may even be a part of it."""
    if not form.has_state:
        pytest.skip("keeps no state")
    q, k, v = rng.standard_normal((3, 4, 4))
    _, state = public(form)(*rng.standard_normal((3, 2, 4, 4)), output_final_state=True, **alpha_of(form))
    options = alpha_of(form) | {"initial_state": state, "output_final_state": True}
    expected, final = public(form)(q, k, v, **options)
    out = np.empty((2, 4, 4))
    result, got = public(form)(q, k, v, out=out, **options)
    assert result is out
    np.testing.assert_array_equal(out, expected)
    for a, b in zip(got, final, strict=True):
        np.testing.assert_array_equal(a, b)

    dout = rng.standard_normal(out.shape)
    grads = kvq.vjp(public(form), q, k, v, **options)[1]((dout, final))
    (result, _), pullback = kvq.vjp(public(form), q, k, v, out=state.kv, **options)
    assert result is state.kv
    np.testing.assert_array_equal(result, expected)
    for a, b in zip(pullback((dout, final))[:3], grads[:3], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("part", ["itself", "reversed", "shifted"])
@pytest.mark.parametrize("argument", ["q", "k", "v", "bias"])
@each_implementation
def test_out_may_overlap_the_arguments(
    form: Form, implementation: str, argument: str, part: str, rng: np.random.Generator
) -> None:
    """The whole result is there before anything is written; a pullback keeps what it was made with."""
    if argument == "bias" and "bias" not in form.options:
        pytest.skip("takes no bias")
    skip_if_missing(form, implementation)
    options = alpha_of(form) | {"implementation": implementation, "is_causal": True}
    rooms = {name: rng.standard_normal((2, 6, 5)) for name in sorted({"q", "k", "v", argument})}
    call = {name: x[:, :5] for name, x in rooms.items()}
    room = rooms[argument]
    out = {"itself": room[:, :5], "reversed": room[:, 4::-1], "shifted": room[:, 1:]}[part]
    dout = rng.standard_normal(out.shape)
    before = room.copy()
    expected, pullback = kvq.vjp(public(form), **call, **options)
    expected_grads = pullback(dout)

    assert public(form)(**call, out=out, **options) is out
    np.testing.assert_array_equal(out, expected)
    room[...] = before
    result, pullback = kvq.vjp(public(form), **call, out=out, **options)
    assert result is out
    np.testing.assert_array_equal(out, expected)
    for a, b in zip(pullback(dout), expected_grads, strict=True):
        if b is not None:  # a copy may lie otherwise in memory, which BLAS may round otherwise
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.oracle
@each_form
def test_out_may_be_a_tensor_that_overlaps(form: Form, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    q, k, v = (torch.asarray(x) for x in rng.standard_normal((3, 5, 5)))
    expected, pullback = kvq.vjp(public(form), q, k, v, **alpha_of(form))
    dout = torch.ones_like(expected)
    expected_grads = pullback(dout)
    result, pullback = kvq.vjp(public(form), q, k, v, out=k, **alpha_of(form))
    assert result is k
    assert torch.equal(k, expected)
    for a, b in zip(pullback(dout)[:3], expected_grads[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@each_implementation
def test_out_may_lie_in_memory_as_it_likes(form: Form, implementation: str, rng: np.random.Generator) -> None:
    """Strided, transposed, misaligned, or a subclass; and what lies between its entries is left alone."""
    skip_if_missing(form, implementation)
    options = alpha_of(form) | {"implementation": implementation}
    q, k, v = rng.standard_normal((3, 2, 5, 4))
    expected = public(form)(q, k, v, **options)
    room = np.full((2, 8, 15), 7.0)
    for out in (
        room[:, ::2, ::3].swapaxes(-1, -2),
        np.empty((5, 2, 4)).swapaxes(0, 1),
        np.zeros(expected.nbytes + 1, np.uint8)[1:].view("f8").reshape(expected.shape),
        np.empty((2, 5, 4)).view(np.recarray),
    ):
        assert public(form)(q, k, v, out=out, **options) is out
        np.testing.assert_array_equal(out, expected)
    assert np.all(room[:, 1::2] == 7.0)
    assert np.all(room[..., 1::3] == 7.0)


@each_form
def test_nothing_is_written_before_a_mistake_is_found(form: Form, rng: np.random.Generator) -> None:
    q, k, v = rng.standard_normal((3, 5, 4))
    out = np.full((5, 4), 7.0)
    with pytest.raises(TypeError, match=r"^is_causal:"):
        public(form)(q, k, v, is_causal=1, out=out, **alpha_of(form))
    assert np.all(out == 7.0)


def read_only(x: np.ndarray) -> np.ndarray:
    x.flags.writeable = False
    return x


MISTAKES: dict[str, tuple[Callable[[np.ndarray], Any], type[Exception], str]] = {
    "a list": (lambda x: x.tolist(), TypeError, "expected an array.*got list"),
    "a number": (lambda x: 1.0, TypeError, "expected an array.*got float"),
    "float32": (lambda x: x.astype("f4"), TypeError, "expected dtype float64, as q has, got float32"),
    "int": (lambda x: x.astype("i8"), TypeError, "expected dtype float64, as q has, got int64"),
    "fewer columns": (lambda x: x[..., :3], ValueError, r"shape of the result, \(2, 5, 4\), got \(2, 5, 3\)"),
    "fewer axes": (lambda x: x[0], ValueError, r"shape of the result, \(2, 5, 4\), got \(5, 4\)"),
    "more axes": (lambda x: x[None], ValueError, r"shape of the result, \(2, 5, 4\), got \(1, 2, 5, 4\)"),
    "too few of a batch": (lambda x: x[:1], ValueError, r"shape of the result, \(2, 5, 4\), got \(1, 5, 4\)"),
    "read-only": (read_only, ValueError, "that can be written into, got a read-only one"),
    "broadcast": (lambda x: np.broadcast_to(x[:1], x.shape), ValueError, "that can be written into, got a read-only"),
}


@pytest.mark.parametrize("what", MISTAKES)
@each_implementation
def test_out_that_cannot_take_the_result(form: Form, implementation: str, what: str, rng: np.random.Generator) -> None:
    """The argument, what was expected, what it was; a batch that only v has counts."""
    skip_if_missing(form, implementation)
    change, error, expected = MISTAKES[what]
    q, k, v = rng.standard_normal((5, 3)), rng.standard_normal((7, 3)), rng.standard_normal((2, 7, 4))
    options = alpha_of(form) | {"out": change(np.zeros((2, 5, 4))), "implementation": implementation}
    for evaluate in (public(form), lambda *x, **y: kvq.vjp(public(form), *x, **y)):
        with pytest.raises(error, match=r"^out: ") as caught:
            evaluate(q, k, v, **options)
        assert caught.type is error
        assert re.search(expected, str(caught.value)), caught.value


@pytest.mark.parametrize("other", ["array_api_strict", pytest.param("torch", marks=pytest.mark.oracle)])
@each_implementation
def test_out_of_another_library(form: Form, implementation: str, other: str, rng: np.random.Generator) -> None:
    skip_if_missing(form, implementation)
    module = pytest.importorskip(other)
    q, k, v = rng.standard_normal((3, 5, 4))
    with pytest.raises(TypeError, match=f"^out: expected the same array library as q, which is numpy, got {other}"):
        public(form)(q, k, v, out=module.ones((5, 4)), implementation=implementation, **alpha_of(form))


@each_form
def test_out_on_another_device(form: Form, rng: np.random.Generator) -> None:
    xp = pytest.importorskip("array_api_strict")
    here, there = xp.Device("device1"), xp.Device("device2")
    q = xp.asarray(rng.standard_normal((5, 4)), device=here)
    with pytest.raises(ValueError, match=r"^out: expected the device of q, .*device1.*, got .*device2"):
        public(form)(q, q, q, out=xp.ones((5, 4), device=there), **alpha_of(form))


@pytest.mark.oracle
@each_form
def test_out_of_jax(form: Form) -> None:
    """Its arrays cannot be written into."""
    jnp = pytest.importorskip("jax.numpy")
    x = jnp.ones((5, 4))
    with pytest.raises(TypeError, match=r"^out: expected an array that can be written into, got one of jax"):
        public(form)(x, x, x, out=x, **alpha_of(form))
