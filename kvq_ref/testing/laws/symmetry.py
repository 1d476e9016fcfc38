"""What may be exchanged, turned round or left out: keys, queries, batch entries, columns, coordinates, signs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from kvq_ref.dispatch import FORMS
from kvq_ref.grid import GRID
from kvq_ref.testing.calls import PER_KEY, PER_PAIR, SIMPLE, Call
from kvq_ref.testing.laws.law import EVERY, SEQUENTIAL, Comparison, law, suppose
from kvq_ref.testing.laws.measured import ask, ask_gradients, keys_of, queries_of, same
from kvq_ref.testing.target import Target

EVEN = tuple(name for name in FORMS if GRID[name].is_even)
ODD = tuple(name for name in FORMS if GRID[name].score == "z")


@law(
    r"f(Q, PK, PV) = f(Q, K, V)",
    forms=EVERY - SEQUENTIAL,
    draw={"causal": False},
    hint="a tile of keys is left out, taken twice, or has its mask or bias shifted",
)
def order_of_keys_does_not_matter(target: Target, call: Call) -> Iterator[Comparison]:
    """Permuting the keys with their values, and the columns of mask and bias, changes nothing; gradients permute."""
    order = call.rng().permutation(call.k.shape[-2])
    permuted = call.keys(order)
    yield same("output for permuted keys", ask(target, permuted), ask(target, call))
    if target.has_gradient:
        before, after = (ask_gradients(target, x, call.dout()) for x in (call, permuted))
        for name in before:
            yield same(f"gradient of {name} for permuted keys", after[name], keys_of(name, before[name], order))


@law(r"f(PQ, K, V) = P f(Q, K, V)", draw={"causal": False}, hint="a row's maximum, sum or mask is that of another row")
def order_of_queries_is_that_of_outputs(target: Target, call: Call) -> Iterator[Comparison]:
    """Permuting the queries, and the rows of mask and bias, permutes the outputs; gradients permute."""
    order = call.rng().permutation(call.q.shape[-2])
    permuted = call.queries(order)
    yield same("output for permuted queries", ask(target, permuted), ask(target, call)[..., order, :])
    if target.has_gradient:
        before = ask_gradients(target, call, call.dout())
        after = ask_gradients(target, permuted, call.dout()[..., order, :])
        for name in before:
            yield same(f"gradient of {name} for permuted queries", after[name], queries_of(name, before[name], order))


@law(r"f(Q_S, K, V) = f(Q, K, V)_S", needs={"keys apart"}, draw={"causal": False})
def queries_do_not_see_each_other(target: Target, call: Call) -> Iterator[Comparison]:
    """Some of the queries alone, with their rows of mask and bias, give their outputs."""
    rng = call.rng()
    some = rng.permutation(call.q.shape[-2])[: rng.integers(1, call.q.shape[-2] + 1)]
    yield same("output of some queries alone", ask(target, call.queries(some)), ask(target, call)[..., some, :])


@law(r"f(Q, K, V)_b = f(Q_b, K_b, V_b)", hint="an index or a stride of the batch or the heads is wrong")
def entries_of_a_batch_do_not_see_each_other(target: Target, call: Call) -> Iterator[Comparison]:
    """What a batch gives is what its entries give one by one; that a batch axis has length one changes nothing."""
    leading = call.q.shape[:-2]
    suppose(np.prod(leading) > 1)
    whole = ask(target, call)
    for index in product(*map(range, leading)):
        at = tuple(slice(i, i + 1) for i in index)
        yield same(f"output of entry {index} alone", ask(target, call.entry(at)), whole[at])
        if target.layout == "any":
            yield same(f"output of entry {index} without batch axes", ask(target, call.entry(index)), whole[index])


@law(r"f(Q_b, K, V_b) = f(Q_b, K_b, V_b),\ K_b = K", needs={"broadcasting"})
def leading_axes_broadcast(target: Target, call: Call) -> Iterator[Comparison]:
    """Keys, values, mask or bias without leading axes serve every query; their gradients are sums over the batch."""
    leading = call.q.shape[:-2]
    suppose(leading != ())
    given = {"k": call.k, "v": call.v}
    given |= {n: call.options[n] for n in (*PER_PAIR, *PER_KEY) if n in call.options}
    rng = call.rng()
    chosen = [name for name in given if rng.random() < 0.6] or ["k"]
    one = {name: given[name][(0,) * len(leading)] for name in chosen}
    short = call.but(**one)
    full = call.but(**{name: np.broadcast_to(x, given[name].shape) for name, x in one.items()})
    suppose(bool(full.visible().any(axis=-1).all()))
    whole = ask(target, full)
    what = f"where {' and '.join(chosen)} broadcast"
    yield Comparison(f"output {what}", target(short), whole.value, 2 * whole.unit, whole.limit)
    if target.has_gradient:
        dout = call.dout()
        axes = tuple(range(len(leading)))
        got = target.gradients(short, dout)
        for name, g in ask_gradients(target, full, dout).items():
            sums = g.sum(axes) if name in chosen else g
            yield Comparison(f"gradient of {name} {what}", got[name], sums.value, 2 * sums.unit, sums.limit)


@law(r"f(Q, K, V)_{\cdot c} = f(Q, K, V_{\cdot c})", hint="columns of v are mixed up, or the last ones lost")
def columns_of_values_do_not_see_each_other(target: Target, call: Call) -> Iterator[Comparison]:
    """A column of v gives the same column of the output, whatever stands beside it or if nothing does."""
    dv = call.v.shape[-1]
    whole = ask(target, call)
    turned = np.roll(np.arange(dv), 1)
    yield same("output for permuted columns", ask(target, call.but(v=call.v[..., turned])), whole[..., turned])
    for c in range(dv):
        v = call.rng().choice(SIMPLE, call.v.shape)
        v[..., c] = call.v[..., c]
        yield same(f"column {c} beside others", ask(target, call.but(v=v))[..., c], whole[..., c])
        if "widths apart" in target.offers:
            alone = ask(target, call.but(v=call.v[..., c : c + 1]))
            yield same(f"column {c} alone", alone[..., 0], whole[..., c])


@law(r"f(Q\Pi, K\Pi, V) = f(Q, K, V),\quad \Pi \text{ a signed permutation}")
def coordinates_may_be_permuted(target: Target, call: Call) -> Iterator[Comparison]:
    """Permuting the coordinates of queries and keys alike changes nothing, nor does turning one round.

    Only q.k and k.k count, and these are the same; a feature map acts on each coordinate,
    so with one the signs stay.
    """
    rng, d = call.rng(), call.q.shape[-1]
    order, signs = rng.permutation(d), rng.choice([-1.0, 1.0], d)
    if call.get("feature_map"):
        signs = np.ones(d)
    changed = call.but(q=(call.q * signs)[..., order], k=(call.k * signs)[..., order])
    if "decay" in call.options and call.options["decay"].shape[-1] == d:
        changed = changed.but(decay=call.options["decay"][..., order])
    yield same("output in other coordinates", ask(target, changed), ask(target, call))


@law(
    r"f(Q, K, aV_1 + aV_2) = a f(Q, K, V_1) + a f(Q, K, V_2)",
    hint="the output is rounded, clipped or normalised by what the values are",
)
def linear_in_the_values(target: Target, call: Call) -> Iterator[Comparison]:
    """The output for a sum of values is the sum of the outputs, and for a multiple the multiple.

    v is split into its leading digits and the rest, and into two sets of entries, and
    multiplied by a power of two: none of that rounds.
    """
    rng = call.rng()
    coarse = np.round(4 * call.v) / 4
    some = np.where(rng.random(call.v.shape) < 0.5, call.v, 0.0)
    a = float(rng.choice([-4.0, -1.0, -0.5, 0.25, 2.0]))
    whole = ask(target, call.but(v=a * call.v))
    for what, part in (("leading digits", coarse), ("some entries", some)):
        first, rest = ask(target, call.but(v=part)), ask(target, call.but(v=call.v - part))
        yield same(f"sum of the outputs for {what} of v and the others, times {a}", whole, a * first + a * rest)


@law(
    r"f(-Q, K, V) = f(Q, -K, V) = f(Q, K, V)", forms=EVEN, hint="the score is not squared, or its gradient lost a sign"
)
def forms_of_a_square_are_even(target: Target, call: Call) -> Iterator[Comparison]:
    """The weight is even: -q gives the same output, and so does -k; their gradients turn round."""
    out = ask(target, call)
    turned = {"q": call.but(q=-call.q), "k": call.but(k=-call.k)}
    for name, other in turned.items():
        yield same(f"output for -{name}", ask(target, other), out)
    if target.has_gradient:
        before = ask_gradients(target, call, call.dout())
        for name, other in turned.items():
            after = ask_gradients(target, other, call.dout())[name]
            yield same(f"gradient of {name} at -{name}", after, -1.0 * before[name])


@law(r"f(-Q, K, V) = -f(Q, K, V)", forms=ODD, draw={"features": False})
def unnormalised_forms_are_odd(target: Target, call: Call) -> Iterator[Comparison]:
    """-q gives minus the output."""
    yield same("output for -q", ask(target, call.but(q=-call.q)), -1.0 * ask(target, call))


@law(
    r"f(-Q) = \pm f(Q) \text{ to the last bit}",
    forms=(*EVEN, *ODD),
    draw={"features": False},
    strict=True,
    tolerance="exact",
)
def signs_change_no_bit(target: Target, call: Call) -> Iterator[Comparison]:
    """To turn the queries round changes no bit of an even form, and the sign bit alone of an odd one.

    Rounding to nearest does not know signs, so this holds for whatever adds up in one order.
    """
    sign = 1.0 if target.form in EVEN else -1.0
    out = target(call)
    yield Comparison("output for -q", target(call.but(q=-call.q)), sign * out)
    if target.form in EVEN:
        yield Comparison("output for -k", target(call.but(k=-call.k)), out)


SYMMETRY = (
    order_of_keys_does_not_matter,
    order_of_queries_is_that_of_outputs,
    queries_do_not_see_each_other,
    entries_of_a_batch_do_not_see_each_other,
    leading_axes_broadcast,
    columns_of_values_do_not_see_each_other,
    coordinates_may_be_permuted,
    linear_in_the_values,
    forms_of_a_square_are_even,
    unnormalised_forms_are_odd,
    signs_change_no_bit,
)
