"""One key after the other: a memory that is written, overwritten and forgotten. The order of the keys matters here."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from hypothesis import strategies as st

from kvq_ref.dispatch import FORMS
from kvq_ref.testing.calls import F64, Call
from kvq_ref.testing.laws.dense import dense, preconditioned, transpose
from kvq_ref.testing.laws.law import Comparison, law, suppose
from kvq_ref.testing.laws.least_squares import NO_PAIRS
from kvq_ref.testing.laws.measured import Measured, ask, at_most, computed, same
from kvq_ref.testing.target import Target
from kvq_ref.testing.walks import scale_in_order

DELTA = ("delta_rule",)
FORGETFUL = frozenset(name for name, form in FORMS.items() if "decay" in form.options)
AT_DECAY_1 = {"gated_linear_attention": "linear_attention", "mesa_attention": "intention"}


def _signed_axes(call: Call, distinct: bool) -> F64:
    """Keys that are signed unit vectors: one on each axis at most, and zeros for the rest, or axes as they come."""
    rng, (_, Tk, d, _) = call.rng(), call.sizes
    axes = rng.permutation(max(Tk, d))[:Tk] if distinct else rng.integers(d, size=Tk)
    k = rng.choice([-1.0, 1.0], (Tk, 1)) * (axes[:, None] == np.arange(d))
    return np.asarray(np.broadcast_to(k, call.k.shape))


@law(
    r"k_j \in \{\pm e_a\},\ \beta = 1 \Rightarrow O_i = s \textstyle\sum_a q_{ia} \pm v_{\text{last } j \text{ on } a}",
    forms=DELTA,
    hint="a value is added to what is there already, or what is taken away is not what was there",
)
def the_last_value_of_a_key_is_recalled(target: Target, call: Call) -> Iterator[Comparison]:
    """Of unit keys that come again, with beta = 1, the last value is recalled and nothing of those before it.

    Keys on other axes do not disturb it. So the output is a sum over the axes of the last value written there, of
    those that the query sees.
    """
    call = call.but(k=_signed_axes(call, distinct=False), beta=None)
    Tk = call.k.shape[-2]
    on_axis = (call.k != 0)[..., None, :, :] & call.visible()[..., None]  # (..., Tq, Tk, d)
    place = np.where(on_axis, np.arange(1, Tk + 1)[:, None], 0)
    is_last = on_axis & (place == np.max(place, axis=-2, keepdims=True))
    written = np.swapaxes(is_last * call.k[..., None, :, :], -1, -2) @ call.v[..., None, :, :]
    expected = scale_in_order(call) * (call.q[..., None, :] @ written)[..., 0, :]
    out = ask(target, call)
    yield Comparison("output, against the last values", out.value, expected, out.unit, out.limit)


@law(
    r"k_i \cdot k_j = 0 \Rightarrow f(Q, K, V) = L(Q, K, \beta V);\quad |k_j| = \beta = 1 \Rightarrow f = s\,I_0",
    forms=DELTA,
    hint="something else than S^T k is taken away before a value is written",
)
def orthogonal_keys_make_the_delta_rule_linear(target: Target, call: Call) -> Iterator[Comparison]:
    """For orthogonal keys there is nothing to take away: it is linear attention of beta v, and for unit keys with
    beta = 1 Intention at alpha = 0.
    """
    call = call.but(k=_signed_axes(call, distinct=True))
    beta = np.asarray(call.options.get("beta", 1.0))
    out = ask(target, call)
    linear = dense("linear_attention", call.but(v=beta * call.v, beta=None))
    yield Comparison("output, against linear attention", out.value, linear, out.unit, out.limit)
    once = call.but(beta=None)
    fit = scale_in_order(call) * dense("intention", once.but(alpha=0.0, scale=None))
    out = ask(target, once)
    yield Comparison("output, against Intention at alpha = 0", out.value, fit, out.unit, out.limit)


@law(
    r"|f_{\varepsilon\beta} / \varepsilon - L(\beta V)|_i \le |s|\,|q_i| \textstyle\sum_j |\beta_j| |k_j| |v_j|"
    r"\,(e^{\varepsilon \sum_j |\beta_j| |k_j|^2} - 1)",
    forms=DELTA,
    sets={"beta"},
    more={"size": st.sampled_from([2.0**-n for n in (2, 6, 10)])},
    hint="beta multiplies the value or what is taken away alone",
)
def small_steps_tend_to_linear_attention(target: Target, call: Call, size: float) -> Iterator[Comparison]:
    """With steps that tend to 0 the output, divided by their size, tends to linear attention of beta v.

    S = sum_j beta_j P_j k_j v_j^T, where P_j is the product of I - beta_l k_l k_l^T over the keys after j, and
    |P_j - I| <= exp(sum_l |beta_l| |k_l|^2) - 1.
    """
    beta = np.asarray(call.options.get("beta", np.ones((*call.k.shape[:-1], 1))))
    small = call.but(beta=size * beta)
    z = scale_in_order(call) * call.q @ transpose(call.k)
    terms = np.abs(call.q) @ transpose(np.abs(call.k)) @ np.abs(beta * call.v)
    linear = computed(np.where(call.visible(), z, 0.0) @ (beta * call.v), abs(scale_in_order(call)) * terms)
    sees = call.visible().astype(float)
    length = np.linalg.norm(call.k, axis=-1)
    weights = np.abs(beta[..., 0])
    moved = np.expm1(size * np.sum(sees * (weights * length**2)[..., None, :], axis=-1, keepdims=True))
    written = sees @ ((weights * length)[..., None] * np.abs(call.v))
    bound = abs(scale_in_order(call)) * np.linalg.norm(call.q, axis=-1, keepdims=True) * written * moved
    distance = (1 / size) * ask(target, small) - linear
    yield at_most(
        "distance to linear attention", Measured(np.abs(distance.value), distance.unit, distance.limit), bound
    )


@law(
    r"f(K, k_n; V, v_n)(q) = f(q) + s\,\beta_n (q \cdot k_n)(v_n - f(k_n) / s)",
    forms=DELTA,
    needs={"keys apart"},
    draw=NO_PAIRS,
    hint="what is taken away is not what the memory says of the key, or beta is not on both",
)
def a_key_writes_what_was_wrong(target: Target, call: Call) -> Iterator[Comparison]:
    """One key more adds its part in the query times what the memory had wrong about it: a step down the gradient.

    Of |v_n - S^T k_n|^2 / 2, of size beta_n. What the memory says of k_n is the output there, without scale.
    """
    Tk = call.k.shape[-2]
    mask = np.ones((*call.k.shape[:-2], 1, Tk), bool) if "mask" not in call.options else call.options["mask"].copy()
    before, mask = mask.copy(), mask.copy()
    before[..., -1], mask[..., -1] = False, True
    if "mask" in target.accepts:
        whole, without = call.but(mask=mask), call.but(mask=before)
    elif Tk > 1:
        whole, without = call, call.keys(slice(-1))
    else:
        return
    k_n, v_n = call.k[..., -1:, :], call.v[..., -1:, :]
    beta_n = np.asarray(call.options["beta"])[..., -1:, :] if "beta" in call.options else np.ones((*v_n.shape[:-1], 1))
    scale = scale_in_order(call)
    said = ask(target, without.but(q=np.broadcast_to(k_n, (*call.k.shape[:-2], 1, k_n.shape[-1]))))
    part = scale * beta_n * (call.q @ transpose(k_n))
    wrong = computed(v_n, np.abs(v_n)) - (1 / scale) * said
    step = Measured(part * wrong.value, np.abs(part) * wrong.unit, wrong.limit)
    yield same("output with one key more", ask(target, whole), ask(target, without) + step)


@law(
    r"f(\text{decay} = 1) = \text{linear attention, or Intention}",
    forms=FORGETFUL,
    hint="what came before fades although all decays are 1, or scale is on the wrong side",
)
def a_decay_of_one_forgets_nothing(target: Target, call: Call) -> Iterator[Comparison]:
    """With all decays 1, gated linear attention is linear attention, and mesa attention Intention."""
    plain = call.but(decay=None)
    expected = dense(AT_DECAY_1[target.form], plain)
    ones = np.ones((*call.k.shape[:-1], 1)) if "decay" in target.accepts else None
    for what, other in (("no decay", plain), ("decays of 1", call.but(decay=ones))):
        out = ask(target, other)
        yield Comparison(f"output with {what}", out.value, expected, out.unit, out.limit)


def _decays(call: Call) -> F64:
    return np.asarray(call.options.get("decay", np.ones((*call.k.shape[:-1], 1))))


def _after(call: Call) -> F64:
    """How many keys come after each, of those that a mask of keys shows; shape (..., Tk, 1)."""
    shown = np.asarray(call.options.get("mask", np.ones((1, call.k.shape[-2]), bool))).astype(float)
    return np.asarray(transpose(np.cumsum(shown[..., ::-1], axis=-1)[..., ::-1] - shown))


@law(
    r"f(\text{decay}_j / 4) = f(K_{<j} / 2,\ V_{<j} / 2)",
    forms=FORGETFUL,
    sets={"decay"},
    draw=NO_PAIRS,
    hint="the decay of a key is taken for that of another, or acts on its own pair too",
)
def a_decay_acts_on_all_that_came_before(target: Target, call: Call) -> Iterator[Comparison]:
    """To divide the decay of a key by four is to halve the keys and the values before it, and those alone.

    For a key that the queries see: what is summed are products k_j v_j^T and k_j k_j^T.
    """
    Tk = call.k.shape[-2]
    j = int(call.rng().integers(Tk))
    suppose(bool(np.all(call.visible()[..., j])))
    decay = _decays(call).copy()
    faded = decay.copy()
    faded[..., j, :] /= 4
    halved = np.where(np.arange(Tk)[:, None] < j, 0.5, 1.0)
    other = call.but(k=halved * call.k, v=halved * call.v, decay=decay)
    yield same(f"output with a quarter of decay {j}", ask(target, call.but(decay=faded)), ask(target, other))


@law(
    r"\text{decay}_j = 0 \Rightarrow f(K, V) = f(K_{\ge j}, V_{\ge j})",
    forms=FORGETFUL,
    needs={"keys apart"},
    sets={"decay"},
    draw=NO_PAIRS,
    hint="a decay of 0 does not clear the memory, or clears what is written with it",
)
def a_decay_of_zero_forgets_all(target: Target, call: Call) -> Iterator[Comparison]:
    """Before a key whose decay is 0, that the queries see, all keys might as well not be there."""
    j = int(call.rng().integers(call.k.shape[-2]))
    suppose(bool(np.all(call.visible()[..., j])))
    decay = _decays(call).copy()
    decay[..., j, :] = 0.0
    call = call.but(decay=decay)
    yield same(f"output without what decay {j} forgets", ask(target, call), ask(target, call.keys(slice(j, None))))


@law(
    r"f(K, V; \text{decay} = 1/4) = f(2^{-n} K, 2^{-n} V; 1),\quad n_j \text{ keys after } j",
    forms=FORGETFUL,
    sets={"decay"},
    draw=NO_PAIRS,
    hint="a decay is applied once and not with every key, or also where a mask hides its key",
)
def forgetting_is_exponential(target: Target, call: Call) -> Iterator[Comparison]:
    """With decays of 1/4 a pair is left with 4^-n after n keys that are seen: as of 2^-n k and 2^-n v without decay."""
    left = 2.0 ** -_after(call)
    ones = np.ones((*call.k.shape[:-1], 1))
    other = call.but(k=left * call.k, v=left * call.v, decay=ones)
    yield same("output with decays of 1/4", ask(target, call.but(decay=ones / 4)), ask(target, other))


@law(
    r"f(Q, K, V; \text{decay}) = G(Q^*, K, V; \text{decay}),\quad q^*_i = (H_i + \alpha I)^{-1} q_i",
    forms=["mesa_attention"],
    hint="keys and values fade in one of the two sums alone, or alpha fades with them",
)
def mesa_is_gated_linear_attention_of_other_queries(target: Target, call: Call) -> Iterator[Comparison]:
    """Mesa attention is gated linear attention of the queries (H_i + alpha I)^-1 q_i, with the same decays.

    H_i is the sum of what is left of k k^T of the keys that query i sees.
    """
    gated = call.but(q=preconditioned(call), alpha=None)
    out = ask(target, call)
    yield Comparison("output", out.value, dense("gated_linear_attention", gated), out.unit, out.limit)


@law(
    r"H (q \mapsto f)\text{: } (H + \alpha I) W^* = W,\quad W^* = f(I)",
    forms=["mesa_attention"],
    needs={"keys apart"},
    draw=NO_PAIRS,
    hint="what is left of a pair is not the product of the decays after it, in both sums",
)
def the_fading_fit_solves_its_normal_equations(target: Target, call: Call) -> Iterator[Comparison]:
    """At q = I the output is W*, where the gradient of sum_j c_j |v_j - k_j W|^2 + alpha |W|^2 is zero."""
    call = call.but(is_causal=None)
    d = call.k.shape[-1]
    fit = ask(target, call.but(q=np.broadcast_to(np.eye(d), (*call.q.shape[:-2], d, d))))
    c = transpose(call.queries([0]).left())
    h = transpose(c * call.k) @ call.k + call.options["alpha"] * np.eye(d)
    left = Measured(h @ fit.value, np.abs(h) @ fit.unit, fit.limit)
    sizes = transpose(np.abs(c * call.k)) @ np.abs(call.v) + np.abs(h) @ np.abs(fit.value)
    yield same("(H + alpha I) W, against the sum of c k v", left, computed(transpose(c * call.k) @ call.v, sizes))


RECURRENT = (
    the_last_value_of_a_key_is_recalled,
    orthogonal_keys_make_the_delta_rule_linear,
    small_steps_tend_to_linear_attention,
    a_key_writes_what_was_wrong,
    a_decay_of_one_forgets_nothing,
    a_decay_acts_on_all_that_came_before,
    a_decay_of_zero_forgets_all,
    forgetting_is_exponential,
    mesa_is_gated_linear_attention_of_other_queries,
    the_fading_fit_solves_its_normal_equations,
)
