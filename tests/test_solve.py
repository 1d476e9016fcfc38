"""The least-squares solves, each against NumPy's dense answer, and their adjoints against central differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from cases import LIBRARIES, SERVED, library, public, relative_error, skip_if_missing
from hypothesis import assume, given
from hypothesis import strategies as st

import kvq_ref as kvq
from kvq_ref import solve, solvers
from kvq_ref.dispatch import FORMS, Form, Implementation
from kvq_ref.solvers import GRAM_SOLVERS, SOLVERS
from kvq_ref.testing import numerical_vjp
from kvq_ref.testing.calls import OPTIONAL, calls
from kvq_ref.testing.rounding import rounding

EPS = float(np.finfo(np.float64).eps)
EPS32 = float(np.finfo(np.float32).eps)
SINGULAR = ("cholesky", "qr")  # these refuse a rank-deficient system at alpha = 0

each_solver = pytest.mark.parametrize("solver", SOLVERS)

# name: (leading axes of k, leading axes of v or q, Tk, d)
SHAPES = {
    "primal": ((), (), 9, 4),
    "square": ((), (), 4, 4),
    "dual": ((), (), 3, 5),
    "one key": ((), (), 1, 4),
    "one dimension": ((), (), 6, 1),
    "batch": ((2, 3), (2, 3), 9, 4),
    "batch, dual": ((2,), (2,), 3, 5),
    "keys broadcast": ((3,), (2, 1), 9, 4),
    "values broadcast": ((2, 3), (), 3, 5),
}
each_shape = pytest.mark.parametrize("shape", SHAPES)
ALPHAS: dict[str, Callable[[tuple[int, ...]], np.ndarray]] = {
    "positive": lambda leading: np.asarray(0.3),
    "small": lambda leading: np.asarray(1e-6),
    "zero": lambda leading: np.asarray(0.0),
    "per batch": lambda leading: np.linspace(0.1, 2.0, math.prod(leading)).reshape(leading),
    "some zero": lambda leading: np.arange(math.prod(leading), dtype=float).reshape(leading),
}
each_alpha = pytest.mark.parametrize("penalty", ALPHAS)


def dense_inverse(k: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """P = [K; sqrt(alpha) I]^+ by numpy.linalg.pinv, one at a time; (G + alpha I)^-1 is P P^T, and W is P [V; 0]."""
    batch = np.broadcast_shapes(k.shape[:-2], alpha.shape)
    Tk, d = k.shape[-2:]
    k, alpha = np.broadcast_to(k, (*batch, Tk, d)), np.broadcast_to(alpha, batch)
    result = np.empty((*batch, d, Tk + d))
    for b in np.ndindex(*batch):
        result[b] = np.linalg.pinv(np.concatenate([k[b], math.sqrt(alpha[b]) * np.eye(d)]), rcond=1e-12)
    return result


def dense_solve(k: np.ndarray, alpha: np.ndarray, b: np.ndarray) -> np.ndarray:
    inverse = dense_inverse(k, alpha)
    return inverse @ (np.swapaxes(inverse, -1, -2) @ b)


def dense_fit(k: np.ndarray, alpha: np.ndarray, v: np.ndarray) -> np.ndarray:
    return dense_inverse(k, alpha)[..., : k.shape[-2]] @ v


def condition(k: np.ndarray, alpha: np.ndarray) -> float:
    """The worst condition number of K^T K + alpha I, on the span of the keys where alpha = 0."""
    s = np.linalg.svd(k, compute_uv=False) ** 2
    alpha = alpha[..., None]
    span = s > 1e-20 * np.max(s, axis=-1, keepdims=True)
    least = np.where(alpha > 0, alpha + (s if k.shape[-2] >= k.shape[-1] else 0), np.where(span, s, np.inf))
    return float(np.max((np.max(s, axis=-1, keepdims=True) + alpha) / np.min(least, axis=-1, keepdims=True)))


def bar_of(k: np.ndarray, alpha: np.ndarray) -> float:
    """Backward stability gives eps times the condition number; 100 is for its constants, which grow with the size."""
    return 100 * EPS * condition(k, alpha)


def random_system(rng: np.random.Generator, shape: str, penalty: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """k, alpha, right-hand sides with the leading axes of v, and how many rows v has."""
    leading, other, Tk, d = SHAPES[shape]
    k = rng.standard_normal((*leading, Tk, d))
    if Tk == d:
        k = np.linalg.qr(k)[0] * rng.uniform(0.5, 2.0, d)  # square Gaussian matrices can be as good as singular
    return k, ALPHAS[penalty](leading), rng.standard_normal((*other, Tk, 2)), d


def is_refused(solver: str, k: np.ndarray, alpha: np.ndarray) -> bool:
    return (
        False
        if solver not in SINGULAR
        else bool(np.any(alpha == 0)) and np.linalg.matrix_rank(k).min() < min(k.shape[-2:])
    )


# ---- Every solver --------------------------------------------------------------------


@each_alpha
@each_shape
@each_solver
def test_solve_and_fit_equal_the_dense_answer(solver: str, shape: str, penalty: str, rng: np.random.Generator) -> None:
    """solve(b) = (G + alpha I)^-1 b, fit(v) = (G + alpha I)^-1 K^T v; primal, dual, and the pseudo-inverse at 0."""
    k, alpha, v, d = random_system(rng, shape, penalty)
    factor = SOLVERS[solver](k, alpha[..., None, None])
    b = rng.standard_normal((*v.shape[:-2], d, 3))
    bar = bar_of(k, alpha)
    assert relative_error(factor.solve(b), dense_solve(k, alpha, b)) < bar
    assert relative_error(factor.fit(v), dense_fit(k, alpha, v)) < bar


@pytest.mark.parametrize("kind", ["dependent columns", "repeated rows", "zero", "one batch entry"])
@each_solver
def test_rank_deficient_keys_without_penalty(solver: str, kind: str, rng: np.random.Generator) -> None:
    """The pseudo-inverse, or LinAlgError: never anything else."""
    k = rng.standard_normal((2, 6, 4))
    if kind == "dependent columns":
        k[..., 3] = k[..., 0] - k[..., 1]
    elif kind == "repeated rows":
        k = k[:, [0, 1, 0, 1, 0, 1]]
    elif kind == "zero":
        k[:] = 0
    else:
        k[1] = k[1, :1]
    alpha = np.zeros((1, 1, 1))
    if solver in SINGULAR:
        with pytest.raises(np.linalg.LinAlgError):
            SOLVERS[solver](k, alpha)
        return
    factor = SOLVERS[solver](k, alpha)
    b, v = rng.standard_normal((2, 4, 3)), rng.standard_normal((2, 6, 3))
    bar = bar_of(k, np.zeros(1)) if k.any() else 1e-15
    assert relative_error(factor.solve(b), dense_solve(k, alpha[0, 0], b)) < bar
    assert relative_error(factor.fit(v), dense_fit(k, alpha[0, 0], v)) < bar


@each_alpha
@each_shape
@pytest.mark.parametrize("solver", GRAM_SOLVERS)
def test_solver_of_gram(solver: str, shape: str, penalty: str, rng: np.random.Generator) -> None:
    """Where only K^T K is known: the same answer, as long as the matrix is not singular for "cholesky"."""
    k, alpha, v, d = random_system(rng, shape, penalty)
    if solver == "cholesky" and k.shape[-2] < d and (alpha == 0).any():
        pytest.skip("K^T K is singular")
    solution = solvers.solver_of_gram(np.swapaxes(k, -1, -2) @ k, alpha[..., None, None], solver)
    b = rng.standard_normal((*v.shape[:-2], d, 3))
    if (alpha == 0).any():  # what K^T K cannot reach is rounding to it, and is left to the keys' own solvers
        b = np.swapaxes(k, -1, -2) @ (k @ b)
    assert relative_error(solution(b), dense_solve(k, alpha, b)) < bar_of(k, alpha)


@pytest.mark.parametrize("library_name", LIBRARIES)
@each_solver
def test_solvers_in_every_library(solver: str, library_name: str, rng: np.random.Generator) -> None:
    """The same in each array library; LinAlgError where there is no solution, also from those that give NaN instead."""
    lib = library(library_name)
    for shape in ("primal", "dual", "batch"):
        for penalty in ("positive", "some zero"):
            k, alpha, v, _ = random_system(rng, shape, penalty)
            if is_refused(solver, k, alpha):
                continue
            factor = SOLVERS[solver](lib.make(k), lib.make(alpha[..., None, None]))
            expected = dense_fit(k, alpha, v)
            assert relative_error(lib.back(factor.fit(lib.make(v))), expected) < bar_of(k, alpha)
    if solver in SINGULAR:
        k = np.ones((2, 6, 4))
        k[0] = rng.standard_normal((6, 4))
        with pytest.raises(np.linalg.LinAlgError):
            SOLVERS[solver](lib.make(k), lib.make(np.zeros((1, 1, 1))))


# ---- Where Cholesky fails ------------------------------------------------------------


def ill_conditioned(rng: np.random.Generator, wanted: float, Tk: int = 12, d: int = 5) -> np.ndarray:
    """float32 keys whose K^T K has about the condition number ``wanted``."""
    u, _ = np.linalg.qr(rng.standard_normal((Tk, d)))
    w, _ = np.linalg.qr(rng.standard_normal((d, d)))
    return ((u * np.geomspace(1.0, wanted**-0.5, d)) @ w).astype(np.float32)


@pytest.mark.parametrize("wanted", [1e8, 1e10, 1e12])
def test_auto_succeeds_where_cholesky_fails(wanted: float, rng: np.random.Generator) -> None:
    """alpha is lost in the rounding of K^T K, and Cholesky may fail: "auto" goes on with the keys themselves.

    The keys' own condition number is the square root of that of K^T K, and the
    error in W is 10 eps32 cond(K^T K + alpha I) at most.
    """
    k = ill_conditioned(rng, wanted)
    v = rng.standard_normal((12, 2)).astype(np.float32)
    alpha = np.asarray(1e-9, np.float32)
    out = SOLVERS["auto"](k, alpha[None, None]).fit(v)
    wide, wide_alpha = k.astype(np.float64), np.asarray(float(alpha))
    expected = dense_fit(wide, wide_alpha, v.astype(np.float64))
    assert out.dtype == np.float32
    assert np.isfinite(out).all()
    assert relative_error(out, expected) <= 10 * EPS32 * condition(wide, wide_alpha)


def test_auto_through_the_public_function(rng: np.random.Generator) -> None:
    """The same through kvq.intention, with "cholesky" made to fail: the answer of "svd"."""
    k = np.ones((4, 4), np.float32)  # K^T K = 4 everywhere: the second pivot is 4 - 2 * 2, with alpha lost
    q, v = (rng.standard_normal(s).astype(np.float32) for s in ((3, 4), (4, 2)))
    with kvq.use_implementation("reference"):
        with pytest.raises(np.linalg.LinAlgError):
            kvq.intention(q, k, v, alpha=1e-12, solver="cholesky")
        auto, svd = (kvq.intention(q, k, v, alpha=1e-12, solver=s) for s in ("auto", "svd"))
    assert np.isfinite(auto).all()
    np.testing.assert_array_equal(auto, svd)


@pytest.mark.parametrize("implementation", FORMS["intention"].implementations, ids=lambda x: x.name)
def test_one_bad_prefix_does_not_move_the_others(implementation: Implementation, rng: np.random.Generator) -> None:
    """Causal, float32: where Cholesky fails at one prefix, the earlier ones keep the bits they had."""
    if implementation.missing is not None:
        pytest.skip(implementation.missing)
    q, k, v = (rng.standard_normal((8, n)).astype(np.float32) for n in (3, 3, 2))
    with kvq.use_implementation(implementation.name):
        calm = kvq.intention(q, k, v, alpha=1e-2, is_causal=True)
        k[5:] = 1e6 * k[5]  # alpha is far below the rounding of these prefixes, which lie along one direction
        if implementation.name == "reference":
            with pytest.raises(np.linalg.LinAlgError):
                kvq.intention(q, k, v, alpha=1e-2, is_causal=True, solver="cholesky")
        wild = kvq.intention(q, k, v, alpha=1e-2, is_causal=True)
    np.testing.assert_array_equal(wild[:5], calm[:5])
    assert np.isfinite(wild).all()


@pytest.mark.parametrize("where", [(slice(None),), (1,)], ids=["all", "one of the batch"])
def test_silent_nan_of_a_factorisation_surfaces(
    where: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """Some libraries give NaN where Cholesky fails: LinAlgError all the same, and "auto" goes on without it."""
    xp = pytest.importorskip("array_api_strict")
    honest = xp.linalg.cholesky

    def silent(h: Any, /, *, upper: bool = False) -> Any:
        factor = np.asarray(honest(h, upper=upper)).copy()
        factor[where] = np.nan
        return xp.asarray(factor)

    k, v = rng.standard_normal((2, 6, 3)), rng.standard_normal((2, 6, 2))
    q = rng.standard_normal((2, 4, 3))
    arrays = [xp.asarray(x) for x in (q, k, v)]
    expected = kvq.intention(q, k, v, alpha=0.5, solver="svd")
    monkeypatch.setattr(xp.linalg, "cholesky", silent)
    for is_causal in (False, True):
        with pytest.raises(np.linalg.LinAlgError):
            kvq.intention(*arrays, alpha=0.5, solver="cholesky", is_causal=is_causal)
    assert relative_error(np.asarray(kvq.intention(*arrays, alpha=0.5)), expected) < 1e-12


@pytest.mark.oracle
@pytest.mark.parametrize("library_name", ["torch", "jax"])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("solver", SINGULAR)
def test_torch_and_jax_raise_too(solver: str, is_causal: bool, library_name: str, rng: np.random.Generator) -> None:
    """JAX gives NaN for an indefinite matrix, and torch an error of its own: here both are LinAlgError."""
    lib = library(library_name)
    k = np.repeat(rng.standard_normal((6, 1)), 4, axis=1)
    q, v = rng.standard_normal((6, 4)), rng.standard_normal((6, 2))
    with pytest.raises(np.linalg.LinAlgError):
        kvq.intention(*map(lib.make, (q, k, v)), alpha=0.0, solver=solver, is_causal=is_causal)


# ---- Adjoints ------------------------------------------------------------------------


def largest(*arrays: np.ndarray) -> float:
    return max(float(np.max(np.abs(x), initial=0.0)) for x in arrays)


def assert_gradient(got: np.ndarray, function: Callable[..., np.ndarray], x: np.ndarray, dout: np.ndarray) -> None:
    """``got`` summed over broadcast axes is the derivative by central differences."""
    expected = numerical_vjp(function, x, dout)
    got = np.asarray(got)
    extra = tuple(range(got.ndim - x.ndim))
    got = got.sum(axis=extra)
    got = got.sum(axis=tuple(i for i, n in enumerate(x.shape) if n == 1 and got.shape[i] != 1), keepdims=True)
    # The step of 1e-5 has an error of 1e-10 relative to the third derivative, and eps / 1e-5 from rounding.
    assert got.shape == x.shape
    assert largest(got - expected) < 1e-6 * max(largest(expected), 1.0)


def well_conditioned(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Keys with singular values from 1 to 2, so that central differences mean something."""
    u, _, vt = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
    return (u * np.linspace(1.0, 2.0, min(shape[-2:]))) @ vt


