"""A report in words, as a table and as a page."""

from __future__ import annotations

import io
from html.parser import HTMLParser

import numpy as np
import pytest

from kvq_ref.testing import Report, verify
from kvq_ref.testing.page import as_html
from kvq_ref.testing.render import by_cause, causes, error_and_limit, explain, telling, unchecked, verdict
from kvq_ref.testing.report import Breakage, Finding
from kvq_ref.testing.table import Table


def broken(law: str, cause: str = "", code: str = "f()", what: str = "output[0]: got 1, expected 2") -> Finding:
    return Finding(
        law,
        f"The statement of {law}.",
        r"a < b",
        "broken",
        examples=7,
        units=1.5e6,
        limit=4.0,
        broken=Breakage(what, "[1.]", "[2.]", code, cause),
    )


def holds(law: str, units: float = 0.5) -> Finding:
    return Finding(law, "True.", "1 = 1", "holds", examples=50, units=units, limit=4.0, seconds=0.1)


def left(law: str, why: str) -> Finding:
    return Finding(law, "True.", "1 = 1", "not checked", why)


def report(*findings: Finding, **fields: object) -> Report:
    return Report("mine:f", "softmax_attention", findings=list(findings), **fields)  # type: ignore[arg-type]


# ---- In words ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("findings", "text"),
    [
        ([holds("a")], "The one law holds."),
        ([holds("a"), holds("b")], "All 2 laws hold."),
        ([holds("a"), holds("b"), left("c", "why")], "All 2 laws hold; 1 was not checked."),
        ([broken("a"), holds("b")], "1 of 2 laws is broken."),
        ([broken("a")], "The one law is broken."),
        ([broken("a", "no scale"), broken("b", "no scale")], "2 of 2 laws are broken. Likely cause: no scale."),
        (
            [broken("a", "rare"), broken("b", "often"), broken("c", "often"), broken("d")],
            "4 of 4 laws are broken. Likely causes: often (2 laws); rare (1 law).",
        ),
    ],
)
def test_the_verdict_names_causes_most_frequent_first(findings: list[Finding], text: str) -> None:
    assert verdict(report(*findings)) == text


def test_broken_laws_come_by_cause_and_only_what_differs_is_told_in_full() -> None:
    a, b, c, d, e = (
        broken("a", "rare"),
        broken("b", "often"),
        broken("c", "often"),
        broken("d", "often", code="g()"),
        broken("e", "odd"),
    )
    given = report(a, b, c, d, e)
    assert [x.law for x in by_cause(given)] == ["b", "c", "d", "a", "e"]
    assert [x.law for x in telling(by_cause(given), 3)] == ["b", "a", "e"]
    assert [x.law for x in telling([b, c, d], 3)] == ["b", "d"]  # c has the cause and the call of b


def test_what_a_target_did_stands_for_a_cause() -> None:
    def raised(law: str) -> Finding:
        return Finding(law, "S.", "x", "broken", broken=Breakage("the target raised ValueError", "", "", "f()"))

    assert causes(report(raised("a"), raised("b"), broken("c"))) == [("the target raised ValueError", 2)]


def test_the_unchecked_are_grouped_by_reason() -> None:
    given = report(left("a", "no bias"), left("b", "no mask"), left("c", "no bias"))
    assert unchecked(given) == {"no bias": ["a", "c"], "no mask": ["b"]}


def test_errors_are_short() -> None:
    assert error_and_limit(holds("a", 0.0)) == ("equal", "-")
    assert error_and_limit(broken("a")) == ("1.5e+06", "4")


def test_an_explanation_has_all_that_is_known() -> None:
    text = explain(broken("a", "no scale"))
    for part in ("a: broken", "The statement of a.", "output[0]", "[1.]", "[2.]", "f()", "likely cause: no scale"):
        assert part in text
    assert explain(holds("a")) == "a: holds"


# ---- The table -----------------------------------------------------------------------


def printed(given: Report, **options: bool) -> str:
    out = io.StringIO()
    table = Table([x.law for x in given.findings], out=out, **options)
    table.start(given)
    for finding in given.findings:
        table.law(finding.law)
        table.finding(finding)
        table.tick()
    table.end(given)
    return out.getvalue()


def test_a_table_is_plain_and_narrow_where_nobody_looks() -> None:
    many = [broken(f"a law with a long name, number {i}", "no scale", code=f"f({i})") for i in range(6)]
    given = report(*many, holds("b"), left("c", "why " * 40), seed=3, command="kvq-ref verify mine:f", options=["mask"])
    text = printed(given)
    assert "\033" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert text.count(": broken\n") == 3
    assert "also broken" in text
    assert "6 of 7 laws are broken; 1 was not checked. Likely cause: no scale." in text
    assert "the same again: kvq-ref verify mine:f" in text
    assert printed(given, verbose=True).count(": broken\n") == 6


def test_laws_broken_in_one_way_share_a_line() -> None:
    alike = [broken(x, "no scale", what="the target raised ValueError") for x in "abcd"]
    assert "  the target raised ValueError: b, c, d" in printed(report(*alike))


def test_colours_where_somebody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def coloured() -> bool:
        out = Terminal()
        Table(["a"], out=out).finding(holds("a"))
        return "\033[32m" in out.getvalue()

    assert coloured()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not coloured()


# ---- The page ------------------------------------------------------------------------


class Balanced(HTMLParser):
    """Fails where tags do not match; gathers what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.loads += [str(x) for name, x in attributes if name in ("src", "href", "srcset") and x and x[0] != "#"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_page_escapes_what_it_is_given_and_loads_nothing() -> None:
    bad = [broken(f"<b>{i}", "<script>alert(1)</script>", what="a < b & c") for i in range(5)]
    given = report(*bad, holds("h"), left("l", "<i>"), remarks=["<u>"], command="x > y", options=["<em>"])
    page = as_html(given)
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert parser.loads == []
    for text in ("<script>", "<b>", "<i>", "<u>", "<em>"):
        assert text not in page
    assert page.count("Likely cause:") >= 5
    assert "prefers-color-scheme: dark" in page


def test_a_report_survives_json() -> None:
    def mine(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        return np.full((*q.shape[:-1], v.shape[-1]), np.nan, q.dtype)

    found = verify(mine, "softmax", examples=3, seed=0, laws=["conduct", "definition"])
    assert Report.from_json(found.to_json()) == found
    assert [x.law for x in found.broken] == ["definition"]
