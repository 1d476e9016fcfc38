"""The public surface: names, switches, the state of the installation, and the rules of the house."""

from __future__ import annotations

import ast
import contextvars
import dataclasses
import importlib.metadata
import importlib.resources
import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import array_api_compat
import numpy as np
import pytest
from cases import ALL_FORMS, each_form, public

import kvq_ref as kvq
from kvq_ref import arrays, dispatch, kernels
from kvq_ref.dispatch import FORMS, Form, capabilities

PACKAGE = Path(kvq.__file__).parent
ROOT = Path(__file__).parents[1]  # of the repository, where meson.build is


# ---- Names ---------------------------------------------------------------------------

DESIGNED = {
    *("softmax_attention", "expressive_attention", "linear_attention"),
    *("quadratic_attention", "taylor_attention", "sigmoid_attention", "local_linear_attention"),
    *("intention", "sigma_intention", "expressive_intention"),
    *("vjp", "use_implementation", "use_backend", "use_num_threads", "show_config"),
}
HELPERS = {"FeatureMap", "Grads", "IntentionState", "LinearState", "masks", "merge_heads", "partials", "split_heads"}
RECURRENT = {"delta_rule", "gated_linear_attention", "mesa_attention"}
STATES = {"DeltaRuleState", "GatedLinearState", "MesaState"}


def test_public_names() -> None:
    """__all__ is the designed functions and their helpers, sorted, and every one is there."""
    assert set(kvq.__all__) == DESIGNED | HELPERS | RECURRENT | STATES
    assert list(kvq.__all__) == sorted(kvq.__all__)
    for name in kvq.__all__:
        assert getattr(kvq, name) is not None


def test_every_form_is_public() -> None:
    """The declarations in dispatch and the public functions are the same, under the same names."""
    assert set(FORMS) == {name for name in DESIGNED if name.endswith(("attention", "intention"))} | RECURRENT
    for name, form in FORMS.items():
        assert form.name == name
        assert public(form).__name__ == name


SIGNATURES = {
    "softmax_attention": "mask=None, bias=None, is_causal=False, scale=None",
    "expressive_attention": "mask=None, bias=None, is_causal=False, scale=None",
    "quadratic_attention": "mask=None, bias=None, is_causal=False, scale=None",
    "taylor_attention": "mask=None, bias=None, is_causal=False, scale=None",
    "sigmoid_attention": "mask=None, bias=None, is_causal=False, scale=None, offset=0.0",
    "local_linear_attention": "alpha, mask=None, bias=None, is_causal=False, scale=None",
    "linear_attention": "mask=None, is_causal=False, scale=None, feature_map=None, normalize=False, "
    "initial_state=None, output_final_state=False",
    "intention": "alpha, mask=None, is_causal=False, solver='auto', initial_state=None, output_final_state=False",
    "sigma_intention": "alpha, mask=None, bias=None, is_causal=False, scale=None, solver='auto'",
    "expressive_intention": "alpha, mask=None, bias=None, is_causal=False, scale=None, solver='auto'",
    "delta_rule": "mask=None, is_causal=False, scale=None, beta=None, initial_state=None, output_final_state=False",
    "mesa_attention": "alpha, mask=None, is_causal=False, decay=None, initial_state=None, output_final_state=False",
    "gated_linear_attention": "mask=None, is_causal=False, scale=None, decay=None, "
    "initial_state=None, output_final_state=False",
}


@each_form
def test_signature(form: Form) -> None:
    """q, k, v by position, all else by keyword, with the designed defaults."""
    signature = inspect.signature(public(form))
    bare = signature.replace(
        parameters=[p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()],
        return_annotation=inspect.Signature.empty,
    )
    assert str(bare) == f"(q, k, v, *, {SIGNATURES[form.name]}, out=None, implementation=None)"


@each_form
def test_forms_file_has_the_public_options(form: Form) -> None:
    """What a form's file takes is what the public function takes, without what dispatch does for it."""
    by_dispatch = {"q", "k", "v", "out", "implementation", "output_final_state"}
    assert set(form.options) == set(inspect.signature(public(form)).parameters) - by_dispatch