ADJOINTS = {  # (Tk, d), alpha; where alpha is 0 the keys have full row or column rank, which a small change keeps
    "primal": ((6, 3), np.asarray(0.7)),
    "dual": ((2, 4), np.asarray(0.7)),
    "primal, zero": ((6, 3), np.asarray(0.0)),
    "dual, zero": ((2, 4), np.asarray(0.0)),
    "one key, zero": ((1, 4), np.asarray(0.0)),
    "dual, some zero": ((2, 4), np.array([0.0, 0.5])),
    "primal, some zero": ((6, 3), np.array([0.5, 0.0])),
    "square, zero": ((3, 3), np.asarray(0.0)),
}
each_adjoint = pytest.mark.parametrize("case", ADJOINTS)


@each_adjoint
@each_solver
def test_ridge_backward(solver: str, case: str, rng: np.random.Generator) -> None:
    """(dk, dv, dalpha) of W = (K^T K + alpha I)^-1 K^T V, with the turn of the span at alpha = 0."""
    (Tk, d), alpha = ADJOINTS[case]
    k, v = well_conditioned(rng, 2, Tk, d), rng.standard_normal((2, Tk, 2))
    w, saved = solve.ridge(k, v, alpha, solver=solver)
    dw = rng.standard_normal(w.shape)
    dk, dv, dalpha = solve.ridge_backward(dw, saved)
    assert_gradient(dk, lambda x: solve.ridge(x, v, alpha, solver="svd")[0], k, dw)
    assert_gradient(dv, lambda x: solve.ridge(k, x, alpha, solver="svd")[0], v, dw)
    if (alpha > 0).all():  # at 0 there is only one side
        assert_gradient(dalpha, lambda x: solve.ridge(k, v, x, solver="svd")[0], alpha, dw)


