"""Every tutorial runs from top to bottom, on the package as it is installed, and checks what it says."""

from __future__ import annotations

import ast
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of these libraries about one another
    jupytext = pytest.importorskip("jupytext")
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient.exceptions import CellExecutionError
    from traitlets import default

TUTORIALS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.md"))
RESULTS = Path(__file__).parents[1] / "tutorials" / "results"
SECONDS = 60
DROPDOWN = re.compile(r"^````\{dropdown\}(.*?)^````$", re.MULTILINE | re.DOTALL)
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

MISTAKES = {  # a line of each tutorial, and the same line with a mistake that makes one of its claims wrong
    "01": ("return (w / w.sum(axis=1, keepdims=True) if normalise else w) @ v", "return w @ v"),
    "02": ("right = q @ k.T @ v - (1 + mistake)", "right = q @ k.T @ v + (1 + mistake)"),
    "03": ("d**-0.5 if scale is None", "d**-1.0 if scale is None"),
    "04": ("weight(kvq.expressive_attention, key)", "weight(kvq.softmax_attention, key)"),
    "05": ('{"alpha": task.bayes_alpha}', '{"alpha": 1.1 * task.bayes_alpha}'),
    "06": ("[family.held_out[whose[i]].act(e) for i, e in zip(rows, envs)]", "[0 for _ in envs]"),
    "07": ("deviation = np.sqrt(load / N)", "deviation = np.sqrt(load / (2 * N))"),
}

each_tutorial = pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)


class ThisInterpreter(KernelSpecManager):
    """Whatever kernels are registered on a computer, run the one of the Python that runs the tests."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name=kernel_name, language="python")


class Kernel(AsyncKernelManager):
    @default("kernel_spec_manager")
    def _this_interpreter(self) -> KernelSpecManager:
        return ThisInterpreter(parent=self)


def read(path: Path) -> nbformat.NotebookNode:
    """The notebook, and the code of the solutions: what a dropdown holds becomes one more cell after it."""
    notebook = jupytext.reads(path.read_text(encoding="utf-8"), fmt="md:myst")
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        if cell.cell_type == "markdown":
            solution = "".join(DROPDOWN.findall(cell.source))
            cells += [nbformat.v4.new_code_cell(source) for source in PYTHON.findall(solution)]
    notebook.cells = cells
    return notebook


def run(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Execute in a fresh kernel, in an empty folder, within the time limit of a tutorial."""
    deadline = time.monotonic() + SECONDS
    client = nbclient.NotebookClient(
        notebook,
        kernel_manager_class=Kernel,
        resources={"metadata": {"path": str(folder)}},
        timeout_func=lambda cell: max(1, int(deadline - time.monotonic())),
        startup_timeout=SECONDS,
    )
    inline = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "IPYTHONDIR": str(folder / ".ipython")}
    client.execute(env=os.environ | inline)
    assert time.monotonic() < deadline, f"took longer than {SECONDS} s"


def sections(notebook: nbformat.NotebookNode) -> Iterator[tuple[str, list[str]]]:
    """Heading and code cells of each ``##`` section."""
    heading, code = "", []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            code.append(cell.source)
            continue
        for line in cell.source.splitlines():
            if line.startswith("## "):
                yield heading, code
                heading, code = line.removeprefix("## "), []
    yield heading, code


def asserts(source: str) -> bool:
    """Whether the code has an assert statement or calls one of NumPy's assert functions."""
    nodes = list(ast.walk(ast.parse(source)))
    calls = [node.func for node in nodes if isinstance(node, ast.Call)]
    names = [getattr(func, "id", getattr(func, "attr", "")) for func in calls]
    return any(isinstance(node, ast.Assert) for node in nodes) or any(name.startswith("assert_") for name in names)


def test_there_are_tutorials() -> None:
    assert TUTORIALS


@each_tutorial
def test_every_section_with_code_checks_its_claim(path: Path) -> None:
    with_code = {heading: code for heading, code in sections(read(path)) if heading and code}
    assert with_code
    unchecked = [heading for heading, code in with_code.items() if not any(map(asserts, code))]
    assert not unchecked


@each_tutorial
def test_tutorial_runs_and_draws(path: Path, tmp_path: Path) -> None:
    notebook = read(path)
    shutil.copytree(RESULTS, tmp_path / RESULTS.name)  # of long runs; all else is made by the notebook
    run(notebook, tmp_path)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    figures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(figures) == sum(cell.source.count("plt.show()") for cell in notebook.cells) > 0

    said = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stderr")
    warned = [line for line in said.splitlines() if "Warning: " in line and "without its compiled kernels" not in line]
    assert not warned


@each_tutorial
def test_a_wrong_claim_is_noticed(path: Path, tmp_path: Path) -> None:
    """The checks can fail: with one mistake in the mathematics the tutorial stops at an assertion."""
    right, wrong = MISTAKES[path.name[:2]]
    notebook = read(path)
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code" and right in cell.source)
    cell.source = cell.source.replace(right, wrong)
    shutil.copytree(RESULTS, tmp_path / RESULTS.name)
    with pytest.raises(CellExecutionError) as caught:
        run(notebook, tmp_path)
    assert caught.value.ename == "AssertionError"
