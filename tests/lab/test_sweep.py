"""Sweeps: which runs they have, and that nothing stops them for good."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvq_ref.lab import cell, sweep
from kvq_ref.lab.cell import folder_of, forget, run_cell
from kvq_ref.lab.config import Config
from kvq_ref.lab.grid import axis, grid, read_settings, seeds, values
from kvq_ref.lab.sweep import run_sweep

SMALL: dict[str, Any] = {"tau": 2, "N": 3, "width": 8, "batch": 8, "evaluate_on": 32, "target": 2.0}
TINY = SMALL | {"steps": 4, "evaluate_every": 2}
SAME = ("config.toml", "metrics.jsonl", "checkpoint.safetensors", "result.json")


def contents(configs: list[Config], out: Path) -> dict[str, bytes]:
    return {f"{c.name}/{name}": (folder_of(c, out) / name).read_bytes() for c in configs for name in SAME}


# ---- The grid --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("tau", "2:5", [2, 3, 4, 5]),
        ("tau", "2:12:5", [2, 7, 12]),
        ("tau", "3:3", [3]),
        ("tau", "9,2:3", [9, 2, 3]),
        ("form", "softmax, expressive", ["softmax", "expressive"]),
        ("rate", "1e-3,0.5,1", [0.001, 0.5, 1.0]),
        ("T", "none,12", [None, 12]),
        ("tasks", "2:5 3:4,2:3", ["2:5 3:4", "2:3"]),
    ],
)
def test_values(name: str, text: str, expected: list[Any]) -> None:
    assert values(name, text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tau", "expected NAME=VALUES"),
        ("tau=", "expected NAME=VALUES"),
        ("taw=2", "did you mean 'tau'?"),
        ("tau=2:", "expected a whole number"),
        ("tau=5:2", "expected FIRST:LAST"),
        ("tau=1:9:0", "expected FIRST:LAST"),
        ("tau=1:2:3:4", "expected FIRST:LAST"),
        ("tau=2,x", "expected a whole number, got 'x'"),
        ("rate=1:2", "expected a number, got '1:2'"),
        ("tau=2.5", "expected a whole number"),
    ],
)
def test_an_axis_that_is_none(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=r"NAME|tau|rate") as refusal:
        axis(text)
    assert words in str(refusal.value)


def test_seeds() -> None:
    assert seeds("3") == [0, 1, 2]
    assert seeds("3:5") == [3, 4, 5]
    assert seeds("1,7") == [1, 7]
    for text in ("0", "-1", "x", "1.5"):
        with pytest.raises(ValueError, match="seed"):
            seeds(text)


def test_a_grid_is_every_combination_of_settings_that_are_valid() -> None:
    configs = grid({"N": 3}, [axis("form=softmax,expressive"), axis("tau=2:4"), ("seed", [0, 1])])
    assert len(configs) == 12
    assert len({config.name for config in configs}) == 12
    assert all(config.N == 3 for config in configs)


@pytest.mark.parametrize(
    ("fixed", "axes", "words"),
    [
        ({}, ["form=softmax,expresive"], "did you mean 'expressive'? (at form=expresive)"),
        ({}, ["N=2,1"], "N: expected at least 2, got 1 (at N=1)"),
        ({"width": 32}, ["heads=2,3", "tau=5"], "(at heads=3, tau=5)"),
        ({"layrs": 2}, ["tau=5"], "did you mean 'layers'?"),
        ({"tau": 5}, ["tau=2:3"], "tau: it is given twice"),
        ({}, ["tau=2", "tau=3"], "tau: it is given twice"),
        ({"alpha": 1.0}, ["form=intention,softmax"], "softmax attention takes none"),
    ],
)
def test_a_grid_with_one_bad_run_is_refused(fixed: dict[str, Any], axes: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=r".") as refusal:
        grid(fixed, [axis(text) for text in axes])
    assert words in str(refusal.value)


def test_runs_that_are_the_same_are_one() -> None:
    assert len(grid({}, [axis("form=softmax,softmax_attention")])) == 1
    assert len(grid({}, [axis(f"T=none,{Config(tau=5).settings['T']}"), axis("tau=5")])) == 1
    assert len(grid({}, [axis("optimizer=adamw,sgd"), axis("momentum=0.5,0.9")])) == 3


def test_settings_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text(Config(tau=7, form="expressive").to_toml())
    assert Config.of(read_settings(path)) == Config.of(Config(tau=7, form="expressive").settings)
    for text, words in (("taw = 2", "did you mean 'tau'"), ("tau = ", "my.toml"), ("\0", "my.toml")):
        path.write_text(text)
        with pytest.raises(ValueError, match=words):
            read_settings(path)


# ---- Sweeps ----------------------------------------------------------------------------


def test_a_sweep_is_continued_and_extended(tmp_path: Path) -> None:
    configs = grid(TINY, [axis("form=softmax,expressive"), ("seed", [0, 1])])
    first = list(run_sweep(configs[:2], tmp_path))
    assert [(x.state, x.is_new) for x in first] == [("finished", True)] * 2
    times = [(x.folder / "result.json").stat().st_mtime_ns for x in first]
    again = list(run_sweep(configs, tmp_path))
    assert {x.config.name for x in again} == {c.name for c in configs}
    assert sorted(x.is_new for x in again) == [False, False, True, True]
    assert [(x.folder / "result.json").stat().st_mtime_ns for x in first] == times
    assert {path.name for path in (tmp_path / "cells").iterdir()} == {c.name for c in configs}


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    configs = grid(TINY, [axis("form=softmax,expressive"), ("seed", [0, 1])])
    for jobs, out in ((1, tmp_path / "one"), (2, tmp_path / "two")):
        assert [x.state for x in run_sweep(configs, out, jobs)] == ["finished"] * 4
    assert contents(configs, tmp_path / "one") == contents(configs, tmp_path / "two")


def test_costs_are_kept_apart_from_results(tmp_path: Path) -> None:
    outcome = run_cell(Config(**TINY), tmp_path / "cell")
    cost = json.loads((tmp_path / "cell/cost.json").read_text())
    assert cost["steps"] == 4
    assert cost["seconds"] > 0
    assert not {"seconds", "steps_per_second"} & outcome.result.keys()


def fail_at(seed: int, error: Exception) -> Callable[..., Any]:
    train = cell.train

    def fails(config: Config, *rest: Any, **how: Any) -> Any:
        if config.seed == seed:
            raise error
        return train(config, *rest, **how)

    return fails


def test_a_failing_cell_is_reported_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = grid(TINY, [("seed", [0, 1, 2])])
    monkeypatch.setattr(cell, "train", fail_at(1, FloatingPointError("no such\nluck")))
    outcomes = {x.config.seed: x for x in run_sweep(configs, tmp_path)}
    assert [outcomes[seed].state for seed in (0, 1, 2)] == ["finished", "failed", "finished"]
    assert outcomes[1].error == "FloatingPointError: no such"
    text = (outcomes[1].folder / "error.txt").read_text()
    for words in ("FloatingPointError: no such\nluck", configs[1].command(), "tau = 2", "Traceback"):
        assert words in text
    monkeypatch.undo()
    assert [x.state for x in run_sweep(configs, tmp_path)] == ["finished"] * 3
    assert not (outcomes[1].folder / "error.txt").exists()


def test_a_broken_folder_is_a_failing_cell(tmp_path: Path) -> None:
    configs = grid(TINY, [("seed", [0, 1])])
    list(run_sweep(configs, tmp_path))
    folder = folder_of(configs[0], tmp_path)
    (folder / "result.json").unlink()
    (folder / "checkpoint.safetensors").write_bytes(b"half")
    first, second = sorted(run_sweep(configs, tmp_path), key=lambda x: x.config.seed)
    assert second.state == "finished"
    assert first.state == "failed"
    assert "remove it to begin anew" in first.error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_stops_the_sweep_and_loses_nothing(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = grid(TINY, [("seed", [0, 1, 2])])
    monkeypatch.setattr(cell, "train", fail_at(1, OSError(number, "full", "x")))
    with pytest.raises(OSError, match="full"):
        list(run_sweep(configs, tmp_path))
    assert (folder_of(configs[0], tmp_path) / "result.json").exists()
    monkeypatch.undo()
    assert [x.is_new for x in run_sweep(configs, tmp_path)] == [False, True, True]


def test_a_cell_is_trained_by_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(**TINY)
    folder = folder_of(config, tmp_path)
    folder.mkdir(parents=True)
    with open(folder / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run_cell(config, folder).state == "busy"
        # the sweep comes back to it
        monkeypatch.setattr(sweep.time, "sleep", lambda seconds: fcntl.flock(file, fcntl.LOCK_UN))
        assert [x.state for x in run_sweep([config], tmp_path)] == ["finished"]


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint.safetensors.abc").write_text("half")
    (tmp_path / ".mine").write_text("kept")
    run_cell(Config(**TINY), tmp_path)
    assert sorted(path.name for path in tmp_path.glob(".*")) == [".mine"]


def test_forget_removes_a_cell_and_nothing_else(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run_cell(Config(**TINY), tmp_path / name)
    (tmp_path / "b/notes.txt").write_text("mine")
    for name in ("a", "b", "none"):
        forget(tmp_path / name)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["b", "b/notes.txt"]


# ---- Lost workers ----------------------------------------------------------------------


def killing(victims: tuple[int, ...], times: int, tally: Path) -> Callable[..., Any]:
    """What a worker does, but at step 150 of some seeds it kills itself, so many times.

    It is defined inside a function so that it travels to the workers by value.
    """

    def in_worker(config: Config, folder: Path, token: str) -> Any:
        def report(step: int, row: dict[str, Any]) -> None:
            mark = tally / f"{config.seed}"
            deaths = len(mark.read_text()) if mark.exists() else 0
            if step == 150 and config.seed in victims and deaths < times:
                mark.write_text("x" * (deaths + 1))
                os.kill(os.getpid(), signal.SIGKILL)

        return run_cell(config, folder, token, report)

    return in_worker


def test_lost_workers_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = grid(SMALL | {"steps": 200, "evaluate_every": 20}, [axis("form=softmax,expressive"), ("seed", [0, 1])])
    assert len(list(run_sweep(configs, tmp_path / "undisturbed"))) == 4
    monkeypatch.setattr(sweep, "run_cell", killing((1,), 1, tmp_path))
    outcomes = list(run_sweep(configs, tmp_path / "disturbed", jobs=2))
    assert [x.state for x in outcomes] == ["finished"] * 4
    assert (tmp_path / "1").read_text() == "x"
    assert contents(configs, tmp_path / "undisturbed") == contents(configs, tmp_path / "disturbed")


def test_a_cell_that_always_kills_its_worker_fails_and_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = grid(SMALL | {"steps": 160, "evaluate_every": 20}, [("seed", [0, 1, 2])])
    monkeypatch.setattr(sweep, "run_cell", killing((1,), 99, tmp_path))
    outcomes = {x.config.seed: x for x in run_sweep(configs, tmp_path, jobs=2)}
    assert [outcomes[seed].state for seed in (0, 1, 2)] == ["finished", "failed", "finished"]
    assert outcomes[1].error == "it killed its process 3 times"
    assert (tmp_path / "1").read_text() == "xxx"
    assert configs[1].command() in (outcomes[1].folder / "error.txt").read_text()
