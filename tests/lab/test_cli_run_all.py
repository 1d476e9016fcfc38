"""``kvq-ref run all --quick``: every task, a report of each, one page; what is left out, refused, stopped."""

from __future__ import annotations

import importlib.util
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kvq_ref.cli import main
from kvq_ref.cli_run import PACKAGES, packages_missing
from kvq_ref.lab import cell
from kvq_ref.lab.catalogue import TASKS
from kvq_ref.lab.config import Config

SMALL = ["--width", "8", "--batch", "8", "--evaluate-on", "16", "--evaluate-every", "2"]
ALL = ["run", "all", "--quick", *SMALL, "--steps", "4"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_task_has_a_small_version() -> None:
    """Of several forms, and with fewer steps than the task starts from."""
    for task, entry in TASKS.items():
        one = {name: value for name, value in entry.quick.items() if not isinstance(value, tuple)}
        assert len(entry.quick["form"]) > 1
        for form in entry.quick["form"]:
            assert Config(task=task, form=form, **one).steps < entry.starts.get("steps", Config().steps)


def test_every_task_from_end_to_end(capsys: pytest.CaptureFixture[str]) -> None:
    command = [*ALL, "--set", "form=softmax,intention", "--out", "out"]
    assert main(command) == 0
    printed = capsys.readouterr()
    there = {task: x for task, x in TASKS.items() if task not in PACKAGES or not packages_missing(task)}
    for task, entry in there.items():
        assert re.search(rf"^{task} +{entry.score.name} +[\d.e-]+ +[\d.e-]+ +\S", printed.out, re.MULTILINE)
        assert re.search(rf"^{task}: softmax [\d.e-]+, intention [\d.e-]+; \d+ s$", printed.err, re.MULTILINE)
    count = 2 * len(there)
    assert f"{count} of {count} runs finished\nreport    out/all.html\n" in printed.out
    page = Path("out/all.html").read_text(encoding="utf-8")
    for link in re.findall(r'href="([^"]+)"', page):
        assert Path("out", link).exists()
    assert page.count("/report.html") == len(there)
    results = {path: path.stat().st_mtime_ns for path in Path("out").glob("*/cells/*/result.json")}
    assert len(results) == count
    # once more: nothing is trained again; with another seed, that alone
    assert main([*command, "--set", "task=nt,recall"]) == 0
    assert main([*command, "--set", "task=nt,recall", "--seeds", "2"]) == 0
    assert "8 of 8 runs finished" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == then for path, then in results.items())
    assert len(list(Path("out").glob("*/cells/*/result.json"))) == count + 4


def test_values_of_other_settings_are_points(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ALL, "--set", "task=recall", "--set", "K=2,4", "--form", "linear", "--out", "out"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^task +score +linear +best yardstick$", printed, re.MULTILINE)
    for K in (2, 4):
        assert re.search(rf"^recall, K {K} +accuracy +[\d.]+ ", printed, re.MULTILINE)


def test_a_task_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *x: None if name == "skimage" else there(name, *x))
    assert main([*ALL, "--set", "task=photographs,copy", "--form", "linear"]) == 0
    line = 'photographs is left out: this needs skimage: pip install "kvq_ref[photographs]"\n'
    printed = capsys.readouterr()
    assert f"kvq-ref run: {line}" in printed.err
    assert line in printed.out
    assert "1 of 1 runs finished" in printed.out
    assert "photographs is left out" in Path("kvq-runs/all.html").read_text(encoding="utf-8")


def test_a_run_that_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    train = cell.train

    def fails(config: Config, *rest: Any, **how: Any) -> Any:
        if config.form == "linear":
            raise ArithmeticError("no luck")
        return train(config, *rest, **how)

    monkeypatch.setattr(cell, "train", fails)
    assert main([*ALL, "--set", "task=nt,copy", "--set", "form=softmax,linear"]) == 1
    printed = capsys.readouterr().out
    assert "failed: ArithmeticError: no luck\n  repeat it: kvq-ref run nt --form linear" in printed
    assert "2 of 4 runs finished, 2 failed" in printed
    assert main([*ALL, "--set", "task=nt", "--form", "linear"]) == 1  # no run of it has finished
    assert "0 of 1 runs finished, 1 failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["all"], "all: only with --quick"),
        (["nt", "--quick"], "--quick goes with all: kvq-ref run all --quick --set task=nt"),
        (["all", "--quick", "--set", "task=sinusid"], "did you mean 'sinusoid'?"),
        (["all", "--quick", "--N", "2"], "products: N: expected at least 3"),
        (["all", "--quick", "--form", "softmx"], "nt: form: "),
        (["all", "--quick", "--resume", "--restart"], "not both"),
        (["all", "--quick", "--config", "none.toml"], "none.toml: No such file"),
    ],
)
def test_refusals(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("kvq-ref run: ")
    assert error.count("\n") == 1
    assert not list(Path().iterdir())


def test_interrupted(capsys: pytest.CaptureFixture[str]) -> None:
    """What it says goes on."""
    heeded = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "  # as in test_cli_run.py
    wanted = ["--set", "task=copy,nt", "--form", "linear", "--tau", "2", "--target", "2", *SMALL]
    command = [sys.executable, "-c", f"{heeded}from kvq_ref.cli import main; sys.exit(main())", "run", "all", "--quick"]
    command += [*wanted, "--steps", "100000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    limit = time.monotonic() + 60
    while not list(Path().glob("kvq-runs/copy/cells/*/metrics.jsonl")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == ""
    assert "interrupted, 0 of 2 runs finished; the same command goes on:\n  kvq-ref run all --tau 2 " in error
    assert " --quick" in error
    assert "Traceback" not in error
