"""The processes, and the command from end to end."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvq_ref.bench import memory, run
from kvq_ref.bench.jobs import FORMS, Job, jobs
from kvq_ref.bench.processes import Worker, WorkerDiedError, WorkerError, environment
from kvq_ref.bench.report import Results
from kvq_ref.bench.schedule import BARS, Effort
from kvq_ref.cli import main

SHAPE = "1,2,16,4"
QUICK = ["bench", "--quick", "--shapes", SHAPE, "--rounds", "2", "--budget", "0.1"]


@pytest.fixture
def ours() -> Iterator[Worker]:
    with Worker("ours", 1) as worker:
        yield worker


def test_a_worker_answers_and_survives_what_it_cannot_answer(ours: Worker) -> None:
    assert "numpy" in ours.ask("versions")["versions"]
    with pytest.raises(WorkerError, match="AttributeError"):
        ours.ask("nonsense")
    job = {"form": "linear", "shape": [1, 1, 8, 4], "what": "fb", "causal": True, "dtype": "float64"}
    assert "reference" in ours.ask("prepare", job=job, seed=0, compiled=False)["variants"]
    answer = ours.ask("window", variant="reference", seconds=1e-3)
    assert answer["total"] > 0
    assert answer["calls"] >= 1


def test_a_worker_that_dies_says_so(ours: Worker) -> None:
    os.kill(ours._process.pid, 9)
    with pytest.raises(WorkerDiedError, match="exit status"):
        ours.ask("versions")


def test_a_worker_that_hangs_is_ended(ours: Worker) -> None:
    with pytest.raises(WorkerDiedError, match="no answer within"):
        ours.ask("mixed", timeout=0.05, rounds=1000, seed=0)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_the_same_for_all_but_the_probe_has_a_single_threaded_blas(threads: int) -> None:
    for peer in ("ours", "torch", "jax"):
        assert environment(peer, threads)["OMP_NUM_THREADS"] == str(threads)
    assert environment("probe", threads)["OPENBLAS_NUM_THREADS"] == "1"


def test_the_probe_measures_a_rate() -> None:
    with Worker("probe", 1) as probe:
        assert probe.ask("rate", dtype="float32")["rate"] > 1e8


def test_memory_of_one_call(ours: Worker) -> None:
    entry = memory.measure(Job("softmax", (1, 1, 4096, 32)), "ours", 0, ours)
    assert entry["bytes"] is None or 0 <= entry["bytes"] < 64 * 2**20  # never T x T, which is as much


def test_the_command_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new"
    assert main([*QUICK, "--forms", *FORMS, "--jobs", "fb", "--peers", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "softmax: reference's best / ours" in printed
    results = Results.from_fields(json.loads((out / "bench.json").read_text(encoding="utf-8")))
    assert [x.job.form for x in results.summaries()] == [form for form in FORMS for _ in range(2)]
    assert results.config["threads"] == "1"
    assert (out / "bench.md").read_text(encoding="utf-8").strip() in printed


def test_latency_and_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core only")
    assert main([*QUICK, "--latency", "--mixed", "--peers", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "microseconds a call" in printed
    assert "Mixed with NumPy, 2 threads" in printed
    assert "best / ours" not in printed


@pytest.mark.oracle
@pytest.mark.parametrize("peer", ["torch", "jax"])
def test_every_formulation_of_a_peer_agrees_with_the_reference(peer: str, tmp_path: Path, ours: Worker) -> None:
    pytest.importorskip(peer)
    expected = str(tmp_path / "expected.npz")
    with Worker(peer, 1) as worker:
        for job in jobs(FORMS, [(1, 2, 64, 4)], ["fb"], dtype="float64"):
            question: dict[str, Any] = {"job": vars(job), "seed": 0, "compiled": False}
            ours.ask("prepare", **question)
            ours.ask("expect", variant="reference", path=expected)
            variants = worker.ask("prepare", **question)["variants"]
            assert variants
            for variant in variants:
                errors = worker.ask("check", variant=variant, path=expected)["errors"]
                assert len(errors) == 4, (str(job), variant)
                assert max(errors.values()) < BARS["float64"], (str(job), variant)


@pytest.mark.oracle
def test_the_command_with_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    assert main([*QUICK, "--forms", "softmax", "--jobs", "f", "--peers", "torch", "--out", str(tmp_path)]) == 0
    assert "softmax: torch's best / ours" in capsys.readouterr().out
    assert (tmp_path / "bench.png").exists()


def test_an_interruption_leaves_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = []

    def measure(self: Any, job: Job, folder: Path) -> Any:
        if done:
            raise KeyboardInterrupt
        done.append(whole(self, job, folder))
        return done[0]

    whole = run.Run._case
    monkeypatch.setattr(run.Run, "_case", measure)
    assert main([*QUICK, "--forms", "linear", "--jobs", "f", "--peers", "--out", str(tmp_path)]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))["cases"]) == 1


def test_a_process_that_died_is_started_anew_for_the_next_job(tmp_path: Path) -> None:
    started: list[str] = []

    class Mortal(Worker):
        """Dies on its first timing."""

        def ask(self, do: str, timeout: float = 60.0, **content: Any) -> dict[str, Any]:
            if do == "window" and started.count("ours") == 1:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._process.pid, 9)
            return super().ask(do, timeout, **content)

    def start(peer: str, threads: int) -> Worker:
        started.append(peer)
        return Mortal(peer, threads)

    options = run.Options(
        tmp_path,
        [Job("linear", (1, 1, 8, 4)), Job("softmax", (1, 1, 8, 4))],
        peers=("ours",),
        effort=Effort(2, 0.1, compiled=False),
    )
    results = run.Run(options, start=start).measure()
    assert started == ["ours", "probe", "ours"]
    assert len(results.failures) == 1
    assert "died" in results.failures[0]
    assert [x.job.form for x in results.summaries()] == ["softmax"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shapes", "1,2,3"], "BATCH,HEADS,T,D"),
        (["--shapes", "1,2,3,0"], "BATCH,HEADS,T,D"),
        (["--forms", "sofmax"], "softmax"),
        (["--jobs", "b"], "f,fb"),
        (["--threads", "0"], "threads"),
        (["--budget", "-1"], "budget"),
    ],
)
def test_unusable_arguments(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", *arguments])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_more_threads_than_cores_and_a_file_for_a_folder_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*QUICK, "--threads", "100000"]) == 2
    assert "cores" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main([*QUICK, "--out", str(tmp_path / "file")]) == 2
    assert "cannot be made a folder" in capsys.readouterr().err
