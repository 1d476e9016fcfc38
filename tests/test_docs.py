"""The pages under docs/ that are made from code are in step with it, and so is the README."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pytest
from cases import each_form

import kvq_ref as kvq
from kvq_ref import testing
from kvq_ref.cli import main
from kvq_ref.dispatch import FORMS, Form, file_name
from kvq_ref.grid import GRID
from kvq_ref.testing import LAWS, ORACLES

ROOT = Path(__file__).parents[1]


def load(name: str) -> ModuleType:
    """A script of docs/, which may import the others."""
    if str(ROOT / "docs") not in sys.path:
        sys.path.append(str(ROOT / "docs"))
    return importlib.import_module(name)


def test_capabilities_page_is_in_step() -> None:
    """docs/capabilities.md is what docs/make_capabilities.py writes."""
    module = load("make_capabilities")
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "run: python docs/make_capabilities.py"


def test_map_is_in_step() -> None:
    """docs/figures/map.svg is what docs/make_map.py writes, and is well-formed."""
    module = load("make_map")
    assert module.PAGE.read_text(encoding="utf-8") == module.svg(), "run: python docs/make_map.py"
    ElementTree.fromstring(module.svg())


def test_every_form_is_on_the_map_and_every_road_is_a_law() -> None:
    """Each road's law is one that a form at one of its ends is held to, and each form can be reached."""
    module = load("make_map")
    laws = {law.name: law for law in LAWS}
    assert set(module.SPOTS) == set(FORMS) == {end for road in module.ROADS for end in (road.start, road.end)}
    for road in module.ROADS:
        assert {road.start, road.end} & laws[road.law].forms, road


def test_every_form_is_in_the_table_of_regressions() -> None:
    """docs/forms_as_regression.md has a row for each form, with the row of the grid that is declared for it."""
    text = (ROOT / "docs" / "forms_as_regression.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", text, re.MULTILINE))
    assert set(rows) == set(FORMS) == set(GRID)
    for name, place in GRID.items():
        assert rows[name].startswith("q*," if place.query == "preconditioned" else "q,"), name
        assert rows[name].endswith(place.row), name