def test_version() -> None:
    """__version__, meson.build and the installed metadata say the same."""
    assert re.fullmatch(r"\d+\.\d+\.\d+([a-z.]\w*)*", kvq.__version__)
    found = re.search(r"version:\s*'([^']+)'", (ROOT / "meson.build").read_text(encoding="utf-8"))
    assert found is not None
    assert found.group(1) == kvq.__version__
    try:
        installed = importlib.metadata.version("kvq_ref")
    except importlib.metadata.PackageNotFoundError:
        return  # imported from a source tree
    assert installed == kvq.__version__


def test_typed() -> None:
    """Type checkers of users find the annotations."""
    assert importlib.resources.files("kvq_ref").joinpath("py.typed").is_file()


# ---- Which implementation ------------------------------------------------------------


class Spy:
    """Which implementation served the calls, seen by wrapping the choice and the quick way past it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.served: list[str] = []
        honest = dispatch.choose

        def choose(*arguments: Any) -> Any:
            chosen = honest(*arguments)
            self.served.append(chosen.name)
            return chosen

        monkeypatch.setattr(dispatch, "choose", choose)
        form = FORMS["softmax_attention"]
        best, *others = form.implementations
        if best.quick is not None:
            watched = dataclasses.replace(best, quick=self.watch(best))
            monkeypatch.setitem(FORMS, form.name, dataclasses.replace(form, implementations=(watched, *others)))

    def watch(self, best: dispatch.Implementation) -> Callable[..., Any]:
        def quick(*arguments: Any) -> Any:
            assert best.quick is not None
            out = best.quick(*arguments)
            if out is not None:
                self.served.append(best.name)
            return out

        return quick

    def last(self, **options: Any) -> str:
        """The name of what serves a plain call of softmax attention."""
        x = np.ones((2, 2))
        kvq.softmax_attention(x, x, x, **options)
        return self.served[-1]


BEST = "compiled" if kernels.missing is None else "reference"


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    return Spy(monkeypatch)


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Softmax attention with a compiled kernel that is there for sure: the reference under that name."""
    form = FORMS["softmax_attention"]
    reference = form.implementation("reference")
    assert reference is not None
    fast = dispatch.Implementation("compiled", reference.forward, reference.backward, numpy_only=True)
    monkeypatch.setitem(FORMS, form.name, dispatch.Form(form.name, form.module, (fast, reference)))


def test_default_is_the_best_that_serves(spy: Spy) -> None:
    """None: the kernel where it is installed and takes these arrays, else the reference."""
    assert spy.last() == BEST
    xp = pytest.importorskip("array_api_strict")
    x = xp.ones((2, 2))
    kvq.softmax_attention(x, x, x)
    assert spy.served[-1] == "reference"


@pytest.mark.usefixtures("pretend")
def test_use_implementation_nests(spy: Spy) -> None:
    """The innermost block decides, None gives the choice back, and leaving a block restores what was."""
    assert spy.last() == "compiled"
    with kvq.use_implementation("reference"):
        assert spy.last() == "reference"
        with kvq.use_implementation("compiled"):
            assert spy.last() == "compiled"
            with kvq.use_implementation(None):
                assert spy.last() == "compiled"
            with kvq.use_implementation("reference"):
                assert spy.last() == "reference"
        assert spy.last() == "reference"
    assert spy.last() == "compiled"


@pytest.mark.usefixtures("pretend")
def test_use_implementation_ends_with_an_exception(spy: Spy) -> None:
    """Also when the block is left by an error."""
    with pytest.raises(RuntimeError, match="inside"), kvq.use_implementation("reference"):
        raise RuntimeError("inside")
    assert spy.last() == "compiled"


@pytest.mark.usefixtures("pretend")
def test_keyword_wins_over_the_switch(spy: Spy) -> None:
    """implementation= on a call is nearer than a block around it."""
    with kvq.use_implementation("reference"):
        assert spy.last(implementation="compiled") == "compiled"
        assert spy.last(implementation=None) == "reference"
    with kvq.use_implementation("compiled"):
        assert spy.last(implementation="reference") == "reference"


