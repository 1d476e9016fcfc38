"""The likely cause of a broken law: the right one, or none."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import pytest

import kvq_ref as kvq
from kvq_ref.dispatch import FORMS
from kvq_ref.grid import GRID
from kvq_ref.testing import causes
from kvq_ref.testing.causes import likely_cause
from kvq_ref.testing.causes.evidence import evidence_on, random_calls, random_dout
from kvq_ref.testing.causes.steps import Steps
from kvq_ref.testing.causes.suspects import SUSPECTS
from kvq_ref.testing.laws.dense import reference_gradients
from kvq_ref.testing.run import Verdict, hold_to
from kvq_ref.testing.target import Target
from kvq_ref.testing.verify import select
from testing.mutants import MUTANTS, Mutant, broken_laws, plain, target_of

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"

# A sequential form is no sum of weights, and a line is not taken apart into steps: nothing is suspected of them, and
# the laws' own hints are all that is said.
each_form = pytest.mark.parametrize(
    "form", [name for name, form in FORMS.items() if not form.is_sequential and GRID[name].row != "line"]
)


# ---- The parts -----------------------------------------------------------------------


@each_form
def test_the_steps_of_a_form_are_the_form(form: str) -> None:
    """Output and gradients, in float64: what suspects are variations of has to be right itself."""
    target = Target(getattr(kvq, form), form, dtype="float64")
    for call in random_calls(target):
        steps = Steps.of(form, call)
        np.testing.assert_allclose(steps.out, target(call), rtol=1e-9, atol=1e-10)
        dout = random_dout(target, call)
        expected = reference_gradients(form, call, dout)
        for name, g in steps.backward(dout).grads().items():
            np.testing.assert_allclose(g, expected[name], rtol=1e-8, atol=1e-8, err_msg=name)


@each_form
def test_evidence_tells_every_suspect_from_the_truth(form: str) -> None:
    """On some random call; but for those that show on long sequences, large scores or empty rows alone."""
    target = Target(getattr(kvq, form), form, dtype="float64")
    answers = evidence_on(target).outputs
    special = ("tile", "multiple of", "maximum", "scores are", "sees nothing", "heads", "alpha of batch")
    for suspect in SUSPECTS:
        words = suspect.words(answers[0].steps)
        if form in suspect.forms and not any(x in words for x in special):
            outputs = [(suspect.output(a.steps), a.right["out"]) for a in answers]
            assert any(not np.allclose(x, y, rtol=1e-9, atol=1e-9) for x, y in outputs), words


def test_nothing_is_said_of_a_target_that_is_right() -> None:
    target = Target(kvq.softmax_attention, "softmax")
    (law,) = select(target.form, ["definition"])
    verdict = hold_to(law, target, seed=0)
    assert verdict.status == "holds"
    assert likely_cause(target, verdict) == ""


# ---- Mutants -------------------------------------------------------------------------


def test_a_cause_is_expected_of_most_mutants() -> None:
    assert sum(bool(mutant.cause) for mutant in MUTANTS) >= 100


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_right_cause_is_named(mutant: Mutant, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the words that stand beside the mutant, and never another; where none do, none.

    A call may be too simple to tell one bug from another. Then nothing is named but the law's own hint, and
    another call is asked.
    """
    monkeypatch.setattr(causes, "TIME", 60.0)  # what is named must not depend on how busy the machine is
    for _ in range(6):
        seed = int(rng.integers(2**32))
        target = target_of(mutant)
        verdict = next(broken_laws(mutant, target, seed, simplest=THOROUGH))
        cause = likely_cause(target, verdict)
        if mutant.cause and all(words in cause for words in mutant.cause):
            return
        observed = cause.startswith("it goes wrong exactly where")
        assert observed or cause in ("", verdict.law.hint), (cause, seed)
    assert not mutant.cause, f"none of six calls told that it is {mutant.cause}"


# ---- Targets that do not want to be looked at ----------------------------------------


def broken(target: Target, law: str = "definition") -> Verdict:
    (chosen,) = select(target.form, [law])
    verdict = hold_to(chosen, target, seed=0, simplest=False)
    assert verdict.status == "broken"
    return verdict


def test_an_unknown_bug_has_no_name() -> None:
    def odd(q: Any, k: Any, v: Any, **options: Any) -> Any:
        return plain.softmax(q, k, v, **options) + np.sin(3 * q.sum(axis=-1, keepdims=True)).astype(q.dtype)

    target = Target(odd, "softmax")
    assert likely_cause(target, broken(target)) == ""


def test_two_bugs_have_the_name_of_neither() -> None:
    def both(q: Any, k: Any, v: Any, *, is_causal: bool = False, mask: Any = None) -> Any:
        return plain.softmax(q, k, v, scale=1.0)

    target = Target(both, "softmax")
    assert likely_cause(target, broken(target)) == ""


def test_it_does_not_raise_where_the_target_does() -> None:
    """It was wrong first, and does not work any more when it is asked again."""
    works = True

    def fails(q: Any, k: Any, v: Any) -> Any:
        if not works:
            raise RuntimeError("enough")
        return np.ones_like(plain.softmax(q, k, v))

    target = Target(fails, "softmax")
    verdict = broken(target)
    works = False
    assert likely_cause(target, verdict) == verdict.law.hint


def test_it_does_not_wait_for_a_target_that_hangs() -> None:
    """And leaves the target's own thread alone, so that other laws can be checked."""
    hangs = False

    def mine(q: Any, k: Any, v: Any) -> Any:
        if hangs:
            time.sleep(2)
        return np.ones_like(plain.softmax(q, k, v))

    target = Target(mine, "softmax", limit=0.5)
    verdict = broken(target)
    hangs = True
    assert likely_cause(target, verdict) == verdict.law.hint
    hangs = False
    again = hold_to(verdict.law, target, simplest=False).counterexample
    assert again is not None
    assert again.kind == ""


@pytest.mark.parametrize("layout", ["any", "bhtd", "bthd"])
def test_the_layout_does_not_matter(layout: str) -> None:
    def mine(q: Any, k: Any, v: Any) -> Any:
        if layout == "bthd":
            q, k, v = (np.swapaxes(x, 1, 2) for x in (q, k, v))
        out = plain.softmax(q, k, v, scale=1.0)
        return np.swapaxes(out, 1, 2) if layout == "bthd" else out

    target = Target(mine, "softmax", layout=layout)
    assert "the scores are multiplied by 1" in likely_cause(target, broken(target))


def test_what_is_assumed_is_no_suspect() -> None:
    """A decoder's kernel that is always causal, and has no scale."""

    def mine(q: Any, k: Any, v: Any) -> Any:
        return plain.softmax(q, k, v, is_causal=True, scale=1.0)

    target = Target(mine, "softmax", assume={"is_causal": True})
    assert "the scores are multiplied by 1" in likely_cause(target, broken(target))
