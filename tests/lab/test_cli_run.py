"""``kvq-ref run`` and ``kvq-ref report``: what they refuse, what they print, and that they can be stopped."""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kvq_ref.cli import main
from kvq_ref.cli_run import GROUPS
from kvq_ref.lab import cell
from kvq_ref.lab.config import FIELDS, Config

TINY = ["--tau", "2", "--N", "3", "--width", "8", "--batch", "8", "--evaluate-on", "32", "--steps", "4"]
TINY += ["--evaluate-every", "2", "--target", "2"]
SAME = ("config.toml", "metrics.jsonl", "checkpoint.safetensors", "result.json")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def cells(out: str = "kvq-runs") -> list[Path]:
    return sorted(Path(out, "cells").iterdir())


# ---- Arguments -------------------------------------------------------------------------


def test_every_setting_is_an_option_and_its_help_has_the_default() -> None:
    texts = {name: text for group in GROUPS.values() for name, (_, text) in group.items()}
    assert {"task", *texts} == set(FIELDS)
    for field in dataclasses.fields(Config):
        if isinstance(field.default, (int, float)) or (field.default is not None and field.name != "task"):
            default = f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
            assert texts[field.name].endswith(f"(default: {default})"), field.name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nt", "--form", "expresive"], "did you mean 'expressive'?"),
        (["nt", "--N", "1"], "N: expected at least 2, got 1"),
        (["nt", "--heads", "3"], "heads: expected a divisor of the width, 32, got 3"),
        (["nt", "--set", "taw=2"], "did you mean 'tau'?"),
        (["nt", "--set", "heads=2,3", "--set", "tau=2:3"], "(at heads=3, tau=2)"),
        (["ntt"], "did you mean 'nt'?"),
        ([], "TASK is missing"),
        (["nt", "--tau", "x"], "tau: expected a whole number, got 'x'"),
        (["nt", "--tau", "2:12"], "several values go with --set tau=2:12"),
        (["nt", "--tau", "2", "--set", "tau=3"], "tau: it is given twice"),
        (["nt", "--seed", "2", "--seeds", "3"], "seed: it is given twice"),
        (["nt", "--seeds", "0"], "seeds: expected at least 1"),
        (["nt", "--config", "none.toml"], "none.toml: No such file"),
        (["nt", "--resume", "--restart"], "not both"),
    ],
)
def test_a_wrong_setting_is_refused_before_any_work(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("kvq-ref run: ")
    assert error.count("\n") == 1
    assert not list(Path().iterdir())


@pytest.mark.parametrize(("option", "near"), [("--taw", "--tau"), ("--warmup", "--warm-up"), ("--job", "--jobs")])
def test_a_misspelt_option(option: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["run", "nt", option, "5"])
    assert stop.value.code == 2
    assert f"{option} 5; did you mean {near}?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [
        ("joblib", ["run", "nt"], "lab"),
        ("safetensors", ["run", "nt"], "lab"),
        ("tomli_w", ["report", "."], "lab"),
        ("matplotlib", ["report", "."], "lab"),
        ("distributed", ["run", "nt", "--scheduler", "tcp://127.0.0.1:1"], "cluster"),
    ],
)
def test_missing_packages_are_named(
    package: str,
    arguments: list[str],
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == package else there(name, *rest)
    )
    assert main(arguments) == 2
    expected = f'kvq-ref {arguments[0]}: this needs {package}: pip install "kvq_ref[{extra}]"\n'
    assert capsys.readouterr().err == expected


def test_help_does_not_need_the_packages() -> None:
    code = "import sys; sys.modules.update(dict.fromkeys(['joblib', 'tomli_w', 'safetensors', 'distributed', 'tqdm']));"
    for command in (["--help"], ["run", "--help"], ["report", "--help"], ["config"]):
        done = subprocess.run(
            [sys.executable, "-c", f"{code} from kvq_ref.cli import main; sys.exit(main({command}))"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr


# ---- Runs ------------------------------------------------------------------------------


def test_one_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "nt", "--form", "expressive", *TINY]) == 0
    printed = capsys.readouterr()
    assert "not solved after 4 steps: loss " in printed.out
    (folder,) = cells()
    assert f"results   {folder}" in printed.out
    command = re.search(r"repeat +kvq-ref (.*)", printed.out)
    assert command
    before = (folder / "result.json").read_bytes()
    assert main([*command[1].split(), "--out", "again"]) == 0
    assert (Path("again/cells") / folder.name / "result.json").read_bytes() == before


