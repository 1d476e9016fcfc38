"""The pages under docs/ that are made from code are in step with it, and so is the README."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

from cases import each_form

import kvq_ref as kvq
from kvq_ref import testing
from kvq_ref.dispatch import FORMS, Form, file_name
from kvq_ref.grid import GRID
from kvq_ref.testing import LAWS

ROOT = Path(__file__).parents[1]


def load(name: str) -> ModuleType:
    """A script of docs/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    lesson = (form.module.__doc__ or "").splitlines()
    equation = next(line for line in lesson if line.startswith("    "))
    assert equation.removeprefix("    ") in text
    assert text.count(f"{{literalinclude}} ../../kvq_ref/forms/{file_name(form.name)}.py\n:pyobject:") == 2
    cost, served, relatives, laws, source = (
        text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
        for title in ("Cost", "What serves it", "Its place, and its relatives", "The laws that it obeys", "Source")
    )
    assert all(f"| {x.name} |" in served for x in form.implementations)
    assert "O(" in cost
    assert len(source.strip()) > 20
    assert re.findall(r"^(\w.*)\n: ", laws, re.MULTILINE) == [law.name for law in LAWS if form.name in law.forms]
    linked = re.findall(r"\]\((\w+)\.md\)", relatives)
    assert linked
    assert {*linked} <= {file_name(name) for name in FORMS} - {file_name(form.name)}
    assert "{title}" not in text


def test_pages_are_written_once(tmp_path: Path) -> None:
    """A page for each form and their index; what has not changed is left alone, what is no form's goes."""
    pages = load("make_forms")
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