def visibilities(rng: np.random.Generator, Tq: int, Tk: int, full_rank: bool) -> Iterator[tuple[Any, bool]]:
    """(mask, is_causal) of every kind; with ``full_rank`` only that under which no query's keys are dependent."""
    yield None, False
    if not full_rank:
        yield np.arange(Tk)[None, :] < max(1, Tk - 1), False
        yield None, True
        yield rng.random((Tq, Tk)) < 0.6, False
        yield rng.random((1, Tk)) < 0.7, True


@each_adjoint
@each_solver
def test_precondition_backward(solver: str, case: str, rng: np.random.Generator) -> None:
    """(dq, dk, dalpha) of q* = (G_i + alpha I)^-1 q_i for every kind of mask.

    With more keys than dimensions a causal prefix passes from rank-deficient to
    full rank one key at a time, so each G_i has a constant rank all the same.
    """
    (Tk, d), alpha = ADJOINTS[case]
    k, q = well_conditioned(rng, 2, Tk, d), rng.standard_normal((2, 4, d))
    for mask, is_causal in visibilities(rng, 4, Tk, full_rank=solver in SINGULAR and bool((alpha == 0).any())):
        options = {"mask": mask, "is_causal": is_causal}
        seen = np.broadcast_to(True if mask is None else mask, (4, Tk)) & (
            np.tri(4, Tk, dtype=bool) if is_causal else True
        )
        if (alpha == 0).any() and any(
            np.linalg.cond(k[b][seen[i]]) > 30 for b in range(2) for i in range(4) if seen[i].any()
        ):
            continue  # too near a change of rank for a step of central differences
        q_star, saved = solve.precondition(q, k, alpha, solver=solver, **options)
        dq_star = rng.standard_normal(q_star.shape)
        dq, dk, dalpha, _ = solve.precondition_backward(dq_star, saved)
        if mask is not None and mask.shape[0] == 1:
            dk = np.where(mask.T, dk, 0.0)  # a hidden key was zeroed on the way in

        def again(
            q: np.ndarray = q, k: np.ndarray = k, alpha: np.ndarray = alpha, options: Any = options
        ) -> np.ndarray:
            result: np.ndarray = solve.precondition(q, k, alpha, solver="svd", **options)[0]
            return result

        assert_gradient(dq, lambda x: again(q=x), q, dq_star)
        assert_gradient(dk, lambda x: again(k=x), k, dq_star)
        if (alpha > 0).all():
            assert_gradient(
                dalpha.sum(axis=-1) if dalpha.ndim > alpha.ndim else dalpha, lambda x: again(alpha=x), alpha, dq_star
            )


