"""Reports on tasks that are judged by their error: forms beside yardsticks, and no word of accuracy."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest

from kvq_ref.cli import main
from kvq_ref.files import to_json
from kvq_ref.lab import yardsticks
from kvq_ref.lab.analysis import choose, compare, summarise
from kvq_ref.lab.cell import folder_of
from kvq_ref.lab.config import Config
from kvq_ref.lab.results import Run, Runs, read_runs
from kvq_ref.lab.sweep_report import analyse, as_markdown, write_report
from kvq_ref.lab.yardsticks import lines_of_yardsticks, standings


def run(error: float | None, task: str = "linear_regression", **settings: Any) -> Run:
    settings = {"K": 4, "evaluate_on": 16} | settings
    kinds = ("as trained", "noise=0.5", "K=2", "K=8", "d=4")
    result = {"solved": False, "diverged": error is None, "steps": 100, "error": error}
    return Run(Config(task=task, **settings), result | {f"error {kind}": error for kind in kinds})


@pytest.fixture
def sweep() -> list[Run]:
    errors = {("intention", 0): 0.125, ("intention", 1): 0.25, ("softmax", 0): 1.0, ("softmax", 1): 1.0}
    return [run(error, form=form, seed=seed) for (form, seed), error in errors.items()]


def keep(runs: list[Run], out: Path) -> None:
    for one in runs:
        folder = folder_of(one.config, out)
        folder.mkdir(parents=True)
        (folder / "config.toml").write_text(one.config.to_toml())
        (folder / "result.json").write_text(to_json(one.result))
        (folder / "metrics.jsonl").write_text(to_json({"step": 100, "error": one.result["error"]}, indent=None) + "\n")


def test_less_error_is_ahead(sweep: list[Run]) -> None:
    (found,) = compare([*sweep, run(1.0, form="softmax", seed=2), run(0.125, form="intention", seed=2)], "form")
    assert (found.first, found.second) == ("intention", "softmax")
    assert str(found.score) == "3/0/0"
    assert found.difference.value == pytest.approx((0.125 - 1 + 0.25 - 1 + 0.125 - 1) / 3)
    assert found.by_score == "ahead"
    assert [x.score.value for x in summarise(sweep)] == [1.0, 0.1875]


def test_the_best_has_the_least_error() -> None:
    runs = [run(error, rate=rate) for error, rate in ((0.5, 1e-3), (0.25, 1e-2), (None, 1e-1))]
    assert [x.config.rate for x in choose(runs, ["rate"], None)] == [1e-2]


def test_an_error_that_is_no_number_is_the_worst() -> None:
    runs = [run(None, form="softmax", seed=seed) for seed in (0, 1)]
    runs += [run(0.5, form="linear"), run(None, form="linear", seed=1)]
    (found,) = compare(runs, "form")
    assert str(found.score) == "1/1/0"
    assert all(x.score.value == math.inf for x in summarise(runs))


def test_forms_stand_beside_yardsticks(sweep: list[Run]) -> None:
    found = standings(sweep)
    assert [x.score.value for x in found] == sorted(x.score.value for x in found)
    names = [x.who["form"] for x in found]
    assert {"intention", "softmax", "least squares", "Bayes, told of every shift"} <= set(names)
    assert all(x.n == 2 and x.settings == {} for x in found)
    assert [x.is_yardstick for x in found] == [name not in ("intention", "softmax") for name in names]
    assert list(found[0].kinds) == ["as trained", "noise=0.5", "K=2", "K=8", "d=4"]
    assert standings([Run(Config(), {"accuracy": 1.0})]) == []


def test_what_varies_in_the_task_makes_a_point_and_in_the_model_a_row(sweep: list[Run]) -> None:
    runs = [run(0.5, form="softmax", K=K, heads=heads) for K in (4, 8) for heads in (1, 2)]
    found = standings(runs)
    assert {x.settings["K"] for x in found} == {4, 8}
    assert [x.who for x in found if not x.is_yardstick] == [{"form": "softmax", "heads": n} for n in (1, 2)] * 2


def test_yardsticks_are_drawn_against_settings_of_the_task() -> None:
    runs = [run(0.5, K=K, heads=heads, form=form) for K in (4, 8) for heads in (1, 2) for form in ("linear", "softmax")]
    found = lines_of_yardsticks(runs, "K")
    assert set(found) == {"ridge", "least squares", "Bayes, told of every shift"}
    assert all(xs == [4, 8] for xs, _ in found.values())
    assert lines_of_yardsticks(runs, "heads") == {}


def test_the_report_speaks_of_error(sweep: list[Run], tmp_path: Path) -> None:
    keep(sweep, tmp_path)
    found = read_runs([tmp_path])
    page = write_report(analyse(found.finished, found, "form", []), tmp_path).read_text()
    text = (tmp_path / "report.md").read_text()
    assert "4 runs at 2 points of the grid, 2 seeds.\n" in text
    assert "| Bayes, told of every shift | yardstick | 2 |" in text
    assert "intention against softmax: error" in text
    for words in (text, page):
        assert "accura" not in words
        assert "solved" not in words
    numbers = json.loads((tmp_path / "report.json").read_text())
    assert numbers["points"][0]["error"]["value"] == 1.0
    assert numbers["comparisons"][0]["by_error"] == "ahead"
    assert {"form": "intention"} in [x["who"] for x in numbers["standings"]]


def test_without_scikit_learn_a_note_takes_their_place(sweep: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yardsticks, "PACKAGE", "no_such_package")
    text = as_markdown(analyse(sweep, Runs(sweep), "form", []))
    assert "Yardsticks are left out: they need scikit-learn" in text
    assert "Bayes" not in text


@pytest.mark.parametrize(
    ("task", "package", "extra"), [("digits", "sklearn", "lab,tour"), ("photographs", "skimage", "photographs")]
)
def test_images_without_their_package_are_refused_before_any_work(
    task: str,
    package: str,
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else there(name))
    monkeypatch.chdir(tmp_path)
    assert main(["run", task]) == 2
    assert f'needs {package}: pip install "kvq_ref[{extra}]"' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_judged_differently_has_no_report_in_common(sweep: list[Run]) -> None:
    runs = [*sweep, Run(Config(), {"accuracy": 1.0})]
    with pytest.raises(ValueError, match=r"not judged alike .linear_regression by error, nt by accuracy"):
        analyse(runs, Runs(runs), None, [])


def test_from_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = ["--steps", "4", "--evaluate-every", "2", "--width", "8", "--batch", "8", "--evaluate-on", "16"]
    assert main(["run", "sinusoid", "--form", "intention", *tiny]) == 0
    printed = capsys.readouterr()
    assert "ended after 4 steps: loss " in printed.out
    assert "on held-out data" in printed.out
    assert "kvq-ref run sinusoid --form intention --width 8 " in printed.out
    assert main(["run", "sinusoid", "--set", "form=intention", "--set", "heads=1,2", *tiny]) == 0
    assert "mean error" in capsys.readouterr().out
    assert main(["report", "kvq-runs", "--where", "task=sinusoid"]) == 0
    printed = capsys.readouterr()
    assert "GP, sinusoids of this period" in printed.out
    assert {"error-heads.png", "learning.png", "report.html"} <= {path.name for path in Path("kvq-runs").iterdir()}
    assert main(["run", "--set", "task=nt,sinusoid", "--steps", "2", *tiny[2:]]) == 0
    assert main(["report", "kvq-runs"]) == 2
    assert "are not judged alike" in capsys.readouterr().err
