"""The quick way past the long one: the same to the bit, and nothing that is out of the ordinary goes there."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from cases import public, skip_if_missing

import kvq_ref as kvq
from kvq_ref.dispatch import FORMS, Form, Implementation

QUICK = [form for form in FORMS.values() if form.implementations[0].quick is not None]
each_quick_form = pytest.mark.parametrize("form", QUICK, ids=lambda form: form.name)


@pytest.fixture(autouse=True)
def _only_with_kernels() -> None:
    skip_if_missing(QUICK[0], QUICK[0].implementations[0].name)


@contextmanager
def long_way(form: Form) -> Iterator[None]:
    """Inside, every call goes the long way."""
    slow = tuple(dataclasses.replace(x, quick=None, quick_vjp=None) for x in form.implementations)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FORMS, form.name, dataclasses.replace(form, implementations=slow))
        yield


def best(form: Form) -> Implementation:
    return form.implementations[0]


def required(form: Form) -> dict[str, Any]:
    return {"alpha": 0.5} if "alpha" in form.options else {}


def defaults(form: Form) -> dict[str, Any]:
    """Every keyword of the public function, as it is when nothing is said."""
    keywords = (p for p in inspect.signature(public(form)).parameters.values() if p.kind is p.KEYWORD_ONLY)
    return {p.name: p.default for p in keywords} | required(form)


def assert_same(a: Any, b: Any) -> None:
    for x, y in zip(a, b, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            assert (x.dtype, x.shape) == (y.dtype, y.shape)
            np.testing.assert_array_equal(x, y)


SHAPES = [
    ((), 1, 1, 1, 1),
    ((), 5, 7, 3, 4),
    ((2, 3), 16, 16, 16, 16),
    ((1, 1), 33, 70, 8, 65),
    ((2,), 300, 300, 32, 32),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@each_quick_form
def test_quick_is_the_same_to_the_bit(form: Form, shape: Any, dtype: str, rng: np.random.Generator) -> None:
    leading, Tq, Tk, d, dv = shape
    q, k, v = (rng.standard_normal((*leading, *x)).astype(dtype) for x in ((Tq, d), (Tk, d), (Tk, dv)))
    for choice in ({}, {"is_causal": True}, {"scale": -0.3}, {"implementation": "compiled"}, {"alpha": 2}):
        if not choice.keys() <= defaults(form).keys():
            continue
        options = required(form) | choice
        assert best(form).quick(q, k, v, defaults(form) | options) is not None  # type: ignore[misc]
        out, pullback = kvq.vjp(public(form), q, k, v, **options)
        dout = rng.standard_normal(out.shape).astype(dtype)
        quick = (public(form)(q, k, v, **options), out, *pullback(dout)[:4])
        with long_way(form):
            out, pullback = kvq.vjp(public(form), q, k, v, **options)
            expected = (public(form)(q, k, v, **options), out, *pullback(dout)[:4])
        assert_same(quick, expected)


def odd_calls(rng: np.random.Generator) -> dict[str, dict[str, Any]]:
    """A plain call, and one change to it that is none of the quick way's business."""
    q, k, v = rng.standard_normal((3, 2, 5, 4))
    bad = v.copy()
    bad[0, 1, 2] = math.nan
    return {
        "mask": {"mask": np.ones((5, 5), bool)},
        "bias": {"bias": np.zeros((5, 5))},
        "broadcast": {"v": v[:1]},
        "fewer axes": {"k": k[0], "v": v[0]},
        "strided": {"q": np.asfortranarray(q)},
        "NaN": {"v": bad},
        "no queries": {"q": q[:, :0]},
        "no keys": {"k": k[:, :0], "v": v[:, :0]},
        "float16": {"q": q.astype("f2"), "k": k.astype("f2"), "v": v.astype("f2")},
        "subclass": {"q": q.view(np.recarray)},
        "NumPy's True": {"is_causal": np.True_},
        "int": {"scale": 2},
        "NumPy's number": {"scale": np.float64(2)},
        "strided out": {"out": np.empty((2, 4, 5)).swapaxes(1, 2)},
        "out is q": {"out": q},
        "mixed dtypes": {"k": k.astype("f4")},
        "a list": {"k": k.tolist()},
        "other d": {"q": q[..., :3].copy()},
        "other Tk": {"v": v[:, :4].copy()},
        "NaN scale": {"scale": math.nan},
        "infinite scale": {"scale": math.inf},
        "is_causal=1": {"is_causal": 1},
        "read-only out": {"out": np.broadcast_to(0.0, (2, 5, 4))},
        "out of another shape": {"out": np.empty((2, 5, 5))},
        "out of another dtype": {"out": np.empty((2, 5, 4), "f4")},
        "out is None's namesake": {"out": "None"},
        "a feature map": {"feature_map": "relu"},
        "normalized": {"normalize": True},
        "returning a state": {"output_final_state": True},
        "another solver": {"solver": "qr"},
        "no such solver": {"solver": "magic"},
        "negative alpha": {"alpha": -1.0},
        "no alpha": {"alpha": 0.0},
        "an alpha lost in rounding": {"alpha": 1e-300},
        "an array of alphas": {"alpha": np.full(2, 0.5)},
    } | {"plain": {"q": q, "k": k, "v": v}}


