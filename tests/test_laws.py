"""Laws that hold for all inputs: Hypothesis draws the sizes, the seed and the options.

How near two results must be is not chosen but computed: :func:`rounding` bounds
the rounding errors of both from the sizes, the scores and the condition number
at hand. A law about gradients uses the same bound, twice through the solve.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from cases import SERVED, public, skip_if_missing
from hypothesis import assume, given
from hypothesis import strategies as st

import kvq_ref as kvq
from kvq_ref.dispatch import FORMS, Form

EPS = float(np.finfo(np.float64).eps)
Implemented = tuple[Form, str]


def forms_that(applies: Callable[[Form], bool]) -> Any:
    """Parametrise over all implementations of the forms to which a law applies."""
    served = [x for x in SERVED if applies(x[0])]
    return pytest.mark.parametrize("implemented", served, ids=[f"{form.name}-{name}" for form, name in served])


def is_normalized(form: Form) -> bool:
    return "bias" in form.options  # the forms of the last two columns of the grid


def is_least_squares(form: Form) -> bool:
    return "alpha" in form.options


every_form = forms_that(lambda form: True)
score_forms = forms_that(is_normalized)
least_squares_forms = forms_that(is_least_squares)


# ---- What is drawn -------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """Arrays and options of one call; laws change a part of it with ``but``."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    options: dict[str, Any] = field(default_factory=dict)
    rng: np.random.Generator = field(default_factory=np.random.default_rng)

    def but(self, **changes: Any) -> Call:
        arrays = {name: changes.pop(name) for name in ("q", "k", "v") if name in changes}
        return replace(self, **arrays, options=self.options | changes)

    def for_form(self, form: Form) -> dict[str, Any]:
        return {name: x for name, x in self.options.items() if name in form.options and x is not None}

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        return self.q.shape[-2], self.k.shape[-2], self.q.shape[-1], self.v.shape[-1]


