"""What a mask hides is not there: its keys might as well be left out, and nothing flows back to them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st

from kvq_ref.testing.calls import PER_KEY, SIMPLE, Call
from kvq_ref.testing.laws.dense import dense, reference_gradients
from kvq_ref.testing.laws.law import BIASED, Comparison, law, suppose
from kvq_ref.testing.laws.measured import ask, ask_gradients, keys_of, same, unseen
from kvq_ref.testing.rounding import LARGEST
from kvq_ref.testing.target import Target


@law(
    r"f(Q, K, V; M = \mathbf{1} s^\top) = f(Q, K_s, V_s)",
    needs={"keys apart"},
    sets={"mask"},
    draw={"causal": False},
    hint="the mask acts on the scores and not on the weights, or its True means hidden",
)
def a_mask_is_deletion(target: Target, call: Call) -> Iterator[Comparison]:
    """Keys behind a mask might as well not be there, in the output and in the gradients; theirs are zero."""
    keep = call.rng().random(call.k.shape[-2]) < 0.6
    suppose(bool((call.visible() & keep).any(axis=-1).all()))
    deleted = call.keys(keep)
    masked = call.but(mask=np.broadcast_to(call.options.get("mask", True) & keep, _mask(call).shape))
    yield same("output of masked keys", ask(target, masked), ask(target, deleted))
    if target.has_gradient:
        expected = ask_gradients(target, deleted, call.dout())
        for name, g in ask_gradients(target, masked, call.dout()).items():
            yield same(f"gradient of {name}, visible keys", keys_of(name, g, keep), expected[name])
            if name in ("k", "v", *PER_KEY):
                hidden = keys_of(name, g, ~keep).value
                yield Comparison(f"gradient of {name}, hidden keys", hidden, np.zeros(hidden.shape))


def _mask(call: Call) -> Any:
    """The call's mask, or one that hides nothing."""
    everything = np.ones((*call.q.shape[:-2], 1, call.k.shape[-2]), bool)
    return np.asarray(call.options.get("mask", everything))


def padded(call: Call, extra: int, junk: float) -> Call:
    """The call with masked keys after its last one, all of whose numbers are junk."""

    def pad(x: Any, axis: int, value: Any) -> Any:
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, extra)
        return np.pad(x, widths, constant_values=value)

    options = {"mask": pad(_mask(call), -1, False)}
    if "bias" in call.options:
        options["bias"] = pad(call.options["bias"], -1, junk)
    options |= {name: pad(call.options[name], -2, junk) for name in PER_KEY if name in call.options}
    return call.but(k=pad(call.k, -2, junk), v=pad(call.v, -2, junk), **options)


@law(
    r"f(Q, [K; J], [V; J]; M = [\mathbf{1}, 0]) = f(Q, K, V)",
    needs={"keys apart"},
    sets={"mask"},
    more={"extra": st.integers(1, 4), "junk": st.sampled_from([0.0, 7.0])},
    hint="the last tile of keys is not masked, or padding is counted in the sum",
)
def padding_is_nothing(target: Target, call: Call, extra: int, junk: float) -> Iterator[Comparison]:
    """Masked keys after the last one change nothing, causal or not, in the output and in the gradients."""
    long = padded(call, extra, junk)
    yield same("output with padded keys", ask(target, long), ask(target, call))
    if target.has_gradient:
        expected = ask_gradients(target, call, call.dout())
        for name, g in ask_gradients(target, long, call.dout()).items():
            own = keys_of(name, g, slice(call.k.shape[-2]))
            yield same(f"gradient of {name} with padded keys", own, expected[name])


@law(
    r"f(Q, [K; J], [V; J]; M = [\mathbf{1}, 0]) = f(Q, K, V),\quad J \in \{10^{308}, \infty, \mathrm{NaN}\}",
    needs={"keys apart"},
    sets={"mask"},
    more={"extra": st.integers(1, 4), "junk": st.sampled_from(["largest", np.nan, np.inf, -np.inf])},
    strict=True,
)
def padding_may_hold_anything(target: Target, call: Call, extra: int, junk: float | str) -> Iterator[Comparison]:
    """Masked keys after the last one change nothing if they are NaN, infinite or the largest number there is."""
    value = LARGEST[target.dtype] if isinstance(junk, str) else junk
    yield from _unchanged(target, call, padded(call, extra, value), slice(call.k.shape[-2]))


@law(
    r"f(M, K + J, V + J) = f(M, K, V) \text{ if } J \text{ is hidden}",
    sets={"mask"},
    more={"junk": st.sampled_from([np.nan, np.inf, -np.inf])},
    strict=True,
)
def a_mask_hides_nan(target: Target, call: Call, junk: float) -> Iterator[Comparison]:
    """What a mask hides may be NaN or infinite: output and gradients stay, and those of what is hidden are zero."""
    keep = call.rng().random(call.k.shape[-2]) < 0.6
    mask = _mask(call) & keep
    call = call.but(mask=mask)
    suppose(bool(call.visible().any(axis=-1).all()))
    key = ~np.any(mask, axis=-2, keepdims=True).swapaxes(-1, -2)
    changes = {"k": np.where(key, junk, call.k), "v": np.where(key, junk, call.v)}
    if "bias" in call.options:
        changes["bias"] = np.where(mask, call.options["bias"], junk)
    changes |= {name: np.where(key, junk, call.options[name]) for name in PER_KEY if name in call.options}
    yield from _unchanged(target, call, call.but(**changes), slice(None))


