"""The pages under docs/ that are made from code are in step with it, and so is the README."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

from kvq_ref.dispatch import FORMS
from kvq_ref.grid import GRID
from kvq_ref.testing.laws import LAWS

ROOT = Path(__file__).parents[1]


def script(name: str) -> ModuleType:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_capabilities_page_is_in_step() -> None:
    """docs/capabilities.md is what docs/make_capabilities.py writes."""
    module = script("make_capabilities")
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "run: python docs/make_capabilities.py"


def test_map_is_in_step() -> None:
    """docs/figures/map.svg is what docs/make_map.py writes, and is well-formed."""
    module = script("make_map")
    assert module.PAGE.read_text(encoding="utf-8") == module.svg(), "run: python docs/make_map.py"
    ElementTree.fromstring(module.svg())


def test_every_form_is_on_the_map_and_every_road_is_a_law() -> None:
    """Each road's law is one that a form at one of its ends is held to, and each form can be reached."""
    module = script("make_map")
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
