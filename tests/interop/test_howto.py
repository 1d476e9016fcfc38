"""The code of docs/howto/pytorch_and_jax.md runs as it stands, and what it asserts holds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "pytorch_and_jax.md"


@pytest.mark.oracle
def test_the_page_runs() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("jax")
    cells = re.findall(
        r"^```\{code-cell\} ipython3\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert len(cells) == 4
    exec(compile("\n".join(cells), PAGE.name, "exec"), {"__name__": "page"})
