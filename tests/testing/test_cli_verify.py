"""``kvq-ref verify``: what it prints and writes, and its exit status."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from kvq_ref import cli_verify
from kvq_ref.cli import main
from kvq_ref.testing import LAWS, Report
from kvq_ref.testing.child import Job
from kvq_ref.testing.frameworks import FRAMEWORKS
from kvq_ref.testing.isolate import LIMIT
from kvq_ref.testing.load import TargetError, framework_of, load
from kvq_ref.testing.rounding import ROUNDOFF
from kvq_ref.testing.target import LAYOUTS
from kvq_ref.testing.verify import EXAMPLES

GOOD = """
import time
import numpy as np

def attention(q, k, v, *, scale=None):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    z = q @ np.swapaxes(k, -1, -2) * np.float32(scale)
    w = np.exp(z - z.max(-1, keepdims=True))
    return (w / w.sum(-1, keepdims=True)) @ v
"""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in an empty folder with a target in it: exit status, output, error."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(GOOD)

    def run(*arguments: str, code: str = "") -> tuple[int, str, str]:
        if code:
            Path("mine.py").write_text(f"{GOOD}\n{code}\n")
        status = main(["verify", *arguments])
        out, error = capsys.readouterr()
        assert "Traceback" not in out + error
        return status, out, error

    return run


# ---- A verdict -----------------------------------------------------------------------


def test_a_sound_target_passes_and_the_command_repeats_it(run: Run) -> None:
    arguments = ["mine:attention", "--form", "softmax", "--examples", "5", "--law", "definition", "conduct"]
    status, out, error = run(*arguments, "--json", "a.json", "--html", "a.html")
    assert (status, error) == (0, "")
    for text in (
        "mine:attention as softmax_attention",
        "numpy arrays (inferred) in float32; options: scale",
        "5 examples of each law",
        "holds   definition",
        "All 2 laws hold.",
    ):
        assert text in out
    report = Report.from_json(Path("a.json").read_text())
    assert json.loads(Path("a.json").read_text())["status"] == 0
    assert f"the same again: {report.command}\n" in out
    assert str(report.seed) in report.command
    assert Path("a.html").read_text().startswith("<!doctype html>")

    run(*shlex.split(report.command)[2:], "--json", "b.json")
    again = Report.from_json(Path("b.json").read_text())

    def drawn(given: Report) -> list[tuple[str, int, float | None]]:
        return [(x.law, x.examples, x.units) for x in given.findings]

    assert drawn(again) == drawn(report)
    assert again.command == report.command


def test_a_broken_law_fails_with_all_that_is_known(run: Run) -> None:
    code = "def wrong(q, k, v, scale=None):\n    return attention(q, k, v, scale=1.0 if scale is None else scale)"
    status, out, _ = run("mine.py:wrong", "--form", "softmax", "--law", "definition", "--examples", "300", code=code)
    assert status == 1
    for text in (
        "BROKEN  definition",
        "q = np.array(",
        "got\n",
        "expected\n",
        "The one law is broken",
    ):
        assert text in out


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("if len(q.shape) > 2: raise ValueError('no batch, please')", "raised ValueError: no batch, please (mine.py:"),
        ("if len(q.shape) > 2: time.sleep(600)", "did not return within 1 s, at mine.py:"),
        ("if len(q.shape) > 2: return None", "returned no usable output: expected a NumPy array, got NoneType"),
        ("if len(q.shape) > 2: return attention(q, k, v)[0]", "returned the output in shape ("),
        ("return attention(q, k, v) * np.float32('nan')", ": got nan, expected "),
        ("v[:] = 1; return v if len(q) == len(k) else attention(q, k, v)", "shares memory with v"),
    ],
    ids=["raises", "hangs", "None", "shape", "NaN", "view"],
)
def test_whatever_a_target_does_is_told_and_no_traceback_is_shown(run: Run, body: str, text: str) -> None:
    code = f"def odd(q, k, v):\n    {body}\n    return attention(q, k, v)"
    laws = ("--law", "conduct") if "memory" in text else ("--law", "definition")
    status, out, _ = run("mine:odd", "--form", "softmax", "--examples", "200", "--limit", "1", *laws, code=code)
    assert status == 1
    assert text in out.replace("\n  ", " ")


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (
            "def odd(q, k, v): return oops",
            "the target raised NameError: name 'oops' is not defined (mine.py:",
        ),
        ("def odd(q, k, v): return [1.0]", "returned no usable output: expected a NumPy array, got list"),
        (
            "import no_such_library",
            "importing mine raised ModuleNotFoundError: No module named 'no_such_library' (mine.py",
        ),
    ],
    ids=["raises", "list", "import"],
)
def test_a_target_that_cannot_be_used(run: Run, code: str, text: str) -> None:
    status, out, error = run("mine:odd", "--form", "softmax", "--json", "a.json", code=code)
    assert (status, out) == (2, "")
    assert text in error
    assert error.count("\n") == 1
    assert Report.from_json(Path("a.json").read_text()).status == 2


def test_a_verdict_needs_a_law_that_was_checked(run: Run) -> None:
    status, _, error = run("mine:attention", "--form", "softmax", "--law", "gradients")
    assert status == 2
    assert "none of the laws that were asked for could be checked" in error


# ---- Arguments -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "--form is missing"),
        (["--form", "softmax"], "the target is missing"),
        (["mine:attention"], "--form is missing"),
        (["mine:attention", "--form", "sofmax"], "expected one of 'softmax'"),
        (["mine:attention", "--form", "softmax", "--law", "definitoin"], "did you mean 'definition'?"),
        (["mine:attention", "--form", "softmax", "--except", "x"], "there is none of the name 'x'"),
        (["mine:attention", "--form", "softmax", "--json", "no/a.json"], "no such folder: no"),
    ],
)
def test_arguments_that_are_refused(run: Run, arguments: list[str], text: str) -> None:
    status, _, error = run(*arguments)
    assert status == 2
    assert text in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--framework", "nump"],
        ["--limit", "0"],
        ["--limit", "soon"],
        ["--examples", "0"],
        ["--rename", "mask"],
        ["--assume", "mask=1"],
        ["--assume", "scale"],
    ],
)
def test_arguments_that_cannot_be_parsed(run: Run, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run("mine:attention", "--form", "softmax", *arguments)
    assert stop.value.code == 2
    assert "--help" in capsys.readouterr().err


def test_arguments_reach_the_target(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    jobs: list[Job] = []

    def remember(job: Job, watcher: object) -> Report:
        jobs.append(job)
        return job.report()

    monkeypatch.setattr("kvq_ref.testing.isolate.verify_isolated", remember)
    words = shlex.split(
        "verify m:f --form expressive --framework torch --device cuda --layout bthd --dtype bfloat16 --backward m:b "
        "--examples 7 --limit 2.5 --rename mask=visible bias=b --assume is_causal=true scale=0.125 feature_map=elu+1 "
        "--drop bias --law definition conduct --except conduct --no-gradient --strict --seed 5"
    )
    assert main(words) == 0
    how = {
        "framework": "torch",
        "device": "cuda",
        "layout": "bthd",
        "dtype": "bfloat16",
        "limit": 2.5,
        "rename": {"mask": "visible", "bias": "b"},
        "assume": {"is_causal": True, "scale": 0.125, "feature_map": "elu+1"},
        "drop": ["bias"],
        "gradient": False,
    }
    assert jobs == [Job("m:f", "expressive", 5, 7, True, ["definition", "conduct"], ["conduct"], "m:b", how)]
    command = capsys.readouterr().out.rpartition("the same again: ")[2].split()
    assert main(command[1:]) == 0
    assert jobs[1] == jobs[0]


def test_the_choices_are_those_of_the_kit() -> None:
    """They stand in the parser by hand, as the kit takes time to import."""
    assert set(cli_verify.FRAMEWORKS) == set(FRAMEWORKS)
    assert cli_verify.LAYOUTS == LAYOUTS
    assert set(cli_verify.DTYPES) == set(ROUNDOFF)
    assert cli_verify.DEFAULTS["examples"] == EXAMPLES
    assert cli_verify.DEFAULTS["limit"] == LIMIT


def test_the_list_of_laws(run: Run) -> None:
    status, every, _ = run("--list")
    assert status == 0
    assert all(f"{law.name}\n    " in every for law in LAWS)
    _, some, _ = run("--list", "--form", "intention")
    listed = [line for line in some.splitlines() if not line.startswith(" ")]
    assert listed == [law.name for law in LAWS if "intention" in law.forms]


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["verify", "--help"])
    assert stop.value.code == 0
    assert "kvq-ref verify torch.nn.functional:scaled_dot_product_attention --form softmax" in capsys.readouterr().out


# ---- Finding the target --------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_target_in_a_file_sees_its_neighbours_and_has_dotted_names(here: Path) -> None:
    folder = here / "sub"
    folder.mkdir()
    (folder / "kvq_neighbour.py").write_text("def f(): return 'neighbour'")
    (folder / "kvq_mine.py").write_text("import kvq_neighbour\nclass A:\n    class B:\n        f = kvq_neighbour.f\n")
    function, module = load("sub/kvq_mine.py:A.B.f")
    assert function() == "neighbour"
    assert module.__name__ == "kvq_mine"


@pytest.mark.parametrize(
    ("name", "code", "text"),
    [
        ("kvq_t0", "", "expected package.module:function"),
        ("kvq_t1:f.g", "def f(): pass", "kvq_t1:f has no attribute 'g'"),
        ("kvq_t2:atention", "attention = 1", "did you mean attention?"),
        ("kvq_t3:x", "x = 1", "is not callable: it is of type int"),
        ("kvq_t4.sub:x", "", "no module named 'kvq_t4.sub'"),
        ("kvq_none:x", "", "no module named 'kvq_none', in "),
        ("kvq_none.py:x", "", "no such file: kvq_none.py"),
        ("kvq_t5:x", "a = 1\nb = 1 / 0", "importing kvq_t5 raised ZeroDivisionError: division by zero (kvq_t5.py:2)"),
        ("kvq_t6.py:x", "\n\nx = = 1", "importing kvq_t6.py raised SyntaxError: invalid syntax"),
        ("kvq_t7:x", "import sys; sys.exit('no')", "importing kvq_t7 raised SystemExit: no (kvq_t7.py:1)"),
    ],
)
def test_a_target_that_is_not_there(here: Path, name: str, code: str, text: str) -> None:
    file = name.partition(":")[0].partition(".")[0] + ".py"
    if "none" not in name:
        (here / file).write_text(code)
    with pytest.raises(TargetError) as error:
        load(name)
    assert text in str(error.value)


def test_the_array_library_is_that_of_the_module(here: Path) -> None:
    (here / "torch_like.py").write_text("class Tensor: pass\nTensor.__module__ = 'torch'\n")
    (here / "kvq_u1.py").write_text("from torch_like import Tensor\ndef f(): pass")
    (here / "kvq_u2.py").write_text("from kvq_u1 import f")
    (here / "kvq_u3.py").write_text("import numpy\ndef f(): pass")
    (here / "kvq_u4.py").write_text(
        "from torch_like import Tensor\nclass Array: pass\nArray.__module__ = 'jax.numpy'\ndef f(): pass"
    )
    assert framework_of(*load("kvq_u1:f")) == "torch"
    assert framework_of(*load("kvq_u2:f")) == "torch"
    assert framework_of(*load("kvq_u3:f")) == "numpy"
    with pytest.raises(TargetError, match="imports jax and torch: say which"):
        framework_of(*load("kvq_u4:f"))


# ---- A large library -----------------------------------------------------------------


@pytest.mark.oracle
def test_what_torch_has_passes_and_a_wrong_scale_is_named(run: Run) -> None:
    pytest.importorskip("torch")
    sdpa = "torch.nn.functional:scaled_dot_product_attention"
    assert main(["verify", sdpa, "--form", "softmax", "--examples", "5"]) == 0
    code = (
        "from torch.nn.functional import scaled_dot_product_attention as sdpa\n"
        "def wrong(q, k, v, attn_mask=None, scale=None):\n"
        "    return sdpa(q, k, v, attn_mask, scale=1.0 if scale is None else scale)"
    )
    status, out, _ = run("mine:wrong", "--form", "softmax", "--law", "definition", "--examples", "300", code=code)
    assert status == 1
    assert "torch arrays (inferred)" in out
    assert "sqrt(d)" in out.rpartition("Likely cause")[2]
