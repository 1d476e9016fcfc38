"""The pages under docs/ that are made from code are in step with it, and so is the README."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_capabilities_page_is_in_step() -> None:
    """docs/capabilities.md is what docs/make_capabilities.py writes."""
    spec = importlib.util.spec_from_file_location("make_capabilities", ROOT / "docs" / "make_capabilities.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "run: python docs/make_capabilities.py"


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
