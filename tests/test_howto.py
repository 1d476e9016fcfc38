"""The how-to pages run from top to bottom, and the form that one of them makes passes the contract."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

tutorials = pytest.importorskip("test_tutorials")

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "howto").glob("*.md"))
NEEDS = {"pytorch_and_jax": ("torch", "jax")}


def cells(path: Path) -> list[str]:
    """The code that a page executes."""
    return [cell.source for cell in tutorials.read(path).cells if cell.cell_type == "code"]


def of(name: str) -> list[str]:
    return cells(ROOT / "docs" / "howto" / f"{name}.md")


EXECUTED = [
    pytest.param(path, id=path.stem, marks=pytest.mark.oracle if path.stem in NEEDS else ())
    for path in PAGES
    if cells(path)
]


@pytest.mark.parametrize("path", EXECUTED)
def test_page_runs(path: Path, tmp_path: Path) -> None:
    """As a notebook of its own, and something in it can fail."""
    for library in NEEDS.get(path.stem, ()):
        pytest.importorskip(library)
    assert any(map(tutorials.asserts, cells(path)))
    tutorials.run(tutorials.read(path), tmp_path)


def test_what_is_not_executed_is_no_python() -> None:
    """A page without code that runs shows commands alone."""
    silent = [path for path in PAGES if not cells(path) and "```python" in path.read_text(encoding="utf-8")]
    assert not silent


def test_every_page_is_listed() -> None:
    index = (ROOT / "docs" / "howto" / "index.md").read_text(encoding="utf-8")
    names = {path.stem for path in PAGES} - {"index"}
    assert names == set(re.findall(r"\]\((\w+)\.md\)", index)) == set(re.findall(r"^(\w+)$", index, re.MULTILINE))


# ---- A form of your own ----------------------------------------------------------------


def test_form_of_the_page_is_short() -> None:
    """Forward, backward and their declaration, in under 60 lines of code."""
    form, declaration = of("add_a_form")[:2]
    lines = [line for line in (form + declaration).splitlines() if line.strip()]
    assert len(lines) < 60
    assert "def forward" in form
    assert "def backward" in form
    assert "FORMS[" in declaration


def test_form_of_the_page_passes_the_contract(tmp_path: Path) -> None:
    """In a process of its own, where the page's code is a plugin that declares the form before tests are collected."""
    code = [cell for cell in of("add_a_form") if re.search(r"^(def forward|FORMS\[|ORACLES\[)", cell, re.MULTILINE)]
    assert len(code) == 3
    code[2] = code[2].partition("for dtype in ")[0]  # the laws are the page's own test
    (tmp_path / "form_of_the_page.py").write_text("\n".join(code), encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "form_of_the_page", "-p", "no:cacheprovider"]
    command += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), str(ROOT / "tests" / "test_contract.py")]
    command += ["-k", "expressive_sum", "-m", "not oracle and not gpu"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed.group(1)) > 50
