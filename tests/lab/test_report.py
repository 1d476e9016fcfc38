"""Tables, figures and the page."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from kvq_ref.lab import report
from kvq_ref.lab.data import diabetes, subset
from kvq_ref.lab.evaluate import evaluate
from kvq_ref.lab.figures import prediction_figure
from kvq_ref.lab.looks import LOOKS, THEMES
from kvq_ref.lab.predict import predictors
from kvq_ref.lab.table import Table
from kvq_ref.lab.tables import prediction_table, verdict_on
from kvq_ref.tour import equations


class Balanced(HTMLParser):
    """Fails where tags do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "source", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("equation", [equations.FORM, equations.LIMIT, equations.BOUND])
def test_equations_are_well_formed(equation: str) -> None:
    parser = Balanced()
    parser.feed(equation)
    assert parser.open == []


def test_a_page_escapes_what_it_is_given() -> None:
    content = Table(("<form>", "x"), [("<script>alert(1)</script>", "1")], bad={0})
    page = report.page("a < b", "1 <= 2", True, "", [report.section("x & y", report.table(content))])
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert "<script>" not in page
    assert "a &lt; b" in page
    assert '<tr class="bad">' in page


def test_every_predictor_has_a_look() -> None:
    for task in ("regression", "classification"):
        for predictor in predictors(task):
            assert all(theme.colour(predictor.name).startswith("#") for theme in THEMES.values())
    assert len({look.label for look in LOOKS.values()}) == len(LOOKS)


def test_prediction_table_and_figure() -> None:
    evaluation = evaluate(subset(diabetes(), 60, seed=0), splits=1)
    lines = prediction_table(evaluation).as_text().splitlines()
    assert len(lines) == 2 + len(evaluation.results)
    assert "too few splits" in verdict_on(evaluation)
    assert all(png.startswith(b"\x89PNG") for png in prediction_figure(evaluation).values())