def test_again_and_anew(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "nt", *TINY, "--resume"]) == 0
    assert "nothing to resume in kvq-runs; this is a beginning" in capsys.readouterr().err
    (folder,) = cells()
    before = (folder / "result.json").stat().st_mtime_ns
    assert main(["run", "nt", *TINY, "--resume"]) == 0
    printed = capsys.readouterr()
    assert "nothing to resume" not in printed.err
    assert "finished before; --restart trains it again" in printed.out
    assert (folder / "result.json").stat().st_mtime_ns == before
    assert main(["run", "nt", *TINY, "--restart"]) == 0
    assert (folder / "result.json").stat().st_mtime_ns > before


def test_a_sweep_and_its_report(capsys: pytest.CaptureFixture[str]) -> None:
    sweep = ["run", "nt", *TINY[2:], "--set", "form=softmax,expressive", "--set", "tau=2:3", "--seeds", "2"]
    assert main(sweep) == 0
    printed = capsys.readouterr()
    assert "8 of 8 runs finished\n" in printed.out
    assert len(re.findall(r"^[23] +(softmax|expressive) +2 +0 +not reached", printed.out, re.MULTILINE)) == 4
    assert "8 of 8 runs finished, " in printed.err  # a line, where there is no terminal
    assert len(cells()) == 8
    assert main([*sweep[:-1], "3"]) == 0
    assert "12 of 12 runs finished (8 of them before)" in capsys.readouterr().out

    assert main(["report", "kvq-runs"]) == 0
    printed = capsys.readouterr()
    assert "12 runs at 4 points of the grid, 3 seeds: 0 reached the target." in printed.out
    assert "report   kvq-runs/report.html" in printed.out
    assert main(["report", "kvq-runs", "--where", "tau=2", "--best", "form", "--out", "other"]) == 2
    assert main(["report", "kvq-runs", "--where", "tau=2", "--compare", "form", "--out", "other"]) == 0
    assert len(json.loads(Path("other/report.json").read_text())["runs"]) == 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none"], "none: there are no runs in it"),
        (["kvq-runs", "--where", "tau=9"], "no finished runs that fit"),
        (["kvq-runs", "--where", "taw=9"], "did you mean 'tau'?"),
        (["kvq-runs", "--compare", "from"], "did you mean 'form'?"),
        (["kvq-runs", "--compare", "form"], "form: it is the same in all runs"),
        (["kvq-runs", "--by", "seed"], "seed: it is the same"),
        (["kvq-runs", "--best", "rate"], "rate: it is the same"),
    ],
)
def test_a_report_that_cannot_be(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "nt", *TINY]) == 0
    capsys.readouterr()
    assert main(["report", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_settings_from_a_file_are_a_start() -> None:
    Path("my.toml").write_text('task = "nt"\ntau = 2\nsteps = 4\nwidth = 8\nseed = 5\nevaluate_every = 2\n')
    assert (
        main(["run", "--config", "my.toml", "--evaluate-on", "32", "--set", "tau=2,3", "--seeds", "1", "--N", "3"]) == 0
    )
    found = [Config.from_toml((folder / "config.toml").read_text()) for folder in cells()]
    assert sorted((x.tau, x.N, x.width, x.seed) for x in found) == [(2, 3, 8, 0), (3, 3, 8, 0)]


def test_a_failing_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    train = cell.train

    def fails(config: Config, *rest: Any, **how: Any) -> Any:
        if config.seed == 1:
            raise ArithmeticError("no luck")
        return train(config, *rest, **how)

    monkeypatch.setattr(cell, "train", fails)
    assert main(["run", "nt", *TINY, "--seeds", "3"]) == 1
    printed = capsys.readouterr()
    command = "kvq-ref run nt --N 3 --tau 2 --width 8 --batch 8 --steps 4 --target 2.0 "
    command += "--evaluate-every 2 --evaluate-on 32 --seed 1"
    assert f"failed: ArithmeticError: no luck\n  repeat it: {command}\n" in printed.out
    assert "2 of 3 runs finished, 1 failed" in printed.out
    assert main(["report", "kvq-runs"]) == 1
    assert "ArithmeticError: no luck" in capsys.readouterr().out
    assert main(["run", "nt", *TINY, "--seed", "1"]) == 1
    assert "failed: ArithmeticError" in capsys.readouterr().out


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(*arguments: Any, **how: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "kvq-runs/x")

    monkeypatch.setattr(cell, "train", full)
    for more in ([], ["--seeds", "2"]):
        assert main(["run", "nt", *TINY, *more]) == 1
        error = capsys.readouterr().err
        assert "the disk is full (kvq-runs/x); nothing that was written is lost" in error
        assert "kvq-ref run nt --N 3" in error


# ---- Stopped ---------------------------------------------------------------------------

LONGER = [
    "nt",
    "--tau",
    "3",
    "--N",
    "3",
    "--width",
    "8",
    "--batch",
    "8",
    "--evaluate-on",
    "32",
    "--evaluate-every",
    "10",
]
LONGER += ["--steps", "800", "--target", "2"]
# Whoever runs these tests in the background may ignore SIGINT, and a child inherits that.
HEEDED = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HEEDED + "from kvq_ref.cli import main; sys.exit(main())", "run", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen[str], pattern: str) -> None:
    """Until a file is there."""
    limit = time.monotonic() + 60
    while not list(Path().glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.01)


def same(one: str, other: str) -> bool:
    names = [folder.name for folder in cells(one)]
    return all(
        (Path(one, "cells", x, f).read_bytes() == Path(other, "cells", x, f).read_bytes()) for x in names for f in SAME
    )


def test_killed_and_resumed(rng: Any) -> None:
    """The bits of a run that nothing stopped, whenever it is killed."""
    assert main(["run", *LONGER, "--out", "whole"]) == 0
    for _ in range(3):
        process = start(*LONGER, "--resume", "--out", "killed")
        wait_for(process, "killed/cells/*/config.toml")
        time.sleep(rng.uniform(0, 1.5))
        process.kill()
        process.communicate()
    assert main(["run", *LONGER, "--resume", "--out", "killed"]) == 0
    assert same("whole", "killed")


def test_a_sweep_whose_own_process_is_killed() -> None:
    """Its workers notice and end, also one that has nothing to do; the next one goes on."""
    assert main(["run", *LONGER, "--seeds", "3", "--out", "whole"]) == 0
    process = start(*LONGER, "--seeds", "3", "--jobs", "4", "--out", "killed")
    wait_for(process, "killed/cells/*/metrics.jsonl")
    process.kill()
    process.communicate(timeout=60)  # until nobody is left who could write
    assert main(["run", *LONGER, "--seeds", "3", "--out", "killed"]) == 0
    assert same("whole", "killed")


@pytest.mark.parametrize("more", [[], ["--seeds", "3", "--jobs", "2"]])
def test_interrupted(more: list[str]) -> None:
    process = start(*LONGER, "--steps", "100000", *more)
    wait_for(process, "kvq-runs/cells/*/metrics.jsonl")
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == ""
    assert re.search(
        r"interrupted, (0 of 3 runs finished|at step \d+); the same command goes on:\n  kvq-ref run nt ", error
    )
    assert "Traceback" not in error


def test_a_run_that_another_process_trains(capsys: pytest.CaptureFixture[str]) -> None:
    process = start(*LONGER, "--steps", "100000")
    wait_for(process, "kvq-runs/cells/*/metrics.jsonl")
    assert main(["run", *LONGER, "--steps", "100000"]) == 1
    assert "another process is training this run" in capsys.readouterr().out
    process.kill()
    process.communicate()
