"""The cells of a sweep on a Dask cluster, here of two processes on this machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvq_ref.cli import main
from kvq_ref.lab import cluster
from kvq_ref.lab.cell import folder_of
from kvq_ref.lab.cluster import ClusterError, run_from_files, run_on_cluster
from kvq_ref.lab.config import Config
from kvq_ref.lab.grid import axis, grid
from kvq_ref.lab.sweep import run_sweep

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")

SMALL: dict[str, Any] = {"tau": 2, "N": 3, "width": 8, "batch": 8, "evaluate_on": 32, "target": 2.0}
SAME = ("config.toml", "metrics.jsonl", "checkpoint.safetensors", "result.json")


def contents(configs: list[Config], out: Path) -> dict[str, bytes]:
    return {f"{c.name}/{name}": (folder_of(c, out) / name).read_bytes() for c in configs for name in SAME}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A scheduler that gives up all that a worker had, once it is lost."""
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            silence_logs=50,
            local_directory=str(tmp_path_factory.mktemp("dask")),
        ) as workers,
    ):
        yield workers.scheduler_address


def killing(seed: int, times: int, tally: Path) -> Any:
    """What a worker does, but before it trains that seed it kills itself, so many times.

    It is defined inside a function so that it travels to the workers by value.
    """

    def run(settings: dict[str, Any], files: dict[str, bytes]) -> Any:
        from kvq_ref.lab.cluster import run_from_files  # the worker's own

        deaths = len(list(tally.iterdir()))
        if settings["seed"] == seed and deaths < times:
            (tally / str(deaths)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return run_from_files(settings, files)

    return run


def test_lost_workers_change_nothing(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = grid(SMALL | {"steps": 40, "evaluate_every": 20}, [axis("form=softmax,expressive"), ("seed", [0, 1])])
    assert len(list(run_sweep(configs, tmp_path / "here"))) == 4
    (tmp_path / "tally").mkdir()
    monkeypatch.setattr(cluster, "run_from_files", killing(1, 1, tmp_path / "tally"))
    outcomes = list(run_on_cluster(configs, tmp_path / "there", address))
    assert [x.state for x in outcomes] == ["finished"] * 4
    assert len(list((tmp_path / "tally").iterdir())) == 1
    assert contents(configs, tmp_path / "here") == contents(configs, tmp_path / "there")
    assert [x.is_new for x in run_on_cluster(configs, tmp_path / "there", "tcp://nobody:1")] == [False] * 4


def test_cells_that_fail_and_kill(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = grid(SMALL | {"steps": 4, "evaluate_every": 2}, [("seed", [0, 1, 2])])
    broken = folder_of(configs[2], tmp_path)
    broken.mkdir(parents=True)
    (broken / "config.toml").write_text(configs[2].to_toml())
    (broken / "checkpoint.safetensors").write_text("half")
    (tmp_path / "tally").mkdir()
    monkeypatch.setattr(cluster, "run_from_files", killing(1, 99, tmp_path / "tally"))
    outcomes = {x.config.seed: x for x in run_on_cluster(configs, tmp_path, address)}
    assert [outcomes[seed].state for seed in (0, 1, 2)] == ["finished", "failed", "failed"]
    assert "lost with its workers" in outcomes[1].error
    assert "remove it to begin anew" in outcomes[2].error
    for seed in (1, 2):
        assert configs[seed].command() in (outcomes[seed].folder / "error.txt").read_text()


def test_the_command(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "nt", "--tau", "2", "--N", "3", "--width", "8", "--steps", "4", "--evaluate-on", "32"]
    assert main([*arguments, "--seeds", "2", "--scheduler", address, "--out", str(tmp_path)]) == 0
    assert "2 of 2 runs finished" in capsys.readouterr().out
    assert main([*arguments, "--seeds", "3", "--scheduler", "tcp://127.0.0.1:x", "--out", str(tmp_path)]) == 1
    assert "tcp://127.0.0.1:x: no scheduler answers" in capsys.readouterr().err


def test_no_scheduler(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"tcp://127.0.0.1:1: no scheduler answers"):
        list(run_on_cluster([Config(**SMALL)], tmp_path, "tcp://127.0.0.1:1", timeout=0.5))


def test_a_cell_continues_from_the_files_that_are_sent(tmp_path: Path) -> None:
    config = Config(**SMALL, steps=40, evaluate_every=20)
    files, error = run_from_files(config.settings, {})
    assert not error
    del files["result.json"]
    again, _ = run_from_files(config.settings, dict(files))
    assert again["metrics.jsonl"] == files["metrics.jsonl"]
    assert b'"steps": 40,' in again["cost.json"]  # none was trained again
