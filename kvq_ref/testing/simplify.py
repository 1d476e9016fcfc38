"""Make a counterexample smaller still: leave out what does not matter, and round what does.

Hypothesis shrinks what was drawn, one number after the other. A key in the last of
four dimensions stays there: to move it, two numbers would have to change. Here the arrays
are known to be arrays, and whole rows and columns are taken out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from kvq_ref.testing.calls import F64, PER_KEY, Call

TRIALS = 300


def simplify(call: Call, breaks: Callable[[Call], bool], *, rows: bool = True, columns: bool = True) -> Call:
    """The simplest call, in small steps from the one given, that still breaks a law.

    Parameters
    ----------
    call : Call
        One that breaks it.
    breaks : callable
        Whether another call does.
    rows, columns : bool
        Whether queries and keys, and dimensions and value columns, may be taken out.

    Returns
    -------
    Call

    Examples
    --------
    >>> call = Call(np.full((3, 2), 0.7), np.ones((4, 2)), np.ones((4, 1)))
    >>> smaller = simplify(call, lambda c: bool(c.q.any()))
    >>> smaller.q.tolist(), smaller.k.tolist(), smaller.v.tolist()
    ([[1.0]], [[0.0]], [[0.0]])
    """
    left = TRIALS
    again = True
    while again:
        again = False
        for smaller in _smaller(call, rows, columns):
            left -= 1
            if left < 0:
                return call
            if breaks(smaller):
                call, again = smaller, True
                break
    return call


def _smaller(call: Call, rows: bool, columns: bool) -> Iterator[Call]:
    """Calls a step simpler than this one, those that take the most away first."""
    if call.q.ndim > 2:
        for axis, n in enumerate(call.q.shape[:-2]):
            if n > 1:
                yield _take(call, axis, slice(0, 1))
                yield _take(call, axis, slice(1, 2))
    for option in ("bias", "mask", "scale", "normalize", "feature_map", "is_causal", *PER_KEY):
        if call.options.get(option) is not None:
            yield call.but(**{option: None})
    Tq, Tk, d, dv = call.sizes
    if columns:
        for j in range(dv if dv > 1 else 0):
            yield call.but(v=np.delete(call.v, j, -1))
        for j in range(d if d > 1 else 0):
            yield call.but(q=np.delete(call.q, j, -1), k=np.delete(call.k, j, -1))
    if rows:
        everyone_sees = bool(call.visible().any(axis=-1).all())
        without: list[Call] = []
        if not call.is_causal:
            without += [_without_query(call, i) for i in range(Tq if Tq > 1 else 0)]
        elif Tq > 1:
            without.append(_without_query(call, Tq - 1))
        without += [_without_key(call, j) for j in range(Tk if Tk > 1 else 0)]
        yield from (c for c in without if not everyone_sees or c.visible().any(axis=-1).all())
    for name in ("q", "k", "v", "bias", *PER_KEY):
        x = call.arrays.get(name)
        if x is not None:
            for place in zip(*np.nonzero(x), strict=True):
                for simple in (0.0, 1.0):
                    if x[place] != simple and (simple == 0.0 or x[place] != np.round(x[place])):
                        yield call.but(**{name: _with(x, place, simple)})


def _take(call: Call, axis: int, which: slice) -> Call:
    place = (slice(None),) * axis + (which,)
    options = {n: x[place] if np.ndim(x) > 2 else x for n, x in call.options.items()}
    return call.but(q=call.q[place], k=call.k[place], v=call.v[place], **options)


def _without_query(call: Call, i: int) -> Call:
    pairs = {n: call.get(n) for n in ("mask", "bias") if call.get(n) is not None}
    pairs = {n: np.delete(x, i, -2) if x.shape[-2] > 1 else x for n, x in pairs.items()}
    return call.but(q=np.delete(call.q, i, -2), **pairs)


def _without_key(call: Call, j: int) -> Call:
    pairs = {n: call.get(n) for n in ("mask", "bias") if call.get(n) is not None}
    pairs = {n: np.delete(x, j, -1) if x.shape[-1] > 1 else x for n, x in pairs.items()}
    rows = {n: np.delete(call.get(n), j, -2) for n in PER_KEY if call.get(n) is not None}
    return call.but(k=np.delete(call.k, j, -2), v=np.delete(call.v, j, -2), **pairs, **rows)


def _with(x: F64, place: tuple[int, ...], value: float) -> F64:
    y = x.copy()
    y[place] = value
    return y
