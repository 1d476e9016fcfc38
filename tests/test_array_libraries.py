"""What the contract cannot say of array libraries: extensions, devices, and where new arrays are made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import cases, convert, each_form, library, public

import kvq_ref as kvq
from kvq_ref.dispatch import Form


@each_form
def test_score_forms_need_no_extension(form: Form, rng: np.random.Generator) -> None:
    """Only the least-squares forms need linear algebra; the others run on the bare standard."""
    if "alpha" in form.options:
        pytest.skip("least squares needs the linalg extension")
    strict = pytest.importorskip("array_api_strict")
    lib = library("array_api_strict")
    strict.set_array_api_strict_flags(boolean_indexing=False, data_dependent_shapes=False, enabled_extensions=())
    try:
        for case in cases(form, rng):
            arrays = [lib.make(x) for x in (case.q, case.k, case.v)]
            out, pullback = kvq.vjp(public(form), *arrays, **convert(case.options, lib, "float64"))
            pullback(out)
    finally:
        library("array_api_strict")


@each_form
def test_results_stay_on_the_device(form: Form, rng: np.random.Generator) -> None:
    """Everything that comes out lies where the arguments lie; the fake device refuses to meet any other."""
    strict = pytest.importorskip("array_api_strict")
    lib = library("array_api_strict")
    for case in cases(form, rng):
        arrays = [lib.make(x) for x in (case.q, case.k, case.v)]
        options: dict[str, Any] = convert(case.options, lib, "float64")
        if form.has_state and (case.options.get("mask") is None or case.options["mask"].shape[-2:-1] == (1,)):
            options["output_final_state"] = True
        out, pullback = kvq.vjp(public(form), *arrays, **options)
        state = ()
        if isinstance(out, tuple):
            out, state = out
        grads = pullback((out, state) if state else out)
        results = [out, *state, *(g for g in grads if g is not None)]
        assert {x.device for x in results} == {strict.Device("device1")}


@pytest.mark.oracle
@each_form
def test_jax_grad_of_one_argument(form: Form, rng: np.random.Generator) -> None:
    """jax.grad puts a tracer, which has no device, beside plain arrays."""
    jax = pytest.importorskip("jax")
    lib = library("jax")
    q, k, v = (lib.make(x) for x in rng.standard_normal((3, 4, 3)))
    options = {"alpha": 0.5} if "alpha" in form.options else {}
    got = jax.grad(lambda x: public(form)(x, k, v, **options).sum())(q)
    out, pullback = kvq.vjp(public(form), q, k, v, **options)
    np.testing.assert_allclose(got, pullback(out * 0 + 1).q, rtol=1e-10, atol=1e-12)


@pytest.mark.gpu
@each_form
def test_cusolver_failure_is_an_error(form: Form) -> None:
    """A matrix that is not positive definite raises LinAlgError on the device, where CuPy alone would go on."""
    if "solver" not in form.options:
        pytest.skip("takes no solver")
    lib = library("cupy")
    k = lib.make(np.ones((4, 3)))
    with pytest.raises(np.linalg.LinAlgError):
        public(form)(k, k, k, alpha=0.0, solver="cholesky", is_causal=True)
