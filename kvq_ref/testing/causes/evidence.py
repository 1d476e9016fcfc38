"""What is known of a target: its answers to calls that can tell the suspects from the truth."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import hypothesis
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings

from kvq_ref.testing.calls import F64, OPTIONAL, SIMPLE, UNROUND, Call
from kvq_ref.testing.causes.steps import Steps
from kvq_ref.testing.laws.law import Law
from kvq_ref.testing.rounding import Rounding, rounding
from kvq_ref.testing.run import Counterexample
from kvq_ref.testing.target import MisbehavedError, Target

DRAWN = 96
ASKED = 24
RECORDED = 16
SQUARE = 4
VARIED = 6
LARGEST = 1_000_000
LENGTHS = (12, 24, 48, 100)
TIME = 1.0  # seconds of the processor for asking
WALL = 5.0  # seconds


class Watched(Target):
    """A target that remembers what it was asked and what it answered; it waits less long, in a thread of its own."""

    def __init__(self, target: Target) -> None:
        self.__dict__.update(vars(target))
        self.on_call = None
        self.limit = min(target.limit, 2.0)
        self._worker = type(target._worker)()
        self.outputs: list[tuple[Call, F64]] = []
        self.gradient_calls: list[tuple[Call, F64, dict[str, F64]]] = []
        self.written = ""

    def forget(self) -> None:
        self.outputs, self.gradient_calls = [], []

    def ask(self, call: Call) -> tuple[Any, dict[str, Any]]:
        out, given = super().ask(call)
        for name, x in self.arrays(call).items():
            if not np.array_equal(self.framework.read(x), self.framework.read(given[name]), equal_nan=True):
                self.written = name
        return out, given

    def __call__(self, call: Call) -> F64:
        out = super().__call__(call)
        self.outputs.append((call, out))
        return out

    def gradients(self, call: Call, dout: F64) -> dict[str, F64]:
        grads = super().gradients(call, dout)
        self.gradient_calls.append((call, dout, grads))
        return grads


@dataclass(eq=False)
class Answer:
    """An output, or the gradients of a call, beside what is right; ``allowed`` is what rounding explains."""

    call: Call
    steps: Steps
    got: dict[str, F64]
    right: dict[str, F64]
    allowed: dict[str, F64]
    unit: dict[str, F64]  # of float32
    dout: F64 | None = None

    def is_right(self, name: str) -> bool:
        return bool(np.all(distance(self.got[name], self.right[name]) <= self.allowed[name]))

    def explains(self, name: str, suspected: F64) -> bool:
        """Whether another value than the right one is what came, but for rounding; NaN does not tell."""
        if np.isnan(suspected).any():
            return True
        deviation = np.max(distance(suspected, self.right[name]), initial=0.0)
        return bool(np.all(distance(self.got[name], suspected) <= 4 * self.allowed[name] + 0.01 * deviation))

    def explains_most(self, name: str, suspected: F64) -> bool:
        """Whether it is much nearer to what came than the truth is."""
        rest = np.max(distance(self.got[name], suspected), initial=0.0)
        return bool(rest <= 0.1 * np.max(distance(self.got[name], self.right[name]), initial=0.0))


def distance(a: F64, b: F64) -> F64:
    """Infinite where one alone is NaN."""
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    difference = np.abs(a - b)
    return np.where(same, 0.0, np.where(np.isnan(difference), np.inf, difference))


@dataclass
class Evidence:
    """Answers to the same random calls, for all laws that a target breaks."""

    watched: Watched
    calls: list[Call]
    outputs: list[Answer] = field(default_factory=list)
    gradients: list[Answer] = field(default_factory=list)
    raised: list[Call] = field(default_factory=list)
    unread: str = ""


_KNOWN: weakref.WeakKeyDictionary[Target, Evidence] = weakref.WeakKeyDictionary()


def evidence_on(target: Target) -> Evidence:
    """Answers to random calls; asked for once."""
    if target not in _KNOWN:
        found = Evidence(Watched(target), random_calls(target))
        _ask(found)
        _KNOWN[target] = found
    return _KNOWN[target]


def gradient_evidence_on(target: Target) -> Evidence:
    """As above, and the gradients."""
    found = evidence_on(target)
    if not found.gradients and target.has_gradient:
        in_time = _stopwatch()
        for call in found.calls:
            if not in_time():
                break
            dout = random_dout(target, call)
            try:
                grads = found.watched.gradients(call, dout)
            except MisbehavedError:
                found.raised.append(call)
                continue
            answer = gradient_answer(target, call, dout, grads)
            if answer is not None:
                found.gradients.append(answer)
    return found


def random_calls(target: Target) -> list[Call]:
    """Calls of every kind that the target takes, with numbers that have many digits and are not zero."""
    drawn: list[Call] = []

    @hypothesis.seed(0)
    @settings(
        max_examples=DRAWN,
        database=None,
        deadline=None,
        derandomize=False,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,),
    )
    @given(target.calls())
    def draw(call: Call) -> None:
        drawn.append(call)

    draw()
    # First one call of each combination of options, then more of them.
    seen: Counter[frozenset[str]] = Counter()
    turns = []
    for call in drawn:
        kind = frozenset(name for name, x in call.options.items() if x is not False)
        turns.append((min(call.sizes[:2]) == 1, seen[kind]))
        seen[kind] += min(call.sizes[:2]) > 1
    ordered = [drawn[i] for i in sorted(range(len(drawn)), key=turns.__getitem__)]
    if "keys apart" in target.offers:
        ordered = [_square(call) for call in ordered if _has_pairs(call)][:SQUARE] + ordered
    rng = np.random.default_rng(0)
    return [target.representable(_fill(call, rng)) for call in ordered[:ASKED]]


def _has_pairs(call: Call) -> bool:
    """Whether it has a mask or a bias for each query."""
    Tq = call.sizes[0]
    return Tq > 1 and any(np.shape(call.options[n])[-2] == Tq for n in ("mask", "bias") if n in call.options)


def _square(call: Call) -> Call:
    """With as many queries as keys."""
    n = min(call.sizes[:2])
    return call.queries(slice(n)).keys(slice(n))


def _fill(call: Call, rng: np.random.Generator, keeps_mask: bool = False) -> Call:
    def numbers(x: Any) -> F64:
        return UNROUND * np.asarray(rng.choice(SIMPLE[SIMPLE != 0], np.shape(x)))

    changes: dict[str, Any] = {name: numbers(getattr(call, name)) for name in "qkv"}
    if call.get("bias") is not None:
        changes["bias"] = numbers(call.options["bias"])
    if call.get("mask") is not None and not keeps_mask:
        mask = rng.random(np.shape(call.options["mask"])) < 0.6
        mask[..., 0] = True
        changes["mask"] = mask
    return call.but(**changes)


def random_dout(target: Target, call: Call) -> F64:
    rng = np.random.default_rng(1)
    shape = (*call.q.shape[:-1], call.v.shape[-1])
    return target.representable(Call(rng.choice(SIMPLE[SIMPLE != 0], shape), call.k, call.v)).q


def _stopwatch() -> Callable[[], bool]:
    """Whether there is time left: of the processor, so that it does not matter what else is running."""
    cpu, wall = time.process_time(), time.perf_counter()
    return lambda: time.process_time() - cpu < TIME and time.perf_counter() - wall < WALL


def _ask(found: Evidence) -> None:
    in_time = _stopwatch()
    watched = found.watched
    for call in found.calls:
        if not in_time():
            break
        try:
            out = watched(call)
        except MisbehavedError:
            found.raised.append(call)
            continue
        answer = output_answer(watched, call, out)
        if answer is not None:
            found.outputs.append(answer)
    with contextlib.suppress(MisbehavedError):
        found.unread = _unread(watched, found.outputs[:6])


def _unread(watched: Watched, answers: list[Answer]) -> str:
    """Which of q, k and v has no influence on the outputs, though it should; empty if all have."""
    rng = np.random.default_rng(2)
    for name in ("q", "k", "v"):
        same = []
        for answer in answers:
            x = getattr(answer.call, name)
            other = watched.representable(answer.call.but(**{name: 0.5 + rng.permuted(x.ravel()).reshape(x.shape)}))
            if np.any(np.abs(Steps.of(watched.form, other).out - answer.right["out"]) > 0.01):
                same.append(np.array_equal(watched(other), answer.got["out"], equal_nan=True))
                if not same[-1]:
                    break
        if len(same) > 1 and all(same):
            return name
    return ""


def output_answer(target: Target, call: Call, out: F64) -> Answer | None:
    """None if the call is not one for suspects: too large, or with NaN or infinity in it."""
    if not is_ordinary(call):
        return None
    steps = Steps.of(target.form, call)
    bound, single = target.rounding(call), _of_float32(target, call)
    right = {"out": np.asarray(steps.out)}
    return Answer(call, steps, {"out": out}, right, {"out": bound.allowed()}, {"out": single.unit["out"]})


def gradient_answer(target: Target, call: Call, dout: F64, grads: dict[str, F64]) -> Answer | None:
    if not is_ordinary(call) or not np.all(np.isfinite(dout)):
        return None
    steps = Steps.of(target.form, call)
    right = steps.backward(dout).grads()
    bound, single = target.rounding(call, dout), _of_float32(target, call, dout)
    allowed = {name: np.asarray(bound.allowed(name)) for name in grads}
    return Answer(call, steps, grads, right, allowed, {name: single.unit[name] for name in grads}, dout)


def _of_float32(target: Target, call: Call, dout: F64 | None = None) -> Rounding:
    return rounding(target.form, call, "float32", dout)


def is_ordinary(call: Call) -> bool:
    arrays = all(np.all(np.isfinite(x)) for x in call.arrays.values())
    per_pair = call.k.shape[-1] ** 2 if "alpha" in call.options else 1
    size = int(np.prod(call.q.shape[:-1])) * call.k.shape[-2] * per_pair
    phi = call.get("feature_map")
    return (
        arrays and 0 < size <= LARGEST and set(call.options) <= set(OPTIONAL) and (phi is None or isinstance(phi, str))
    )


def varied(found: Evidence, asked: list[Call]) -> list[Answer]:
    """Calls like those that a law asked for, with other numbers in them, and of other lengths."""
    rng = np.random.default_rng(3)
    calls = [call for call in asked if is_ordinary(call)][-VARIED:]
    if calls and "keys apart" in found.watched.offers:
        last = calls[-1]
        Tk = last.k.shape[-2]
        calls += [last.keys(slice(n)) for n in LENGTHS if n < Tk]
        if Tk <= LENGTHS[0]:
            calls += [_widened(call.keys(np.tile(np.arange(call.k.shape[-2]), 3))) for call in calls]
    answers = []
    for call in calls:
        other = found.watched.representable(_fill(call, rng, keeps_mask=True))
        with contextlib.suppress(MisbehavedError):
            answer = output_answer(found.watched, other, found.watched(other))
            answers.extend([answer] if answer is not None else [])
    return answers


def _widened(call: Call) -> Call:
    """With two more dimensions, and a column of values more."""
    (q, k), v = (np.concatenate([x] * 3, axis=-1)[..., : x.shape[-1] + 2] for x in (call.q, call.k)), call.v
    return call.but(q=q, k=k, v=np.concatenate([v, v[..., :1]], axis=-1))


def repeats(found: Evidence, answers: list[Answer]) -> bool:
    """Whether the target answers to these calls as it did before."""
    for answer in answers:
        if np.any(distance(found.watched(answer.call), answer.got["out"]) > answer.allowed["out"]):
            return False
    return True


def watch(target: Target, law: Law, found: Counterexample) -> Watched:
    """Check the law once more on its counterexample, and see what it asks."""
    watched = evidence_on(target).watched
    watched.forget()
    with contextlib.suppress(MisbehavedError, hypothesis.errors.UnsatisfiedAssumption):
        for _ in law.check(watched, found.call, **found.more):
            pass
    return watched
