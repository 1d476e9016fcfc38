"""The tour: exit status, the files it writes, and that a wrong form does not get through it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvq_ref import dispatch, files, tour
from kvq_ref.cli import main
from kvq_ref.testing import ORACLES
from kvq_ref.tour import steps


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one quick tour."""
    folder = tmp_path_factory.mktemp("tour")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "SHAPES", ((1, 1, 8, 4),) * 4)
        patch.setattr(steps, "QUICK_ROWS", 200)
        assert main(["tour", "--quick", "--splits", "1", "--seed", "3", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def table(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A CSV file whose target is a linear function of its features, and some noise."""
    x = rng.standard_normal((60, 3))
    price = x @ [3.0, -2.0, 0.5] + 0.1 * rng.standard_normal(60)
    path = tmp_path / "houses.csv"
    rows = [f"{a},{b},{c},{p}" for (a, b, c), p in zip(x, price, strict=True)]
    path.write_text("\n".join(["width,depth,height,price", *rows]) + "\n")
    return path


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tour of two forms, without data and with small timings."""
    monkeypatch.setattr(steps, "_bundled_data", lambda options, seed: [])
    monkeypatch.setattr(steps, "SHAPES", ((1, 1, 8, 4),) * 4)
    monkeypatch.setattr(steps, "ORACLES", {name: ORACLES[name] for name in ("softmax_attention", "intention")})


def times(good: Any, factor: float) -> Any:
    """A forward that returns a little too much."""

    def forward(*arguments: Any, **options: Any) -> Any:
        out, saved = good(*arguments, **options)
        return out * out.dtype.type(factor), saved

    return forward


def break_form(monkeypatch: pytest.MonkeyPatch, name: str, factor: float = 1.01) -> None:
    """Make every implementation of a form return a little too much."""
    form = dispatch.FORMS[name]

    implementations = tuple(
        replace(x, forward=times(x.forward, factor), quick=None, quick_vjp=None) for x in form.implementations
    )
    monkeypatch.setitem(dispatch.FORMS, name, replace(form, implementations=implementations))


# ---- What it writes ------------------------------------------------------------------


def test_files(quick: Path) -> None:
    names = {path.name for path in quick.iterdir()}
    assert names == {
        "tour.html",
        "tour.json",
        "limits.png",
        "geometry.png",
        "prediction-diabetes.png",
        "prediction-digits.png",
    }
    for path in quick.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def numbers(x: Any) -> Iterator[float]:
    if isinstance(x, dict):
        x = list(x.values())
    if isinstance(x, list):
        for item in x:
            yield from numbers(item)
    elif isinstance(x, int | float):
        yield x


def test_json_is_finite_and_whole(quick: Path) -> None:
    def refuse(constant: str) -> float:
        raise AssertionError(constant)

    results = json.loads((quick / "tour.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert results["seed"] == 3
    assert results["all_hold"] is True
    assert all(check["holds"] and check["value"] <= check["bar"] for check in results["checks"])
    assert {row["form"] for row in results["correctness"]} == set(ORACLES)
    assert [p["name"] for p in results["predictions"]] == ["diabetes", "digits"]
    assert len(list(numbers(results))) > 1000
    assert all(map(math.isfinite, numbers(results)))


def test_html_loads_nothing(quick: Path) -> None:
    page = (quick / "tour.html").read_text(encoding="utf-8")
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    sources = re.findall(r'(?:src|srcset|href)="([^"]{0,22})', page)
    assert len(sources) == 8  # four figures, light and dark
    assert set(sources) == {"data:image/png;base64,"}
    assert "prefers-color-scheme: dark" in page
    assert page.count("<table>") == page.count("</table>") >= 6


def test_same_seed_same_numbers(table: Path, tmp_path: Path) -> None:
    def scores(seed: int, folder: str) -> list[list[float]]:
        out = tmp_path / folder
        arguments = ["--data", str(table), "--target", "price", "--splits", "1", "--seed", str(seed), "--out", str(out)]
        assert main(["tour", *arguments]) == 0
        (prediction,) = json.loads((out / "tour.json").read_text())["predictions"]
        return [result["scores"] for result in prediction["results"]]

    assert scores(3, "one") == scores(3, "two") != scores(4, "three")


# ---- What it refuses -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["softmax_attention", "intention"])
@pytest.mark.usefixtures("short")
def test_a_wrong_form_fails_the_tour_and_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    break_form(monkeypatch, name)
    assert main(["tour", "--quick", "--out", str(tmp_path)]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert "FAILED" in last
    assert f"{name}, plain: forward against brute force" in last
    assert json.loads((tmp_path / "tour.json").read_text())["all_hold"] is False
    assert 'class="verdict fails"' in (tmp_path / "tour.html").read_text()


def test_intention_that_is_not_ridge_fails_on_data(
    table: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    break_form(monkeypatch, "intention", 1 + 1e-8)
    arguments = ["tour", "--data", str(table), "--target", "price", "--splits", "2", "--out", str(tmp_path / "out")]
    assert main(arguments) == 1
    assert "houses: Intention equals scikit-learn's Ridge" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.usefixtures("short")
def test_a_step_that_raises_fails_the_tour_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stumble(*arguments: Any) -> None:
        raise ZeroDivisionError("stumbled")

    monkeypatch.setattr(steps, "measure_limits", stumble)
    assert main(["tour", "--quick", "--out", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "limits: the step ran to its end: raised ZeroDivisionError: stumbled" in captured.out.splitlines()[-1]
    assert "Traceback" in captured.err
    assert (tmp_path / "geometry.png").exists()


@pytest.mark.usefixtures("short")
def test_without_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, form in list(dispatch.FORMS.items()):
        absent = tuple(
            replace(x, missing="no compiler" if x.name == "compiled" else None) for x in form.implementations
        )
        monkeypatch.setitem(dispatch.FORMS, name, replace(form, implementations=absent))
    assert main(["tour", "--quick", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "not installed" in printed
    assert printed.splitlines()[-1].endswith("compiled kernels are not installed and were not checked")


@pytest.mark.parametrize(("factor", "status"), [(1.0, 0), (1 + 1e-4, 1)])
@pytest.mark.usefixtures("short")
def test_kernels_are_held_against_the_reference_and_timed(
    factor: float, status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a stand-in for the kernel of one form, right or slightly wrong, so that this runs in every installation."""
    for name, form in list(dispatch.FORMS.items()):
        reference = form.implementation("reference")
        assert reference is not None
        fake = replace(reference, name="compiled", forward=times(reference.forward, factor))
        stands_in = (fake, reference) if name == "softmax_attention" else (reference,)
        monkeypatch.setitem(dispatch.FORMS, name, replace(form, implementations=stands_in))
    assert main(["tour", "--quick", "--out", str(tmp_path)]) == status
    printed = capsys.readouterr().out
    assert ("compiled against reference, float64" in printed.splitlines()[-1]) == bool(status)
    timings = json.loads((tmp_path / "tour.json").read_text())["timings"]
    assert [row["form"] for row in timings] == ["softmax_attention"] * 2
    assert "forward ref" in printed


def test_an_out_that_is_a_file(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tour", "--data", str(table), "--target", "price", "--out", str(table)]) == 2
    assert "cannot be made a folder" in capsys.readouterr().err


# ---- The user's own data -------------------------------------------------------------


def test_own_data(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert (
        main(["tour", "--data", str(table), "--target", "price", "--splits", "2", "--seed", "1", "--out", str(out)])
        == 0
    )
    captured = capsys.readouterr()
    assert "Taken as regression" in captured.out
    assert "of the forms Intention predicts best" in captured.out
    assert captured.err == ""  # not a terminal: no progress bar
    assert {path.name for path in out.iterdir()} == {"tour.html", "tour.json", "prediction-houses.png"}
    (prediction,) = json.loads((out / "tour.json").read_text())["predictions"]
    assert next(r["mean"] for r in prediction["results"] if r["predictor"] == "intention") > 0.9


def test_a_wrong_target_leaves_no_folder(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tour", "--data", str(table), "--target", "prise", "--out", str(tmp_path / "out")]) == 2
    assert "did you mean 'price'?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_interrupted_while_writing_leaves_nothing_half_written(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", interrupt)
    out = tmp_path / "out"
    assert main(["tour", "--data", str(table), "--target", "price", "--splits", "1", "--out", str(out)]) == 130
    assert list(out.iterdir()) == []


def test_the_public_names_are_there() -> None:
    assert all(hasattr(tour, name) for name in tour.__all__)