@pytest.mark.parametrize("what", list(odd_calls(np.random.default_rng(0))))
@each_quick_form
def test_what_is_not_plain_goes_the_long_way(form: Form, what: str, rng: np.random.Generator) -> None:
    """The quick way leaves it, and the call ends as it would have: in the same result or the same error."""
    odd = odd_calls(rng)
    if not (odd[what].keys() - {"q", "k", "v"}) <= defaults(form).keys():
        pytest.skip("none of its options")
    call = defaults(form) | odd["plain"] | odd[what]
    arrays = [call.pop(name) for name in ("q", "k", "v")]
    assert (best(form).quick(*arrays, call) is None) == (what != "plain")  # type: ignore[misc]
    assert (best(form).quick_vjp(*arrays, call) is None) == (what != "plain")  # type: ignore[misc]

    def outcome() -> Any:
        copies = [x.copy() if isinstance(x, np.ndarray) else x for x in arrays]
        room = call["out"] if call["out"] is not arrays[0] else copies[0]
        try:
            out = public(form)(*copies, **call | {"out": room})
            return (out[0] if isinstance(out, tuple) else out).copy()
        except (TypeError, ValueError) as error:
            return f"{type(error).__name__}: {error}"

    got = outcome()
    with long_way(form):
        expected = outcome()
    if isinstance(expected, str):
        assert got == expected
    else:
        np.testing.assert_array_equal(got, expected)


@each_quick_form
def test_reference_is_never_quick(form: Form, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = rng.standard_normal((3, 5, 4))

    def fail(*_: Any) -> Any:
        raise AssertionError("quick")

    guarded = dataclasses.replace(best(form), quick=fail, quick_vjp=fail)
    monkeypatch.setitem(
        FORMS, form.name, dataclasses.replace(form, implementations=(guarded, *form.implementations[1:]))
    )
    public(form)(q, k, v, implementation="reference", **required(form))
    with kvq.use_implementation("reference"):
        out, pullback = kvq.vjp(public(form), q, k, v, **required(form))
        pullback(out)
    with pytest.raises(AssertionError, match="quick"):
        public(form)(q, k, v, **required(form))


@each_quick_form
def test_pullback_of_a_quick_call_takes_any_gradient(form: Form, rng: np.random.Generator) -> None:
    """Strided, or with NaN in it, or of a wrong kind: as the long way does; and it can be called again."""
    q, k, v = rng.standard_normal((3, 2, 5, 4))
    plain, strided = rng.standard_normal((2, 5, 4)), np.asfortranarray(rng.standard_normal((2, 5, 4)))
    nan = plain.copy()
    nan[1, 2] = math.nan
    out, pullback = kvq.vjp(public(form), q, k, v, **required(form))
    with long_way(form):
        expected_out, expected = kvq.vjp(public(form), q, k, v, **required(form))
    np.testing.assert_array_equal(out, expected_out)
    out[...] = 0.0
    with kvq.use_implementation("reference"):  # backward stays with its forward
        for dout in (plain, strided, nan, np.zeros_like(plain), plain):
            assert_same(pullback(dout), expected(dout))
    for wrong in (plain.astype("f4"), plain[0], plain.tolist(), None):
        with pytest.raises((TypeError, ValueError), match=r"^dout: ") as caught:
            expected(wrong)
        with pytest.raises(caught.type) as same:
            pullback(wrong)
        assert str(same.value) == str(caught.value)
    assert_same(pullback(plain), expected(plain))


@each_quick_form
def test_pullback_of_a_quick_call_writes_nowhere(form: Form, rng: np.random.Generator) -> None:
    """The long way back evaluates the form again: not into the caller's out."""
    q, k, v = rng.standard_normal((3, 5, 4))
    out, pullback = kvq.vjp(public(form), q, k, v, out=np.empty((5, 4)), **required(form))
    out[...] = 7.0
    pullback(np.full((5, 4), math.nan))
    assert np.all(out == 7.0)
