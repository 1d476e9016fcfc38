"""verify() and suite() as functions: a report or a failing test, whatever the target does."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvq_ref as kvq
from kvq_ref.testing import LAWS, Report, Target, verify
from kvq_ref.testing.target import HungError
from kvq_ref.testing.verify import _seed_of_the_run

F32 = np.float32


def softmax(q: Any, k: Any, v: Any) -> Any:
    z = q @ np.swapaxes(k, -1, -2) * q.dtype.type(q.shape[-1] ** -0.5)
    w = np.exp(z - z.max(-1, keepdims=True))
    return (w / w.sum(-1, keepdims=True)) @ v


def after_four(wrong: Callable[..., Any]) -> Callable[..., Any]:
    """A target that behaves until it is asked more than four queries."""
    return lambda q, k, v: wrong(q, k, v) if q.shape[-2] > 4 else softmax(q, k, v)


def fail(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda q, k, v: fail(ValueError("no")), "the target raised ValueError: no (test_verify.py:"),
        (lambda q, k, v: fail(KeyboardInterrupt()), "the target raised KeyboardInterrupt"),
        (lambda q, k, v: sys.exit(1), "the target raised SystemExit: 1"),
        (lambda q, k, v: time.sleep(60), "the target did not return within 0.3 s, at "),
        (lambda q, k, v: softmax(q, k, v)[0], "the target returned the output in shape ("),
        (lambda q, k, v: softmax(q, k, v).astype(float), "the target returned the output in float64, expected float32"),
        (lambda q, k, v: softmax(q, k, v).tolist(), "the target returned no usable output: expected a NumPy array"),
        (lambda q, k, v: None, "the target returned no usable output: expected a NumPy array, got NoneType"),
        (lambda q, k, v: np.array(["one"]), "the target returned no usable output: could not convert"),
        (lambda q, k, v: softmax(q, k, v) * F32("nan"), "got nan, expected "),
        (lambda q, k, v: softmax(q, k, v) + F32(0.01), "output["),
    ],
)
def test_whatever_a_target_does_there_is_a_report(wrong: Callable[..., Any], text: str) -> None:
    function = after_four(wrong)
    report = verify(function, "softmax", seed=0, examples=200, laws=["definition"], gradient=False, limit=0.3)
    (found,) = report.broken
    assert found.broken is not None
    assert text in found.broken.what.replace(str(Path(__file__).parent), "").replace("(/", "(").replace(
        "tests/testing/", ""
    )
    assert Report.from_json(report.to_json()) == report


@pytest.mark.parametrize("bad", [None, (), [1], 3.0, "text"])
def test_a_backward_that_gives_nothing_of_use(bad: Any) -> None:
    report = verify(softmax, "softmax", backward=lambda *_: bad, seed=0, examples=3, laws=["gradients"])
    assert report.status == 1


def test_a_target_that_never_answers_is_unusable() -> None:
    report = verify(lambda q, k, v: time.sleep(60), "softmax", limit=0.1)
    assert report.status == 2
    assert report.unusable.startswith("the target did not return within 0.1 s")


def test_after_it_hung_nobody_waits_for_it_again() -> None:
    target = Target(lambda q, k, v: time.sleep(60), "softmax", limit=0.1)
    with pytest.raises(HungError):
        target.probe()
    start = time.perf_counter()
    with pytest.raises(HungError, match="earlier call"):
        target.probe()
    assert time.perf_counter() - start < 0.1
    report = verify(after_four(lambda q, k, v: time.sleep(60)), "softmax", limit=0.2, seed=0)
    assert [x.law for x in report.broken] == ["conduct"]
    assert {x.why for x in report.findings[1:]} <= {"the target hung before", "asked for with strict only"}


def test_a_target_that_is_given_up_takes_its_thread_along() -> None:
    """Whoever verifies many targets in one process is not left with as many threads."""
    target = Target(kvq.softmax_attention, "softmax")
    before = set(threading.enumerate())
    target._run(lambda: None)
    (thread,) = set(threading.enumerate()) - before
    assert thread.is_alive()
    del target
    gc.collect()
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_findings_are_told_as_they_come() -> None:
    told: list[tuple[str, Any]] = []
    report = verify(
        softmax,
        "softmax",
        examples=3,
        laws=["conduct", "definition", "gradients"],
        except_for=["conduct"],
        on_start=lambda x: told.append(("start", x.options)),
        on_law=lambda x: told.append(("law", x)),
        on_finding=lambda x: told.append(("finding", x.law)),
    )
    assert told == [
        ("start", []),
        ("finding", "conduct"),
        ("law", "definition"),
        ("finding", "definition"),
        ("law", "gradients"),
        ("finding", "gradients"),
    ]
    assert [x.why for x in report.findings] == ["exempted", "", "the target has no gradient"]


def test_laws_of_other_forms_are_no_part_of_a_report() -> None:
    report = verify(kvq.linear_attention, "linear", examples=1, except_for=[law.name for law in LAWS])
    assert [x.law for x in report.findings] == [law.name for law in LAWS if "linear_attention" in law.forms]
    assert report.status == 2
    assert "could be checked" in report.unusable


def test_each_call_can_be_recorded() -> None:
    calls: list[Any] = []
    verify(softmax, "softmax", examples=2, laws=["definition"], on_call=calls.append)
    assert len(calls) >= 3
    assert all(call.q.ndim >= 2 for call in calls)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"form": "sofmax"}, "form: expected one of"),
        ({"framework": "tensorflow"}, "framework: expected one of"),
        ({"layout": "bhdt"}, "layout: expected one of"),
        ({"device": "cuda"}, "device: "),
        ({"laws": ["a law"]}, "there is none of the name 'a law'"),
        ({"except_for": ["definitions"]}, "did you mean 'definition'"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        verify(softmax, **{"form": "softmax", **arguments})


def test_a_form_of_this_package_obeys_its_own_laws() -> None:
    def backward(dout: Any, q: Any, k: Any, v: Any, **options: Any) -> Any:
        return kvq.vjp(kvq.softmax_attention, q, k, v, **options)[1](dout)

    found = verify(kvq.softmax_attention, "softmax", backward=backward, examples=5, strict=True).broken
    assert [(x.law, x.broken and x.broken.what) for x in found] == []


# ---- pytest --------------------------------------------------------------------------

SUITE = """
import kvq_ref as kvq
from kvq_ref.testing import suite

