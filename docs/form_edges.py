"""How a form behaves where an input is missing, hidden, huge or not a number: called, and what comes out printed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

import kvq_ref as kvq
from kvq_ref.dispatch import FORMS
from kvq_ref.grid import GRID

NAN, INF = np.nan, np.inf
ALPHA = 1.0  # where a form needs one, and nothing else is said
HEAD = "| one query, and | out | dq | dk | dv |\n|---|---|---|---|---|\n"


class Edge(NamedTuple):
    """A call.

    Attributes
    ----------
    words : str
        What it is, in markdown.
    q, k, v : list
        Rows of numbers; there is one query, and one column of values.
    options : mapping
    """

    words: str
    q: list[Any]
    k: list[Any]
    v: list[Any]
    options: Mapping[str, Any] = MappingProxyType({})

    def arrays(self) -> dict[str, np.ndarray]:
        return {
            "q": np.array([self.q]),
            "k": np.reshape(np.array(self.k, float), (-1, len(self.q))),
            "v": np.reshape(np.array(self.v, float), (-1, 1)),
        }

    def settings(self, name: str) -> dict[str, Any]:
        """Its options, and an alpha where the form needs one."""
        return ({"alpha": ALPHA} if "alpha" in FORMS[name].options else {}) | dict(self.options)


def edges(name: str) -> Iterator[Edge]:
    """The calls that mean something to a form."""
    options, place = FORMS[name].options, GRID[name]
    e, f = [1.0, 0.0], [0.0, 1.0]
    yield Edge("no keys at all", e, [], [])
    yield Edge("two keys, both hidden", e, [e, f], [1, 3], {"mask": np.array([[False, False]])})
    yield Edge("one key, the query itself, with v = 3", e, [e], [3])
    yield Edge("one key, opposite to the query, with v = 3", e, [[-1.0, 0.0]], [3])
    yield Edge("one key, orthogonal to the query, with v = 3", e, [f], [3])
    yield Edge("a query of zeros, two keys with v = 1 and 3", [0.0, 0.0], [e, f], [1, 3])
    yield Edge("the same key twice, with v = 1 and 3", e, [e, e], [1, 3])
    if "alpha" in options:
        yield Edge("the same, with alpha = 0", e, [e, e], [1, 3], {"alpha": 0.0})
        yield Edge("alpha = 0 and one key, 45° from the query, with v = 3", [1.0, 1.0], [e], [3], {"alpha": 0.0})
        yield Edge("alpha = 1e12, two keys with v = 1 and 3", e, [e, f], [1, 3], {"alpha": 1e12})
    if "scale" in options and place.query != "preconditioned":
        yield Edge("scores of 1e6 and 0, with v = 1 and 3", [1e6, 0.0], [e, f], [1, 3], {"scale": 1.0})
        yield Edge("scores of −1e6 and 0, with v = 1 and 3", [-1e6, 0.0], [e, f], [1, 3], {"scale": 1.0})
    if "bias" in options:
        minus = np.array([[-INF, 0.0]])
        yield Edge("a bias of −∞ on the first key, v = 1 and 3", e, [e, [1.0, 1.0]], [1, 3], {"bias": minus})
        yield Edge("a bias of −∞ on both keys", e, [e, f], [1, 3], {"bias": np.array([[-INF, -INF]])})
        yield Edge("a bias of 1,000 on both keys", e, [e, e], [1, 3], {"bias": np.full((1, 2), 1000.0)})
    if "beta" in options:
        yield Edge("beta = 0, one key with v = 3", e, [e], [3], {"beta": 0.0})
        yield Edge("beta = 3, above 2: the key ten times", e, [e] * 10, [3] * 10, {"beta": 3.0})
    if "decay" in options:
        yield Edge("decay = 0, the key twice, v = 1 and 3", e, [e, e], [1, 3], {"decay": 0.0})
    hidden = {"mask": np.array([[True, False]])}
    yield Edge("NaN in a key and a value that are hidden", e, [e, [NAN, NAN]], [3, NAN], hidden)
    yield Edge("NaN in a value that is seen", e, [e, f], [3, NAN])
    yield Edge("NaN in a key that is seen", e, [e, [NAN, 0.0]], [3, 1])
    yield Edge("∞ in a value that is seen", e, [e, [1.0, 1.0]], [3, INF])


def table(name: str) -> str:
    """A row for each call: what comes out, and what the gradients of ``out`` are like."""
    return HEAD + "".join(f"| {edge.words} | {' | '.join(outcome(name, edge))} |\n" for edge in edges(name))


def outcome(name: str, edge: Edge) -> tuple[str, str, str, str]:
    """The output as a number, and each gradient as a word."""
    with np.errstate(all="ignore"):
        out, pullback = kvq.vjp(getattr(kvq, name), **edge.arrays(), **edge.settings(name))
        grads = pullback(np.ones_like(out))
    return (number(float(out[0, 0])), *(word(grad) for grad in (grads.q, grads.k, grads.v)))


def number(x: float) -> str:
    """Four digits, and signs as they are written.

    >>> number(-1.5e-12), number(2.0), number(float("inf"))
    ('−1.5e-12', '2', '∞')
    """
    text = f"{x + 0.0:.4g}".replace("inf", "∞").replace("nan", "NaN").replace("e+0", "e").replace("e+", "e")
    return text.replace("-", "−", 1) if text.startswith("-") else text


def word(x: np.ndarray) -> str:
    """What an array is like.

    >>> word(np.zeros(2)), word(np.ones(2)), word(np.array([1, NAN])), word(np.zeros((0, 2)))
    ('0', 'finite', 'NaN', 'empty')
    """
    if x.size == 0:
        return "empty"
    if np.isnan(x).any():
        return "NaN"
    if np.isinf(x).any():
        return "∞"
    return "finite" if x.any() else "0"
