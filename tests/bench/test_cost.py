"""What a token costs: the command from end to end, what its report says, and what it refuses."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from kvq_ref import kernels
from kvq_ref.bench.cost import ALL, CostRun, as_text, cost_jobs, costs, failures, groups, slopes
from kvq_ref.bench.jobs import Job
from kvq_ref.bench.report import Results
from kvq_ref.bench.run import Options
from kvq_ref.bench.schedule import Effort
from kvq_ref.bench.summary import Case, Round
from kvq_ref.cli import main

TINY = ["bench", "cost", "--longest", "128", "--d", "4", "--jobs", "f", "--rounds", "2", "--budget", "0.01"]


def test_the_command_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--forms", "intention", "softmax", "--causal", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "**forward, causal: microseconds a token**" in printed
    assert "| T     | sequences | softmax | intention |" in printed
    results = Results.from_fields(json.loads((tmp_path / "cost.json").read_text(encoding="utf-8")))
    assert as_text(results) == (tmp_path / "cost.md").read_text(encoding="utf-8").strip()
    assert printed.startswith(as_text(results))
    rows = costs(results)
    assert [(row.T, row.batch, row.causal) for row in rows] == [(64, 2, True), (128, 1, True)]
    for row in rows:
        assert min(row.microseconds.values()) > 0
        assert row.is_reference == dict.fromkeys(("softmax", "intention"), kernels.missing is not None)
    pytest.importorskip("matplotlib")
    assert {path.name for path in tmp_path.iterdir()} == {"cost.json", "cost.md", "cost.png", "cost-dark.png"}


def test_an_interruption_leaves_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = CostRun._case

    def measure(self: Any, job: Job, folder: Path) -> Any:
        if self.results.cases:
            raise KeyboardInterrupt
        return whole(self, job, folder)

    monkeypatch.setattr(CostRun, "_case", measure)
    assert main([*TINY, "--forms", "linear", "--no-causal", "--out", str(tmp_path)]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "cost.json").read_text(encoding="utf-8"))["cases"]) == 1


def case(T: int, causal: bool, seconds: dict[str, float], probes: tuple[float, ...] = (10.0, 9.5, 9.0)) -> Case:
    return Case(Job(ALL, (4096 // T, 1, T, 8), "fb", causal), [Round(seconds, [probe]) for probe in probes])


def test_slopes_are_of_the_largest_T() -> None:
    """Intention's solve is shared by more and more tokens: its slope is taken where that no longer counts."""
    Ts = (64, 128, 256, 512, 1024, 2048, 4096)
    results = Results(
        cases=[
            case(
                T,
                False,
                {"softmax/compiled": 1e-8 * T, "linear/compiled": 1e-6, "intention/compiled": 1e-6 + 8e-3 / T**2},
            )
            for T in Ts
        ]
    )
    (rows,) = groups(costs(results)).values()
    assert [row.microseconds["softmax"] * 4096 for row in rows] == pytest.approx([1e-2 * T for T in Ts])
    found = slopes(rows)
    assert found["softmax"] == pytest.approx(1)
    assert found["linear"] == pytest.approx(0, abs=1e-9)
    assert -0.05 < found["intention"] < 0
    assert re.search(r"^\| slope \| +\| +1\.00 \| +0\.00 \| +-0\.01 \|$", as_text(results), re.MULTILINE)
    assert slopes(rows[:1]) == {}


def test_noise_references_and_failures_are_marked() -> None:
    quiet = case(128, True, {"softmax/compiled": 4.096e-3, "intention/reference": 8.192e-3})
    busy = case(64, True, {"softmax/compiled": 4.096e-3}, (5.0, 1.0, 1.0, 1.0))
    busy.failed["intention/all"] = "its process died: signal"
    busy.left_out["linear/reference"] = "needs about 9 GB"
    results = Results({"dtype": "float32", "torch.compile": "left out"}, [busy, quiet])
    text = as_text(results)
    assert "| 64    |        64 |      1~ |           |" in text
    assert "| 128   |        32 |       1 |        2* |" in text
    assert "left out: linear/reference needs about 9 GB (forms (64,1,64,8) fb causal)" in text
    assert failures(results) == ["forms (64,1,64,8) fb causal: intention/all its process died: signal"]
    assert f"WRONG: {failures(results)[0]}" in text
    assert "torch" not in text


def test_a_form_that_cannot_be_timed_fails_the_command(tmp_path: Path) -> None:
    options = Options(tmp_path, cost_jobs(64, 4, ["f"], [False]), peers=("linear", "none"), effort=Effort(1, 0.01))
    results = CostRun(options).measure()
    assert "none/all raised KeyError" in failures(results)[0]
    assert list(costs(results)[0].microseconds) == ["linear"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--longest", "63"], "--longest: expected at least 64, got 63"),
        (["--threads", str((os.cpu_count() or 1) + 100)], "this process may use"),
    ],
)
def test_refusals(arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "cost", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["--forms", "sofmax"], ["--d", "0"], ["--jobs", "b"], ["--budget", "0"]])
def test_unusable_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", "cost", *arguments])
    assert stop.value.code == 2
    assert arguments[0] in capsys.readouterr().err
