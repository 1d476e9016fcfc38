"""The likely cause of a broken law: the right one, or none."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from testing.mutants import MUTANTS, Mutant, broken_laws, target_of

import kvq_ref as kvq
from kvq_ref.testing import LAWS, causes
from kvq_ref.testing.causes import likely_cause
from kvq_ref.testing.causes.steps import Steps
from kvq_ref.testing.gradients import check_vjp
from kvq_ref.testing.run import Counterexample, Verdict, hold_to
from kvq_ref.testing.target import Target
from kvq_ref.testing.verify import select

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
SEEDS = 5 if THOROUGH else 1
FOUND = [mutant for mutant in MUTANTS if not mutant.hole]


def test_a_cause_is_expected_of_most_mutants() -> None:
    assert sum(bool(mutant.cause) for mutant in FOUND) >= 100


@pytest.mark.parametrize("mutant", FOUND, ids=lambda mutant: mutant.name)
def test_the_right_cause_is_named(mutant: Mutant, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the words that stand beside the mutant; where none do, nothing is named but a law's own hint."""
    for _ in range(SEEDS):
        seed = int(rng.integers(2**32))
        target = target_of(mutant)
        verdict = next(broken_laws(mutant, target, seed, simplest=THOROUGH))
        cause = likely_cause(target, verdict)
        if mutant.cause:
            assert all(words in cause for words in mutant.cause), (cause, seed)
        else:
            assert cause in ("", verdict.law.hint), seed
