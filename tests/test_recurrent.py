"""The sequential forms: rows for keys, states, and what is seen of NaN in them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from cases import ALL_FORMS, LIBRARIES, convert, library, public, relative_error

import kvq_ref as kvq
from kvq_ref.dispatch import Form
from kvq_ref.testing import ORACLES

SEQUENTIAL = [form for form in ALL_FORMS if form.is_sequential]
each_sequential = pytest.mark.parametrize("form", SEQUENTIAL, ids=lambda form: form.name)


def row_names(form: Form) -> list[str]:
    return [name for name in ("beta", "decay") if name in form.options]


def alpha_of(form: Form) -> dict[str, Any]:
    return {"alpha": 0.5} if "alpha" in form.options else {}


def random_call(form: Form, rng: np.random.Generator, T: int = 6) -> tuple[list[np.ndarray], dict[str, Any]]:
    arrays = [rng.standard_normal((2, T, n)) for n in (3, 3, 4)]
    return arrays, alpha_of(form) | {name: rng.uniform(0.2, 0.9, (2, T, 1)) for name in row_names(form)}


def test_which_forms_are_sequential() -> None:
    assert [form.name for form in SEQUENTIAL] == SEQUENTIAL_NAMES


SEQUENTIAL_NAMES = ["delta_rule", "gated_linear_attention", "mesa_attention"]


@each_sequential
def test_the_order_of_the_keys_matters(form: Form, rng: np.random.Generator) -> None:
    (q, k, v), options = random_call(form, rng)
    turned = {n: x[..., ::-1, :] if isinstance(x, np.ndarray) else x for n, x in options.items()}
    out = public(form)(q, k, v, **options)
    assert relative_error(public(form)(q, k[..., ::-1, :], v[..., ::-1, :], **turned), out) > 1e-3


@pytest.mark.parametrize("library_name", LIBRARIES)
@pytest.mark.parametrize("is_causal", [False, True])
@each_sequential
def test_a_prefix_and_the_rest_are_the_whole(
    form: Form, is_causal: bool, library_name: str, rng: np.random.Generator
) -> None:
    """With their rows and a key mask, forward and backward: the state hands both on."""
    lib = library(library_name)
    arrays, options = random_call(form, rng, T=7)
    mask = rng.random((2, 1, 7)) < 0.7
    q, k, v, dout = (lib.make(x) for x in (*arrays, rng.standard_normal((2, 7, 4))))
    given, fixed = convert({n: options[n] for n in row_names(form)}, lib, "float64"), alpha_of(form)
    mask, f = lib.make(mask), public(form)

    def piece(at: slice, rows: slice, **more: Any) -> tuple[Any, Any]:
        own = {n: x[:, at, :] for n, x in given.items()} | {"mask": mask[..., at]} | fixed | {"is_causal": is_causal}
        return kvq.vjp(f, q[:, rows, :], k[:, at, :], v[:, at, :], **own, **more)

    whole, pullback = kvq.vjp(f, q, k, v, mask=mask, is_causal=is_causal, **given, **fixed)
    expected = pullback(dout)
    first, rest = slice(0, 3), slice(3, 7)
    queries = (first, rest) if is_causal else (first, slice(0, 7))
    (early, state), back_first = piece(first, queries[0], output_final_state=True)
    late, back_rest = piece(rest, queries[1], initial_state=state)
    assert relative_error(lib.back(late), lib.back(whole[:, queries[1], :])) < 1e-12
    later = back_rest(dout[:, queries[1], :])
    earlier = back_first((dout[:, first, :] if is_causal else 0 * early, later.initial_state))
    for name in ("k", "v", *given):
        got = np.concatenate([lib.back(getattr(g, name)) for g in (earlier, later)], axis=1)
        assert relative_error(got, lib.back(getattr(expected, name))) < 1e-10, name


@each_sequential
def test_a_number_is_a_row_for_every_key(form: Form, rng: np.random.Generator) -> None:
    """And its gradient is the sum of theirs; so is that of one row for all. None is one."""
    (q, k, v), _ = random_call(form, rng)
    f, alpha = public(form), alpha_of(form)
    for name in row_names(form):
        rows = {name: np.full((2, 6, 1), 0.7)}
        out, pullback = kvq.vjp(f, q, k, v, **rows, **alpha)
        dout = rng.standard_normal(out.shape)
        expected = getattr(pullback(dout), name)
        for other in (0.7, np.full((1, 1), 0.7), np.full((6, 1), 0.7)):
            same, pullback = kvq.vjp(f, q, k, v, **{name: other}, **alpha)
            assert relative_error(same, out) < 1e-14
            got = getattr(pullback(dout), name)
            axes = {0: None, 1: (0, 1), 6: 0}[0 if isinstance(other, float) else other.shape[0]]
            assert np.shape(got) == np.shape(other)
            assert relative_error(np.ravel(got), np.ravel(np.sum(expected, axis=axes))) < 1e-12
        np.testing.assert_array_equal(f(q, k, v, **alpha), f(q, k, v, **{name: 1.0}, **alpha))
        assert getattr(kvq.vjp(f, q, k, v, **alpha)[1](dout), name) is None
        half = [x.astype("float16") for x in (q, k, v)]
        grads = kvq.vjp(f, *half, **{name: rows[name].astype("float16")}, **alpha)[1](dout.astype("float16"))
        assert getattr(grads, name).dtype == "float16"


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@each_sequential
def test_what_is_not_finite_acts_where_its_key_is_seen(form: Form, poison: float, rng: np.random.Generator) -> None:
    (q, k, v), options = random_call(form, rng)
    f, dout = public(form), rng.standard_normal((2, 6, 4))
    hidden = np.broadcast_to(np.arange(6) != 3, (2, 1, 6))
    for name in row_names(form):
        rows = options[name].copy()
        rows[:, 3] = poison
        bad = options | {name: rows}
        out, pullback = kvq.vjp(f, q, k, v, is_causal=True, **bad)
        np.testing.assert_array_equal(out[:, :3], f(q, k, v, is_causal=True, **options)[:, :3])
        assert np.isnan(out[:, 3:]).all()
        grads = pullback(dout)
        assert np.isfinite(grads.q[:, :3]).all()
        assert np.isnan(getattr(grads, name)).all()  # every key is seen by a query that saw it
        clean, clean_pullback = kvq.vjp(f, q, k, v, mask=hidden, **options)
        out, pullback = kvq.vjp(f, q, k, v, mask=hidden, **bad)
        np.testing.assert_array_equal(out, clean)
        for a, b in zip(pullback(dout), clean_pullback(dout), strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                np.testing.assert_array_equal(a, b)


@each_sequential
def test_a_state_before_no_keys_is_read(form: Form, rng: np.random.Generator) -> None:
    """A query that sees no key of its own reads what came before."""
    (q, k, v), options = random_call(form, rng)
    whole, state = public(form)(q, k, v, output_final_state=True, **options)
    nothing = {n: x[:, :0] if isinstance(x, np.ndarray) else x for n, x in options.items()}
    again, same = public(form)(q, k[:, :0], v[:, :0], initial_state=state, output_final_state=True, **nothing)
    assert relative_error(again, whole) < 1e-13
    for a, b in zip(same, state, strict=True):
        np.testing.assert_array_equal(a, b)
    hidden = public(form)(q, k, v, mask=np.zeros((1, 6), bool), initial_state=state, **options)
    assert relative_error(hidden, whole) < 1e-13


@each_sequential
def test_a_decay_is_a_factor_from_0_to_1(form: Form, rng: np.random.Generator) -> None:
    """Others are refused, unless a mask hides them from every query."""
    if "decay" not in form.options:
        pytest.skip("forgets nothing")
    (q, k, v), options = random_call(form, rng)
    f = public(form)
    for wrong in (1.5, -0.1):
        with pytest.raises(ValueError, match=rf"^decay: expected numbers from 0 to 1, got {wrong}$"):
            f(q, k, v, **options | {"decay": wrong})
        rows = options["decay"].copy()
        rows[0, 2] = wrong
        for mask in (None, np.arange(6)[:, None] >= np.arange(6)):
            with pytest.raises(ValueError, match=r"^decay: expected numbers from 0 to 1, got an array"):
                f(q, k, v, **options | {"decay": rows}, mask=mask)
        hidden = np.arange(6) != 2
        out = f(q, k, v, **options | {"decay": rows}, mask=hidden)
        np.testing.assert_array_equal(out, f(q, k, v, **options, mask=hidden))
    for end in (0.0, 1.0):
        assert np.isfinite(f(q, k, v, **options | {"decay": end})).all()


def test_decays_that_underflow_are_no_divisors(rng: np.random.Generator) -> None:
    """A running product of these is 0 in float64 after 250 keys; the last keys are still there."""
    q, k, v = (rng.standard_normal((400, n)) for n in (2, 2, 3))
    out, pullback = kvq.vjp(kvq.gated_linear_attention, q, k, v, is_causal=True, decay=0.05)
    weights = np.tril(0.05 ** np.clip(np.subtract.outer(np.arange(400), np.arange(400)), 0, 200).astype(float))
    assert relative_error(out, (weights * (q @ k.T)) @ v) < 1e-12
    assert all(np.isfinite(g).all() for g in pullback(out)[:3])


def test_mesa_without_penalty_is_the_fit_of_minimum_norm(rng: np.random.Generator) -> None:
    """At alpha = 0, from the eigenvalues of H: for keys of rank 2 of 3; gradients as Intention's."""
    q, k, v = (rng.standard_normal((7, n)) for n in (3, 3, 2))
    decay = rng.uniform(0.5, 0.9, (7, 1))
    flat = k * [1.0, 1.0, 0.0]
    for is_causal in (False, True):
        options = {"alpha": 0.0, "decay": decay, "is_causal": is_causal}
        out = kvq.mesa_attention(q, flat, v, **options)
        rows = range(2, 7) if is_causal else range(7)  # after two keys the plane is spanned
        expected = ORACLES["mesa_attention"](q, flat, v, **options)
        assert relative_error(out[rows], expected[rows]) < 1e-8
    k[:3] = np.eye(3)
    got, expected = (kvq.vjp(form, q, k, v, alpha=0.0) for form in (kvq.mesa_attention, kvq.intention))
    for a, b in zip(got[1](got[0])[:3], expected[1](got[0])[:3], strict=True):
        assert relative_error(a, b) < 1e-9


def test_delta_rule_from_a_state_is_brute_force(rng: np.random.Generator) -> None:
    (q, k, v), options = random_call(next(f for f in SEQUENTIAL if f.name == "delta_rule"), rng)
    state = kvq.DeltaRuleState(rng.standard_normal((2, 3, 4)))
    out = kvq.delta_rule(q, k, v, is_causal=True, initial_state=state, **options)
    expected = ORACLES["delta_rule"](q, k, v, is_causal=True, initial_state=state, **options)
    assert relative_error(out, expected) < 1e-12
