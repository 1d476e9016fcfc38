"""The exact statements as data, and random instances of them.

Documentation can list :data:`EXACT`, a test can run through it, and both read
the same functions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from fractions import Fraction
from random import Random
from typing import Any, NamedTuple

from kvq_ref.testing.theorem import exact
from kvq_ref.testing.theorem.exact import Sides
from kvq_ref.testing.theorem.rational import Matrix, cayley, matrix


class Statement(NamedTuple):
    """A statement of the theorem that holds without rounding.

    Attributes
    ----------
    name : str
    statement : str
        In words.
    latex : str
        As a formula.
    check : callable
        Takes an instance and returns the sides that must be equal; its docstring has the proof.
    keys : str
        Which keys it is about: "any", "independent rows", "independent columns" or "orthonormal".
    zero_alpha : bool
        Whether it holds at alpha = 0 too, whatever the rank of the keys.
    """

    name: str
    statement: str
    latex: str
    check: Callable[..., Sides]
    keys: str = "any"
    zero_alpha: bool = False


EXACT: tuple[Statement, ...] = (
    Statement(
        "least squares",
        "Intention's W minimises the ridge loss: any other one costs more, by a known amount.",
        r"\ell(W + D) = \ell(W) + \tfrac12 |K D|^2 + \tfrac{\alpha}{2} |D|^2",
        exact.least_squares,
        zero_alpha=True,
    ),
    Statement(
        "primal and dual",
        "Solving with d x d or with Tk x Tk, or attending linearly with preconditioned queries, is the same.",
        r"Q (K^T K + \alpha I)^{-1} K^T V = Q K^T (K K^T + \alpha I)^{-1} V",
        exact.primal_dual,
    ),
    Statement(
        "interpolation",
        "With independent keys and no penalty, asking for a key returns its value.",
        r"I_0(K, K, V) = V",
        exact.interpolation,
        keys="independent rows",
    ),
    Statement(
        "prefixes",
        "Causal Intention is a regression on each prefix, a running sum, and recursive least squares.",
        r"P_t = P_{t-1} - \frac{P_{t-1} k_t k_t^T P_{t-1}}{1 + k_t^T P_{t-1} k_t} = H_t^{-1}",
        exact.prefixes,
    ),
    Statement(
        "resolvent identity",
        "alpha times Intention is linear attention minus a correction that goes to zero like 1/alpha.",
        r"\alpha I_\alpha = L - Q G (G + \alpha I)^{-1} K^T V",
        exact.resolvent,
    ),
    Statement(
        "orthonormal keys",
        "For orthonormal keys, or columns of keys, the two are one form, up to a factor.",
        r"(1 + \alpha) I_\alpha = L",
        exact.orthonormal_keys,
        keys="orthonormal",
        zero_alpha=True,
    ),
    Statement(
        "first gradient step",
        "One step of gradient descent on the ridge loss, from zero, is linear attention times the step size.",
        r"Q W_1 = \eta L",
        exact.first_gradient_step,
        zero_alpha=True,
    ),
    Statement(
        "gradient descent",
        "Each further step multiplies what is left to go by the same matrix.",
        r"W_n - W = -\left(I - \eta (G + \alpha I)\right)^n W",
        exact.gradient_descent,
        zero_alpha=True,
    ),
    Statement(
        "degree of linear attention",
        "Longer keys, larger output: degree 1.",
        r"L(Q, cK, V) = c\, L(Q, K, V)",
        exact.linear_degree,
    ),
    Statement(
        "degree of Intention",
        "Longer keys, smaller output: degree -1, if alpha, which is in units of keys squared, goes along.",
        r"I_{c^2 \alpha}(Q, cK, V) = c^{-1} I_\alpha(Q, K, V)",
        exact.intention_degree,
        zero_alpha=True,
    ),
    Statement(
        "coordinates of linear attention",
        "Queries are covectors: they change coordinates against the keys.",
        r"L(Q A^{-T}, K A, V) = L(Q, K, V)",
        exact.linear_coordinates,
    ),
    Statement(
        "coordinates of Intention",
        "Without penalty, queries are points among the keys: both change coordinates together.",
        r"I_0(Q A, K A, V) = I_0(Q, K, V)",
        exact.intention_coordinates,
        keys="independent columns",
    ),
)


def instance(statement: Statement, random: Random, largest: int = 4) -> dict[str, Any]:
    """Random small arguments for ``statement.check``, as the statement allows them.

    Keys that may be anything are often rank-deficient, values and queries often zero.

    Parameters
    ----------
    statement : Statement
    random : random.Random
        Or Hypothesis's ``st.randoms()``, which then finds the smallest counterexample.
    largest : int
        Of the sizes Tq, Tk, d and dv.

    Returns
    -------
    dict
        By name, the arguments that ``statement.check`` takes.

    Examples
    --------
    >>> from random import Random
    >>> from kvq_ref.testing.theorem.rational import equal
    >>> drawn = instance(EXACT[4], Random(0))
    >>> list(drawn), equal(*EXACT[4].check(**drawn))
    (['q', 'k', 'v', 'alpha'], True)
    """
    Tq, Tk, d, dv = (random.randint(1, largest) for _ in range(4))
    if statement.keys == "independent rows":
        Tk, d = sorted((Tk, d))
    if statement.keys == "independent columns":
        d, Tk = sorted((Tk, d))
    parameters = inspect.signature(statement.check).parameters
    drawn: dict[str, Any] = {
        "q": _entries(random, Tq, d),
        "k": _keys(statement.keys, random, Tk, d),
        "v": _entries(random, Tk, dv),
        "alpha": Fraction(random.randint(0 if statement.zero_alpha else 1, 4), random.randint(1, 3)),
        "step": _entries(random, d, dv),
        "eta": Fraction(random.randint(1, 4), random.randint(1, 6)),
        "steps": random.randint(0, 3),
        "c": random.choice([-1, 1]) * Fraction(random.randint(1, 4), random.randint(1, 3)),
        "a": _independent_columns(random, d, d),
    }
    return {name: drawn[name] for name in parameters}


def _entries(random: Random, m: int, n: int) -> Matrix:
    return matrix([[Fraction(random.randint(-4, 4), random.randint(1, 3)) for _ in range(n)] for _ in range(m)])


def _keys(kind: str, random: Random, Tk: int, d: int) -> Matrix:
    if kind == "independent rows":
        rows: Matrix = _independent_columns(random, d, Tk).T
        return rows
    if kind == "independent columns":
        return _independent_columns(random, Tk, d)
    if kind == "orthonormal":
        n = max(Tk, d)
        return cayley(_entries(random, n, n))[:Tk, :d]
    if random.randint(0, 2) == 0:  # of low rank on purpose
        r = random.randint(1, min(Tk, d))
        low: Matrix = _entries(random, Tk, r) @ _entries(random, r, d)
        return low
    return _entries(random, Tk, d)


def _independent_columns(random: Random, m: int, n: int) -> Matrix:
    """m >= n rows in n columns: a unit lower triangle times an invertible upper one, rows shuffled."""
    lower = [[int(i == j) if i <= j else random.randint(-2, 2) for j in range(n)] for i in range(m)]
    upper = [
        [0 if i > j else random.choice([-2, -1, 1, 2] if i == j else [-1, 0, 1]) for j in range(n)] for i in range(n)
    ]
    x: Matrix = matrix(lower) @ matrix(upper)
    return x[random.sample(range(m), m)]
