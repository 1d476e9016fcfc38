"""The theorem in rational arithmetic: both sides are the same fractions, on random instances and to the last digit."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from fractions import Fraction
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kvq_ref.testing.theorem import EXACT, Statement, equal, exact, exact_forms, instance, matrix, rational, strictness
from kvq_ref.testing.theorem.rational import Matrix

# A thousand instances in the profile "thorough".
examples = settings(max_examples=min(1000, settings().max_examples))
randoms = st.randoms(use_true_random=False)
each_statement = pytest.mark.parametrize("statement", EXACT, ids=[s.name.replace(" ", "-") for s in EXACT])


@each_statement
@examples
@given(random=randoms)
def test_statement(statement: Statement, random: Random) -> None:
    """All sides are equal, and made of fractions alone."""
    sides = statement.check(**instance(statement, random))
    assert len(sides) >= 2
    assert equal(*sides)


# ---- The statements can fail ---------------------------------------------------------


def wrong_intention(change: Callable[..., Any]) -> Callable[..., Matrix]:
    """Intention after a change of its arguments."""
    return lambda q, k, v, alpha: exact_forms.intention(*change(q, k, v, alpha))


WRONG: dict[str, tuple[str, str, Callable[..., Any]]] = {  # mistake: (statement, what to replace in exact, by what)
    "G + alpha I with the wrong sign": ("resolvent identity", "hessian", lambda k, a: exact_forms.hessian(k, -a)),
    "alpha off by 1e-30": (
        "resolvent identity",
        "intention",
        wrong_intention(lambda q, k, v, a: (q, k, v, a + Fraction(1, 10**30))),
    ),
    "scaled scores": ("resolvent identity", "linear", lambda q, k, v: exact_forms.linear(q / 2, k, v)),
    "penalty forgotten in one form": ("primal and dual", "hessian", lambda k, a: exact_forms.hessian(k, 2 * a)),
    "penalty ignored": (
        "orthonormal keys",
        "intention",
        wrong_intention(lambda q, k, v, a: (q, k, v, Fraction(0))),
    ),
    "a fit that is not the best": ("least squares", "fit", lambda k, v, a: exact_forms.fit(k, v, a + 1)),
    "a penalty where there is none": (
        "interpolation",
        "intention",
        wrong_intention(lambda q, k, v, a: (q, k, v, a + Fraction(1, 10**30))),
    ),
    "a prefix that forgets": (
        "prefixes",
        "intention",
        wrong_intention(lambda q, k, v, a: (q, k[-2:], v[-2:], a)),
    ),
    "a step of twice the size": (
        "first gradient step",
        "descend",
        lambda k, v, a, eta, steps: exact_forms.descend(k, v, a, 2 * eta, steps),
    ),
    "a loss without the half": ("first gradient step", "loss", lambda *x: 2 * exact_forms.loss(*x)),
    "descent without the penalty": (
        "gradient descent",
        "descend",
        lambda k, v, a, eta, steps: exact_forms.descend(k, v, Fraction(0), eta, steps),
    ),
    "a part that is cubic in the keys": (
        "degree of linear attention",
        "linear",
        lambda q, k, v: exact_forms.linear(q, k, v) + q @ (k.T @ k) @ (k.T @ v),
    ),
    "alpha with a floor under it": (
        "degree of Intention",
        "intention",
        wrong_intention(lambda q, k, v, a: (q, k, v, a + 1)),
    ),
    "linear in the wrong coordinates": (
        "coordinates of linear attention",
        "linear",
        lambda q, k, v: exact_forms.intention(q, k, v, Fraction(1)),
    ),
    "Intention in the wrong coordinates": (
        "coordinates of Intention",
        "intention",
        lambda q, k, v, a: exact_forms.linear(q, k, v),
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_formula_is_refuted(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most random instances contradict each of these mistakes, and none of the statements as they are."""
    name, replaced, by = WRONG[mistake]
    (statement,) = (s for s in EXACT if s.name == name)
    instances = [instance(statement, Random(seed)) for seed in range(40)]
    assert all(equal(*statement.check(**x)) for x in instances)
    monkeypatch.setattr(exact, replaced, by)
    refuted = sum(not equal(*statement.check(**x)) for x in instances)
    assert refuted >= 5


def test_every_statement_has_a_mistake_that_it_finds() -> None:
    assert {name for name, _, _ in WRONG.values()} == {s.name for s in EXACT}


# ---- What the statements say about themselves ----------------------------------------


def test_every_function_is_listed_and_proved() -> None:
    """EXACT holds the functions of exact.py that return sides, each with a proof."""
    functions = [f for _, f in inspect.getmembers(exact, inspect.isfunction) if f.__module__ == exact.__name__]
    assert {s.check for s in EXACT} == set(functions)
    assert all("*Proof.*" in (s.check.__doc__ or "") for s in EXACT)
    assert len({s.name for s in EXACT}) == len(EXACT)


@each_statement
@examples
@given(random=randoms)
def test_instance_keeps_its_word(statement: Statement, random: Random) -> None:
    """Arguments are those of the check, and the keys are of the kind that the statement is about."""
    drawn = instance(statement, random, largest=3)
    assert list(drawn) == list(inspect.signature(statement.check).parameters)
    assert all(1 <= n <= 3 for x in drawn.values() if isinstance(x, np.ndarray) for n in x.shape)
    k = drawn["k"]
    if statement.keys == "independent rows":
        assert rational.rank(k) == k.shape[0]
    if statement.keys == "independent columns":
        assert rational.rank(k) == k.shape[1]


