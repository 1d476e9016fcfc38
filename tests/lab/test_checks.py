"""The checks of the lab hold for the forms, and are refuted by wrong ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import kvq_ref as kvq
from kvq_ref.lab import correctness
from kvq_ref.lab.check import Check, measure
from kvq_ref.lab.correctness import CASES, check_form
from kvq_ref.lab.geometry import measure_geometry
from kvq_ref.lab.limits import measure_limits
from kvq_ref.testing import ORACLES


@pytest.mark.parametrize("name", ORACLES)
def test_every_form_holds(name: str, rng: np.random.Generator) -> None:
    rows = check_form(name, int(rng.integers(2**32)))
    assert [row.case for row in rows] == list(CASES)
    assert [check.sentence() for row in rows for check in row.checks if not check.holds] == []


def wrong(monkeypatch: pytest.MonkeyPatch, name: str, change: Any) -> None:
    """Replace a public form by one that is wrong."""
    good = getattr(kvq, name)

    def bad(q: Any, k: Any, v: Any, **options: Any) -> Any:
        return change(good(q, k, v, **options))

    monkeypatch.setattr(kvq, name, bad)


def test_measure_keeps_an_exception() -> None:
    check = measure("ratio", 1.0, lambda x: 1 / x, 0.0)
    assert not check.holds
    assert "ZeroDivisionError" in check.sentence()


def test_nan_refutes() -> None:
    assert not Check("x", float("nan"), 1.0).holds
    assert "is not <=" in Check("x", float("nan"), 1.0).sentence()
    assert np.isnan(correctness.relative_error(np.array([1.0, np.nan]), np.ones(2)))


def test_limits_hold_for_any_seed(rng: np.random.Generator) -> None:
    limits = measure_limits(int(rng.integers(2**32)))
    assert [check.sentence() for check in limits.checks if not check.holds] == []


@pytest.mark.parametrize("name", ["intention", "linear_attention", "sigma_intention", "expressive_attention"])
def test_limits_are_refuted_by_a_wrong_form(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong(monkeypatch, name, lambda out: out * (1 + 1e-5))
    failed = [check.name for check in measure_limits(0).checks if not check.holds]
    assert failed
    assert any(name in x or name == "linear_attention" for x in failed)


def test_geometry_holds_and_is_refuted() -> None:
    assert all(check.holds for check in measure_geometry().checks)


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("expressive_attention", lambda out: out + 1e-6, "90 and 270"),
        ("expressive_attention", lambda out: np.roll(out, 1, axis=-1), "expressive attends most"),
        ("softmax_attention", lambda out: 1 - out, "0 degrees"),
        ("softmax_attention", lambda out: np.roll(out, 1, axis=-1), "180 degrees"),
    ],
)
def test_geometry_is_refuted_by_a_wrong_form(
    name: str, change: Any, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong(monkeypatch, name, change)
    failed = [check.name for check in measure_geometry().checks if not check.holds]
    assert any(word in x for x in failed), failed
