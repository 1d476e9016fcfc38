"""What kernels are known to get wrong, as data: a text, and the form's steps as such a kernel has them.

The order is that in which they are named where two fit: what is simpler to get wrong, first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from kvq_ref.grid import GRID
from kvq_ref.testing.calls import F64
from kvq_ref.testing.causes.steps import (
    Backward,
    Bool,
    Steps,
    biased,
    causal,
    default_scale,
    exponential,
    gated,
    mask_of,
    plain,
    shifted,
    t,
)
from kvq_ref.testing.laws.law import BIASED, EVERY, LEAST_SQUARES, PLAIN, SUMS, WEIGHTED_MEANS
from kvq_ref.testing.laws.law import SCALED as TAKES_SCALE
from kvq_ref.testing.rounding import representable

SOFTMAX = frozenset(name for name in EVERY if GRID[name].score == "exp")
EXPRESSIVE = frozenset(name for name in EVERY if GRID[name].score == "z^2/(1+z^2)")
GATED = frozenset(name for name in EVERY if GRID[name].score == "sigmoid")
LINEAR = frozenset({"linear_attention"})
ROOT_SCALE = frozenset(name for name in EVERY if GRID[name].has_root_scale)
# Where the scale makes a difference: it cancels in a mean that is weighted by squares of scores.
SCALED = TAKES_SCALE - {name for name in EVERY if GRID[name].score == "z^2"}
NO_MAXIMUM = (
    "exp overflows where scores are large, and vanishes where all of a row are very negative: the row's maximum has to "
    "be taken out first"
)
MAXIMUM_OF_ALL = "exp is taken relative to the largest score of all rows: a row needs its own maximum"
ROW_VANISHES = (
    "exp overflows or, where all scores of a row are far below what is taken out, makes the whole row vanish: a row "
    "needs its own maximum"
)
TILES = (2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Suspect:
    """A way to be wrong.

    Attributes
    ----------
    text : str or callable
        What a kernel with this bug does, in words; a callable takes the steps of the call that showed it.
    wrong : callable
        From the right steps to the wrong ones, or to a wrong output; None where it makes no difference.
    forms : frozenset of str
    """

    text: str | Callable[[Steps], str]
    wrong: Callable[[Steps], Steps | F64 | None]
    forms: frozenset[str] = EVERY

    def output(self, s: Steps) -> F64:
        changed = self.wrong(s)
        if changed is None:
            return s.out
        return changed.out if isinstance(changed, Steps) else changed

    def words(self, s: Steps) -> str:
        return self.text if isinstance(self.text, str) else self.text(s)


# ---- Scale ---------------------------------------------------------------------------


def _scale(words: str, value: Callable[[Steps], float], forms: frozenset[str] = SCALED, given: bool = True) -> Suspect:
    """The scores are multiplied by another number; with ``given`` false, only where no scale is given."""

    def wrong(s: Steps) -> Steps | None:
        return s.but(scale=value(s)) if given or s.call.get("scale") is None else None

    def text(s: Steps) -> str:
        name = "1/sqrt(d)" if s.call.get("scale") is None and s.form in ROOT_SCALE else "the scale"
        name = "1" if s.call.get("scale") is None and s.form not in ROOT_SCALE else name
        number = f" = {s.scale:.4g}" if name == "the scale" else ""
        return f"the scores are multiplied by {words}, not by {name}{number}"

    return Suspect(text, wrong, forms)


def _after_softmax(s: Steps) -> F64:
    return s.scale * s.but(scale=1.0).out


def _other_base(s: Steps, c: float, keeps_bias: bool) -> Steps:
    return s.but(scale=c * s.scale, bias=s.bias if keeps_bias else c * s.bias)


SCALE = (
    Suspect("the option scale is ignored", lambda s: s.but(scale=default_scale(s.form, s.call)), SCALED),
    _scale("1", lambda s: 1.0, given=False),
    _scale("1 in every call", lambda s: 1.0),
    _scale("1/d", lambda s: 1 / s.q.shape[-1], given=False),
    _scale("1/sqrt(d)", lambda s: s.q.shape[-1] ** -0.5, SCALED - ROOT_SCALE, given=False),
    _scale("sqrt(d)", lambda s: s.q.shape[-1] ** 0.5, given=False),
    _scale("d^(-1/4)", lambda s: s.q.shape[-1] ** -0.25, given=False),
    _scale("1/sqrt(dv)", lambda s: s.v.shape[-1] ** -0.5, given=False),
    Suspect("the scores are multiplied by the scale twice", lambda s: s.but(scale=s.scale**2), SCALED),
    Suspect("the scale is applied after the softmax, not to the scores", _after_softmax, WEIGHTED_MEANS),
    *(
        Suspect(
            f"the scores are multiplied by {name} on top of the scale: exp2 and exp are confused",
            partial(_other_base, c=c, keeps_bias=keeps_bias),
            SOFTMAX,
        )
        for name, c in (("ln 2", np.log(2)), ("1/ln 2", 1 / np.log(2)))
        for keeps_bias in (False, True)
    ),
)


# ---- Masks and causality -------------------------------------------------------------


def _seen(s: Steps, sees: Bool) -> Steps:
    """Other keys are seen, by the weights and by the regression."""
    sees = np.broadcast_to(sees, s.sees.shape)
    return s.but(sees=sees, fits=sees)


def _masked(s: Steps, mask: Bool) -> Steps | None:
    if s.call.get("mask") is None:
        return None
    return _seen(s, mask & causal(s.call) if s.call.is_causal else mask)


def _transposed(s: Steps) -> Steps | None:
    mask = mask_of(s.call)
    square = s.call.get("mask") is not None and s.call.options["mask"].shape[-2] == mask.shape[-1]
    return _masked(s, np.swapaxes(mask, -1, -2)) if square else None


def _first_of_batch(x: F64) -> F64:
    return np.asarray(np.broadcast_to(x[:1], x.shape) if x.ndim > 2 else x)


def _shifted_causal(s: Steps, shift: int) -> Steps | None:
    return _seen(s, mask_of(s.call) & causal(s.call, shift)) if s.call.is_causal else None


def _tiled_causal(s: Steps, n: int) -> Steps | None:
    i, j = np.arange(s.z.shape[-2])[:, None], np.arange(s.z.shape[-1])
    return _seen(s, mask_of(s.call) & (j // n <= i // n)) if s.call.is_causal else None


def _hidden_scores(value: float, s: Steps) -> F64:
    """Hidden scores have a value, and take part in the softmax."""
    z = np.where(s.sees, s.z + s.bias, value)
    return s.but(weight=lambda *_: exponential(z, 0.0 * z, np.ones_like(s.sees))).out


def _lowered_scores(by: float, s: Steps) -> F64:
    z = s.z + s.bias - np.where(s.sees, 0.0, by)
    return s.but(weight=lambda *_: exponential(z, 0.0 * z, np.ones_like(s.sees))).out


def _hidden_weights(weight: float, s: Steps) -> F64:
    """The mask acts on the scores, of which the weight is then this."""
    w = s.weight(s.z, s.bias, np.ones_like(s.sees))[0]
    factor = np.exp(shifted(s.bias, np.ones_like(s.sees)))
    return s.but(weight=lambda *_: (np.where(s.sees, w, weight * factor), w)).out


def _sum_of_all(s: Steps) -> F64 | None:
    """In a causal call each query is normalised by the sum over all keys that the mask leaves."""
    if not (s.call.is_causal and s.is_normalized):
        return None
    future = s.but(sees=np.broadcast_to(mask_of(s.call), s.sees.shape))
    return np.asarray(np.where(s.sees, future.weights[0], 0.0) @ s.v / future.total)


MASKS = (
    Suspect("the mask is inverted: True hides", lambda s: _masked(s, ~mask_of(s.call))),
    Suspect("the mask is ignored", lambda s: _masked(s, np.ones_like(mask_of(s.call)))),
    Suspect(
        "the mask is ignored where the call is causal",
        lambda s: _masked(s, np.ones_like(mask_of(s.call))) if s.call.is_causal else None,
    ),
    Suspect(
        "causality is ignored where a mask is given",
        lambda s: _seen(s, mask_of(s.call)) if s.call.get("mask") is not None else None,
    ),
    Suspect("the mask is read with queries and keys exchanged", _transposed),
    Suspect(
        "the mask of batch entry 0 is used for all",
        lambda s: _masked(s, _first_of_batch(mask_of(s.call).astype(float)) > 0),
    ),
    Suspect(
        "the mask acts on the score, and not on the weight: the weight of a score of -1e30 is 1",
        partial(_hidden_weights, 1.0),
        EXPRESSIVE,
    ),
    Suspect(
        "hidden scores are set to 0, and not to -inf: their weight is exp(0) = 1", partial(_hidden_scores, 0.0), SOFTMAX
    ),
    Suspect(
        "a row that sees nothing gives the mean of the values, not zero: hidden scores are a large negative number, "
        "and not -inf",
        partial(_hidden_scores, -1e30),
        SOFTMAX,
    ),
    Suspect(
        "hidden scores are lowered by a number, and not set to -inf: a row that sees nothing gives what it would "
        "without a mask",
        partial(_lowered_scores, 1e9),
        SOFTMAX,
    ),
    *(
        Suspect(
            f"hidden scores are lowered by {by:g} alone, and not set to -inf: they count where scores are as large, "
            "and in a row that sees nothing",
            partial(_lowered_scores, by),
            SOFTMAX,
        )
        for by in (1e2, 1e3, 1e4, 32768.0, 65504.0, 1e5, 1e6)
    ),
)

CAUSAL = (
    Suspect("is_causal is ignored", lambda s: _seen(s, mask_of(s.call)) if s.call.is_causal else None),
    Suspect(
        "causal is aligned at the lower right, so that the last query sees all keys, not at the upper left",
        lambda s: _shifted_causal(s, s.z.shape[-1] - s.z.shape[-2]),
    ),
    Suspect("causal is off by one: a query does not see its own key", lambda s: _shifted_causal(s, -1)),
    Suspect("causal is off by one: a query sees one key too many", lambda s: _shifted_causal(s, 1)),
    Suspect("causal is read the wrong way round: a query sees its own key and what comes after", lambda s: _anti(s)),
    Suspect("it is always causal", lambda s: _seen(s, mask_of(s.call) & causal(s.call))),
    *(Suspect(f"it is causal over tiles of {n}, and not within them", partial(_tiled_causal, n=n)) for n in TILES),
)


def _anti(s: Steps) -> Steps | None:
    later = ~causal(s.call, -1)
    return _seen(s, mask_of(s.call) & later) if s.call.is_causal else None


# ---- Bias ----------------------------------------------------------------------------


def _bias(s: Steps, bias: F64) -> Steps | None:
    return s.but(bias=bias) if s.call.get("bias") is not None else None


def _bias_on_score(s: Steps) -> Steps | None:
    if s.call.get("bias") is None:
        return None
    return s.but(weight=lambda z, bias, sees: s.weight(z + bias, 0.0 * bias, sees))


def _bias_multiplies(s: Steps) -> F64 | None:
    if s.call.get("bias") is None:
        return None
    w = s.weight(s.z, 0.0 * s.bias, s.sees)[0] * s.bias
    return s.but(weight=lambda *_: (w, w)).out


def _bias_after(s: Steps) -> F64 | None:
    if s.call.get("bias") is None:
        return None
    return np.asarray(s.but(bias=0.0 * s.bias).out + np.where(s.sees, s.bias, 0.0) @ s.v)


def _bias_transposed(s: Steps) -> Steps | None:
    return _bias(s, t(s.bias)) if s.bias.shape[-1] == s.bias.shape[-2] else None


BIAS = (
    Suspect("the bias is ignored", lambda s: _bias(s, 0.0 * s.bias), BIASED),
    Suspect("the bias is subtracted", lambda s: _bias(s, -s.bias), BIASED),
    Suspect("the bias is multiplied by the scale with the scores", lambda s: _bias(s, s.scale * s.bias), SOFTMAX),
    Suspect(
        "the bias is added to the score; it should multiply the weight by exp(bias)", _bias_on_score, BIASED - SOFTMAX
    ),
    Suspect(
        "the weight is multiplied by the bias itself; it should be multiplied by exp(bias)",
        _bias_multiplies,
        BIASED,
    ),
    Suspect("the bias is added to the weights after their normalisation", _bias_after, BIASED),
    Suspect("the bias of batch entry 0 is used for all", lambda s: _bias(s, _first_of_batch(s.bias)), BIASED),
    Suspect("the bias is read with queries and keys exchanged", _bias_transposed, BIASED),
    Suspect("the bias is added twice", lambda s: _bias(s, 2 * s.bias), BIASED),
)


# ---- Weights and their normalisation -------------------------------------------------


def _over_queries(s: Steps) -> F64:
    w = s.weights[0]
    if s.weight is exponential:
        z = np.where(s.sees, s.z + s.bias, -np.inf)
        top = np.max(z, axis=-2, keepdims=True)
        w = np.exp(z - np.where(np.isfinite(top), top, 0.0))
    total = np.sum(w, axis=-2, keepdims=True)
    return np.asarray(w / np.where(total == 0, 1.0, total) @ s.v)


def _no_maximum(s: Steps, dtype: str) -> F64:
    """NaN where exp overflows; zero where all of a row vanish."""
    w = np.where(s.sees, np.exp((s.z + s.bias).astype(dtype)).astype(float), 0.0)
    total = np.sum(w, axis=-1, keepdims=True)
    return np.asarray(w / np.where(total == 0, 1.0, total) @ s.v)


def _maximum_of_all(s: Steps, dtype: str, of_hidden: bool) -> F64:
    """One maximum for all rows: in a row far below it, exp gives zero."""
    z = np.where(s.sees, s.z + s.bias, -np.inf)
    top = np.max(s.z + s.bias if of_hidden else z, initial=-1e300)
    w = np.exp((z - top).astype(dtype)).astype(float)
    total = np.sum(w, axis=-1, keepdims=True)
    return np.asarray(w / np.where(total == 0, 1.0, total) @ s.v)


def _words_of_no_maximum(s: Steps, dtype: str) -> str:
    """Where a row vanishes, it may be that one maximum was taken out of all rows: on some calls that is the same."""
    mine = Suspect("", partial(_no_maximum, dtype=dtype)).output(s)
    for of_hidden in (False, True):
        other = Suspect("", partial(_maximum_of_all, dtype=dtype, of_hidden=of_hidden)).output(s)
        if np.allclose(mine, other, rtol=1e-3, atol=1e-6, equal_nan=True):
            return ROW_VANISHES
    return NO_MAXIMUM


def _online(s: Steps, n: int, rescales_out: bool, rescales_sum: bool) -> F64:
    """Online softmax over tiles of n keys, where a new maximum does not rescale what was summed before."""
    z = np.where(s.sees, s.z + s.bias, -np.inf)
    tops = np.maximum.accumulate(z, axis=-1)
    last = np.minimum((np.arange(z.shape[-1]) // n + 1) * n, z.shape[-1]) - 1
    then, final = tops[..., last], tops[..., -1:]
    once, now = (np.where(s.sees, np.exp(z - np.where(np.isfinite(x), x, 0.0)), 0.0) for x in (then, final))
    total = np.sum(now if rescales_sum else once, axis=-1, keepdims=True)
    return np.asarray((now if rescales_out else once) @ s.v / np.where(total == 0, 1.0, total))


def _other(
    words: str, f: Callable[[F64], F64], df: Callable[[F64], F64], score: str = "z^2/(1+z^2)", right: str = ""
) -> Suspect:
    """The score becomes something else."""
    weight, forms = biased(f, df), frozenset(name for name in EVERY if GRID[name].score == score)
    return Suspect(f"the weight is {words}, not {right or 'z^2 / (1 + z^2)'}", lambda s: s.but(weight=weight), forms)


QUADRATIC = {"score": "z^2", "right": "z^2"}
TAYLOR = {"score": "1+z+z^2/2", "right": "1 + z + z^2/2"}


WEIGHTS = (
    Suspect(
        "the weights are not divided by their sum",
        lambda s: s.but(is_normalized=False) if s.is_normalized else None,
        WEIGHTED_MEANS | LINEAR,
    ),
    Suspect("the weights are normalised over the queries, not over the keys", _over_queries, WEIGHTED_MEANS),
    Suspect(
        "in a causal call the weights are divided by the sum of all keys, not of those that the query sees",
        _sum_of_all,
        WEIGHTED_MEANS | LINEAR,
    ),
    Suspect(
        "the weights are divided by their sum, and should not be", lambda s: s.but(is_normalized=True), SUMS & PLAIN
    ),
    Suspect(
        "the offset is ignored", lambda s: s.but(weight=gated(0.0)) if s.call.get("offset") is not None else None, GATED
    ),
    Suspect(
        "the offset is subtracted",
        lambda s: s.but(weight=gated(-s.call.options["offset"])) if s.call.get("offset") is not None else None,
        GATED,
    ),
    Suspect(
        "the weight is (1 + tanh(z)) / 2, which is the sigmoid of 2 z",
        lambda s: s.but(weight=lambda z, bias, sees: s.weight(2 * z + s.call.options.get("offset", 0.0), bias, sees)),
        GATED,
    ),
    _other("z^2, without the denominator", lambda z: z**2, lambda z: 2 * z),
    _other("z^2 / (1 + |z|)", lambda z: z**2 / (1 + np.abs(z)), lambda z: z * (2 + np.abs(z)) / (1 + np.abs(z)) ** 2),
    _other("|z| / (1 + |z|)", lambda z: np.abs(z) / (1 + np.abs(z)), lambda z: np.sign(z) / (1 + np.abs(z)) ** 2),
    _other("|z|", np.abs, np.sign, **QUADRATIC),
    _other("z^2 / (1 + z^2)", lambda z: z**2 / (1 + z**2), lambda z: 2 * z / (1 + z**2) ** 2, **QUADRATIC),
    _other("1 + z + z^2", lambda z: 1 + z + z**2, lambda z: 1 + 2 * z, **TAYLOR),
    _other("1 + z + z^2/4", lambda z: 1 + z + z**2 / 4, lambda z: 1 + z / 2, **TAYLOR),
    _other("1 + z", lambda z: 1 + z, np.ones_like, **TAYLOR),
    Suspect(
        "the weight keeps the sign of the score: it is z |z| / (1 + z^2)",
        lambda s: s.but(weight=biased(lambda z: z * np.abs(z) / (1 + z**2), lambda z: 2 * np.abs(z) / (1 + z**2) ** 2)),
        EXPRESSIVE,
    ),
    Suspect(
        "the weight of a negative score is zero",
        lambda s: s.but(weight=biased(lambda z: np.maximum(z, 0) ** 2 / (1 + z**2), lambda z: 0 * z)),
        EXPRESSIVE,
    ),
    Suspect(
        "the weight is exp(z), as in softmax attention",
        lambda s: s.but(weight=exponential, is_normalized=True),
        EVERY - SOFTMAX,
    ),
    Suspect(
        "the weight is the score itself, as in linear attention",
        lambda s: s.but(weight=plain, is_normalized=False),
        WEIGHTED_MEANS,
    ),
    *(
        Suspect(partial(_words_of_no_maximum, dtype=dtype), partial(_no_maximum, dtype=dtype), SOFTMAX)
        for dtype in ("float32", "float64")
    ),
    *(
        Suspect(
            MAXIMUM_OF_ALL,
            partial(_maximum_of_all, dtype=dtype, of_hidden=of_hidden),
            SOFTMAX,
        )
        for dtype in ("float32", "float64")
        for of_hidden in (False, True)
    ),
    *(
        Suspect(
            f"online softmax over tiles of {n}: {what} is not rescaled when the maximum grows",
            partial(_online, n=n, rescales_out=rescales_out, rescales_sum=rescales_sum),
            SOFTMAX,
        )
        for n in (1, *TILES)
        for what, rescales_out, rescales_sum in (
            ("the output so far", False, True),
            ("the sum so far", True, False),
            ("what was summed so far", False, False),
        )
    ),
)


# ---- Least squares -------------------------------------------------------------------


def _alpha(words: str, change: Callable[[F64, Steps], F64 | float]) -> Suspect:
    def wrong(s: Steps) -> Steps | None:
        return None if s.alpha is None else s.but(alpha=change(s.alpha, s) + 0.0 * s.alpha)

    return Suspect(words, wrong, LEAST_SQUARES)


def _constant(x: float, alpha: F64, s: Steps) -> float:
    return x


def _times_alpha(s: Steps) -> Steps:
    return s if s.alpha is None else s.but(q=s.alpha[..., None, None] * s.q)


def _on_the_diagonal(s: Steps) -> Steps:
    """Levenberg-Marquardt."""
    assert s.alpha is not None
    zero = s.but(alpha=0.0 * s.alpha)
    h = zero.system + (s.alpha[..., None, None, None] * zero.system + 1e-12) * np.eye(s.k.shape[-1])
    return s.but(alpha=None, q=np.linalg.solve(h, s.q[..., None])[..., 0])


def _keys_preconditioned(s: Steps) -> F64 | None:
    """Each key is preconditioned by the keys up to itself, and the query is not."""
    if not s.call.is_causal:
        return None
    whole = s.call.but(q=np.broadcast_to(s.k, (*s.q.shape[:-2], *s.k.shape[-2:])), mask=None, bias=None)
    keys = Steps.of(s.form, whole).y
    z = s.scale * s.q @ t(keys)
    return s.but(weight=lambda _, bias, sees: s.weight(z, bias, sees)).out


def _gram(words: str, fits: Callable[[Steps], Bool | None], forms: frozenset[str] = LEAST_SQUARES) -> Suspect:
    def wrong(s: Steps) -> Steps | None:
        changed = fits(s)
        return None if changed is None else s.but(fits=np.broadcast_to(changed, s.fits.shape))

    return Suspect(words, wrong, forms)


ALPHA = (
    Suspect("the queries are not preconditioned", lambda s: s.but(alpha=None), LEAST_SQUARES),
    _alpha("alpha is subtracted from the Gram matrix, not added", lambda a, _: -a),
    _alpha("alpha is squared", lambda a, _: a**2),
    _alpha("the square root of alpha is added to the Gram matrix", lambda a, _: a**0.5),
    _alpha("alpha is multiplied by the number of keys", lambda a, s: a * s.k.shape[-2]),
    _alpha("alpha is divided by the number of keys", lambda a, s: a / s.k.shape[-2]),
    _alpha("alpha is halved", lambda a, _: a / 2),
    _alpha("alpha is doubled", lambda a, _: a * 2),
    *(
        _alpha(f"alpha is ignored: it is {x:g} whatever is given", partial(_constant, x))
        for x in (0.0, 1.0, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1)
    ),
    Suspect(
        "the regression is multiplied by alpha: K^T K is divided by it in place of alpha being added",
        _times_alpha,
        LEAST_SQUARES,
    ),
    Suspect(
        "alpha multiplies the diagonal of the Gram matrix, where it is to be added", _on_the_diagonal, LEAST_SQUARES
    ),
    Suspect("the queries are preconditioned twice", lambda s: s.but(q=s.y), LEAST_SQUARES),
    Suspect(
        "the preconditioner is applied to the keys, each with its own past, not to the queries",
        _keys_preconditioned,
        LEAST_SQUARES,
    ),
    _gram(
        "the Gram matrix is that of all keys in a causal call: it leaks the future, and masking the scores comes too "
        "late",
        lambda s: mask_of(s.call) if s.call.is_causal else None,
    ),
    _gram(
        "the Gram matrix is that of all keys, hidden ones too: it leaks the future and the mask, and masking the "
        "scores comes too late",
        lambda s: np.ones_like(s.fits),
    ),
    _gram(
        "the regression ignores the mask: the Gram matrix has keys that the weights leave out",
        lambda s: causal(s.call) if s.call.is_causal else np.ones_like(s.fits),
    ),
    _gram(
        "the Gram matrix is that of the step before: in a query's regression it does not see its own key",
        lambda s: mask_of(s.call) & causal(s.call, -1) if s.call.is_causal else None,
    ),
    Suspect(
        "hidden keys are left out of the Gram matrix, but not of the weights",
        lambda s: s.but(sees=np.ones_like(s.sees)),
        LEAST_SQUARES,
    ),
    _alpha("alpha of batch entry 0 is used for all", lambda a, _: float(a.flat[0])),
)


# ---- Feature maps --------------------------------------------------------------------


def _phi(s: Steps, q: str, k: str) -> Steps | None:
    return s.but(phi_q=q, phi_k=k) if s.phi_q != "identity" else None


FEATURES = (
    Suspect("the feature map is ignored", lambda s: _phi(s, "identity", "identity"), LINEAR),
    Suspect("the feature map is applied to q alone, and not to k", lambda s: _phi(s, s.phi_q, "identity"), LINEAR),
    Suspect("the feature map is applied to k alone, and not to q", lambda s: _phi(s, "identity", s.phi_k), LINEAR),
    Suspect("the feature map is elu, without the + 1", lambda s: _phi(s, "elu", "elu"), LINEAR),
    Suspect("the feature map is relu", lambda s: _phi(s, "relu", "relu"), LINEAR),
)


# ---- Indices -------------------------------------------------------------------------


def _keys_kept(s: Steps, n: int) -> Steps:
    return _seen(s, s.sees & (np.arange(s.z.shape[-1]) < n))


def _whole_tiles(length: int, n: int) -> int:
    """What is left of a length when the rest beyond its last whole tile is dropped, if there is a whole one."""
    return length // n * n or length


def _whole_tiles_of_keys(s: Steps, n: int) -> Steps:
    return _keys_kept(s, _whole_tiles(s.z.shape[-1], n))


def _whole_tiles_of_queries(s: Steps, n: int) -> F64:
    return np.where(np.arange(s.z.shape[-2])[:, None] < _whole_tiles(s.z.shape[-2], n), s.out, 0.0)


def _whole_tiles_of_columns(s: Steps, n: int) -> F64:
    return np.where(np.arange(s.v.shape[-1]) < _whole_tiles(s.v.shape[-1], n), s.out, 0.0)


def _whole_tiles_of_features(s: Steps, n: int) -> Steps:
    kept = np.arange(s.q.shape[-1]) < _whole_tiles(s.q.shape[-1], n)
    return s.but(q=np.where(kept, s.q, 0.0), k=np.where(kept, s.k, 0.0))


def _array_of_first_batch(s: Steps, name: str) -> Steps:
    return s.but(**{name: _first_of_batch(getattr(s, name))})


def _reshaped(s: Steps) -> Steps | None:
    """(B, T, H, d) was reshaped to (B, H, T, d), where the axes should have been exchanged."""
    if s.q.ndim != 4:
        return None
    return s.but(**{name: np.moveaxis(x, 1, 2).reshape(x.shape) for name, x in (("q", s.q), ("k", s.k), ("v", s.v))})


INDICES = (
    *(
        Suspect(
            f"the {what} of batch entry 0 are used for all",
            partial(_array_of_first_batch, name=name),
        )
        for name, what in (("k", "keys"), ("v", "values"), ("q", "queries"))
    ),
    Suspect("heads and positions are mixed up: the axes are reshaped where they should be exchanged", _reshaped),
    Suspect("the last key of the sequence is dropped", lambda s: _keys_kept(s, max(s.z.shape[-1] - 1, 1))),
    *(
        Suspect(
            f"the last key of the sequence is dropped where Tk is not a multiple of {n}: keys beyond the last whole "
            f"tile of {n} are left out",
            partial(_whole_tiles_of_keys, n=n),
        )
        for n in TILES
    ),
    *(
        Suspect(
            f"the last rows of the output are zero where Tq is not a multiple of {n}: queries beyond the last whole "
            f"tile of {n} are left out",
            partial(_whole_tiles_of_queries, n=n),
        )
        for n in TILES
    ),
    *(
        Suspect(
            f"the last feature of q and k is left out where d is not a multiple of {n}",
            partial(_whole_tiles_of_features, n=n),
        )
        for n in (2, 4)
    ),
    *(
        Suspect(
            f"the last columns of the output are zero where dv is not a multiple of {n}",
            partial(_whole_tiles_of_columns, n=n),
        )
        for n in (2, 4)
    ),
)


# ---- Precision -----------------------------------------------------------------------


def _ten_bits(x: F64) -> F64:
    """TF32, by truncation."""
    return (x.astype(np.float32).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32).astype(float)


def _inputs(words: str, rounds: Callable[[F64], F64], which: tuple[str, ...]) -> Suspect:
    names = " and ".join(which) if len(which) < 3 else "the inputs"
    text = f"{names} {'is' if len(which) == 1 else 'are'} {words} on the way in"
    return Suspect(text, lambda s: s.but(**{name: rounds(getattr(s, name)) for name in which}))


INPUTS = tuple(
    _inputs(words, rounds, which)
    for words, rounds in (
        ("rounded to float16", lambda x: representable(x, "float16")),
        ("rounded to bfloat16", lambda x: representable(x, "bfloat16")),
        ("cut to ten bits of mantissa, as TF32 has,", _ten_bits),
        ("rounded to float32", lambda x: representable(x, "float32")),
    )
    for which in (("q", "k", "v"), ("q", "k"), ("v",), ("q",), ("k",))
)

SUSPECTS: tuple[Suspect, ...] = (*SCALE, *MASKS, *CAUSAL, *BIAS, *WEIGHTS, *ALPHA, *FEATURES, *INDICES, *INPUTS)


# ---- Gradients -----------------------------------------------------------------------

Gradients = dict[str, F64]


@dataclass(frozen=True)
class WrongGradient:
    """A way for a gradient to be wrong.

    Attributes
    ----------
    text : str
        What is said of "the gradient of q", and of whichever else it explains.
    wrong : callable
        From the right backward pass to gradients by name, of those that it changes.
    """

    text: str
    wrong: Callable[[Backward], Gradients]


def _each(change: Callable[[F64], F64], *names: str) -> Callable[[Backward], Gradients]:
    return lambda b: {name: change(g) for name, g in b.grads().items() if not names or name in names}


def _only(b: Backward, **parts: F64) -> Gradients:
    return {name: g for name, g in b.grads(**parts).items() if name in parts}


def _hidden_gram(b: Backward) -> Gradients:
    s = b.steps
    to_k = t(s.y @ t(s.k)) @ b.u + t(b.u @ t(s.k)) @ s.y
    return _only(b, k=b.direct - to_k)


def _slope_not_squared(b: Backward) -> Gradients:
    s = b.steps
    if s.form not in EXPRESSIVE:
        return {}

    def weight(z: F64, bias: F64, sees: Bool) -> tuple[F64, F64]:
        w, slope = s.weight(z, bias, sees)
        return w, slope * (1 + z**2)

    return Backward(s.but(weight=weight), b.dout).grads()


def _no_derivative_of_phi(b: Backward) -> Gradients:
    s = b.steps
    mapped = s.but(q=s.y, k=s.keys, phi_q="identity", phi_k="identity")
    return Backward(mapped, b.dout).grads() if s.alpha is None else {}


def _tail_dropped(b: Backward, n: int) -> Gradients:
    found = {}
    for name, g in b.grads().items():
        if name in "qkv":
            kept = np.arange(g.shape[-2])[:, None] < _whole_tiles(g.shape[-2], n)
            found[name] = np.where(kept, g, 0.0)
    return found


def _entries(b: Backward) -> int:
    return int(np.prod(b.dout.shape[:-2])) or 1


WRONG_GRADIENTS: tuple[WrongGradient, ...] = (
    WrongGradient("is zero", _each(lambda g: 0.0 * g)),
    WrongGradient("has the wrong sign", _each(lambda g: -g)),
    WrongGradient("lacks the factor scale", lambda b: _each(lambda g: g / b.steps.scale, "q", "k")(b)),
    WrongGradient(
        "has the factor scale once too often", lambda b: _each(lambda g: g * b.steps.scale, "q", "k", "bias", "v")(b)
    ),
    WrongGradient("is divided by the number of batch entries", lambda b: _each(lambda g: g / _entries(b))(b)),
    WrongGradient("is divided by the number of outputs", lambda b: _each(lambda g: g / b.dout.size)(b)),
    WrongGradient(
        "is that of the output's sum: the gradient from above, dout, is ignored",
        lambda b: Backward(b.steps, np.ones_like(b.dout)).grads(),
    ),
    WrongGradient(
        "lacks the term of the row's sum, dout . out: as one weight grows, the others shrink",
        lambda b: Backward(b.steps, b.dout, has_row_sum_term=False).grads() if b.steps.is_normalized else {},
    ),
    WrongGradient(
        "is that of weights that are not divided by their sum",
        lambda b: _only(b, v=t(b.steps.weights[0]) @ b.dout),
    ),
    WrongGradient("lacks the part of the Gram matrix, which holds the keys too", lambda b: _only(b, k=b.direct)),
    WrongGradient(
        "has half of the part of the Gram matrix, which holds each key twice",
        lambda b: _only(b, k=b.direct + b.through_gram[0]),
    ),
    WrongGradient(
        "has half of the part of the Gram matrix, which holds each key twice",
        lambda b: _only(b, k=b.direct + b.through_gram[1]),
    ),
    WrongGradient(
        "has the part of the Gram matrix with the wrong sign: the derivative of an inverse has a minus",
        lambda b: _only(b, k=b.direct - sum(b.through_gram)),
    ),
    WrongGradient(
        "has the part of the Gram matrix for hidden keys too",
        lambda b: _hidden_gram(b) if b.steps.alpha is not None else {},
    ),
    WrongGradient(
        "is that of the preconditioned query: the preconditioner has to be applied once more",
        lambda b: _only(b, q=b.dy),
    ),
    WrongGradient(
        "is made with the query itself, where the preconditioned one belongs",
        lambda b: _only(b, k=b.steps.scale * t(b.dz) @ b.steps.q + sum(b.through_gram)),
    ),
    WrongGradient("has a slope of the weight whose denominator is not squared: 2 z / (1 + z^2)", _slope_not_squared),
    WrongGradient("lacks the derivative of the feature map", _no_derivative_of_phi),
    WrongGradient(
        "is made with scores that are not transposed, which cannot be where Tq and Tk differ",
        lambda b: _only(b, k=b.steps.scale * b.dz @ b.steps.y) if b.dz.shape[-1] == b.dz.shape[-2] else {},
    ),
    WrongGradient(
        "is made with scores that are reshaped from (Tq, Tk) to (Tk, Tq), where they should be transposed",
        lambda b: _only(
            b, k=b.steps.scale * b.dz.reshape(*b.dz.shape[:-2], b.dz.shape[-1], b.dz.shape[-2]) @ b.steps.y
        ),
    ),
    *(
        WrongGradient(f"is dropped in its last rows, beyond the last whole tile of {n}", partial(_tail_dropped, n=n))
        for n in TILES
    ),
)


def of_another_function(form: str) -> Iterator[tuple[Suspect, WrongGradient]]:
    """Gradients of what a suspect computes: where the backward pass has a bug that the forward pass has not."""
    for suspect in SUSPECTS:
        if form in suspect.forms:
            yield suspect, WrongGradient("", partial(_of, suspect))


def _of(suspect: Suspect, b: Backward) -> Gradients:
    changed = suspect.wrong(b.steps)
    if changed is None:
        return b.grads()
    return Backward(changed, b.dout).grads() if isinstance(changed, Steps) else {}
