"""kvq_ref needs neither PyTorch nor JAX, and says which of them is missing where one is wanted."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest


def test_importing_the_package_imports_neither(tmp_path: Path) -> None:
    program = (
        "import sys, kvq_ref, kvq_ref.interop, kvq_ref.interop.wrap; print(*{'torch', 'jax'}.intersection(sys.modules))"
    )
    # from another folder, where it is the installed package that is imported
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(("name", "library"), [("torch", "PyTorch"), ("jax", "JAX")])
def test_a_missing_library_is_named(name: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # what Python does with it: an ImportError
    monkeypatch.delitem(sys.modules, f"kvq_ref.interop.{name}", raising=False)
    with pytest.raises(ImportError, match=f"needs {library}: pip install {name}"):
        importlib.import_module(f"kvq_ref.interop.{name}")
