"""Training: it learns, and it can be stopped at any instant."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvq_ref import files
from kvq_ref.dispatch import FORMS, file_name
from kvq_ref.lab import train as training
from kvq_ref.lab.config import Config
from kvq_ref.lab.train import RunError, train

SMALL: dict[str, Any] = {"width": 8, "layers": 1, "batch": 8, "evaluate_every": 5, "evaluate_on": 32, "target": 2.0}
RESULTS = ("config.toml", "metrics.jsonl", "checkpoint.safetensors", "result.json")


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in RESULTS}


def test_it_learns(tmp_path: Path) -> None:
    result = train(Config(form="expressive", N=2, tau=5), tmp_path / "run")
    assert result["solved"]
    assert result["accuracy"] == 1.0
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(50, result["steps"] + 1, 50))
    assert rows[-1]["loss"] < rows[0]["loss"]


@pytest.mark.parametrize("form", [file_name(name) for name in FORMS])
def test_every_form_and_task(form: str, tmp_path: Path) -> None:
    scale = {"scale": 0.05} if form == "linear" else {}
    for task in ("nt", "several", "lookup"):
        result = train(Config(task=task, form=form, N=4, tau=3, steps=10, **scale, **SMALL), tmp_path / task)
        assert result["steps"] == 10
        assert not result["diverged"]
        assert 0 <= result["accuracy"] <= 1
    assert {"accuracy N=2 tau=5", "accuracy N=3 tau=4"} <= set(
        json.loads((tmp_path / "several/result.json").read_text())
    )


def test_the_same_seed_gives_the_same_bits(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        train(Config(steps=10, seed=int(name == "c"), **SMALL), tmp_path / name)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a")["metrics.jsonl"] != contents(tmp_path / "c")["metrics.jsonl"]


class StopHereError(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_resume(optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped at every kind of step: before a checkpoint, at one, and after."""
    config = Config(steps=43, optimizer=optimizer, schedule="cosine", **SMALL)
    train(config, tmp_path / "whole")
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 0.0)
    for stop in (1, 4, 5, 6, 20, 42, 43):

        def report(step: int, row: dict[str, Any], stop: int = stop) -> None:
            if step == stop:
                raise StopHereError

        folder = tmp_path / str(stop)
        with pytest.raises(StopHereError):
            train(config, folder, report=report)
        train(config, folder, resume=True)
        assert contents(folder) == contents(tmp_path / "whole"), stop


WORKER = """
import sys
from pathlib import Path
from kvq_ref.lab import train as training
from kvq_ref.lab.config import Config
training.CHECKPOINT_EVERY = 0.0
print("begin", flush=True)
training.train(Config.from_toml(sys.argv[1]), Path(sys.argv[2]), resume=True)
"""


def test_killed_at_20_random_instants(tmp_path: Path) -> None:
    """kill -9, again and again, each time a little further: the end has the bits of a run that was let alone."""
    config = Config(steps=700, **SMALL)
    begun = time.monotonic()
    train(config, tmp_path / "whole")
    seconds = time.monotonic() - begun
    chance = random.Random(os.environ.get("KVQ_REF_SEED"))
    kills, folder = 0, tmp_path / "0"
    while kills < 20:
        command = [sys.executable, "-c", WORKER, config.to_toml(), str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=tmp_path) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(chance.uniform(0, seconds / 4))
            process.kill()
        kills += process.returncode == -signal.SIGKILL
        if (folder / "result.json").exists():  # the run has ended: begin another
            assert contents(folder) == contents(tmp_path / "whole")
            folder = tmp_path / str(int(folder.name) + 1)
    train(config, folder, resume=True)
    assert contents(folder) == contents(tmp_path / "whole")


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever file cannot be written, what is there stays, and the run resumes from it."""
    config = Config(steps=40, **SMALL)
    train(config, tmp_path / "whole")
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 0.0)
    for n in (1, 2, 3, 6, 9, 15, 17, 18):
        left = n

        def full(path: Path, content: bytes | str) -> Path:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(28, "No space left on device", str(path))
            return files.write_atomically(path, content)

        folder = tmp_path / str(n)
        monkeypatch.setattr(training, "write_atomically", full)
        with pytest.raises(OSError, match="No space left"):
            train(config, folder)
        monkeypatch.setattr(training, "write_atomically", files.write_atomically)
        train(config, folder, resume=True)
        assert contents(folder) == contents(tmp_path / "whole"), n


def test_a_finished_run_is_read(tmp_path: Path) -> None:
    config = Config(steps=5, **SMALL)
    result = train(config, tmp_path / "run")
    before = (tmp_path / "run/result.json").stat().st_mtime_ns
    assert train(config, tmp_path / "run", resume=True) == result
    assert (tmp_path / "run/result.json").stat().st_mtime_ns == before


def test_refusals(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(Config(steps=5, **SMALL), folder)
    with pytest.raises(RunError, match="holds this run already"):
        train(Config(steps=5, **SMALL), folder)
    with pytest.raises(RunError, match="holds another run: it differs in N, seed"):
        train(Config(steps=5, seed=1, N=3, **SMALL), folder, resume=True)
    (folder / "result.json").unlink()
    (folder / "checkpoint.safetensors").write_bytes(b"no tensors")
    with pytest.raises(RunError, match="this is no checkpoint of the run"):
        train(Config(steps=5, **SMALL), folder, resume=True)
    (folder / "config.toml").write_text("N = ")
    with pytest.raises(RunError, match=r"config\.toml"):
        train(Config(steps=5, **SMALL), folder, resume=True)


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    config = Config(form="linear", rate=1e30, optimizer="sgd", norm="none", steps=50, warm_up=0, **SMALL)
    with np.errstate(all="ignore"):
        result = train(config, tmp_path / "run")
    assert result["diverged"]
    assert not result["solved"]
    assert result["steps"] < 50
    stored = json.loads((tmp_path / "run/result.json").read_text())
    assert stored["loss"] is None
    assert train(config, tmp_path / "run", resume=True) == stored