def mine(q, k, v, mask=None, is_causal=False):
    return kvq.expressive_attention(q, k, v, mask=mask, is_causal=is_causal, scale=0.5)

def hangs(q, k, v):
    import time
    time.sleep(60)

TestMine = suite(mine, form="expressive", examples=5)
TestRight = suite(kvq.expressive_attention, form="expressive", examples=3, except_for=["conduct"])
TestHangs = suite(hangs, form="expressive", limit=0.2)
"""


def test_a_suite_is_a_test_for_each_law_and_workers_draw_alike(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    (tmp_path / "test_mine.py").write_text(SUITE)
    given = {k: v for k, v in os.environ.items() if not k.startswith(("KVQ_REF_SEED", "PYTEST_"))}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rfs", "-n", "2", "test_mine.py"]
    command += ["-k", "definition or conduct or remembers"]
    out = subprocess.run(
        command, cwd=tmp_path, env=given, text=True, stdout=subprocess.PIPE, timeout=120, check=False
    ).stdout
    for text in (
        "definition: broken",
        "The output is that of the form's definition",
        "q = np.array",
        "exempted",
        "did not return within 0.2 s",
        "FAILED test_mine.py::TestMine::test_definition",
    ):
        assert text in out
    assert "FAILED test_mine.py::TestRight" not in out
    assert "File " not in out  # no traceback
    assert len(set(re.findall(r"KVQ_REF_SEED=(\d+)", out))) == 1


def test_the_seed_of_a_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, or the same for all workers of a run and another for the next."""
    monkeypatch.setenv("KVQ_REF_SEED", "7")
    assert _seed_of_the_run() == 7
    monkeypatch.delenv("KVQ_REF_SEED")
    monkeypatch.setenv("PYTEST_XDIST_TESTRUNUID", "a")
    first = _seed_of_the_run()
    assert _seed_of_the_run() == first
    monkeypatch.setenv("PYTEST_XDIST_TESTRUNUID", "b")
    assert _seed_of_the_run() != first
    monkeypatch.delenv("PYTEST_XDIST_TESTRUNUID")
    assert _seed_of_the_run() != _seed_of_the_run()
