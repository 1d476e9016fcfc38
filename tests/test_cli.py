"""The command line: what it prints, and its exit status."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

import kvq_ref
from kvq_ref import tour
from kvq_ref.cli import lesson_parts, main
from kvq_ref.dispatch import FORMS


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert kvq_ref.__version__ in capsys.readouterr().out


def test_config_prints_what_show_config_prints(capsys: pytest.CaptureFixture[str]) -> None:
    kvq_ref.show_config()
    expected = capsys.readouterr().out
    assert main(["config"]) == 0
    assert capsys.readouterr().out == expected


def test_forms_lists_every_form_with_equation_cost_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["forms"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in FORMS)
    for word in ("out_i = ", "Cost: ", "Source: ", "Served by: "):
        assert printed.count(word) >= len(FORMS), word


@pytest.mark.parametrize("name", FORMS)
def test_every_lesson_has_all_its_parts(name: str) -> None:
    parts = lesson_parts(FORMS[name].module.__doc__ or "")
    assert all(parts.values()), parts
    assert "out_i" in parts["equation"]
    assert "\n\n" not in parts["cost"] + parts["source"]


@pytest.mark.parametrize("name", ["sigma_intention", "Sigma-Intention"])
def test_forms_with_a_name_prints_the_whole_lesson(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["forms", name]) == 0
    printed = capsys.readouterr().out
    assert (FORMS["sigma_intention"].module.__doc__ or "").strip().splitlines()[-1] in printed


def test_a_form_is_found_by_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["forms", "softmax"]) == 0
    assert "kvq_ref.softmax_attention" in capsys.readouterr().out


def test_an_unknown_form_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["forms", "sofmax_atention"]) == 2
    assert "did you mean softmax_attention?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["tuor"],
        ["tour", "--nonsense"],
        ["tour", "--seed", "-1"],
        ["tour", "--seed", "x"],
        ["tour", "--splits", "0"],
    ],
)
def test_unusable_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "--help" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--data", "x.csv"], "--target"),
        (["--target", "price"], "--data"),
        (["--task", "regression"], "--data"),
        (["--data", "no-such-file.csv", "--target", "price"], "no such file"),
    ],
)
def test_the_tour_refuses_in_one_line(arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tour", *arguments]) == 2
    error = capsys.readouterr().err
    assert word in error
    assert error.count("\n") == 1


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["tour", "--help"])
    assert stop.value.code == 0
    assert "--data houses.csv --target price" in capsys.readouterr().out


def test_missing_extras_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "sklearn" else there(name, *rest)
    )
    assert main(["tour"]) == 2
    assert capsys.readouterr().err == 'kvq-ref tour: The tour needs scikit-learn: pip install "kvq_ref[tour]"\n'


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tour, "take_tour", interrupt)
    assert main(["tour"]) == 130
    assert capsys.readouterr().err == "kvq-ref: interrupted\n"
