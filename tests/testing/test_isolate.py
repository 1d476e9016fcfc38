"""A target may take its process down, hold on to it, or print what it likes: there is a report all the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvq_ref.testing import Report
from kvq_ref.testing.child import Job
from kvq_ref.testing.isolate import Watcher, verify_isolated
from kvq_ref.testing.report import Finding

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")

SOFTMAX = """
import ctypes, os, sys, time
import numpy as np

def good(q, k, v):
    z = q @ np.swapaxes(k, -1, -2) * np.float32(q.shape[-1] ** -0.5)
    w = np.exp(z - z.max(-1, keepdims=True))
    return (w / w.sum(-1, keepdims=True)) @ v
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a job of what a target does where it is asked more than four queries."""
    monkeypatch.chdir(tmp_path)

    def make(body: str, limit: float = 20.0, laws: tuple[str, ...] = ("definition", "conduct")) -> Job:
        code = f"{SOFTMAX}\ndef target(q, k, v):\n    if q.shape[-2] > 4:\n        {body}\n    return good(q, k, v)\n"
        Path("mine.py").write_text(code)
        return Job("mine:target", "softmax", 1, 200, laws=list(laws), how={"limit": limit})

    return make


def only(report: Report) -> tuple[Finding, str]:
    (finding,) = report.broken
    assert finding.broken is not None
    return finding, finding.broken.what


def test_a_crash_is_a_broken_law_with_its_call_and_its_line(job) -> None:
    report = verify_isolated(job("ctypes.string_at(0)"))
    finding, what = only(report)
    assert "crashed the interpreter (signal 11, SIGSEGV), at mine.py:12" in what
    assert finding.broken is not None
    space: dict[str, object] = {}
    exec(finding.broken.code, space)
    assert space["q"].shape[-2] > 4  # type: ignore[attr-defined]
    assert [x.why for x in report.findings if x.status == "not checked"] == ["the target crashed before"]
    assert (report.status, report.target) == (1, "mine:target")


def test_a_target_that_ends_the_interpreter(job) -> None:
    _, what = only(verify_isolated(job("print('so long'); os._exit(3)")))
    assert "ended the interpreter (exit status 3)" in what


def test_a_target_that_lets_no_thread_run_is_given_up(job) -> None:
    start = time.perf_counter()
    finding, what = only(verify_isolated(job("ctypes.PyDLL(None).sleep(600)", limit=0.5), grace=1.0))
    assert "let no other Python thread run, at mine.py:12" in what
    assert finding.broken is not None
    assert "q = np.array" in finding.broken.code
    assert time.perf_counter() - start < 30


def test_what_a_target_prints_is_kept_apart(job, capfd: pytest.CaptureFixture[str]) -> None:
    body = "os.write(1, b'\\xff{}\\n' * 9); print('\\x1b[31mred', file=sys.stderr)"
    report = verify_isolated(job(body, laws=("definition",)))
    assert report.status == 0
    assert capfd.readouterr() == ("", "")
    assert report.remarks[-1].endswith("?[31mred")


def test_a_first_call_that_crashes_makes_it_unusable(job) -> None:
    given = job("pass")
    Path("mine.py").write_text(f"{SOFTMAX}\ndef target(q, k, v):\n    ctypes.string_at(0)\n")
    report = verify_isolated(given)
    assert report.status == 2
    assert "SIGSEGV) on its first call, at mine.py:11" in report.unusable


def test_what_is_told_on_the_way_is_what_the_report_says(job) -> None:
    told: list[Finding] = []

    class Listener(Watcher):
        def finding(self, finding: Finding) -> None:
            told.append(finding)

    report = verify_isolated(job("pass"), Listener())
    assert report.status == 0
    assert told == report.findings
    assert not Path(".hypothesis").exists()  # nothing is left behind
    assert [x.name for x in Path().iterdir() if x.name != "__pycache__"] == ["mine.py"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_all_processes(job, number: int, status: int) -> None:
    job("pass")
    with Path("mine.py").open("a") as file:
        file.write("\nopen('pid', 'w').write(str(os.getpid()))\n")
        file.write("\ndef slow(q, k, v):\n    time.sleep(0.05)\n    return good(q, k, v)\n")
    # Whoever runs these tests in the background may ignore SIGINT, and a child inherits that.
    heeded = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    command = [sys.executable, "-c", heeded + "import kvq_ref.cli; sys.exit(kvq_ref.cli.main())"]
    process = subprocess.Popen(
        [*command, "verify", "mine:slow", "--form", "softmax"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("law"):
            break
    process.send_signal(number)
    out, error = process.communicate(timeout=30)
    assert process.returncode == status
    assert "Traceback" not in error
    if number == signal.SIGINT:
        assert "Interrupted: " in out
        assert error == "kvq-ref verify: interrupted\n"
    pid = int(Path("pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