@pytest.mark.usefixtures("pretend")
def test_pullback_stays_with_its_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backward is that of the implementation that ran forward, whatever is in force by then."""
    x = np.ones((2, 2))
    form = FORMS["softmax_attention"]
    ran: list[str] = []
    marked = []
    for implementation in form.implementations:

        def backward(
            dout: Any, saved: Any, name: str = implementation.name, honest: Any = implementation.backward
        ) -> Any:
            ran.append(name)
            return honest(dout, saved)

        marked.append(dispatch.Implementation(implementation.name, implementation.forward, backward))
    monkeypatch.setitem(FORMS, form.name, dispatch.Form(form.name, form.module, tuple(marked)))
    with kvq.use_implementation("reference"):
        out, pullback = kvq.vjp(kvq.softmax_attention, x, x, x)
    with kvq.use_implementation("compiled"):
        pullback(out)
    assert ran == ["reference"]


@pytest.mark.usefixtures("pretend")
def test_switches_are_of_a_thread_and_a_context(spy: Spy) -> None:
    """A block in one thread or context changes nothing in another."""
    seen: list[str] = []
    with kvq.use_implementation("reference"), kvq.use_backend("numpy"):
        thread = threading.Thread(target=lambda: seen.append(spy.last()))
        thread.start()
        thread.join()
        inside = contextvars.copy_context()
    assert seen == ["compiled"]
    assert spy.last() == "compiled"
    assert inside.run(spy.last) == "reference"


# ---- Where arrays are created --------------------------------------------------------


@pytest.fixture
def strict_backend(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Another library in CuPy's place, so that a test can tell what was created where."""
    strict = pytest.importorskip("array_api_strict")
    monkeypatch.setitem(sys.modules, "array_api_compat.cupy", strict)
    monkeypatch.setattr(array_api_compat, "cupy", strict, raising=False)
    return strict


