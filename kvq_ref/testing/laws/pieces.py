"""Attention is a fold over the keys: it may be cut anywhere and put together in any order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from kvq_ref.dispatch import FORMS
from kvq_ref.testing.calls import F64, PER_KEY, Call
from kvq_ref.testing.laws.dense import dense
from kvq_ref.testing.laws.law import PLAIN, STATEFUL, SUMS, WEIGHTED_MEANS, Comparison, law, suppose
from kvq_ref.testing.laws.measured import Measured, ask, exactly, same
from kvq_ref.testing.rounding import representable
from kvq_ref.testing.target import Target


@law(
    r"f(A \cup B) = \lambda f(A) + (1 - \lambda) f(B),\quad \lambda_i = \textstyle\sum_{j \in A} p_{ij}",
    forms=WEIGHTED_MEANS & PLAIN,
    needs={"keys apart"},
    draw={"causal": False},
    hint="partial results are merged with the wrong maximum or sum",
)
def a_mean_over_two_parts_is_a_mean_of_means(target: Target, call: Call) -> Iterator[Comparison]:
    """The output is the mean of those of two parts of the keys, by the share of the weight that each part has.

    This is the law of total expectation. The share is the output where the values are
    one in the first part and zero in the second.
    """
    parts = _parts(call, 2)
    yield same("mean of the outputs of two parts", _merged(target, call, parts), ask(target, call))


@law(
    r"f(A_1 \cup \dots \cup A_n) \text{ by merging in any order}",
    forms=WEIGHTED_MEANS & PLAIN,
    needs={"keys apart"},
    draw={"causal": False},
    more={"n": st.integers(3, 4)},
)
def parts_merge_in_any_order(target: Target, call: Call, n: int) -> Iterator[Comparison]:
    """Parts of the keys may be merged one after the other in any order, each with those before it."""
    order = call.rng().permutation(n)
    parts = _parts(call, n)
    yield same("parts merged in a random order", _merged(target, call, parts[order]), ask(target, call))


def _parts(call: Call, n: int) -> NDArray[np.bool_]:
    """A random partition of the keys, as indicators (n, Tk); every query sees a key of every part."""
    part = call.rng().integers(n, size=call.k.shape[-2])
    chosen = np.asarray(part == np.arange(n)[:, None])
    suppose(all((call.visible() & own).any(axis=-1).all() for own in chosen))
    return chosen


def _merged(target: Target, call: Call, parts: NDArray[np.bool_]) -> Measured:
    """The output on the union of the parts, from the outputs on each."""
    so_far = parts[0]
    out = ask(target, call.keys(so_far))
    for part in parts[1:]:
        union = so_far | part
        indicator = np.broadcast_to(so_far[union].astype(float)[:, None], call.keys(union).v.shape)
        share = ask(target, call.keys(union).but(v=indicator))
        out = share * out + (exactly(1.0) - share) * ask(target, call.keys(part))
        so_far = union
    return out


@law(
    r"f(A \cup B) = f(A) + f(B)",
    forms=SUMS & PLAIN,
    needs={"keys apart"},
    draw={"causal": False, "features": False},
    more={"n": st.integers(2, 4)},
)
def a_sum_over_parts_is_a_sum_of_sums(target: Target, call: Call, n: int) -> Iterator[Comparison]:
    """Without normalisation the output is the sum of those of any parts of the keys."""
    parts = _parts(call, n)
    total = ask(target, call.keys(parts[0]))
    for part in parts[1:]:
        total = total + ask(target, call.keys(part))
    yield same("sum of the outputs of the parts", total, ask(target, call))


@law(
    r"f(x_{1 \dots T}) = [f(x_{1 \dots t}), f(x_{t+1 \dots T}; S_t)]",
    forms=STATEFUL,
    needs={"state"},
    draw={"square": True, "masks": ("none", "keys"), "shortest": 3},
    more={"n": st.integers(1, 4)},
    hint="the state misses keys, holds some twice, or is read after it was overwritten",
)
def pieces_give_the_whole(target: Target, call: Call, n: int) -> Iterator[Comparison]:
    """A sequence fed in pieces, each with the state that the one before it left, gives what it gives as a whole.

    Causal: the outputs one after the other. Otherwise all the queries meet each piece, and
    the last outputs are those of all the keys.
    """
    T = call.k.shape[-2]
    cuts = sorted(call.rng().choice(np.arange(1, T), min(n, T - 1), replace=False).tolist())
    pieces = [slice(a, b) for a, b in zip([0, *cuts], [*cuts, T], strict=True)]
    whole = ask(target, call)
    if call.is_causal:
        outs = target.stream([call.queries(at).keys(at) for at in pieces])
        got = np.concatenate(outs, axis=-2)
    else:
        got = target.stream([call.keys(at) for at in pieces])[-1]
    yield Comparison(f"output in pieces cut at {cuts}", got, whole.value, 2 * whole.unit, whole.limit)


@law(
    r"O = \text{definition}(Q, K, V),\quad T \in \{64, 130, 257\}",
    more={"T": st.sampled_from([64, 130, 257]), "d": st.sampled_from([8, 64])},
    draw={"batch": False},
    examples=0.08,
    hint="the last tile is not full, or sums are kept in half precision",
)
def long_sequences(target: Target, call: Call, T: int, d: int) -> Iterator[Comparison]:
    """The output and the gradients of sequences longer than a tile are those of the definition, in float64."""
    call = _long(target, call, T, d)
    out = ask(target, call)
    yield Comparison("output", out.value, dense(target.form, call), out.unit, out.limit)


def _long(target: Target, call: Call, T: int, d: int) -> Call:
    """A call of these sizes, with the kind of options that the drawn one has; its scores are of order one."""
    rng = call.rng()
    Tq = T + int(rng.integers(-2, 3)) if "keys apart" in target.offers else T
    dv = d // 2 + 1 if "widths apart" in target.offers else d
    leading = call.q.shape[:-2]

    def normal(*shape: int) -> F64:
        return representable(rng.standard_normal((*leading, *shape)), target.dtype)

    options: dict[str, Any] = {}
    if "mask" in call.options:
        options["mask"] = rng.random((*leading, 1, T)) < 0.7
        options["mask"][..., 0] = True
    if "bias" in call.options:
        options["bias"] = normal(Tq, T)
    short = d**-0.25  # a power of two times a rounding: q.k is of order one
    q, k = (representable(short * normal(n, d), target.dtype) for n in (Tq, T))
    if "beta" in FORMS[target.form].options:  # steps of no more than one, or the state would grow from key to key
        k = representable(k / np.linalg.norm(k, axis=-1, keepdims=True), target.dtype)
    options |= {
        name: representable(rng.random((*leading, T, 1)), target.dtype)
        for name in PER_KEY
        if call.get(name) is not None
    }
    return call.but(q=q, k=k, v=normal(T, dv), **options)


PIECES = (
    a_mean_over_two_parts_is_a_mean_of_means,
    parts_merge_in_any_order,
    a_sum_over_parts_is_a_sum_of_sums,
    pieces_give_the_whole,
    long_sequences,
)