@law(
    r"m_{ij} = 1,\ v_j = \mathrm{NaN} \Rightarrow O_i = \mathrm{NaN}",
    strict=True,
    tolerance="exact",
    hint="NaN is replaced on the way: whoever calls never learns that an input is broken",
)
def nan_is_passed_on(target: Target, call: Call) -> Iterator[Comparison]:
    """The output of a query that sees a value of NaN is NaN, and that of one that does not is a number."""
    j = int(call.rng().integers(call.k.shape[-2]))
    v = call.v.copy()
    v[..., j, :] = np.nan
    out = np.isnan(target(call.but(v=v)))
    sees = np.broadcast_to(call.visible()[..., j : j + 1], out.shape)
    yield Comparison("whether outputs are NaN", out.astype(float), sees.astype(float))


def _unchanged(target: Target, call: Call, poisoned: Call, own: slice) -> Iterator[Comparison]:
    """The poisoned call gives what the clean one does; no rounding is asked about what is NaN."""
    clean = ask(target, call)
    yield Comparison("output", target(poisoned), clean.value, 2 * clean.unit, clean.limit)
    if not target.has_gradient:
        return
    expected = ask_gradients(target, call, call.dout())
    for name, g in target.gradients(poisoned, call.dout()).items():
        got = g[..., own, :] if name in ("k", "v", *PER_KEY) else g[..., own] if name == "bias" else g
        e = expected[name]
        yield Comparison(f"gradient of {name}", got, e.value, 2 * e.unit, e.limit)
        beyond = slice(call.k.shape[-2], None)
        is_row = name in ("k", "v", *PER_KEY)
        rest = g[..., beyond, :] if is_row else g[..., beyond] if name == "bias" else np.zeros(0)
        yield Comparison(f"gradient of {name}, padding", rest, np.zeros(rest.shape))


@law(
    r"b_{ij} \text{ does not matter where } m_{ij} = 0",
    forms=BIASED,
    sets={"mask", "bias"},
    more={"size": st.sampled_from([32.0, 8192.0])},
    hint="the mask is added to the bias, or the row's maximum is taken over hidden keys too",
)
def bias_of_a_hidden_pair_does_not_matter(target: Target, call: Call, size: float) -> Iterator[Comparison]:
    """Behind the mask a bias may be any number: the output is the same, and nothing overflows."""
    large, small = _biases(call, size)
    yield same("output for another hidden bias", ask(target, large), ask(target, small))


@law(
    r"b_{ij} \text{ changes no bit where } m_{ij} = 0",
    forms=BIASED,
    sets={"mask", "bias"},
    more={"size": st.sampled_from([32.0, 8192.0])},
    strict=True,
    tolerance="exact",
)
def bias_of_a_hidden_pair_changes_no_bit(target: Target, call: Call, size: float) -> Iterator[Comparison]:
    """Behind the mask a bias may be any number, and the output is the same to the last bit."""
    large, small = _biases(call, size)
    yield Comparison("output for another hidden bias", target(large), target(small))


def _biases(call: Call, size: float) -> tuple[Call, Call]:
    """The call with a mask and large biases behind it, and with small ones."""
    rng = call.rng()
    shape = (*call.q.shape[:-1], call.k.shape[-2])
    mask = np.asarray(call.options.get("mask", rng.random(shape) < 0.7)) | (np.arange(shape[-1]) == 0)
    call = call.but(mask=mask, bias=call.options.get("bias", rng.choice(SIMPLE, shape)))
    hidden = np.where(call.visible(), call.options["bias"], size * rng.choice([-1.0, 1.0], shape))
    return call.but(bias=hidden), call


@law(
    r"\bar K_j = \bar V_j = 0 \text{ if no query sees } j,\quad \bar B_{ij} = 0 \text{ where } m_{ij} = 0",
    needs={"gradient"},
    tolerance="exact",
    hint="the backward pass does not apply the mask",
)
def nothing_flows_back_to_what_is_hidden(target: Target, call: Call) -> Iterator[Comparison]:
    """Gradients of keys and values that no query sees, and of biases of hidden pairs, are zero."""
    hidden = unseen(call)
    for name, g in target.gradients(call, call.dout()).items():
        if name in hidden:
            g = np.where(hidden[name], g, 0.0)
            yield Comparison(f"gradient of {name} where it is hidden", g, np.zeros(g.shape))


@law(
    r"m_{i\cdot} = 0 \Rightarrow O_i = 0,\ \bar Q_i = 0",
    sets={"mask"},
    draw={"empty_rows": True},
    hint="0/0 in a row without keys, or a mean over all of them",
)
def a_query_that_sees_nothing_gives_zero(target: Target, call: Call) -> Iterator[Comparison]:
    """A query that sees no key gives zeros, and no gradient flows through it; the others are as ever."""
    shape = (*call.q.shape[:-1], call.k.shape[-2])
    mask = np.array(np.broadcast_to(_mask(call), shape))
    mask[..., call.rng().integers(shape[-2]), :] = False
    call = call.but(mask=mask)
    out = ask(target, call)
    yield Comparison("output", out.value, dense(target.form, call), out.unit, out.limit)
    if target.has_gradient:
        expected = reference_gradients(target.form, call, call.dout())
        for name, g in ask_gradients(target, call, call.dout()).items():
            yield Comparison(f"gradient of {name}", g.value, expected[name], g.unit, g.limit)
            if name in ("q", "bias"):
                empty = ~np.any(call.visible(), axis=-1, keepdims=True)
                through = np.where(empty, g.value, 0.0)
                yield Comparison(f"gradient of {name} of empty rows", through, np.zeros(through.shape))


MASKS = (
    a_mask_is_deletion,
    padding_is_nothing,
    bias_of_a_hidden_pair_does_not_matter,
    nothing_flows_back_to_what_is_hidden,
    a_query_that_sees_nothing_gives_zero,
    bias_of_a_hidden_pair_changes_no_bit,
    padding_may_hold_anything,
    a_mask_hides_nan,
    nan_is_passed_on,
)