@pytest.mark.parametrize("solver", GRAM_SOLVERS)
@pytest.mark.parametrize("is_causal", [False, True])
def test_precondition_backward_with_a_state(solver: str, is_causal: bool, rng: np.random.Generator) -> None:
    """dgram of q* = (gram + G_i + alpha I)^-1 q_i, along symmetric directions: a gram is symmetric."""
    q, k = rng.standard_normal((4, 3)), rng.standard_normal((5, 3))
    past = rng.standard_normal((2, 3))
    alpha = np.asarray(0.4)

    def preconditioned(keys: np.ndarray) -> np.ndarray:
        result: np.ndarray = solve.precondition(q, k, alpha, is_causal=is_causal, gram=keys.T @ keys, solver=solver)[0]
        return result

    _, saved = solve.precondition(q, k, alpha, is_causal=is_causal, gram=past.T @ past, solver=solver)
    dq_star = rng.standard_normal(q.shape)
    *_, dgram = solve.precondition_backward(dq_star, saved)
    assert_gradient(past @ (dgram + dgram.T), preconditioned, past, dq_star)


@pytest.mark.parametrize("some_zero", [False, True])
@each_solver
def test_prefixes_and_general_masks_are_one(solver: str, some_zero: bool, rng: np.random.Generator) -> None:
    """The causal path, cumulative sums, and the path of a general mask agree, forward and backward."""
    q, k = rng.standard_normal((2, 7, 3)), rng.standard_normal((2, 7, 3))
    if solver in SINGULAR and some_zero:
        pytest.skip("the first prefix is singular")
    alpha = np.array([0.0, 0.5]) if some_zero else np.asarray(0.5)
    causal, causal_saved = solve.precondition(q, k, alpha, is_causal=True, solver=solver)
    masked, masked_saved = solve.precondition(q, k, alpha, mask=np.tri(7, dtype=bool), solver=solver)
    worst = max(condition(k[:, : t + 1], np.atleast_1d(alpha)) for t in range(7))
    bar = 100 * EPS * worst * (worst if some_zero else 1)  # at alpha = 0 the pseudo-inverse is applied twice
    assert relative_error(causal, masked) < bar
    dq_star = rng.standard_normal(causal.shape)
    for a, b in zip(
        solve.precondition_backward(dq_star, causal_saved),
        solve.precondition_backward(dq_star, masked_saved),
        strict=True,
    ):
        assert relative_error(a, b) < bar * worst


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each_solver
def test_dtype_is_kept(solver: str, dtype: str, rng: np.random.Generator) -> None:
    """No solver computes in, or returns, another precision."""
    k, v = rng.standard_normal((6, 3)).astype(dtype), rng.standard_normal((6, 2)).astype(dtype)
    for Tk in (6, 2):
        factor = SOLVERS[solver](k[:Tk], np.full((1, 1), 0.5, dtype))
        assert factor.fit(v[:Tk]).dtype == dtype
        assert factor.solve(v[:3]).dtype == dtype


