"""What separates the forms: no linear attention is Intention, and no softmax attention is either.

**Degree.** Linear attention without a feature map is linear in the keys: L(Q, c K, V) = c L(Q, K, V). Intention at
alpha = 0 has the degree -1: I_0(Q, c K, V) = I_0(Q, K, V) / c. For alpha > 0, which is in units of keys squared,
I_{c^2 alpha}(Q, c K, V) = I_alpha(Q, K, V) / c.

- Projections do not help. q -> q A, k -> k B, v -> v C and an output matrix, in any number of heads, leave
  the output trilinear: multiplied by c when K is. If such a layer were I_0 at K and at c K, then I_0 / c = c I_0,
  which is false for c = 2 and I_0 not zero.
- Limits do not help: a limit of functions of degree 1 is of degree 1. :func:`least_error` makes a number of
  it, namely how far from Intention every such function stays.
- Tokens do not help. In self-attention q, k and v are projections of the same x, so linear attention has the
  degree 3 in x, and I_0 has 1 - 1 + 1 = 1.
- Biases help in one place. With one scalar token and alpha = 0, I_0 is x, and so is a layer whose biases make
  k = v = 1. In general they leave the output a polynomial, which is bounded on bounded sets, and
  I_0(1, k, 1) = 1 / k is not. With alpha > 0 and one token I is x^3 / (x^2 + alpha) = x - alpha x / (x^2 + alpha),
  whose last part tends to zero for large x without being zero, as no polynomial does.

**Adding.** A feature map does not help. Unnormalised linear attention is sum_j phi(q) . phi(k_j) v_j: what a context
gives is the sum of what its pairs give, whatever phi is and whatever is done to each token before. A pair
that is seen twice counts twice. Least squares without penalty fits it as before: :func:`repeated_pair`.

**Hull.** Softmax attention, sigma-Intention and both expressive forms give weighted means: no output leaves the
convex hull of the values. Intention can: :func:`extrapolation`.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

import kvq_ref as kvq
from kvq_ref.testing.theorem.bounds import F64, Bound, Form, spectral_norm
from kvq_ref.testing.theorem.exact_forms import intention as exact_intention
from kvq_ref.testing.theorem.rational import Rational, matrix


class Witness(NamedTuple):
    """Two exact numbers that would be equal if the smaller family held the larger one.

    Attributes
    ----------
    claim : str
        What would make them equal, or the first one the smaller.
    intention : Fraction
        What Intention gives.
    other : Fraction
        What the other form would have to give.
    """

    claim: str
    intention: Fraction
    other: Fraction


# ---- Witnesses, in exact arithmetic --------------------------------------------------


def longer_key(alpha: Rational = 0, c: Rational = 2) -> Witness:
    """One scalar pair: the key times c. Linear attention's output is multiplied by c, Intention's is not.

    q k v / (k^2 + alpha) at q = v = 1 and k = c, against c times the same at k = 1: equal only for c^2 = 1.

    Parameters
    ----------
    alpha : Fraction or int
        0 or above.
    c : Fraction or int
        Not 0, 1 or -1.

    Returns
    -------
    Witness

    Examples
    --------
    >>> longer_key(alpha=0, c=2)[1:]
    (Fraction(1, 2), Fraction(2, 1))
    >>> longer_key(alpha=1, c=2)[1:]
    (Fraction(2, 5), Fraction(1, 1))
    """
    before, after = (exact_intention(matrix([[1]]), matrix([[k]]), matrix([[1]]), alpha)[0, 0] for k in (1, c))
    return Witness("an output that is linear in the keys is multiplied by c", after, c * before)


def repeated_pair(alpha: Rational = 0) -> Witness:
    """The same scalar pair once and twice: whatever adds up its pairs gives twice as much.

    1 / (1 + alpha) once, 2 / (2 + alpha) twice, against 2 / (1 + alpha): equal for no alpha.

    Parameters
    ----------
    alpha : Fraction or int
        0 or above.

    Returns
    -------
    Witness

    Examples
    --------
    >>> repeated_pair()[1:]
    (Fraction(1, 1), Fraction(2, 1))
    """
    once, twice = (exact_intention(matrix([[1]]), x, x, alpha)[0, 0] for x in (matrix([[1]]), matrix([[1], [1]])))
    return Witness("a sum over the pairs of the context is doubled", twice, 2 * once)


def extrapolation(at: Rational = 2) -> Witness:
    """A straight line through the values 0 and 1 at t = 0 and t = 1, asked for beyond: no weighted mean of 0 and 1.

    Keys and query are (1, t), alpha = 0.

    Parameters
    ----------
    at : Fraction or int
        The t of the query, above 1.

    Returns
    -------
    Witness
        ``other`` is the largest value.

    Examples
    --------
    >>> extrapolation(at=2)[1:]
    (Fraction(2, 1), Fraction(1, 1))
    """
    out = exact_intention(matrix([[1, at]]), matrix([[1, 0], [1, 1]]), matrix([[0], [1]]), 0)
    return Witness("a weighted mean is at most the largest value", out[0, 0], Fraction(1))


# ---- Properties, for any implementation ----------------------------------------------


def linear_degree(q: F64, k: F64, v: F64, c: float, *, linear: Form = kvq.linear_attention) -> Bound:
    """L(Q, c K, V) = c L(Q, K, V).

    Parameters
    ----------
    q, k, v : array, shapes (..., Tq, d), (..., Tk, d), (..., Tk, dv)
    c : float
    linear : callable

    Returns
    -------
    Bound
        Of shape (...): nothing is allowed but rounding.

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> linear_degree(one, one, one, c=2.0).holds()
    True
    """
    measured = spectral_norm(np.asarray(linear(q, c * k, v)) - c * np.asarray(linear(q, k, v)))
    return Bound(measured, np.zeros_like(measured))


def intention_degree(q: F64, k: F64, v: F64, c: float, alpha: float = 0.0, *, intention: Form = kvq.intention) -> Bound:
    """c I_{c^2 alpha}(Q, c K, V) = I_alpha(Q, K, V).

    Parameters
    ----------
    q, k, v : array, shapes (..., Tq, d), (..., Tk, d), (..., Tk, dv)
    c : float
        Not 0.
    alpha : float
        0 or above.
    intention : callable

    Returns
    -------
    Bound
        Of shape (...): nothing is allowed but rounding.

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> intention_degree(one, one, one, c=2.0).holds()
    True
    """
    longer = c * np.asarray(intention(q, c * k, v, alpha=c**2 * alpha))
    measured = spectral_norm(longer - np.asarray(intention(q, k, v, alpha=alpha)))
    return Bound(measured, np.zeros_like(measured))


def least_error(at: Any, at_scaled: Any, c: float, degree: int = 1) -> Any:
    """How near a function that is homogeneous in x can come to f, at the worse of x and c x.

    |f(c x) - c^n f(x)| / (1 + |c|^n), for degree n.

    *Proof.* Let h(c x) = c^n h(x), and |f - h| <= e at both. Then
    |f(c x) - c^n f(x)| <= |f(c x) - h(c x)| + |c|^n |h(x) - f(x)| <= (1 + |c|^n) e.

    Parameters
    ----------
    at, at_scaled : array, shape (..., m, n)
        f(x) and f(c x).
    c : float
    degree : int, default 1
        1 for linear attention as a function of its keys, 3 for a layer of it as a function of its tokens.

    Returns
    -------
    array, shape (...)
        In the spectral norm.

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> outputs = (kvq.intention(one, k, one, alpha=0.0) for k in (one, 2 * one))
    >>> float(least_error(*outputs, c=2.0))  # |1/2 - 2| / (1 + 2)
    0.5
    """
    return spectral_norm(np.asarray(at_scaled) - c**degree * np.asarray(at)) / (1 + abs(c) ** degree)


def hull(out: Any, v: F64, directions: F64 | None = None) -> Bound:
    """u . out_i <= max_j u . v_j in every direction u: no output is outside the hull of the values.

    A point lies in the convex hull of others if and only if no direction separates it from them.

    Parameters
    ----------
    out : array, shape (..., Tq, dv)
    v : array, shape (..., Tk, dv)
    directions : array, shape (n, dv), optional
        The axes, both ways, if not given.

    Returns
    -------
    Bound
        Of shape (..., Tq, n) and (..., 1, n).

    Examples
    --------
    >>> v = np.array([[0.0], [1.0]])
    >>> hull(np.array([[0.5]]), v).holds(), hull(np.array([[2.0]]), v).holds()
    (True, False)
    """
    axes = np.eye(v.shape[-1])
    u = np.vstack([axes, -axes]) if directions is None else directions
    return Bound(np.asarray(out) @ u.T, np.max(v @ u.T, axis=-2, keepdims=True))