def test_readme_example_runs() -> None:
    """The Python code in the README runs as it stands, from top to bottom."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    exec(compile("\n".join(blocks), "README.md", "exec"), {})


def test_readme_links_exist() -> None:
    """Files and figures that the README points at are in the repository."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    local = [x for x in re.findall(r"\]\(([^)#]+)\)", text) if not x.startswith("http")]
    assert local
    missing = [x for x in local if not (ROOT / x).exists()]
    assert not missing


# ---- The site --------------------------------------------------------------------------


@each_form
def test_page_of_a_form(form: Form) -> None:
    """Equation, sources, cost, what serves it, and every law that the form obeys, each from the form itself."""
    text = load("make_forms").page(form.name)
    equation = load("form_equations").displayed(load("make_forms").first_equation(inspect.getdoc(form.module)))
    assert f"\n$$\n{equation}\n$$\n" in text
    for function in ("forward", "backward"):
        included = f"{{literalinclude}} ../../kvq_ref/forms/{file_name(form.name)}.py\n:pyobject: {function}\n"
        assert text.count(included) == 1
    cost, served, relatives, laws, source = (
        text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
        for title in ("Cost", "What serves it", "Its place, and its relatives", "The laws that it obeys", "Source")
    )
    assert all(f"| {x.name} |" in served for x in form.implementations)
    assert "O(" in cost
    assert len(source.strip()) > 20
    assert re.findall(r"^\[(.*)\]\(.*\n: ", laws, re.MULTILINE) == [law.name for law in LAWS if form.name in law.forms]
    linked = re.findall(r"\]\((\w+)\.md\)", relatives)
    assert linked
    assert {*linked} <= {file_name(name) for name in FORMS} - {file_name(form.name)}
    assert "{title}" not in text
    edges = text.partition("\n## At the edges\n")[2].partition("\n## ")[0]
    assert load("form_edges").table(form.name) in edges
    for stem in load("form_figures").stems(form.name).values():
        assert f"figures/{stem}-light.png" in text
        assert f"figures/{stem}-dark.png" in text


def test_page_of_laws() -> None:
    """Every law, with its formula, its source and the words that have pytest run it alone."""
    text = load("make_laws").page()
    assert re.findall(r"^### (.*)$", text, re.MULTILINE) == [law.name for law in LAWS]
    for law in LAWS:
        entry = text.partition(f"\n### {law.name}\n")[2].partition("\n### ")[0]
        assert law.latex in entry
        assert f"def {law.name.replace(' ', '_')}(" in entry
        assert f"test_holds[{law.name.replace(' ', '_')}-" in entry


def test_map_of_the_site_is_made_of_links() -> None:
    """A place leads to its form's page, a road to its law on one of the two, and its tick to the check."""
    module = load("make_map")
    links = Counter(re.findall(r'<a [^>]*href="([^"]*)"', module.svg(linked=True)))
    for name in module.SPOTS:
        assert links.pop(f"forms/{file_name(name)}.html") == 1
    for road, n in Counter((road.start, road.end, road.law) for road in module.ROADS).items():
        *ends, law = road
        law = law.replace(" ", "-")
        found = [f"forms/{file_name(end)}.html#{file_name(end).replace('_', '-')}-{law}" for end in ends]
        assert sum(links[href] for href in found) >= 2 * n, road  # the line, and its words
        assert links[f"laws.html#check-{law}"] >= n, road
    assert "<a " not in module.svg()


def spoken(text: str) -> list[str]:
    """Names and numbers of an equation, in their order."""
    as_written = {r"\varphi": " phi ", r"\top": " T ", r"\begin{aligned}": "", r"\end{aligned}": ""}
    for latex, word in as_written.items():
        text = text.replace(latex, word)
    text = re.sub(r"\\(mathrm|small|text|operatorname|frac|quad|cdot|[lr]Vert)\b|\\,", " ", text)
    return re.findall(r"[A-Za-z]+|\d+", text.replace("_", " "))


@each_form
def test_equations_as_latex_say_what_the_file_says(form: Form) -> None:
    """The same names and numbers in the same order, and braces that match."""
    displayed = load("form_equations").displayed
    blocks = [text for text in (inspect.getdoc(form.module) or "").split("\n\n") if text.startswith("    ")]
    assert blocks
    for block in blocks:
        latex = displayed(inspect.cleandoc("\n" + block))
        assert spoken(latex) == spoken(block)
        assert latex.count("{") == latex.count("}")


@pytest.mark.parametrize("name", ["form_edges", "form_equations", "form_steps"])
def test_examples_of_the_scripts_run(name: str) -> None:
    found = doctest.testmod(load(name))
    assert found.attempted > 0 == found.failed


def test_equations_as_latex() -> None:
    latex = load("form_equations").latex
    assert latex("scale * q*_i . k_j + b_ij") == r"\mathrm{scale}\, q^*_i \cdot k_j + b_{ij}"
    assert latex("argmin_W  |v_j - k_j W|^2") == r"\operatorname*{argmin}_W\, \lVert v_j - k_j W \rVert^2"


@each_form
def test_every_step_of_a_backward_is_derived(form: Form) -> None:
    """Each comment that begins a step has its derivation, and the steps are all of the code from the first on."""
    pages = load("form_steps")
    known, steps = pages.derivations(), list(pages.steps(form.module.backward))
    rows = [row.strip() for row in inspect.getsource(form.module.backward).splitlines() if row.strip()]
    comments = [row for before, row in zip(["", *rows], rows, strict=False) if row[0] == "#" and before[:1] != "#"]
    assert [step.line for step in steps] == [pages.forward_line(row) for row in comments]
    code = [row.strip() for step in steps for row in step.code.splitlines() if row.strip()]
    assert code == rows[len(rows) - len(code) :]
    assert len(rows) - len(code) <= 8  # the head, and what was saved
    others = dict(pages.called(form.module.backward))
    assert all(pages.is_form(function) or name in known for name, function in others.items())


def test_every_derivation_is_of_a_step() -> None:
    pages = load("form_steps")
    used = set()
    for form in FORMS.values():
        used |= {step.line for step in pages.steps(form.module.backward)}
        used |= {name for name, function in pages.called(form.module.backward) if not pages.is_form(function)}
    assert set(pages.derivations()) == used


@each_form
def test_edges_of_a_form(form: Form) -> None:
    """What the page prints is what loops over the definition give, wherever those have a number."""
    pages, compared = load("form_edges"), 0
    for edge in pages.edges(form.name):
        out, *grads = pages.outcome(form.name, edge)
        if "no keys" in edge.words or "both hidden" in edge.words:
            assert (out, grads[0]) == ("0", "0")
        hidden_nan = "hidden" in edge.words and not np.isfinite(edge.arrays()["v"]).all()
        if hidden_nan:
            edge = edge._replace(k=edge.k[:1], v=edge.v[:1], options={})
        arrays = edge.arrays()
        if not all(np.isfinite(x).all() for x in arrays.values()):
            assert out in ("NaN", "\N{INFINITY}")
            continue
        try:
            expected = ORACLES[form.name](**arrays, **edge.settings(form.name))[0, 0]
        except OverflowError:  # loops without protection
            continue
        assert out == pages.number(float(expected)), edge.words
        assert "NaN" not in grads
        compared += 1
    assert compared >= 8


@each_form
def test_figure_of_a_form(form: Form) -> None:
    """The weights that are drawn make the form's prediction, and see no later point."""
    figures = load("form_figures")
    w, settings = figures.weights(form.name), figures.SETTINGS.get(form.name, {})
    k, values = figures.features(figures.X), figures.Y[:, None]
    predicted = getattr(kvq, form.name)(figures.features(figures.GRID), k, values, **settings)
    np.testing.assert_allclose(w.prediction, predicted[:, 0], rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(np.triu(w.causal, 1), 0.0)


def test_figure_is_drawn_once(tmp_path: Path) -> None:
    """In the colours of both themes; what is there stays, what was drawn otherwise goes."""
    figures = load("form_figures")
    (tmp_path / "intention-weights-old-light.png").write_bytes(b"")
    figures.draw("intention", tmp_path)
    drawn = {f"{stem}-{theme}.png" for stem in figures.stems("intention").values() for theme in ("light", "dark")}
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert set(before) == drawn
    figures.draw("intention", tmp_path)
    assert before == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_pages_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page for each form and their index; what has not changed is left alone, what is no form's goes."""
    pages = load("make_forms")
    monkeypatch.setattr(pages.form_figures, "draw", lambda name, folder: None)
    (tmp_path / "old.md").write_text("a form that is no more")
    pages.write(tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == {file_name(name) for name in FORMS} | {"index"}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    pages.write(tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_words_of_a_lesson_are_no_markdown() -> None:
    escape = load("make_forms").escape
    assert escape("q* = a_i [b] ``c_*`` :func:`d_e`") == r"q\* = a\_i \[b\] ``c_*`` :func:`d_e`"


def test_reference_is_complete() -> None:
    """Everything public is in docs/reference.md."""
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^   ([\w.]+)$", text, re.MULTILINE))
    modules = {"masks", "partials"}
    assert {*kvq.__all__} - modules <= listed
    assert all(any(name.startswith(f"{module}.") for name in listed) for module in modules)
    assert {f"testing.{name}" for name in testing.__all__ if callable(getattr(testing, name))} <= listed


def test_every_command_is_in_the_reference(capsys: pytest.CaptureFixture[str]) -> None:
    """The commands that ``kvq-ref --help`` lists."""
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = capsys.readouterr().out.partition("COMMAND\n")[2].partition("\n\n")[0]
    names = re.findall(r"^    (\w+) ", commands, re.MULTILINE)
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert len(names) > 5
    assert names == re.findall(r"^\| `kvq-ref (\w+)` \|", text, re.MULTILINE)