# ---- Every solver, through the forms -------------------------------------------------

LEAST_SQUARES = [(form, name) for form, name in SERVED if "solver" in form.options]
each_least_squares_form = pytest.mark.parametrize(
    ("form", "implementation"), LEAST_SQUARES, ids=[f"{form.name}-{name}" for form, name in LEAST_SQUARES]
)


@each_least_squares_form
@each_solver
@given(data=st.data())
def test_solvers_agree(form: Form, implementation: str, solver: str, data: st.DataObject) -> None:
    """However the system is solved, the output is the same, up to the rounding of both."""
    skip_if_missing(form, implementation)
    accepted = frozenset(form.options) & frozenset(OPTIONAL)
    call = data.draw(calls(form.name, accepted, empty_rows=True))
    options = {**call.options, "implementation": implementation}
    got, expected = (public(form)(call.q, call.k, call.v, solver=x, **options) for x in (solver, "auto"))
    assert (np.abs(got - expected) <= rounding(form.name, call).allowed()).all()


@each_solver
@given(seed=st.integers(0, 2**32 - 1), d=st.integers(1, 8), n=st.integers(1, 8), leading=st.sampled_from([(), (2,)]))
def test_intention_without_penalty_interpolates(
    solver: str, seed: int, d: int, n: int, leading: tuple[int, ...]
) -> None:
    """At alpha = 0, with independent keys, the output at q = k_j is v_j: an associative memory without error."""
    rng = np.random.default_rng(seed)
    k = rng.standard_normal((*leading, min(n, d), d))
    v = rng.standard_normal((*k.shape[:-1], 3))
    worst = math.sqrt(condition(k, np.zeros(leading)))
    assume(worst < 1e3)
    # Cholesky and CG work with K K^T or K^T K, of the square of the condition number; CG stops once more short of it.
    size = float(np.max(np.linalg.norm(v, ord=2, axis=(-2, -1))))
    bar = 16 * EPS * (n + d + 3) * worst**2 * size * (worst if solver == "cg" else 1)
    assert np.max(np.abs(kvq.intention(k, k, v, alpha=0.0, solver=solver) - v)) <= bar
