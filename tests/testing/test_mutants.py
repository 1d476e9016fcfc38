"""The laws find every bug that they are given."""

from __future__ import annotations

import os
from collections import Counter

import numpy as np
import pytest

from kvq_ref.dispatch import FORMS
from kvq_ref.testing import verify
from testing.mutants import MUTANTS, Mutant, broken_laws, plain, target_of
from testing.mutants.lines import in_its_dtype

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
SEEDS = 20 if THOROUGH else 1

PLAIN = {
    "softmax_attention": plain.softmax,
    "expressive_attention": plain.expressive,
    "quadratic_attention": plain.quadratic,
    "taylor_attention": plain.taylor,
    "sigmoid_attention": plain.sigmoid,
    "local_linear_attention": in_its_dtype(plain.local_linear),
    "linear_attention": plain.linear,
    "intention": plain.intention,
    "sigma_intention": plain.sigma,
    "expressive_intention": plain.expressive_intention,
    "delta_rule": plain.delta,
    "gated_linear_attention": plain.gated,
    "mesa_attention": plain.mesa,
}


def test_there_are_mutants_of_every_form() -> None:
    count = Counter(mutant.form for mutant in MUTANTS)
    assert set(count) == set(FORMS)
    assert min(count.values()) >= 5
    assert all(mutant.bug.endswith(".") for mutant in MUTANTS)


@pytest.mark.parametrize("form", PLAIN)
def test_what_the_mutants_are_made_of_is_right(form: str, rng: np.random.Generator) -> None:
    """So that each has the one bug that it is said to have."""
    report = verify(PLAIN[form], form, examples=20, seed=int(rng.integers(2**32)), gradient=False)
    assert [finding.law for finding in report.broken] == []
    assert report.checked


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_laws_find_it(mutant: Mutant, rng: np.random.Generator) -> None:
    """At least one is broken, for every seed; and not because the mutant cannot be called."""
    for _ in range(SEEDS):
        seed = int(rng.integers(2**32))
        verdict = next(broken_laws(mutant, target_of(mutant), seed), None)
        assert verdict is not None, f"{mutant.bug} No law notices that ({seed=})"
        print(f"{mutant.name} breaks {verdict.law.name} ({seed=})")
        raised = verdict.counterexample is not None and verdict.counterexample.kind == "raised"
        assert not raised or any("raise" in words or "differ" in words for words in mutant.cause)
