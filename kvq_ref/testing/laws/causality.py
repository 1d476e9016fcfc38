"""Causal means that no output depends on what comes after it: is_causal is upper-left aligned, as in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from hypothesis import strategies as st

from kvq_ref.testing.calls import PER_KEY, SIMPLE, Call
from kvq_ref.testing.laws.law import Comparison, law, suppose
from kvq_ref.testing.laws.measured import ask, ask_gradients, keys_of, queries_of, same
from kvq_ref.testing.target import Target

ALIGNED = "the future leaks: the mask is one off, aligned to the lower right, or missing where regression sees the keys"


@law(
    r"O_{\le t} = f(Q_{\le t}, K_{\le t}, V_{\le t})",
    needs={"causal"},
    draw={"causal": True},
    hint=ALIGNED,
)
def a_prefix_is_complete(target: Target, call: Call) -> Iterator[Comparison]:
    """Causal outputs up to t are those of the sequence cut off after t."""
    Tq, Tk, _, _ = call.sizes
    n = int(call.rng().integers(1, max(Tq, Tk) + 1))
    short = call.queries(slice(n)).keys(slice(n))
    yield same(f"the first {n} outputs", ask(target, short), ask(target, call)[..., :n, :])


@law(
    r"O_{\le t} \text{ does not depend on } Q_{>t}, K_{>t}, V_{>t}",
    needs={"causal"},
    draw={"causal": True},
    hint=ALIGNED,
)
def the_future_changes_nothing(target: Target, call: Call) -> Iterator[Comparison]:
    """Causal outputs up to t stay if all changes after t; and no gradient flows from them to what comes after t."""
    rng, n = call.rng(), _some(call)
    later = {name: getattr(call, name).copy() for name in "qkv"}
    for x in later.values():
        x[..., n:, :] = rng.choice(SIMPLE, x[..., n:, :].shape)
    other = call.but(**later)
    early = (..., slice(n), slice(None))
    yield same(f"the first {n} outputs", ask(target, other)[early], ask(target, call)[early])
    if not target.has_gradient:
        return
    dout = call.dout()
    dout[..., n:, :] = 0.0
    before, after = (ask_gradients(target, x, dout) for x in (call, other))
    for name, g in before.items():
        part = queries_of(name, keys_of(name, g, slice(n)), slice(n))
        moved = queries_of(name, keys_of(name, after[name], slice(n)), slice(n))
        yield same(f"gradient of {name} up to {n}", moved, part)
        if name in ("k", "v", *PER_KEY):
            rest = keys_of(name, g, slice(n, None)).value
            yield Comparison(f"gradient of {name} after {n}", rest, np.zeros(rest.shape))


@law(
    r"O_{\le t} \text{ does not depend on } K_{>t}, V_{>t} \in \{\infty, \mathrm{NaN}\}",
    needs={"causal"},
    draw={"causal": True},
    more={"junk": st.sampled_from([np.nan, np.inf, -np.inf])},
    strict=True,
)
def the_future_may_be_nan(target: Target, call: Call, junk: float) -> Iterator[Comparison]:
    """Causal outputs up to t, and the gradients of their queries, stay if what comes after t is NaN or infinite."""
    n = _some(call)
    later = {name: getattr(call, name).copy() for name in "qkv"}
    for x in later.values():
        x[..., n:, :] = junk
    other = call.but(**later)
    clean = ask(target, call)
    early = (..., slice(n), slice(None))
    yield Comparison("output", target(other)[early], clean.value[early], 2 * clean.unit[early], clean.limit)
    if target.has_gradient:
        expected = ask_gradients(target, call, call.dout())["q"]
        got = target.gradients(other, call.dout())["q"]
        yield Comparison("gradient of q", got[early], expected.value[early], 2 * expected.unit[early], expected.limit)


def _some(call: Call) -> int:
    """How many tokens are not in the future: at least one key is."""
    Tk = call.k.shape[-2]
    suppose(Tk > 1)
    return int(call.rng().integers(1, Tk))


@law(
    r"O_t = f(q_t, K_{\le t}, V_{\le t}) \text{ without a causal rule}",
    needs={"is_causal", "keys apart"},
    draw={"causal": True},
    hint=ALIGNED,
)
def a_causal_output_is_that_of_its_prefix(target: Target, call: Call) -> Iterator[Comparison]:
    """Causal output t is what query t alone gets from the keys 0..t, where nothing is causal."""
    whole = ask(target, call)
    for t in range(call.q.shape[-2]):
        alone = call.queries([t]).keys(slice(t + 1)).but(is_causal=None)
        yield same(f"output {t} from its prefix", ask(target, alone)[..., 0, :], whole[..., t, :])


@law(
    r"f(\text{causal}) = f(M_{ij} = [j \le i])",
    needs={"is_causal"},
    sets={"mask"},
    draw={"causal": True},
    hint=ALIGNED,
)
def causal_is_a_mask(target: Target, call: Call) -> Iterator[Comparison]:
    """is_causal is the triangular mask, aligned to the upper left, in the output and in the gradients."""
    masked = call.but(is_causal=None, mask=call.visible())
    yield same("output", ask(target, call), ask(target, masked))
    if target.has_gradient:
        expected = ask_gradients(target, masked, call.dout())
        for name, g in ask_gradients(target, call, call.dout()).items():
            yield same(f"gradient of {name}", g, expected[name])


CAUSALITY = (
    a_prefix_is_complete,
    the_future_changes_nothing,
    a_causal_output_is_that_of_its_prefix,
    causal_is_a_mask,
    the_future_may_be_nan,
)
