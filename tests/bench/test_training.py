"""Training steps side by side: the same step for everybody, and the command from end to end."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvq_ref import kernels
from kvq_ref.bench.processes import Worker
from kvq_ref.bench.schedule import BARS
from kvq_ref.bench.training import Step, steps
from kvq_ref.bench.training_run import TrainingResults, as_text, rates
from kvq_ref.cli import main

TINY = Step("small", layers=2, width=8, heads=2, batch=3, T=5, dtype="float64")
QUICK = ["bench", "train", "--quick", "--rounds", "2", "--budget", "0.1"]


def errors_of(peer: str, step: Step, tmp_path: Path) -> dict[str, dict[str, float]]:
    """By variant of a peer, the errors of loss and gradients against the reference's."""
    expected = str(tmp_path / "expected.npz")
    question: dict[str, Any] = {"job": vars(step), "seed": 0, "compiled": False}
    with Worker("ours", 1) as ours, Worker(peer, 1) as worker:
        ours.ask("prepare", **question)
        ours.ask("expect", variant="reference", path=expected)
        variants = worker.ask("prepare", **question)["variants"]
        return {name: worker.ask("check", variant=name, path=expected)["errors"] for name in variants}


def test_kernels_make_the_step_of_the_formulas(tmp_path: Path) -> None:
    if kernels.missing is not None:
        pytest.skip(f"the kernels are not installed ({kernels.missing})")
    errors = errors_of("ours", TINY, tmp_path)
    assert set(errors) == {"reference", "compiled"}
    assert set(errors["compiled"]) == {"loss", *TINY.transformer().shapes()}
    assert max(errors["compiled"].values()) < BARS["float64"]


@pytest.mark.oracle
@pytest.mark.parametrize("positions", ["none", "alibi"])
def test_torch_makes_the_same_step(positions: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    step = Step(**{**vars(TINY), "positions": positions})
    errors = errors_of("torch", step, tmp_path)
    assert set(errors) == {"eager"}
    assert set(errors["eager"]) == {"loss", *step.transformer().shapes()}
    assert max(errors["eager"].values()) < BARS["float64"]


@pytest.mark.parametrize("threads", ["1", "1,2"])
def test_the_command_from_end_to_end(threads: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if threads != "1" and hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core only")
    assert main([*QUICK, "--peers", "--threads", threads, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert str(steps(["small"])[0]) in printed
    results = TrainingResults.from_fields(json.loads((tmp_path / "train.json").read_text(encoding="utf-8")))
    rows = rates(results)
    assert [x.threads for x in rows] == [int(n) for n in threads.split(",")]
    assert rows[0].rate[rows[0].ours] > 0
    assert as_text(results) == (tmp_path / "train.md").read_text(encoding="utf-8").strip()
    if kernels.missing is None:
        assert set(rows[0].ratio) == {"ours/reference"}
        assert (tmp_path / "train.png").exists()


@pytest.mark.oracle
def test_the_command_with_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    assert main([*QUICK, "--out", str(tmp_path)]) == 0
    assert "torch eager" in capsys.readouterr().out


def test_quartiles_and_noise_are_in_the_table() -> None:
    fields = {
        "config": {"dtype": "float32"},
        "cases": [
            {
                "job": vars(steps(["small"])[0]),
                "rounds": [
                    {"seconds": {"ours/compiled": 0.5, "torch/eager": x}, "probes": [probe]}
                    for x, probe in ((1.0, 9.0), (1.5, 10.0), (2.0, 9.5), (50.0, 1.0))
                ],
            }
        ],
    }
    results = TrainingResults.from_fields({"1": fields})
    (row,) = rates(results)
    assert row.ratio == {"torch/eager": (3.0, 2.5, 3.5)}
    assert row.rate == {"ours/compiled": 2.0, "torch/eager": 1 / 1.5}
    assert (row.rounds, row.dropped, row.noisy) == (3, 1, False)
    text = as_text(results)
    assert "3 (2.5 to 3.5)" in text
    assert "3 of 4" in text
    assert "1.0" not in text.split("\n")[2]


def test_what_cannot_be_measured_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    too_many = str(len(os.sched_getaffinity(0)) + 1) if hasattr(os, "sched_getaffinity") else "100000"
    assert main([*QUICK, "--threads", f"1,{too_many}", "--out", str(tmp_path)]) == 2
    assert f"--threads {too_many}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*QUICK, "--threads", "1,"])
    assert "expected numbers of threads, as in 1,2, got '1,'" in capsys.readouterr().err


def test_every_process_begins_with_the_same_numbers() -> None:
    from kvq_ref.bench.training import inputs

    first, second = (inputs(TINY, 3) for _ in range(2))
    for name, x in first.items():
        np.testing.assert_array_equal(x, second[name])