def test_use_backend_says_where_masks_are_created(strict_backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks and biases come from the backend in force: the innermost block, then the environment, then NumPy."""
    strict = type(strict_backend.ones(1))
    assert isinstance(kvq.masks.causal(2, 2), np.ndarray)
    with kvq.use_backend("cupy"):
        for made in (
            kvq.masks.causal(2, 2),
            kvq.masks.window(2, 2, 1),
            kvq.masks.alibi(2, 3, 3),
            kvq.masks.lengths([1], 2),
        ):
            assert isinstance(made, strict)
        with kvq.use_backend("numpy"):
            assert isinstance(kvq.masks.causal(2, 2), np.ndarray)
        assert isinstance(kvq.masks.causal(2, 2), strict)
    assert isinstance(kvq.masks.causal(2, 2), np.ndarray)
    monkeypatch.setenv("KVQ_REF_BACKEND", "cupy")
    assert isinstance(kvq.masks.causal(2, 2), strict)
    with kvq.use_backend("numpy"):
        assert isinstance(kvq.masks.causal(2, 2), np.ndarray)


@each_form
def test_use_backend_does_not_change_what_forms_do(form: Form, strict_backend: Any, rng: np.random.Generator) -> None:
    """The arrays decide by their own type: not a bit of a result depends on the backend."""
    q, k, v = rng.standard_normal((3, 5, 3))
    options = {"alpha": 0.5} if "alpha" in form.options else {}
    results = []
    for backend in ("numpy", "cupy"):
        with kvq.use_backend(backend):
            out, pullback = kvq.vjp(public(form), q, k, v, is_causal=True, **options)
            results.append((out, *pullback(out)[:3]))
    for a, b in zip(*results, strict=True):
        assert isinstance(b, np.ndarray)
        np.testing.assert_array_equal(a, b)


def test_memory_mapped_arrays(tmp_path: Path, rng: np.random.Generator) -> None:
    """A file on disk that is an ndarray is an array like any other."""
    x = rng.standard_normal((3, 4, 2))
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_array_equal(kvq.softmax_attention(*mapped), kvq.softmax_attention(*x))


# ---- What the installation says of itself --------------------------------------------


def test_show_config(capsys: pytest.CaptureFixture[str]) -> None:
    """One line for each thing that a bug report needs, in a column."""
    assert kvq.show_config() is None
    lines = capsys.readouterr().out.splitlines()
    rows = dict(re.split(r" {2,}", line, maxsplit=1) for line in lines)
    wanted = {"kvq_ref", "python", "platform", "numpy", "scipy", "array-api-compat", "compiled kernels", "backend"}
    wanted |= {"memory for results"}
    assert wanted | {"cupy", "torch", "jax"} <= set(rows)
    assert rows["numpy"] == np.__version__
    assert rows["backend"] == arrays.current_backend()
    assert rows["compiled kernels"].startswith("yes" if kernels.missing is None else "no (")
    assert len({line.index(value) for line, value in zip(lines, rows.values(), strict=True)}) == 1


def test_capabilities_cover_all_forms() -> None:
    """A row for each form and implementation, the declarations' own words, and a reference for every form."""
    rows = capabilities()
    assert {(row["form"], row["implementation"]) for row in rows} == {
        (form.name, x.name) for form in ALL_FORMS for x in form.implementations
    }
    assert len({tuple(row.items()) for row in rows}) == len(rows)
    for form in ALL_FORMS:
        (reference,) = [r for r in rows if r["form"] == form.name and r["implementation"] == "reference"]
        assert reference["available"] == "yes"
        assert "PyTorch" in reference["arrays"]
        assert reference["options"].split(", ") == list(form.options)
    for row in rows:
        assert row["dtypes"].split(", ") == ["float16", "bfloat16", "float32", "float64"]
        if row["implementation"] == "compiled":
            assert row["arrays"] == "NumPy"
            assert (row["available"] == "yes") == (kernels.missing is None)


# ---- Import --------------------------------------------------------------------------


def python(code: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter whose only way to kvq_ref is the folder ``cwd``."""
    clean = {
        n: x for n, x in os.environ.items() if n not in ("KVQ_REF_REQUIRE_EXT", "PYTHONWARNINGS", "KVQ_REF_BACKEND")
    }
    path = {"PYTHONPATH": str(cwd), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        cwd=cwd,
        env=clean | path | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


HIDE_KERNELS = "import sys; sys.modules['kvq_ref._ext'] = None\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package without its kernels and without a source tree around it."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(PACKAGE, folder / "kvq_ref", ignore=shutil.ignore_patterns("__pycache__", "_ext"))
    return folder


@pytest.fixture(scope="module")
def source_tree(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a pyproject.toml beside it, as in a checkout."""
    folder = tmp_path_factory.mktemp("source")
    shutil.copytree(site / "kvq_ref", folder / "kvq_ref")
    (folder / "pyproject.toml").write_text("[project]\nname = 'kvq_ref'\n", encoding="utf-8")
    return folder


def test_required_kernels_that_are_missing(site: Path) -> None:
    """KVQ_REF_REQUIRE_EXT=1 turns a missing kernel into an ImportError with a remedy: CI cannot miss it."""
    done = python(HIDE_KERNELS + "import kvq_ref", site, KVQ_REF_REQUIRE_EXT="1")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: KVQ_REF_REQUIRE_EXT=1, but the compiled kernels are missing")
    assert "pip install" in last


@pytest.mark.parametrize("value", ["", "0"])
def test_kernels_that_are_not_required(value: str, site: Path) -> None:
    """Installed without kernels: no error, no warning, and the forms work on their reference."""
    code = HIDE_KERNELS + (
        "import numpy as np, kvq_ref as kvq; x = np.eye(2)\n"
        "print(kvq.softmax_attention(x, x, x).sum(), kvq.kernels.missing)"
    )
    done = python(code, site, KVQ_REF_REQUIRE_EXT=value)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    total, reason = done.stdout.split(maxsplit=1)
    assert float(total) == pytest.approx(2.0)
    assert "_ext" in reason


def test_source_tree_without_kernels_warns_once(source_tree: Path) -> None:
    """Whoever imports from a checkout by mistake hears of it once, with the remedy; not at every import or call."""
    code = HIDE_KERNELS + (
        "import kvq_ref, importlib; import kvq_ref.dispatch; from kvq_ref import vjp\n"
        "import numpy as np; x = np.eye(2); kvq_ref.softmax_attention(x, x, x); kvq_ref.intention(x, x, x, alpha=1.0)"
    )
    done = python(code, source_tree)
    assert done.returncode == 0, done.stderr
    warned = [line for line in done.stderr.splitlines() if "Warning" in line]
    assert len(warned) == 1
    assert "UserWarning: kvq_ref is imported from a source tree without its compiled kernels" in warned[0]
    assert "pip install" in warned[0]
    assert warned[0].startswith("<string>:")  # at the line of whoever imports it


def test_import_needs_no_optional_library(site: Path) -> None:
    """Import and every form on NumPy, where torch, JAX, CuPy and the tour's libraries cannot be imported."""
    hidden = ("torch", "jax", "cupy", "matplotlib", "sklearn", "tqdm", "onnx", "autograd", "array_api_strict")
    code = (
        "import sys\n"
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {hidden!r}: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Hide())\n"
        "import numpy as np, kvq_ref as kvq, kvq_ref.testing; from kvq_ref.dispatch import FORMS; x = np.eye(2)\n"
        "for n, f in FORMS.items(): getattr(kvq, n)(x, x, x, **({'alpha': 1.0} if 'alpha' in f.options else {}))\n"
        "kvq.show_config()"
    )
    done = python(code, site)
    assert done.returncode == 0, done.stderr


# ---- The rules of the house ----------------------------------------------------------


@each_form
def test_form_is_a_short_lesson(form: Form) -> None:
    """A title, an equation block, the cost and the source; a file that can be read in one go."""
    docstring = inspect.getdoc(form.module) or ""
    title, rest = docstring.split("\n", maxsplit=1)
    assert title.endswith(".")
    assert rest.startswith("\n")
    blocks = re.findall(r"(?:^ {4}\S.*\n)+", rest, re.MULTILINE)
    assert any("out_i = " in block for block in blocks), "no equation"
    assert re.search(r"^Cost: ", docstring, re.MULTILINE)
    assert re.search(r"^Source: ", docstring, re.MULTILINE)
    assert len(inspect.getsource(form.module).splitlines()) < 150


def imported_by(path: Path) -> set[str]:
    """The names of all modules that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


ROOMS = {
    # folder or file: what it may not import
    "forms": ("dispatch", "kernels", "_ext", "attention", "arguments", "testing", "lab", "bench", "tour", "cli"),
    "solve.py": ("dispatch", "kernels", "_ext", "attention", "testing", "lab"),
    "solvers.py": ("dispatch", "kernels", "_ext", "attention", "testing", "lab"),
    "masks.py": ("dispatch", "kernels", "_ext", "attention", "testing", "lab", "forms", "solve"),
    "partials.py": ("dispatch", "kernels", "_ext", "attention", "testing", "lab", "bench", "tour", "cli"),
    "dispatch.py": ("testing", "lab", "bench", "tour", "cli"),
    "testing": ("forms", "solve", "solvers", "kernels", "_ext", "lab", "bench", "tour", "cli"),
}


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_keep_to_themselves(room: str) -> None:
    """Mathematics knows nothing of the choice, the speed or the claims; those who check use the public API."""
    place = PACKAGE / room
    files = [place] if place.is_file() else sorted(place.rglob("*.py"))
    assert files
    for file in files:
        for name in imported_by(file):
            for forbidden in ROOMS[room]:
                whole = f"kvq_ref.{forbidden}"
                assert name != whole, f"{file.name} imports {name}"
                assert not name.startswith(f"{whole}."), f"{file.name} imports {name}"


def test_oracles_share_no_code_with_the_package() -> None:
    """Brute force that called the code under test would prove nothing."""
    ours = {name for name in imported_by(PACKAGE / "testing" / "oracles.py") if name.startswith("kvq_ref")}
    assert ours == set()


def test_only_few_files_know_optional_libraries() -> None:
    """CuPy, torch and JAX are named where arrays are, and nowhere in the mathematics."""
    for file in sorted(PACKAGE.rglob("*.py")):
        optional = {name.split(".")[0] for name in imported_by(file)} & {"cupy", "cupyx", "torch", "jax"}
        assert not optional or file.name in ("arrays.py", "dispatch.py") or "bench" in file.parts, file.name
