"""Every law, held against every form of this package, in every implementation and in three dtypes.

A law that holds in exact arithmetic is checked here with its rounding: float64 gets most of
the examples, float32 and float16 show that the tolerances follow the dtype.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
from cases import SERVED, public, skip_if_missing
from conftest import SEED
from hypothesis import given, settings
from hypothesis import strategies as st

import kvq_ref as kvq
from kvq_ref.dispatch import FORMS, Form
from kvq_ref.testing.calls import OPTIONAL, Call, calls
from kvq_ref.testing.laws import LAWS, Law
from kvq_ref.testing.laws.definition import oracle
from kvq_ref.testing.laws.dense import dense
from kvq_ref.testing.laws.measured import Measured, exactly
from kvq_ref.testing.rounding import rounding
from kvq_ref.testing.run import hold_to
from kvq_ref.testing.target import Target

SHARES = {"float64": 0.6, "float32": 0.2, "float16": 0.2}


def target(form: Form, implementation: str, dtype: str = "float64") -> Target:
    """A form of this package as a target, with the gradients of its own backward pass."""
    function = public(form)

    def backward(dout: Any, q: Any, k: Any, v: Any, **options: Any) -> Any:
        return kvq.vjp(function, q, k, v, implementation=implementation, **options)[1](dout)

    forward = functools.partial(function, implementation=implementation)
    return Target(forward, form.name, dtype=dtype, backward=backward)


HELD = [(law, form, name) for law in LAWS for form, name in SERVED if form.name in law.forms]


@pytest.mark.parametrize(
    ("law", "form", "implementation"),
    [pytest.param(law, form, x, id=f"{law.name.replace(' ', '_')}-{form.name}-{x}") for law, form, x in HELD],
)
def test_holds(law: Law, form: Form, implementation: str) -> None:
    """As many examples in all, over forms and implementations, as the profile asks for, and 20 or more of each."""
    skip_if_missing(form, implementation)
    held = sum(law is other for other, *_ in HELD)
    examples = max(20, math.ceil(settings().max_examples / held))
    for dtype, share in SHARES.items():
        verdict = hold_to(law, target(form, implementation, dtype), examples=round(share * examples), seed=SEED)
        found = verdict.counterexample
        assert verdict.status == "holds", f"{dtype}, KVQ_REF_SEED={SEED}: {verdict.status} {verdict.why}\n{found}"


def test_every_form_has_laws_of_its_own_and_every_law_a_form() -> None:
    assert len({law.name for law in LAWS}) == len(LAWS)
    for law in LAWS:
        assert law.forms, law.name
        assert law.statement.endswith("."), law.name
        assert law.latex, law.name
    for name in FORMS:
        assert any(name in law.forms and law.forms != frozenset(FORMS) for law in LAWS), name


# ---- What laws are made of -----------------------------------------------------------


@pytest.mark.parametrize("form", FORMS.values(), ids=lambda form: form.name)
@settings(max_examples=max(20, settings().max_examples // len(FORMS)))
@given(data=st.data())
def test_dense_and_loops_are_the_same_definition(form: Form, data: st.DataObject) -> None:
    """Written twice, in array code and in loops: they agree on every option, and on rows that see nothing."""
    call = data.draw(calls(form.name, frozenset(form.options) & frozenset(OPTIONAL), empty_rows=True))
    error = np.abs(dense(form.name, call) - oracle(form.name, call))
    assert (error <= rounding(form.name, call).allowed()).all()


@given(data=st.data())
def test_measured_values_carry_their_rounding_along(data: st.DataObject) -> None:
    """What is computed from values within their bounds is within the bound that is computed with them."""
    entries = st.floats(-4, 4, allow_subnormal=False)
    true = [np.array(data.draw(st.lists(entries, min_size=3, max_size=3))) for _ in range(3)]
    unit = [np.array(data.draw(st.lists(st.floats(0, 0.5), min_size=3, max_size=3))) for _ in range(3)]
    off = [np.array(data.draw(st.lists(st.floats(-1, 1), min_size=3, max_size=3))) for _ in range(3)]
    a, b, c = (Measured(x + 2.0 * t * u, u, 2.0) for x, u, t in zip(true, unit, off, strict=True))
    got = ((exactly(1.0) + a) * b - 0.5 * c)[::-1].sum(0)
    x, y, z = true
    expected = np.sum((1 + x) * y - 0.5 * z)
    assert abs(got.value - expected) <= got.limit * got.unit + 1e-12


def test_parts_of_a_call() -> None:
    """Keys, queries and batch entries, with their part of mask and bias."""
    rng = np.random.default_rng(SEED)
    q, k, v, bias = (rng.standard_normal((2, *shape)) for shape in ((3, 4), (5, 4), (5, 2), (3, 5)))
    mask = rng.random((2, 1, 5)) < 0.5
    call = Call(q, k, v, {"mask": mask, "bias": bias, "scale": 0.5})
    part = call.keys([3, 1]).queries(slice(1, None)).entry((1,))
    assert part.sizes == (2, 2, 4, 2)
    np.testing.assert_array_equal(part.k, k[1][[3, 1]])
    np.testing.assert_array_equal(part.options["mask"], mask[1][:, [3, 1]])
    np.testing.assert_array_equal(part.options["bias"], bias[1][1:, [3, 1]])
    gram, kv = call.sums_seen()
    seen = [j for j in range(5) if mask[1, 0, j]]
    np.testing.assert_allclose(gram[1, 2], k[1][seen].T @ k[1][seen], atol=1e-12)
    np.testing.assert_allclose(kv[1, 2], k[1][seen].T @ v[1][seen], atol=1e-12)
