"""Rounds that count, ratios, tables, and the way to JSON and back."""

from __future__ import annotations

import json

import pytest

from kvq_ref.bench.jobs import Job
from kvq_ref.bench.report import Results, as_text, table
from kvq_ref.bench.summary import Case, Round, best_probe, kept, summarise
from kvq_ref.files import to_json

JOB = Job("softmax", (1, 8, 128, 32))


def a_round(ours: float, torch: float, probe: float = 100e9) -> Round:
    return Round({"ours/compiled": ours, "ours/reference": 9 * ours, "torch/SDPA": torch}, [probe, probe])


def some_results() -> Results:
    rounds = [a_round(1e-3, 2e-3), a_round(3e-3, 6.6e-3), a_round(1e-3, 9e-3, probe=50e9), a_round(2e-3, 4e-3)]
    causal = Case(Job("softmax", JOB.shape, causal=True), [a_round(1e-3, 3e-3)] * 3, first={"ours/compiled": 1e-3})
    return Results(
        config={"threads": "2", "dtype": "float32"},
        cases=[Case(JOB, rounds, first={"ours/compiled": 1e-3}, errors={"torch/SDPA": {"out": 1e-7}}), causal],
        latency=[Case(Job("softmax", (1, 1, 16, 16), what), [a_round(3e-6, 5e-6)]) for what in ("f", "vjp", "fb")],
        memory=[{"job": "softmax", "variant": "ours/compiled", "bytes": 3 * 2**20, "why": ""}],
        mixed=[{"product": 1e-3, "kernel": 1e-3, "turns": 2.2e-3}],
        missing={"jax": "jax is not installed"},
        scaling=1.9,
    )


def test_busy_rounds_are_dropped_and_counted() -> None:
    summary = summarise(some_results().cases[0], best_probe(some_results().cases, "float32"))
    assert summary is not None
    assert (summary.rounds, summary.dropped, summary.noisy) == (3, 1, False)


def test_a_ratio_is_the_median_of_the_ratios_of_rounds() -> None:
    summary = summarise(some_results().cases[0], 100e9)
    assert summary is not None
    assert summary.median["ours/compiled"] == 2e-3
    assert summary.ratio["torch"] == pytest.approx(2.0)  # of 2, 2.2, 2; not 4e-3 over some other round's
    assert summary.ratio["reference"] == pytest.approx(9.0)


def test_the_share_of_the_matrix_products_rate() -> None:
    operations = 8 * 128 * 128 * 32 * 4
    summary = summarise(Case(JOB, [a_round(1e-3, 2e-3)] * 3), 100e9)
    assert summary is not None
    assert summary.rate == operations / 1e-3
    assert summary.share == pytest.approx(operations / 1e-3 / 100e9)


def test_too_few_good_rounds_are_marked() -> None:
    rounds = [a_round(1.0, 2.0, probe=rate) for rate in (10.0, 40.0, 20.0, 30.0)]
    chosen, noisy = kept(rounds, 100.0)
    assert noisy
    assert [one.probe for one in chosen] == [40.0, 30.0, 20.0]
    results = Results(cases=[Case(JOB, rounds), Case(Job("linear", JOB.shape), [a_round(1.0, 2.0, probe=100.0)] * 3)])
    assert "2~" in as_text(results)


def test_without_rounds_there_is_no_summary() -> None:
    assert summarise(Case(JOB), 0.0) is None
    assert "softmax" not in as_text(Results(cases=[Case(JOB)]))


def test_where_no_kernel_serves_the_reference_stands_for_ours() -> None:
    rounds = [Round({"ours/reference": 2.0, "torch/a": 1.0}, [1.0])] * 3
    text = as_text(Results(cases=[Case(JOB, rounds)]))
    assert "0.5*" in text
    assert "* ours is the NumPy reference" in text


def test_everything_is_in_the_report() -> None:
    text = as_text(some_results())
    for part in (
        "torch's best / ours",
        "1,8,128,32",
        "SDPA",
        "3 of 4",
        "MiB",
        "1.10 times",
        "1.90 times",
        "jax is not",
    ):
        assert part in text, part
    assert "microseconds" in text
    assert "WRONG" not in text


def test_what_must_not_happen_is_named() -> None:
    results = some_results()
    results.cases[0].wrong["torch/x"] = "differs"
    results.cases[1].failed |= {"torch/y": "its process died: signal", "torch/z": "raised RuntimeError: not there"}
    assert len(results.failures) == 2
    text = as_text(results)
    assert text.count("WRONG") == 2
    assert "not timed: torch/z raised RuntimeError" in text


def test_results_survive_json() -> None:
    results = some_results()
    assert Results.from_fields(json.loads(to_json(results.fields()))) == results


def test_tables_are_markdown_and_aligned() -> None:
    lines = table(("a", "b"), [("long text", "1"), ("x", "22.5")]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert all(line.startswith("|") and line.endswith("|") for line in lines)


def test_figure() -> None:
    pytest.importorskip("matplotlib")
    from kvq_ref.bench.figure import ratio_figure

    assert ratio_figure(some_results()).startswith(b"\x89PNG")
    assert ratio_figure(some_results(), "jax") == b""