def test_instances_are_varied() -> None:
    """Among a few of them: more keys than dimensions and fewer, keys without full rank, alpha = 0."""
    (statement,) = (s for s in EXACT if s.check is exact.intention_degree)
    drawn = [instance(statement, Random(seed)) for seed in range(100)]
    shapes = [x["k"].shape for x in drawn]
    assert any(m > n for m, n in shapes)
    assert any(m < n for m, n in shapes)
    assert any(rational.rank(x["k"]) < min(x["k"].shape) for x in drawn)
    assert any(x["alpha"] == 0 for x in drawn)
    assert any(x["c"] < 0 for x in drawn)


# ---- Hypotheses that a statement needs -----------------------------------------------


def test_statements_refuse_what_they_are_not_about() -> None:
    k, q, v = matrix([[1, 1]]), matrix([[1, 0]]), matrix([[1]])
    with pytest.raises(ValueError, match="neither its rows nor its columns"):
        exact.orthonormal_keys(q, k, v, 1)
    with pytest.raises(np.linalg.LinAlgError, match="k: expected independent columns, got rank 1 of 2"):
        exact.intention_coordinates(q, k, v, rational.identity(2))
    with pytest.raises(np.linalg.LinAlgError, match="a: singular"):
        exact.linear_coordinates(q, k, v, matrix([[1, 1], [1, 1]]))
    with pytest.raises(np.linalg.LinAlgError, match="a: singular, 2 x 2 of rank 1"):
        exact.primal_dual(q, k, v, 0)


def test_coordinates_need_independent_columns() -> None:
    """The counterexample: one key in the plane, and a shear."""
    q, k, v, a = matrix([[1, 0]]), matrix([[1, 1]]), matrix([[1]]), matrix([[1, 1], [0, 1]])
    assert exact_forms.intention(q, k, v, 0)[0, 0] == Fraction(1, 2)
    assert exact_forms.intention(q @ a, k @ a, v, 0)[0, 0] == Fraction(3, 5)


# ---- Rational linear algebra ---------------------------------------------------------

entries = st.fractions(-3, 3, max_denominator=3)
sizes = st.integers(1, 4)


@st.composite
def matrices(draw: st.DrawFn, m: int | None = None, n: int | None = None) -> Matrix:
    m, n = (draw(sizes) if size is None else size for size in (m, n))
    return matrix([[draw(entries) for _ in range(n)] for _ in range(m)])


@given(data=st.data(), n=sizes)
def test_solve(data: st.DataObject, n: int) -> None:
    a, b = data.draw(matrices(n, n)), data.draw(matrices(n))
    if rational.rank(a) < n:
        with pytest.raises(np.linalg.LinAlgError, match=f"singular, {n} x {n} of rank {rational.rank(a)}"):
            rational.solve(a, b)
    else:
        assert equal(a @ rational.solve(a, b), b)


@given(a=matrices())
def test_pseudo_inverse(a: Matrix) -> None:
    """The four equations of Penrose."""
    x = rational.pseudo_inverse(a)
    assert equal(a @ x @ a, a)
    assert equal(x @ a @ x, x)
    assert equal((a @ x).T, a @ x)
    assert equal((x @ a).T, x @ a)


@given(a=matrices())
def test_rank_agrees_with_numpy(a: Matrix) -> None:
    assert rational.rank(a) == np.linalg.matrix_rank(a.astype(float)) == rational.rank(a.T.copy())


@given(data=st.data(), n=sizes)
def test_cayley_is_orthogonal(data: st.DataObject, n: int) -> None:
    x = rational.cayley(data.draw(matrices(n, n)))
    assert equal(x @ x.T, x.T @ x, rational.identity(n))


def test_matrix_takes_floats_at_their_binary_value() -> None:
    assert matrix([[0.1]])[0, 0] == Fraction(3602879701896397, 36028797018963968)
    assert matrix(np.float32([[0.5]])).item() == Fraction(1, 2)


@pytest.mark.parametrize("rows", [[1, 2], [[1, float("nan")]], [[float("inf")]], [["x"]], [[None]], [[1], [2, 3]]])
def test_matrix_refuses(rows: Any) -> None:
    with pytest.raises(ValueError, match=r"rows|inhomogeneous"):
        matrix(rows)


def test_solve_refuses_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"expected shapes \(n, n\) and \(n, m\), got \(1, 2\)"):
        rational.solve(matrix([[1, 2]]), matrix([[1]]))


def test_equal_notices_a_float_and_a_shape() -> None:
    one = rational.identity(1)
    assert not equal(one, one * 1.0)
    assert not equal(one, rational.identity(2))
    assert not equal(one, matrix([[1, 1]]))


# ---- Witnesses -----------------------------------------------------------------------

positive = st.fractions(0, 5, max_denominator=5)


@given(alpha=positive, c=st.fractions(-4, 4, max_denominator=4))
def test_longer_key_tells_the_two_apart(alpha: Fraction, c: Fraction) -> None:
    assume(c not in (0, 1, -1))
    witness = strictness.longer_key(alpha, c)
    assert witness.intention == c / (c * c + alpha)
    assert witness.other == c / (1 + alpha)
    assert witness.intention != witness.other


@given(alpha=positive)
def test_repeated_pair_tells_the_two_apart(alpha: Fraction) -> None:
    witness = strictness.repeated_pair(alpha)
    assert witness.intention == 2 / (2 + alpha)
    assert witness.other == 2 / (1 + alpha)
    assert witness.intention < witness.other


@given(beyond=st.fractions(0, 5, max_denominator=5))
def test_extrapolation_leaves_the_hull(beyond: Fraction) -> None:
    assume(beyond > 0)
    witness = strictness.extrapolation(1 + beyond)
    assert witness.intention == 1 + beyond > witness.other == 1
