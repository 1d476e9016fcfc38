"""What is probably wrong, in words that the author of a kernel can use.

A cause is not guessed from the law that is broken. Each suspect computes what a kernel with a known bug would
give, in float64, on the calls that the law asked for and on random ones besides; it is named if that is what the
target gave, every time, and the truth is not. Then come patterns: NaN, precision, what is kept between calls. Where
nothing fits, nothing is said but the law's own hint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from kvq_ref.dispatch import FORMS
from kvq_ref.grid import GRID
from kvq_ref.testing.calls import F64, Call
from kvq_ref.testing.causes.evidence import (
    RECORDED,
    Answer,
    Evidence,
    Watched,
    evidence_on,
    gradient_answer,
    gradient_evidence_on,
    output_answer,
    repeats,
    varied,
    watch,
)
from kvq_ref.testing.causes.steps import Bool, Steps
from kvq_ref.testing.causes.suspects import NO_MAXIMUM, SUSPECTS, WRONG_GRADIENTS, Suspect, of_another_function
from kvq_ref.testing.rounding import HALF, ROUNDOFF
from kvq_ref.testing.run import Counterexample, Verdict
from kvq_ref.testing.target import HungError, Target

TIME = 1.5  # seconds of the processor for a verdict; a few tenths are usual
KEPT = "something is kept from one call to the next, or the target is not deterministic"

# What is said of a misbehaviour, by its kind; no law's hint is of any use there.
MISBEHAVIOUR = {
    "dtype": "something of another dtype takes part in the computation, such as a mask or a constant",
    "hung": "",
    "shape": "",
    "type": "",
    "view": "the output shares memory with an input: whoever writes to one changes the other; return a copy",
    "flaky": "the target is not deterministic, or something is kept from one call to the next",
    "no gradient": "the output is detached from its inputs: it was made of their values and not of themselves",
}


def likely_cause(target: Target, verdict: Verdict) -> str:
    """What is probably wrong with a target that breaks a law.

    Parameters
    ----------
    target : Target
        What was verified.
    verdict : Verdict
        Of the law that is broken.

    Returns
    -------
    str
        A sentence; empty where no pattern fits and the law has no hint. It never raises for what the target does.

    Examples
    --------
    >>> from kvq_ref.testing import LAWS
    >>> from kvq_ref.testing.run import hold_to
    >>> def mine(q, k, v):
    ...     w = np.exp(q @ np.swapaxes(k, -1, -2))
    ...     return (w / w.sum(-1, keepdims=True)) @ v
    >>> target = Target(mine, "softmax", dtype="float64")
    >>> (law,) = (law for law in LAWS if law.name == "definition")
    >>> likely_cause(target, hold_to(law, target)).partition(" = ")[0]
    'the scores are multiplied by 1, not by 1/sqrt(d)'
    """
    hint = verdict.law.hint
    if verdict.counterexample is None:
        return hint
    if verdict.counterexample.kind in MISBEHAVIOUR:
        return MISBEHAVIOUR[verdict.counterexample.kind]
    if FORMS[target.form].is_sequential:  # its output is no sum of weights that suspects could be variations of
        return hint
    try:
        with np.errstate(all="ignore"):
            return _cause(target, verdict, verdict.counterexample) or hint
    except (HungError, Exception):  # the target may do anything when it is asked again
        return hint


def _cause(target: Target, verdict: Verdict, found: Counterexample) -> str:
    if GRID[target.form].row == "line":  # which is not taken apart into steps
        return _where_it_raises(target) if found.kind == "raised" else ""
    deadline = time.process_time() + TIME
    if found.kind == "raised":
        return _where_it_raises(target) or _wrong_output(target, evidence_on(target), [], deadline)
    watched = watch(target, verdict.law, found)
    asked, differentiated = watched.outputs[:], watched.gradient_calls[:]
    known = evidence_on(target)
    if watched.written:
        return f"the target writes to its inputs: {watched.written} is not what it was after the call"
    special = _not_finite(target, watched)
    if special:
        return special
    outputs = _answers(asked, lambda x: output_answer(target, *x))
    if not known.raised:
        outputs += varied(known, [call for call, _ in asked])
    text = _wrong_output(target, known, outputs, deadline)
    if text or not _all_right(known.outputs + outputs):
        return text
    if differentiated:
        gradients = _answers(differentiated, lambda x: gradient_answer(target, *x))
        return _wrong_gradient(target, gradient_evidence_on(target), gradients, deadline)
    return ""


def _in_time(deadline: float) -> None:
    if time.process_time() > deadline:
        raise TimeoutError


def _answers(recorded: Sequence[tuple], make: Callable[[tuple], Answer | None]) -> list[Answer]:  # type: ignore[type-arg]
    """Small ones first: most suspects fall at the first."""
    small = sorted(recorded, key=lambda x: x[0].q.size * x[0].k.shape[-2])[: RECORDED - 1] + list(recorded[-1:])
    return [answer for answer in map(make, small) if answer is not None]


def _all_right(answers: Sequence[Answer]) -> bool:
    return all(answer.is_right(name) for answer in answers for name in answer.got)


# ---- The output ----------------------------------------------------------------------


def _wrong_output(target: Target, known: Evidence, asked: list[Answer], deadline: float) -> str:
    answers = known.outputs + asked
    wrong = [answer for answer in answers if not answer.is_right("out")]
    if not wrong:
        return ""
    if not repeats(known, [a for a in wrong if a in known.outputs][:3] + known.outputs[:6]):
        return KEPT
    if known.unread:
        return (
            f"the output does not depend on {known.unread}: what is used is kept from an earlier call, or "
            f"{known.unread} is not read"
        )
    for suspect in _suspects(target, wrong):
        _in_time(deadline)
        if _explains(answers, wrong, "out", lambda a, suspect=suspect: suspect.output(a.steps)):  # type: ignore[misc]
            return suspect.words(_telling(wrong, suspect).steps)
    return _precision(target, known.outputs, ("out",)) or _where_it_is_wrong(known.outputs, "out")


def _explains(answers: list[Answer], wrong: list[Answer], name: str, suspected: Callable[[Answer], F64]) -> bool:
    """Whether a suspect gives what the target gave, on the wrong answers first."""
    first = wrong[0]
    if not (first.explains(name, suspected(first)) and first.explains_most(name, suspected(first))):
        return False
    return all(a.explains(name, suspected(a)) for a in answers if a is not first)


def _telling(wrong: list[Answer], suspect: Suspect) -> Answer:
    """The call on which the suspect is seen best."""
    return max(wrong, key=lambda a: float(np.max(np.abs(suspect.output(a.steps) - a.right["out"]), initial=0.0)))


def _suspects(target: Target, wrong: list[Answer]) -> Iterator[Suspect]:
    yield from (suspect for suspect in SUSPECTS if target.form in suspect.forms)
    yield from _estimated(wrong)


def _estimated(wrong: list[Answer]) -> Iterator[Suspect]:
    """What has a number in it that the answers themselves tell: a factor, or something added to the sums."""
    factors, added = [], []
    for answer in wrong:
        right, got = answer.right["out"], answer.got["out"]
        rows = np.sum(right * right, axis=-1, keepdims=True)
        factor = np.sum(right * got, axis=-1, keepdims=True) / rows
        factors.extend(factor[rows > 0.01])
        weight = np.sum(answer.steps.weights[0], axis=-1, keepdims=True)
        added.extend((weight * (1 / factor - 1))[rows > 0.01])
    if len(factors) >= 8:
        c = float(np.median(factors))
        if abs(c - 1) > 1e-3 and np.isfinite(c):
            text = "the output has the wrong sign" if c == -1 else f"the output is {c:.4g} times what it should be"
            yield Suspect(text, lambda s: np.asarray(c * s.out))
        eps = float(np.median(added))
        agree = np.mean(np.abs(np.array(added) - eps) < 0.1 * eps)
        if 0 < eps < 1e-1 and agree > 0.5:
            yield Suspect(
                f"{_round(eps):g} is added to the sum of the weights",
                lambda s: np.asarray(s.but(is_normalized=False).out / (s.total + eps)) if s.is_normalized else None,
            )


def _round(x: float) -> float:
    return float(f"{x:.1g}")


# ---- Gradients -----------------------------------------------------------------------


def _wrong_gradient(target: Target, known: Evidence, asked: list[Answer], deadline: float) -> str:
    answers = known.gradients + asked
    names = [n for n in ("q", "k", "v", "bias", "alpha") if any(n in a.got and not a.is_right(n) for a in answers)]
    if not names:
        return ""
    if _changes_when_repeated(known):
        return KEPT
    texts: dict[str, list[str]] = {}
    for name in names:
        text = _wrong_gradient_of(target, name, [a for a in answers if name in a.got], deadline)
        if text:
            texts.setdefault(text, []).append(name)
    if not texts:
        return _precision(target, known.gradients, names) or _where_it_is_wrong(known.gradients, *names)
    return "; ".join(f"the gradient of {' and '.join(who)} {text}" for text, who in texts.items())


def _changes_when_repeated(known: Evidence) -> bool:
    first = known.gradients[0]
    assert first.dout is not None
    again = known.watched.gradients(first.call, first.dout)
    return any(bool(np.any(np.abs(again[name] - first.got[name]) > first.allowed[name])) for name in again)


def _wrong_gradient_of(target: Target, name: str, answers: list[Answer], deadline: float) -> str:
    wrong = [a for a in answers if not a.is_right(name)]
    backward = {id(a): a.steps.backward(a.dout) for a in answers if a.dout is not None}

    def fits(suspect: Callable[..., dict[str, F64]]) -> bool:
        _in_time(deadline)
        return _explains(answers, wrong, name, lambda a: suspect(backward[id(a)]).get(name, a.right[name]))

    for suspect in WRONG_GRADIENTS:
        if fits(suspect.wrong):
            return suspect.text
    for other, gradient in of_another_function(target.form):
        if fits(gradient.wrong):
            return f"is that of another function: there, {other.words(wrong[0].steps)}"
    ratios = [float(np.sum(a.got[name] * a.right[name]) / np.sum(a.right[name] ** 2)) for a in wrong]
    c = float(np.median(ratios))
    if fits(lambda b: {n: c * g for n, g in b.grads().items()}):
        return f"is {c:.4g} times what it should be"
    return ""


# ---- Patterns ------------------------------------------------------------------------


def _not_finite(target: Target, watched: Watched) -> str:
    """Why there is NaN or infinity where there should be numbers."""
    for call, out in watched.outputs:
        rows = np.asarray(~np.isfinite(out).all(axis=-1))
        if rows.any():
            text = _reason(target, call, rows)
            if text:
                return text
    for call, _, grads in watched.gradient_calls:
        for name, g in grads.items():
            if not np.isfinite(g).all():
                nan: Any = ~np.isfinite(g).all(axis=-1) if name == "q" else np.ones(call.q.shape[:-1], bool)
                text = _reason(target, call, nan)
                if text:
                    return f"in the gradient of {name}, {text}"
    return ""


def _reason(target: Target, call: Call, rows: Any) -> str:
    """Of what is not finite in some of the rows."""
    sees: Any = call.visible()
    if not all(np.isfinite(x).all() for x in call.arrays.values()):
        seen = _sees_something_not_finite(call)
        if np.any(rows & ~seen):
            return (
                "NaN or infinity that a mask hides gets through: 0 x NaN is NaN, so that what is hidden has to be "
                "left out with a select, not multiplied by zero"
            )
        return ""
    if np.all(~sees.any(axis=-1)[rows]):
        return "a row that sees nothing is 0/0, or -inf - (-inf), and so NaN; it should give zero"
    steps = Steps.of(target.form, call)
    scores = np.where(steps.sees, np.abs(steps.z + steps.bias), 0.0)
    if steps.is_normalized and np.all(np.sum(steps.weights[0], axis=-1)[rows] == 0):
        return "a row whose weights are all zero is 0/0, and so NaN; it should give zero"
    largest = float(np.max(scores, initial=0.0))
    compute = {"bfloat16": "float32"}.get(target.dtype, target.dtype)
    top = float(np.finfo(compute).max)
    if GRID[target.form].score == "exp" and largest > 0.9 * np.log(min(top, 65504.0)):
        return NO_MAXIMUM
    if GRID[target.form].row == "mean" and largest > min(top, 65504.0) ** 0.5:
        remedy = {"z^2/(1+z^2)": "above 1, write it in 1/z"}.get(GRID[target.form].score, "divide a row by its largest")
        return f"the square of a large score overflows, and infinity over infinity is NaN: {remedy}"
    return ""


def _sees_something_not_finite(call: Call) -> Bool:
    """Which rows may well be NaN."""
    key: Any = ~(np.isfinite(call.k).all(axis=-1) & np.isfinite(call.v).all(axis=-1))
    bias = np.asarray(call.options.get("bias", 0.0))
    pairs = call.visible() & (key[..., None, :] | np.isnan(bias) | (bias == np.inf))
    return np.asarray(pairs.any(axis=-1) | ~np.isfinite(call.q).all(axis=-1))


def _precision(target: Target, answers: Sequence[Answer], names: Sequence[str]) -> str:
    """The errors are those of a shorter dtype: in most calls, and nowhere larger."""
    if np.mean([all(n not in a.got or a.is_right(n) for n in names) for a in answers]) > 0.5:
        return ""
    for dtype in ("float32", "float16", "bfloat16"):
        if ROUNDOFF[dtype] < ROUNDOFF[target.dtype] or (dtype == target.dtype and dtype not in HALF):
            continue
        coarser = ROUNDOFF[dtype] / ROUNDOFF["float32"]
        sizes = [
            float(np.max(np.abs(a.got[n] - a.right[n]) / (coarser * a.unit[n] + 1e-300), initial=0.0))
            for a in answers
            for n in names
            if n in a.got
        ]
        if len(sizes) >= 6 and max(sizes) < 8 and np.mean(np.array(sizes) > 2e-3) > 0.7:
            same = ", where sums and exp have to be float32's" if dtype == target.dtype else ""
            return (
                f"the errors are of the size of {dtype}'s rounding: something on the way is computed in {dtype}{same}"
            )
    return ""


def _features(call: Call) -> dict[str, bool]:
    """What may make the difference, by the words for it."""
    Tq, Tk, d, dv = call.sizes
    yes = {
        "Tq and Tk differ": Tq != Tk,
        "Tq is larger than Tk": Tq > Tk,
        "Tk is larger than Tq": Tk > Tq,
        "there are fewer keys than dimensions": Tk < d,
        "there is more than one batch entry": int(np.prod(call.q.shape[:-2])) > 1,
        "there are leading axes": call.q.ndim > 2,
        "a mask is given": call.get("mask") is not None,
        "no mask is given": call.get("mask") is None,
        "is_causal is given": call.is_causal,
        "is_causal is not given": not call.is_causal,
        "a bias is given": call.get("bias") is not None,
        "a scale is given": call.get("scale") is not None,
        "no scale is given": call.get("scale") is None,
        "a feature map is given": call.get("feature_map") is not None,
        "normalize is given": bool(call.get("normalize")),
        "d is odd": d % 2 == 1,
        "dv is odd": dv % 2 == 1,
    }
    for n in (2, 4):
        yes[f"Tk is not a multiple of {n}"] = Tk % n != 0
        yes[f"Tk is larger than {n}"] = Tk > n
        yes[f"Tq is larger than {n}"] = Tq > n
        yes[f"d is larger than {n}"] = d > n
    return yes


def _where(good: Sequence[Call], bad: Sequence[Call]) -> str:
    """The one feature that all bad calls have and no good one; empty unless there are enough of both."""
    if min(len(good), len(bad)) < 3:
        return ""
    for words, is_so in _features(bad[0]).items():
        if is_so and all(_features(c)[words] for c in bad) and not any(_features(c)[words] for c in good):
            return words
    return ""


def _where_it_is_wrong(answers: Sequence[Answer], *names: str) -> str:
    bad = [a.call for a in answers if any(n in a.got and not a.is_right(n) for n in names)]
    good = [a.call for a in answers if all(n not in a.got or a.is_right(n) for n in names)]
    words = _where(good, bad)
    return f"it goes wrong exactly where {words}" if words else ""


def _where_it_raises(target: Target) -> str:
    known = gradient_evidence_on(target) if target.has_gradient else evidence_on(target)
    good = [a.call for a in known.outputs if not any(a.call is c for c in known.raised)]
    words = _where(good, known.raised)
    return f"it raises exactly where {words}" if words else ""


__all__ = ["likely_cause"]
