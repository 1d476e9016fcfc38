"""The pages under docs/ that are made from code are in step with it, and so is the README."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from kvq_ref.dispatch import FORMS
from kvq_ref.grid import GRID

ROOT = Path(__file__).parents[1]


def test_capabilities_page_is_in_step() -> None:
    """docs/capabilities.md is what docs/make_capabilities.py writes."""
    spec = importlib.util.spec_from_file_location("make_capabilities", ROOT / "docs" / "make_capabilities.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "run: python docs/make_capabilities.py"


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