@st.composite
def calls(
    draw: st.DrawFn,
    *,
    causal: bool | None = None,
    pairs: bool = True,
    square: bool = False,
    batch: bool = True,
    max_d: int = 4,
    bias: bool = True,
) -> Call:
    """A random call: Gaussian arrays from a drawn seed, with drawn sizes, masks, bias, scale and alpha."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))
    Tq, Tk, dv = (draw(st.integers(1, n), label=name) for name, n in (("Tq", 6), ("Tk", 8), ("dv", 3)))
    d = draw(st.integers(1, max_d), label="d")
    Tq = Tk if square else Tq
    leading = draw(st.sampled_from([(), (2,)]), label="leading") if batch else ()
    kind = draw(st.sampled_from(["none", "keys", "pairs"] if pairs else ["none", "keys"]), label="mask")
    shape = {"none": None, "keys": (*leading, 1, Tk), "pairs": (*leading, Tq, Tk)}[kind]
    options = {
        "mask": None if shape is None else rng.random(shape) < 0.7,
        "bias": rng.standard_normal((*leading, Tq, Tk)) if bias and draw(st.booleans(), label="bias") else None,
        "is_causal": draw(st.booleans(), label="is_causal") if causal is None else causal,
        "scale": draw(st.sampled_from([None, 0.5, -1.25]), label="scale"),
        "alpha": draw(st.sampled_from([0.1, 1.0, 10.0]), label="alpha"),
    }
    arrays = (rng.standard_normal((*leading, *size)) for size in ((Tq, d), (Tk, d), (Tk, dv)))
    return Call(*arrays, options, rng)


# ---- How much rounding is allowed ----------------------------------------------------


@dataclass(frozen=True)
class Rounding:
    """Bounds on the rounding error of a call.

    Attributes
    ----------
    out : float
        Of any entry of the output.
    relative : float
        Of the weights, relative to the largest.
    condition : float
        Of the matrices K^T K + alpha I.
    """

    out: float
    relative: float
    condition: float

    def gradient(self, grads: list[np.ndarray]) -> float:
        """Of any entry of the gradients: the solve is used twice, so its condition number enters once more."""
        return self.relative * self.condition * max(float(np.max(np.abs(g), initial=0.0)) for g in grads)


def rounding(form: Form, call: Call) -> Rounding:
    """First-order error analysis of a form, for the difference of two evaluations.

    - A sum of n products has an error of n eps times the sum of their magnitudes.
    - A backward stable solve multiplies the relative error by the condition
      number, of H = K^T K + alpha I at most 1 + |K|_F^2 / alpha.
    - An error dz in the scores moves the normalised weights by at most
      2 max|dz| sum|w'| / sum w: 2 max|dz| for softmax, where w' = w.
    - 16 is for the two evaluations, and for the constants of the parts.
    """
    _, Tk, d, _ = call.sizes
    visible = visible_pairs(call)
    options = call.for_form(form)
    if is_least_squares(form):
        alpha = options["alpha"]
        condition = 1 + float(np.max(np.sum(call.k**2, axis=(-2, -1)))) / alpha
        query = preconditioned(call.q, call.k, visible, alpha)
    else:
        condition, query = 1.0, call.q
    default_scale = d**-0.5 if form.name == "softmax_attention" else 1.0
    scale = abs(options.get("scale", default_scale))
    z = scale * query @ np.swapaxes(call.k, -1, -2)
    lengths = np.linalg.norm(query, axis=-1)[..., :, None] * np.linalg.norm(call.k, axis=-1)[..., None, :]
    z_size = scale * np.where(visible, lengths, 0.0)
    per_score = 16 * EPS * (d + 2) * condition

    if not is_normalized(form):
        relative = per_score + 16 * EPS * Tk
        out = relative * float(np.max(z_size @ np.abs(call.v), initial=0.0))
        return Rounding(out, relative * (1 + float(np.max(z_size, initial=0.0))), condition)

    bias = np.where(visible, options.get("bias", 0.0), 0.0)
    dz = per_score * z_size + 16 * EPS * (np.abs(bias) + 1)
    sensitivity = 1.0
    if form.name.startswith("expressive"):
        factor = np.where(
            visible, np.exp(bias - np.max(np.where(visible, bias, -1e9), axis=-1, keepdims=True) * visible), 0.0
        )
        w = factor * z**2 / (1 + z**2)
        slope = factor * (2 * np.abs(z) / (1 + z**2) ** 2 + dz)
        total = np.sum(w, axis=-1)
        sensitivity = float(np.max(np.sum(slope, axis=-1) / np.where(total > 0, total, 1.0), initial=1.0))
    relative = 16 * EPS * Tk + 2 * sensitivity * float(np.max(dz, initial=0.0))
    # A gradient has the slope w'/w as a factor, and that once more with an error of its own.
    size = 1 + sensitivity * float(np.max(z_size, initial=0.0))
    return Rounding(relative * float(np.max(np.abs(call.v), initial=0.0)), relative * size, condition)


def visible_pairs(call: Call) -> np.ndarray:
    Tq, Tk, _, _ = call.sizes
    mask = np.asarray(True if call.options["mask"] is None else call.options["mask"])
    return np.broadcast_to(
        mask & np.tri(Tq, Tk, dtype=bool) if call.options["is_causal"] else mask, (*call.q.shape[:-1], Tk)
    )


def preconditioned(q: np.ndarray, k: np.ndarray, visible: np.ndarray, alpha: float) -> np.ndarray:
    gram = np.einsum("...ij,...jd,...je->...ide", visible.astype(float), k, k)
    result: np.ndarray = np.linalg.solve(gram + alpha * np.eye(k.shape[-1]), q[..., None])[..., 0]
    return result


def evaluate(implemented: Implemented, call: Call, **more: Any) -> np.ndarray:
    form, implementation = implemented
    skip_if_missing(form, implementation)
    out: np.ndarray = public(form)(call.q, call.k, call.v, implementation=implementation, **call.for_form(form), **more)
    return out


def differentiate(implemented: Implemented, call: Call, dout: np.ndarray) -> list[np.ndarray]:
    """[dq, dk, dv]."""
    form, implementation = implemented
    skip_if_missing(form, implementation)
    _, pullback = kvq.vjp(public(form), call.q, call.k, call.v, implementation=implementation, **call.for_form(form))
    return list(pullback(dout)[:3])


def assert_close(got: np.ndarray, expected: np.ndarray, bound: float) -> None:
    assert got.shape == expected.shape
    error = float(np.max(np.abs(got - expected), initial=0.0))
    assert error <= bound, f"differs by {error}, more than {bound}"


def assert_law(implemented: Implemented, call: Call, got: np.ndarray, expected: np.ndarray, size: float = 1.0) -> None:
    """Equal up to the rounding of ``call``, whose outputs are ``size`` times smaller."""
    assert_close(got, expected, size * rounding(implemented[0], call).out)


# ---- Symmetries ----------------------------------------------------------------------


@every_form
@given(call=calls(causal=False))
def test_order_of_keys_does_not_matter(implemented: Implemented, call: Call) -> None:
    """Permuting the keys with their values, and the columns of mask and bias, changes nothing; gradients permute."""
    _, Tk, _, _ = call.sizes
    order = call.rng.permutation(Tk)
    columns = {n: x if x is None else x[..., order] for n, x in call.options.items() if n in ("mask", "bias")}
    permuted = call.but(k=call.k[..., order, :], v=call.v[..., order, :], **columns)
    out = evaluate(implemented, call)
    assert_law(implemented, call, evaluate(implemented, permuted), out)

    dout = call.rng.standard_normal(out.shape)
    dq, dk, dv = differentiate(implemented, call, dout)
    bound = rounding(implemented[0], call).gradient([dq, dk, dv])
    moved = differentiate(implemented, permuted, dout)
    for got, expected in zip(moved, (dq, dk[..., order, :], dv[..., order, :]), strict=True):
        assert_close(got, expected, bound)


@every_form
@given(call=calls(causal=False))
def test_queries_do_not_see_each_other(implemented: Implemented, call: Call) -> None:
    """Permuting or leaving out queries, and rows of mask and bias, permutes or leaves out the outputs."""
    Tq, _, _, _ = call.sizes
    some = call.rng.permutation(Tq)[: call.rng.integers(1, Tq + 1)]
    rows = {
        n: x if x is None or x.shape[-2] == 1 else x[..., some, :]
        for n, x in call.options.items()
        if n in ("mask", "bias")
    }
    if call.options["bias"] is not None:
        rows["bias"] = call.options["bias"][..., some, :]
    out = evaluate(implemented, call.but(q=call.q[..., some, :], **rows))
    assert_law(implemented, call, out, evaluate(implemented, call)[..., some, :])


@every_form
@given(call=calls())
def test_batch_entries_do_not_see_each_other(implemented: Implemented, call: Call) -> None:
    """What a batch gives is what its entries give one by one, and a batch axis of one changes nothing."""
    assume(call.q.ndim == 3)
    out = evaluate(implemented, call)
    for b in range(2):
        own = {n: x[b] for n, x in call.options.items() if isinstance(x, np.ndarray)}
        alone = call.but(q=call.q[b], k=call.k[b], v=call.v[b], **own)
        assert_law(implemented, call, evaluate(implemented, alone), out[b])
        nested = {n: x[None] for n, x in own.items()}
        with_axis = call.but(q=call.q[b][None], k=call.k[b][None], v=call.v[b][None], **nested)
        assert_law(implemented, call, evaluate(implemented, with_axis)[0], out[b])


@forms_that(lambda form: form.name.startswith("expressive"))
@given(call=calls())
def test_expressive_forms_do_not_know_signs(implemented: Implemented, call: Call) -> None:
    """The weight is even: -q gives the same output, and so does -k, together with the values as they were."""
    out = evaluate(implemented, call)
    np.testing.assert_array_equal(evaluate(implemented, call.but(q=-call.q)), out)
    np.testing.assert_array_equal(evaluate(implemented, call.but(k=-call.k)), out)


@forms_that(lambda form: form.name in ("linear_attention", "intention"))
@given(call=calls())
def test_unnormalised_forms_are_odd_in_the_query(implemented: Implemented, call: Call) -> None:
    """-q gives -out, to the last bit."""
    np.testing.assert_array_equal(evaluate(implemented, call.but(q=-call.q)), -evaluate(implemented, call))


@every_form
@given(call=calls(), a=st.floats(-3, 3), b=st.floats(-3, 3))
def test_linear_in_the_values(implemented: Implemented, call: Call, a: float, b: float) -> None:
    """f(a v + b u) = a f(v) + b f(u)."""
    u = call.rng.standard_normal(call.v.shape)
    combined = evaluate(implemented, call.but(v=a * call.v + b * u))
    separate = a * evaluate(implemented, call) + b * evaluate(implemented, call.but(v=u))
    larger = call.but(v=abs(a) * np.abs(call.v) + abs(b) * np.abs(u) + np.finfo(float).tiny)
    assert_law(implemented, larger, combined, separate)


@every_form
@given(call=calls())
def test_columns_of_the_values_do_not_see_each_other(implemented: Implemented, call: Call) -> None:
    """A column of v gives the same column of out, whatever stands beside it."""
    out = evaluate(implemented, call)
    for c in range(call.v.shape[-1]):
        assert_law(implemented, call, evaluate(implemented, call.but(v=call.v[..., c : c + 1])), out[..., c : c + 1])


# ---- Weights -------------------------------------------------------------------------


@score_forms
@given(call=calls())
def test_weights_are_a_distribution(implemented: Implemented, call: Call) -> None:
    """With v = I the output is the weights: not negative, 0 where hidden, with sum 1 in a row that sees a key."""
    Tk = call.k.shape[-2]
    identity = np.broadcast_to(np.eye(Tk), (*call.k.shape[:-2], Tk, Tk))
    weights = evaluate(implemented, call.but(v=identity))
    visible = visible_pairs(call)
    assert (weights >= 0).all()
    assert (weights[~visible] == 0).all()
    # Each is a quotient by the row's sum, itself exact to Tk eps.
    expected = np.where(visible.any(axis=-1), 1.0, 0.0)
    assert_close(weights.sum(axis=-1), expected, 4 * (Tk + 2) * EPS)


@score_forms
@given(call=calls())
def test_output_lies_in_the_hull_of_visible_values(implemented: Implemented, call: Call) -> None:
    """A weighted mean: between the least and the largest value that its query sees, in every column."""
    Tk = call.k.shape[-2]
    out = evaluate(implemented, call)
    visible = visible_pairs(call)[..., None]
    values = call.v[..., None, :, :]
    some = visible.any(axis=-2)
    least = np.where(some, np.min(np.where(visible, values, math.inf), axis=-2), 0.0)
    largest = np.where(some, np.max(np.where(visible, values, -math.inf), axis=-2), 0.0)
    # The weights sum to 1 up to Tk eps, and the mean adds Tk eps of its own.
    slack = 4 * (Tk + 2) * EPS * np.max(np.abs(call.v))
    assert (out >= least - slack).all()
    assert (out <= largest + slack).all()


@score_forms
@given(call=calls(), size=st.sampled_from([1.0, 30.0, 1e4]))
def test_constant_bias_of_a_row_changes_nothing(implemented: Implemented, call: Call, size: float) -> None:
    """It cancels in the normalisation, however large it is."""
    shift = size * call.rng.standard_normal((*call.q.shape[:-1], 1))
    bias = (
        call.options["bias"] if call.options["bias"] is not None else np.zeros((*call.q.shape[:-1], call.k.shape[-2]))
    )
    shifted = call.but(bias=bias + shift)
    # The sum bias + shift is rounded to eps |shift|, which moves the weights by as much.
    assert_law(implemented, shifted, evaluate(implemented, shifted), evaluate(implemented, call))


@forms_that(lambda form: is_normalized(form) and not is_least_squares(form))
@given(call=calls(causal=False, bias=False))
def test_duplicated_key_is_a_weight_of_two(implemented: Implemented, call: Call) -> None:
    """The last key twice is the last key once with bias log 2."""
    twice = [*range(call.k.shape[-2]), call.k.shape[-2] - 1]
    mask = call.options["mask"]
    double = call.but(k=call.k[..., twice, :], v=call.v[..., twice, :], mask=mask if mask is None else mask[..., twice])
    bias = np.zeros((call.q.shape[-2], call.k.shape[-2]))
    bias[:, -1] = math.log(2)
    assert_law(implemented, double, evaluate(implemented, call.but(bias=bias)), evaluate(implemented, double))


@forms_that(lambda form: form.name in ("linear_attention", "intention"))
@given(call=calls(causal=False))
def test_duplicated_key_is_a_key_of_greater_length(implemented: Implemented, call: Call) -> None:
    """The last key and value twice are sqrt(2) times the key and the value once: K^T K and K^T V are the same."""
    twice = [*range(call.k.shape[-2]), call.k.shape[-2] - 1]
    mask = call.options["mask"]
    double = call.but(k=call.k[..., twice, :], v=call.v[..., twice, :], mask=mask if mask is None else mask[..., twice])
    k, v = call.k.copy(), call.v.copy()
    k[..., -1, :] *= math.sqrt(2)
    v[..., -1, :] *= math.sqrt(2)
    assert_law(implemented, double, evaluate(implemented, call.but(k=k, v=v)), evaluate(implemented, double))


@score_forms
@given(call=calls(), size=st.sampled_from([30.0, 1e4]))
def test_bias_of_a_hidden_pair_does_not_matter(implemented: Implemented, call: Call, size: float) -> None:
    """Behind the mask a bias may be anything: not a bit changes, and nothing overflows."""
    bias = call.rng.standard_normal((*call.q.shape[:-1], call.k.shape[-2]))
    hidden = np.where(visible_pairs(call), bias, size * call.rng.standard_normal(bias.shape))
    out = evaluate(implemented, call.but(bias=bias))
    np.testing.assert_array_equal(evaluate(implemented, call.but(bias=hidden)), out)


@forms_that(lambda form: form.name == "expressive_attention")
@given(call=calls(pairs=False, bias=False))
def test_orthogonal_keys_are_suppressed(implemented: Implemented, call: Call) -> None:
    """Keys orthogonal to every query have no weight: to leave them out changes nothing; softmax would not agree."""
    _, Tk, d, _ = call.sizes
    zero_q, zero_k = (np.zeros((*x.shape[:-1], 1)) for x in (call.q, call.k))
    q = np.concatenate([call.q, zero_q], axis=-1)
    k = np.concatenate([call.k, zero_k], axis=-1)
    orthogonal = call.rng.random(Tk) < 0.5
    k[..., orthogonal, :] = 0
    k[..., orthogonal, d] = 5.0
    hidden = call.but(
        q=q, k=k, mask=np.asarray(True if call.options["mask"] is None else call.options["mask"]) & ~orthogonal
    )
    assert_law(implemented, hidden, evaluate(implemented, call.but(q=q, k=k)), evaluate(implemented, hidden))


# ---- Masks ---------------------------------------------------------------------------


@every_form
@given(call=calls(causal=False))
def test_mask_is_deletion(implemented: Implemented, call: Call) -> None:
    """Keys behind a key mask might as well not be there, in the output and in the gradients; theirs are zero."""
    keep = call.rng.random(call.k.shape[-2]) < 0.6
    assume(keep.any())
    without = {n: x if x is None else x[..., keep] for n, x in call.options.items() if n in ("mask", "bias")}
    deleted = call.but(k=call.k[..., keep, :], v=call.v[..., keep, :], **without)
    mask = call.options["mask"]
    masked = call.but(mask=keep[None, :] if mask is None else mask & keep)
    out = evaluate(implemented, deleted)
    assert_law(implemented, masked, evaluate(implemented, masked), out)

    dout = call.rng.standard_normal(out.shape)
    dq, dk, dv = differentiate(implemented, masked, dout)
    assert not dk[..., ~keep, :].any()
    assert not dv[..., ~keep, :].any()
    expected = differentiate(implemented, deleted, dout)
    bound = rounding(implemented[0], masked).gradient(expected)
    for got, wanted in zip((dq, dk[..., keep, :], dv[..., keep, :]), expected, strict=True):
        assert_close(got, wanted, bound)


@every_form
@given(call=calls(), extra=st.integers(1, 4), junk=st.sampled_from([0.0, 7.0, 1e300, math.nan, math.inf]))
def test_padding_is_nothing(implemented: Implemented, call: Call, extra: int, junk: float) -> None:
    """Masked keys after the last one, whatever they hold, change nothing, causal or not."""
    Tk = call.k.shape[-2]

    def padded(x: np.ndarray, axis: int, value: Any) -> np.ndarray:
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, extra)
        return np.pad(x, widths, constant_values=value)

    mask = call.options["mask"]
    options = {"mask": padded(np.ones((1, Tk), bool) if mask is None else mask, -1, False)}
    if call.options["bias"] is not None:
        options["bias"] = padded(call.options["bias"], -1, junk)
    long = call.but(k=padded(call.k, -2, junk), v=padded(call.v, -2, junk), **options)
    assert_law(implemented, call, evaluate(implemented, long), evaluate(implemented, call))


@every_form
@given(call=calls(causal=True, square=True))
def test_causal_output_is_that_of_the_prefix(implemented: Implemented, call: Call) -> None:
    """Causal output t is what query t alone gets from keys 0..t, without a causal rule."""
    out = evaluate(implemented, call)
    for t in range(call.q.shape[-2]):
        row = {
            n: x[..., t if n == "bias" or x.shape[-2] > 1 else 0, :][..., None, : t + 1]
            for n, x in call.options.items()
            if n in ("mask", "bias") and x is not None
        }
        arrays = {"q": call.q[..., t : t + 1, :], "k": call.k[..., : t + 1, :], "v": call.v[..., : t + 1, :]}
        alone = call.but(**arrays, **row, is_causal=False)
        assert_law(implemented, call, evaluate(implemented, alone)[..., 0, :], out[..., t, :])


@every_form
@given(call=calls(causal=True))
def test_causal_is_a_mask(implemented: Implemented, call: Call) -> None:
    """is_causal=True is the triangular mask, in the output and in the gradients."""
    Tq, Tk, _, _ = call.sizes
    triangle = kvq.masks.causal(Tq, Tk)
    mask = call.options["mask"]
    masked = call.but(is_causal=False, mask=triangle if mask is None else triangle & mask)
    out = evaluate(implemented, call)
    assert_law(implemented, call, evaluate(implemented, masked), out)
    dout = call.rng.standard_normal(out.shape)
    grads = differentiate(implemented, call, dout)
    bound = rounding(implemented[0], call).gradient(grads)
    for got, expected in zip(differentiate(implemented, masked, dout), grads, strict=True):
        assert_close(got, expected, bound)


# ---- Units ---------------------------------------------------------------------------

factors = st.floats(0.1, 10.0)


@forms_that(lambda form: not is_least_squares(form))
@given(call=calls(), c=factors)
def test_only_the_product_of_scale_query_and_key_counts(implemented: Implemented, call: Call, c: float) -> None:
    """(c q, k / c), (c q, scale / c) and (q, c k, scale / c) are one call."""
    form, _ = implemented
    scale = call.options["scale"]
    if scale is None:
        scale = call.q.shape[-1] ** -0.5 if form.name == "softmax_attention" else 1.0
    out = evaluate(implemented, call)
    for changed in (
        call.but(q=c * call.q, k=call.k / c),
        call.but(q=c * call.q, scale=scale / c),
        call.but(k=c * call.k, scale=scale / c),
    ):
        assert_law(implemented, call, evaluate(implemented, changed), out)


@least_squares_forms
@given(call=calls(), c=factors)
def test_alpha_is_in_units_of_keys_squared(implemented: Implemented, call: Call, c: float) -> None:
    """(c q, c k, c^2 alpha) is (q, k, alpha)."""
    changed = call.but(q=c * call.q, k=c * call.k, alpha=c**2 * call.options["alpha"])
    assert_law(implemented, call, evaluate(implemented, changed), evaluate(implemented, call))


@forms_that(lambda form: form.name == "intention")
@given(call=calls(), c=factors)
def test_intention_scales_inversely_with_the_keys(implemented: Implemented, call: Call, c: float) -> None:
    """(c k, c^2 alpha) divides the output by c."""
    changed = call.but(k=c * call.k, alpha=c**2 * call.options["alpha"])
    assert_law(implemented, call, evaluate(implemented, changed) * c, evaluate(implemented, call))


@forms_that(lambda form: form.name == "intention")
@given(call=calls(causal=False, pairs=False), c=factors)
def test_least_squares_scales_inversely_with_the_keys(implemented: Implemented, call: Call, c: float) -> None:
    """At alpha = 0 c k divides the output by c, whatever the rank of the keys."""
    call = call.but(alpha=0.0)
    condition, size = span_of(call)
    out = evaluate(implemented, call)
    changed = evaluate(implemented, call.but(k=c * call.k))
    assert_close(c * changed, out, 16 * EPS * sum(call.sizes) * condition**2 * size)


def span_of(call: Call) -> tuple[float, float]:
    """The worst condition number of the visible keys on their span, and |q| |v| / their least singular value."""
    mask = call.options["mask"]
    k = call.k if mask is None else np.where(np.swapaxes(mask, -1, -2), call.k, 0.0)
    s = np.linalg.svd(k, compute_uv=False)
    s = np.where(s > 1e-12 * np.max(s, axis=-1, keepdims=True), s, np.nan)
    assume(not np.isnan(s).all(axis=-1).any())
    least = np.nanmin(s, axis=-1)
    condition = float(np.max(np.nanmax(s, axis=-1) / least))
    return condition, float(np.linalg.norm(call.q) * np.linalg.norm(call.v) / np.min(least))


# ---- Intention and linear attention --------------------------------------------------

intention_alone = forms_that(lambda form: form.name == "intention")


def norm(x: np.ndarray) -> float:
    """The largest spectral norm of a batch of matrices."""
    return float(np.max(np.linalg.norm(x, ord=2, axis=(-2, -1)), initial=0.0))


def transpose(x: np.ndarray) -> np.ndarray:
    return np.swapaxes(x, -1, -2)


alphas = st.sampled_from([1e-2, 1.0, 1e2, 1e4])


@intention_alone
@given(call=calls(causal=False, pairs=False), alpha=alphas)
def test_resolvent_identity(implemented: Implemented, call: Call, alpha: float) -> None:
    """alpha I_alpha = L - Q G (G + alpha I)^-1 K^T V, for every alpha > 0."""
    call = call.but(alpha=alpha)
    mask = call.options["mask"]
    k = call.k if mask is None else np.where(transpose(mask), call.k, 0.0)
    gram = transpose(k) @ k
    correction = call.q @ gram @ np.linalg.solve(gram + alpha * np.eye(gram.shape[-1]), transpose(k) @ call.v)
    linear = kvq.linear_attention(call.q, call.k, call.v, mask=mask)
    size = alpha + norm(gram)  # of what is added up, in units of Intention's own output
    assert_law(implemented, call, alpha * evaluate(implemented, call), linear - correction, size)


@intention_alone
@given(call=calls(causal=False, pairs=False), alpha=alphas)
def test_intention_tends_to_linear_attention(implemented: Implemented, call: Call, alpha: float) -> None:
    """|alpha I_alpha - L| <= |Q| |G| |K^T V| / (alpha + lambda_min(G)), in spectral norms."""
    call = call.but(alpha=alpha, mask=None)
    for b in np.ndindex(call.q.shape[:-2]):
        q, k, v = call.q[b], call.k[b], call.v[b]
        gram = k.T @ k
        one = call.but(q=q, k=k, v=v)
        difference = alpha * evaluate(implemented, one) - kvq.linear_attention(q, k, v)
        least = max(float(np.linalg.eigvalsh(gram)[0]), 0.0)
        bound = norm(q) * norm(gram) * norm(k.T @ v) / (alpha + least)
        slack = (alpha + norm(gram)) * rounding(implemented[0], one).out * math.sqrt(difference.size)
        assert norm(difference) <= bound * (1 + 1e-6) + slack


@intention_alone
@given(call=calls(causal=True, square=True), alpha=alphas)
def test_causal_intention_tends_to_causal_linear_attention(implemented: Implemented, call: Call, alpha: float) -> None:
    """The same bound, query by query, with the G and the K^T V of what the query sees."""
    call = call.but(alpha=alpha)
    visible = visible_pairs(call).astype(float)
    linear = kvq.linear_attention(call.q, call.k, call.v, mask=call.options["mask"], is_causal=True)
    difference = np.linalg.norm(alpha * evaluate(implemented, call) - linear, axis=-1)
    grams = np.einsum("...ij,...jd,...je->...ide", visible, call.k, call.k)
    products = np.einsum("...ij,...jd,...jc->...idc", visible, call.k, call.v)
    sizes = [np.linalg.norm(x, ord=2, axis=(-2, -1)) for x in (grams, products)]
    bound = np.linalg.norm(call.q, axis=-1) * sizes[0] * sizes[1] / alpha
    slack = (alpha + sizes[0]) * rounding(implemented[0], call).out * math.sqrt(call.v.shape[-1])
    assert (difference <= bound * (1 + 1e-6) + slack).all()


@intention_alone
@given(call=calls(causal=False, pairs=False), alpha=st.sampled_from([1.0, 1e2, 1e4, 1e6]))
def test_gradients_of_intention_tend_to_those_of_linear_attention(
    implemented: Implemented, call: Call, alpha: float
) -> None:
    """alpha times the gradients of Intention differ from those of linear attention by O(1/alpha).

    With R = alpha (G + alpha I)^-1, |R| <= 1 and |R - I| <= |G| / alpha:
    dQ = dO V^T K R, so |error| <= |dO| |V^T K| |G| / alpha;
    dV = K R Q^T dO, so |error| <= |K| |G| |Q^T dO| / alpha;
    dK = V (R Q^T dO)^T - (K R K^T V (R Q^T dO)^T + K R Q^T dO (R K^T V)^T) / alpha, so
    |error| <= (|V| |G| + 2 |K| |K^T V|) |Q^T dO| / alpha.
    """
    call = call.but(alpha=alpha, mask=None)
    dout = call.rng.standard_normal((*call.q.shape[:-1], call.v.shape[-1]))
    got = differentiate(implemented, call, dout)
    expected = differentiate((FORMS["linear_attention"], "reference"), call.but(scale=None), dout)
    q, k, v = call.q, call.k, call.v
    n = {name: norm(x) for name, x in {"k": k, "v": v, "dout": dout}.items()}
    g, kv, qo = norm(transpose(k) @ k), norm(transpose(k) @ v), norm(transpose(q) @ dout)
    bounds = (n["dout"] * kv * g, (n["v"] * g + 2 * n["k"] * kv) * qo, n["k"] * g * qo)
    slack = (1 + g / alpha) * rounding(implemented[0], call).gradient(expected)
    for a, b, bound in zip(got, expected, bounds, strict=True):
        assert norm(alpha * a - b) <= bound / alpha * (1 + 1e-6) + slack * math.sqrt(a.size)


@intention_alone
@given(call=calls(causal=False, pairs=False), alpha=alphas, by_rows=st.booleans())
def test_orthonormal_keys_make_intention_linear(
    implemented: Implemented, call: Call, alpha: float, by_rows: bool
) -> None:
    """Keys that are orthonormal, or whose columns are: Intention = linear attention / (1 + alpha)."""
    _, Tk, d, _ = call.sizes
    n = min(Tk, d) if by_rows else Tk
    assume(by_rows or Tk >= d)
    k = np.linalg.qr(call.rng.standard_normal((d, n)))[0].T if by_rows else np.linalg.qr(call.k)[0]
    call = call.but(k=np.broadcast_to(k, (*call.k.shape[:-2], n, d)), v=call.v[..., :n, :], alpha=alpha, mask=None)
    linear = kvq.linear_attention(call.q, call.k, call.v)
    assert_law(implemented, call, evaluate(implemented, call), linear / (1 + alpha))


@pytest.mark.parametrize("solver", ["auto", "cholesky", "qr", "svd", "lstsq", "cg"])
@intention_alone
@given(call=calls(causal=False, pairs=False, max_d=8))
def test_intention_without_penalty_interpolates(implemented: Implemented, solver: str, call: Call) -> None:
    """At alpha = 0, with independent keys, the output at q = k_j is v_j: an associative memory without error."""
    n = min(call.k.shape[-2], call.k.shape[-1])
    k, v = call.k[..., :n, :], call.v[..., :n, :]
    call = call.but(q=k, k=k, v=v, alpha=0.0, mask=None)
    condition, _ = span_of(call)
    assume(condition < 1e3)
    # Cholesky and CG work with K K^T or K^T K, of the square of the condition number.
    bound = 16 * EPS * sum(call.sizes) * condition**2 * norm(v)
    assert_close(evaluate(implemented, call, solver=solver), v, bound * condition if solver == "cg" else bound)


# ---- sigma-Intention and expressive Intention ----------------------------------------

preconditioned_forms = forms_that(lambda form: is_least_squares(form) and is_normalized(form))
PLAIN = {"sigma_intention": "softmax_attention", "expressive_intention": "expressive_attention"}


def unpreconditioned(form: Form) -> Implemented:
    """The form without a preconditioner that a form tends to."""
    return FORMS[PLAIN[form.name]], "reference"


@preconditioned_forms
@given(call=calls(), alpha=st.sampled_from([1e2, 1e4, 1e6]), s=st.sampled_from([0.5, 1.0, -1.25]))
def test_preconditioned_forms_tend_to_plain_ones(implemented: Implemented, call: Call, alpha: float, s: float) -> None:
    """As alpha grows, with scale = alpha s, the form tends to the one of the same column with scale s.

    alpha H^-1 = I - H^-1 G, so a score is off by at most e = |s| |q| |G| |k| / alpha.
    Softmax: every weight is within exp(+-2 e) of what it should be, so the
    output is within (exp(2 e) - 1) max|v|.  Expressive: f' <= 3 sqrt(3) / 8, so it is
    within 2 max|v| sum_j exp(b_ij) 3 sqrt(3) / 8 e / sum_j w_ij.
    """
    form, _ = implemented
    plain = unpreconditioned(form)
    limit, call = call.but(scale=s), call.but(alpha=alpha, scale=alpha * s)
    visible = visible_pairs(call)
    gram = norm(transpose(call.k) @ call.k)
    longest = [float(np.max(np.linalg.norm(x, axis=-1))) for x in (call.q, call.k)]
    e = abs(s) * longest[0] * gram * longest[1] / alpha
    largest = float(np.max(np.abs(call.v)))
    if form.name == "sigma_intention":
        bound: Any = math.expm1(min(2 * e, 50.0)) * largest
    else:
        bias = np.exp(np.where(visible, 0.0 if call.options["bias"] is None else call.options["bias"], 0.0)) * visible
        z = s * call.q @ transpose(call.k)
        total = np.sum(bias * z**2 / (1 + z**2), axis=-1)
        lipschitz = 3 * math.sqrt(3) / 8 * e * np.sum(bias, axis=-1)
        bound = 2 * largest * (lipschitz / np.where(total > 0, total, 1.0))[..., None]
    difference = np.abs(evaluate(implemented, call) - evaluate(plain, limit))
    slack = rounding(form, call).out + rounding(plain[0], limit).out
    assert (difference <= bound * (1 + 1e-6) + slack).all()


@preconditioned_forms
@given(call=calls(bias=False), s=st.sampled_from([0.5, 1.0]))
def test_gradients_of_preconditioned_forms_tend_to_plain_ones(implemented: Implemented, call: Call, s: float) -> None:
    """Their gradients converge too, and as 1/alpha: ten times the alpha, a tenth of the distance.

    The distance is a_1 / alpha + a_2 / alpha^2 + ..., whose terms fall by a factor of
    order |G| (1 + the largest derivative of a score) / alpha; alpha is chosen to make
    that 1e-3, so that ten times alpha divides the distance by ten up to a part in
    a hundred; it is asked for a division by five.
    """
    form, _ = implemented
    plain = unpreconditioned(form)
    limit = call.but(scale=s)
    dout = call.rng.standard_normal((*call.q.shape[:-1], call.v.shape[-1]))
    expected = differentiate(plain, limit, dout)
    gram = norm(transpose(call.k) @ call.k)
    amplification = rounding(plain[0], limit).relative / (16 * EPS * (call.k.shape[-2] + 1))
    alpha = 1e3 * (1 + gram) * (1 + amplification)
    distances = []
    for a in (alpha, 10 * alpha):
        got = differentiate(implemented, call.but(alpha=a, scale=a * s), dout)
        distances.append(max(norm(x - y) for x, y in zip(got, expected, strict=True)))
    slack = 10 * sum(call.sizes) * rounding(form, call.but(alpha=alpha, scale=alpha * s)).gradient(expected)
    assert distances[1] <= distances[0] / 5 + slack
    assert distances[0] <= 1e-2 * max(map(norm, expected)) + slack


@preconditioned_forms
@given(call=calls())
def test_preconditioned_forms_are_plain_forms_of_other_queries(implemented: Implemented, call: Call) -> None:
    """sigma(q) = softmax(q*), expressive Intention(q) = EA(q*), with q* = (G_i + alpha I)^-1 q_i."""
    form, _ = implemented
    query = preconditioned(call.q, call.k, visible_pairs(call), call.options["alpha"])
    scale = 1.0 if call.options["scale"] is None else call.options["scale"]
    expected = evaluate(unpreconditioned(form), call.but(q=query, scale=scale))
    assert_law(implemented, call, evaluate(implemented, call), expected)


@intention_alone
@given(call=calls())
def test_intention_is_linear_attention_of_other_queries(implemented: Implemented, call: Call) -> None:
    """Intention(q) = linear(q*), whichever way it was bracketed."""
    query = preconditioned(call.q, call.k, visible_pairs(call), call.options["alpha"])
    expected = evaluate((FORMS["linear_attention"], "reference"), call.but(q=query, scale=None))
    assert_law(implemented, call, evaluate(implemented, call), expected)


@least_squares_forms
@given(call=calls(), solver=st.sampled_from(["cholesky", "qr", "svd", "lstsq", "cg"]))
def test_solvers_agree(implemented: Implemented, call: Call, solver: str) -> None:
    """However the system is solved, the output is the same."""
    assert_law(implemented, call, evaluate(implemented, call, solver=solver), evaluate(implemented, call))
