"""Training of models that read a context: every form and task, the same bits, errors as targets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvq_ref.dispatch import FORMS, file_name
from kvq_ref.lab import train as training
from kvq_ref.lab.catalogue import TASKS
from kvq_ref.lab.config import Config
from kvq_ref.lab.train import held_out, train

SMALL: dict[str, Any] = {"width": 8, "batch": 8, "evaluate_every": 5, "evaluate_on": 16}
IN_CONTEXT = [name for name, entry in TASKS.items() if "encoder" in entry.model]
RESULTS = ("config.toml", "metrics.jsonl", "checkpoint.safetensors", "result.json")


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in RESULTS}


@pytest.mark.parametrize("task", IN_CONTEXT)
def test_every_form_and_task(task: str, tmp_path: Path) -> None:
    target = 2.0 if TASKS[task].score.sign > 0 else 0.0
    for form in map(file_name, FORMS):
        # recurrences that correct what they recall need keys of length 1
        config = Config(task=task, form=form, norm="unit", steps=5, target=target, **SMALL)
        result = train(config, tmp_path / form)
        name = TASKS[task].score.name
        assert result["steps"] == 5
        assert not result["solved"]
        assert not result["diverged"]
        assert result[name] == result[f"best_{name}"] >= 0


def test_intention_learns_sinusoids_and_softmax_lags(tmp_path: Path) -> None:
    """A tenth of the steps are enough to tell: 0.01 against more than 1."""
    errors = {}
    for form in ("intention", "softmax"):
        errors[form] = train(Config(task="sinusoid", form=form, steps=400, evaluate_on=128), tmp_path / form)["error"]
    assert errors["intention"] < errors["softmax"] / 5


def test_an_error_as_a_target(tmp_path: Path) -> None:
    """It stops at the first evaluation that is as good, and the score is of what training draws from alone."""
    config = Config(task="linear_regression", form="intention", target=0.1, **SMALL)
    result = train(config, tmp_path / "run")
    assert result["solved"]
    assert result["steps"] < config.steps
    assert result["error"] == result["error as trained"] <= 0.1
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(row["error"] > 0.1 for row in rows[:-1])
    assert {"error noise=0.5", "error K=8", "error K=32", "error d=4"} <= set(rows[0])


def test_a_range_of_contexts_is_scored_at_each(tmp_path: Path) -> None:
    result = train(Config(task="sinusoid", K=5, K_least=2, steps=5, **SMALL), tmp_path / "run")
    at_each = [result[f"error K={K}"] for K in (2, 3, 5)]
    assert result["error"] == pytest.approx(sum(at_each) / 3)


class StopHereError(Exception):
    pass


@pytest.mark.parametrize("task", ["sinusoid", "digits"])
def test_resume(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped before a checkpoint, at one, and after; with every part of the model."""
    how: dict[str, Any] = {"layers": 2, "heads": 2, "norm": "pre", "values": "encoded", "mlp": 1, "target": 2.0}
    how |= {"target": 0.0} if task == "sinusoid" else {}
    config = Config(task=task, form="intention", steps=13, **how, **SMALL)
    train(config, tmp_path / "whole")
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 0.0)
    for stop in (1, 5, 6, 13):

        def report(step: int, row: dict[str, Any], stop: int = stop) -> None:
            if step == stop:
                raise StopHereError

        folder = tmp_path / str(stop)
        with pytest.raises(StopHereError):
            train(config, folder, report=report)
        train(config, folder, resume=True)
        assert contents(folder) == contents(tmp_path / "whole"), stop


def test_every_form_is_tested_on_the_same_episodes() -> None:
    one, other = (held_out(Config(task="sinusoid", form=form, layers=n)) for form, n in (("softmax", 1), ("linear", 2)))
    assert (one[0].queries == other[0].queries).all()
    assert (one[0].queries != held_out(Config(task="sinusoid", seed=1))[0].queries).any()
