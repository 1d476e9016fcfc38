"""One job, with workers that are made up: turns, pruning, disagreement, death."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvq_ref.bench.jobs import Job
from kvq_ref.bench.processes import WorkerDiedError, WorkerError
from kvq_ref.bench.schedule import Effort, Measurement, Workers, turns
from kvq_ref.bench.summary import Case, summarise

JOB = Job("softmax", (1, 1, 8, 4))
EFFORT = Effort(rounds=4, budget=1e9, window=0.0)


class MadeUp:
    """Answers like a worker: variants with their seconds; remembers who had a turn."""

    def __init__(self, peer: str, seconds: dict[str, float], turns: list[str]) -> None:
        self.peer, self.seconds, self.turns = peer, seconds, turns
        self.special: dict[tuple[str, str], Callable[[], Any]] = {}

    def ask(self, do: str, **content: Any) -> dict[str, Any]:
        name = content.get("variant", "")
        if (do, name) in self.special:
            found: dict[str, Any] = self.special[do, name]()
            return found
        if do == "window":
            self.turns.append(f"{self.peer}/{name}")
            return {"total": 2 * self.seconds[name], "calls": 2}
        return {"variants": list(self.seconds), "left_out": {}, "errors": {"out": 1e-6}}


class MadeUpProbe:
    def __init__(self, rates: list[float]) -> None:
        self.rates = rates

    def ask(self, do: str, **content: Any) -> dict[str, Any]:
        return {"rate": self.rates.pop(0) if self.rates else 100.0}


def fails(error: Exception) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


class Scene:
    """Ours and torch, and one job to measure."""

    def __init__(self, torch: dict[str, float], rates: list[float] | None = None) -> None:
        self.turns: list[str] = []
        self.ours = MadeUp("ours", {"reference": 5.0, "compiled": 1.0}, self.turns)
        self.torch = MadeUp("torch", torch, self.turns)
        self.workers = Workers({"ours": self.ours, "torch": self.torch}, MadeUpProbe(rates or []))

    def run(self, folder: Path) -> Case:
        return Measurement(JOB, self.workers, EFFORT, folder).run()


def test_every_round_begins_with_another() -> None:
    assert [turns(["a", "b", "c"], number)[0] for number in range(5)] == ["a", "b", "c", "a", "b"]


def test_all_that_could_be_the_best_take_turns(tmp_path: Path) -> None:
    scene = Scene({"fast": 2.0, "near": 5.0, "slow": 7.0})
    case = scene.run(tmp_path)
    assert len(case.rounds) == EFFORT.rounds
    assert scene.turns[:5] == ["ours/reference", "ours/compiled", "torch/fast", "torch/near", "torch/slow"]
    names = ["ours/reference", "ours/compiled", "torch/fast", "torch/near"]
    assert scene.turns[5:] == [name for number in range(EFFORT.rounds) for name in turns(names, number)]
    assert case.first["torch/slow"] == 7.0
    summary = summarise(case, 100.0)
    assert summary is not None
    assert summary.best == {"torch": "torch/fast", "reference": "ours/reference"}
    assert summary.ratio == {"torch": 2.0, "reference": 5.0}


def test_a_bad_round_is_repeated(tmp_path: Path) -> None:
    case = Scene({"a": 2.0}, rates=[100.0, 100.0, 10.0]).run(tmp_path)
    assert [round_.probe >= 75 for round_ in case.rounds] == [False, *[True] * EFFORT.rounds]


def test_a_spent_budget_leaves_three_rounds(tmp_path: Path) -> None:
    scene = Scene({"a": 2.0})
    assert len(Measurement(JOB, scene.workers, Effort(rounds=9, budget=0.0), tmp_path).run().rounds) == 3


@pytest.mark.parametrize("error", [1.0, float("nan"), float("inf")])
def test_a_variant_that_disagrees_is_reported_and_not_timed(error: float, tmp_path: Path) -> None:
    scene = Scene({"right": 2.0, "wrong": 1.0})
    scene.torch.special["check", "wrong"] = lambda: {"errors": {"out": 1e-6, "dq": error}}
    case = scene.run(tmp_path)
    assert list(case.wrong) == ["torch/wrong"]
    assert "dq" in case.wrong["torch/wrong"]
    assert "torch/wrong" not in scene.turns
    assert case.rounds


def test_a_variant_that_raises_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    scene = Scene({"good": 2.0, "bad": 1.0})
    scene.torch.special["window", "bad"] = fails(WorkerError("RuntimeError: no"))
    case = scene.run(tmp_path)
    assert case.failed == {"torch/bad": "raised RuntimeError: no"}
    assert {"torch/good", "ours/compiled"} <= set(case.rounds[-1].seconds)


def test_a_process_that_dies_is_reported_and_ours_goes_on(tmp_path: Path) -> None:
    scene = Scene({"good": 2.0, "bad": 1.0})
    scene.torch.special["check", "bad"] = fails(WorkerDiedError("it ended with exit status -11"))
    case = scene.run(tmp_path)
    assert "died: it ended with exit status -11" in case.failed["torch/bad"]
    assert "torch/good" in case.failed  # nobody is there to be asked
    assert list(scene.workers.peers) == ["ours"]
    assert len(case.rounds) == EFFORT.rounds
    assert set(case.rounds[-1].seconds) == {"ours/reference", "ours/compiled"}


@pytest.mark.parametrize("question", ["prepare", "expect", "window"])
def test_without_ours_there_are_no_ratios_and_no_crash(question: str, tmp_path: Path) -> None:
    scene = Scene({"good": 2.0})
    for name in ("", "reference", "compiled"):
        scene.ours.special[question, name] = fails(WorkerError("ValueError: no"))
    case = scene.run(tmp_path)
    assert case.failed
    assert summarise(case, 100.0) is None
