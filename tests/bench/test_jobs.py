"""What is measured: the plan, the inputs, the operations."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from kvq_ref.bench import peers
from kvq_ref.bench.jobs import FORMS, Job, flops, inputs, jobs
from kvq_ref.bench.peers import Variant, window
from kvq_ref.dispatch import FORMS as PUBLIC


def test_every_form_is_a_public_one() -> None:
    assert set(FORMS.values()) <= set(PUBLIC)


def test_a_job_survives_being_plain_data() -> None:
    job = Job("softmax", (1, 2, 8, 4), "fb", True, "float64")
    assert Job.from_fields({**asdict(job), "shape": list(job.shape)}) == job


def test_the_usual_table_has_a_job_for_each_shape_and_column() -> None:
    plan = jobs()
    assert len(plan) == len(set(plan)) == 4 * (5 + 3 * 4)


def test_inputs_are_the_same_in_every_process_and_differ_by_seed() -> None:
    job = Job("linear", (1, 2, 8, 4), dtype="float64")
    first, again, other = inputs(job, 1), inputs(job, 1), inputs(job, 2)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["q"], other["q"])
    assert first["q"].dtype == np.float64


def test_a_causal_score_is_counted_on_and_below_the_diagonal() -> None:
    whole, half = (flops(Job("softmax", (1, 1, 4, 2), causal=causal)) for causal in (False, True))
    assert whole == 4 * 4 * 2 * 4
    assert half == 10 * 2 * 4


def test_a_window_warms_up_and_then_fills_its_time() -> None:
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1

    total, counted = window(Variant(call, dict), 2e-3)
    assert calls > counted >= 1
    assert total >= 1e-3


def test_a_long_call_is_its_own_warm_up() -> None:
    calls: list[int] = []
    _, counted = window(Variant(lambda: calls.append(0), dict), 0.0)
    assert len(calls) == counted == 1


def test_errors_are_relative_to_the_largest_entry_and_a_missing_result_is_wrong() -> None:
    one = np.ones((2, 2))
    assert peers.errors({"out": 4 * one}, {"out": 2 * one, "dq": one}) == {"out": 1.0, "dq": float("inf")}
    assert np.isnan(peers.errors({"out": one * np.nan}, {"out": one})["out"])
