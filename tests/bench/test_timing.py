"""Interleaved timings."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from kvq_ref.bench import timing
from kvq_ref.bench.implementations import compare
from kvq_ref.bench.timing import Timing, interleaved
from kvq_ref.dispatch import FORMS
from kvq_ref.lab.correctness import why_no_kernel


def test_turns_are_taken_and_each_is_warmed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "LONG", 60.0)
    calls: list[str] = []
    timings = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, rest=0)
    assert "".join(calls) == "aabb" + "bbaa" + "aabb"
    assert {name: len(taken.seconds) for name, taken in timings.items()} == {"a": 3, "b": 3}


def test_the_budget_ends_the_rounds_but_not_the_first_three() -> None:
    timings = interleaved({"slow": lambda: time.sleep(0.002)}, rounds=100, budget=0.0, rest=0)
    assert len(timings["slow"].seconds) == 3
    assert timings["slow"].median >= min(timings["slow"].seconds) >= 0.002


def test_a_long_call_is_its_own_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "LONG", 0.0)
    calls: list[str] = []
    interleaved({"a": lambda: calls.append("a")}, rounds=4, rest=0)
    assert len(calls) == 4


def test_median() -> None:
    assert Timing([3.0, 1.0, 100.0]).median == 3.0


@pytest.mark.skipif(why_no_kernel("softmax_attention") != "", reason="the compiled kernels are not installed")
def test_comparison_of_implementations() -> None:
    (comparison,) = compare(["softmax_attention"], [(1, 2, 8, 4)], budget=0.0)
    assert comparison.ratio("forward") == comparison.forward["reference"] / comparison.forward["compiled"]
    assert comparison.rounds >= 3


def test_a_missing_kernel_is_an_error_and_not_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    form = FORMS["linear_attention"]
    only_reference = (form.implementation("reference"),)
    monkeypatch.setitem(FORMS, form.name, replace(form, implementations=only_reference))
    with pytest.raises(ValueError, match="there is no kernel for this form"):
        list(compare(["linear_attention"], [(1, 1, 4, 2)], budget=0.0))
