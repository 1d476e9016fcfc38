"""Verify in another process, so that a target which takes the interpreter down cannot take the report with it.

The other process is :mod:`kvq_ref.testing.child`. What ends it, or keeps it silent,
is a broken law: the one that was under way. To find the call that did it, the law is
checked once more in a third process, which writes down every call before it makes it.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from kvq_ref.dispatch import form_name
from kvq_ref.testing import child
from kvq_ref.testing.child import Job
from kvq_ref.testing.laws import Law
from kvq_ref.testing.load import innermost
from kvq_ref.testing.report import Breakage, Finding, Report
from kvq_ref.testing.target import serve
from kvq_ref.testing.verify import select, why_not

GRACE = 5.0  # seconds of silence, beyond the limit of a call
IMPORT = 300.0  # seconds of silence while the target is imported: libraries may be compiled then
TICK = 0.1
LIMIT = 30.0
TAIL = 500  # lines of the target's output to keep
STACK = "(most recent call first)"  # as faulthandler has it


class Watcher:
    """Is told how far the verification is; this one does nothing with it."""

    def start(self, report: Report) -> None:
        """The target can be used; the report has no findings yet."""

    def law(self, name: str) -> None:
        """A law is about to be checked."""

    def finding(self, finding: Finding) -> None:
        """What came of a law."""

    def tick(self) -> None:
        """A moment has passed."""


def verify_isolated(job: Job, watcher: Watcher | None = None, *, grace: float = GRACE) -> Report:
    """Verify in another process.

    Parameters
    ----------
    job : Job
        What to verify.
    watcher : Watcher, optional
        Is told of each finding as it comes.
    grace : float
        Seconds beyond the limit of a call until a silent process is given up.

    Returns
    -------
    Report
        It never raises for what the target does.

    Raises
    ------
    KeyboardInterrupt
        The other process, and all that it started, has ended by then.
    """
    watcher = watcher or Watcher()
    start = time.perf_counter()
    with _ends_when_terminated(), tempfile.TemporaryDirectory(prefix="kvq-ref-") as folder:
        run = _follow(replace(job, folder=folder), watcher, grace)
        report = run.report or _lost(run, watcher, grace)
    remarks = list(report.remarks)
    if run.printed.lines and run.report is not None:
        lines = "1 line" if run.printed.lines == 1 else f"{run.printed.lines} lines, the last"
        remarks.append(f"the target, or what it uses, printed {lines}: {_last(run.printed.tail)}")
    return replace(report, target=job.target, remarks=remarks, seconds=time.perf_counter() - start)


# ---- Listening -----------------------------------------------------------------------


@dataclass
class _Printed:
    """What a process prints: how many lines, and the last of them."""

    lines: int = 0
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL))

    def read(self, output: Connection) -> None:
        rest = b""
        with contextlib.suppress(OSError):
            while data := os.read(output.fileno(), 65536):
                *lines, rest = (rest + data).split(b"\n")
                rest = rest[-65536:]
                self.lines += len(lines)
                self.tail.extend(line.decode(errors="replace") for line in lines)
        if rest:
            self.lines += 1
            self.tail.append(rest.decode(errors="replace"))


@dataclass
class _Run:
    """One process, as far as it came."""

    job: Job
    imported: bool = False
    start: Report | None = None
    law: str = ""
    law_since: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    report: Report | None = None
    exitcode: int | None = None
    silent: bool = False
    printed: _Printed = field(default_factory=_Printed)

    def take(self, message: dict[str, Any], watcher: Watcher) -> None:
        kind = message["kind"]
        if kind == "imported":
            self.imported = True
        elif kind == "start":
            self.start = replace(Report.from_json(json.dumps(message["report"])), target=self.job.target)
            watcher.start(self.start)
        elif kind == "law":
            self.law, self.law_since = message["law"], time.perf_counter()
            watcher.law(self.law)
        elif kind == "finding":
            self.findings.append(Finding.from_fields(message["finding"]))
            watcher.finding(self.findings[-1])
        elif kind == "report":
            self.report = Report.from_json(json.dumps(message["report"]))


def _follow(job: Job, watcher: Watcher, grace: float) -> _Run:
    """Start a process and listen until it is done, gone or silent; it is gone afterwards."""
    run = _Run(job)
    context = multiprocessing.get_context("spawn")
    messages, their_messages = context.Pipe(duplex=False)
    output, their_output = context.Pipe(duplex=False)
    process = context.Process(target=child.main, args=(_as_json(job), their_messages, their_output))
    try:
        with _interrupts_are_ours():
            process.start()
        their_messages.close()
        their_output.close()
        reader = threading.Thread(target=run.printed.read, args=(output,), daemon=True)
        reader.start()
        _listen(run, process, messages, watcher, grace)
        if run.report is None and not run.silent:
            process.join(grace)
            run.exitcode = process.exitcode
    finally:
        _end(process)
    reader.join(1.0)  # what it started may hold on to the pipe, so not for ever
    messages.close()
    if not reader.is_alive():
        output.close()
    return run


def _listen(run: _Run, process: SpawnProcess, messages: Connection, watcher: Watcher, grace: float) -> None:
    limit = float(run.job.how.get("limit", LIMIT))
    heard = time.monotonic()
    while run.report is None:
        if messages.poll(TICK):
            try:
                message = json.loads(messages.recv_bytes())
            except (EOFError, OSError):
                return
            heard = time.monotonic()
            run.take(message, watcher)
        elif process.exitcode is not None and not messages.poll(0):
            return
        elif time.monotonic() - heard > (limit + grace if run.imported else max(limit, IMPORT)):
            run.silent = True
            if os.name == "posix" and process.pid is not None:
                os.kill(process.pid, child.WHERE)
                time.sleep(TICK)
            return
        watcher.tick()


def _end(process: SpawnProcess) -> None:
    """End a process and what it started."""
    if process.pid is None:
        return
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


# ---- When there is no report ---------------------------------------------------------


def _lost(run: _Run, watcher: Watcher, grace: float) -> Report:
    """A report on a target that ended its process, or that held on to it."""
    what = _what_happened(run)
    if run.start is None or not run.law:
        when = "on its first call" if run.imported else "while it was imported"
        return run.job.report(unusable=f"the target {what} {when}{_place(run)}")
    broken = _under_way(run, f"the target {what}{_place(run)}", grace)
    watcher.finding(broken)
    findings = [*(x for x in run.findings if x.law != run.law), broken]  # it may end after a law, by a thread
    before = "the target hung before" if run.silent else "the target crashed before"
    for law in select(form_name(run.job.form), run.job.laws, run.job.except_for)[len(findings) :]:
        why = why_not(law, run.job.except_for, run.job.strict) or before
        findings.append(Finding(law.name, law.statement, law.latex, "not checked", why))
        watcher.finding(findings[-1])
    return replace(run.start, findings=findings)


def _under_way(run: _Run, what: str, grace: float) -> Finding:
    """The law under way is broken."""
    law = select(form_name(run.job.form), [run.law])[0]
    seconds = time.perf_counter() - run.law_since
    code = _call_that_did_it(run.job, law, grace)
    if not code:
        what += "; it did not do so when this law was checked alone"
    return Finding(law.name, law.statement, law.latex, "broken", seconds=seconds, broken=Breakage(what, "", "", code))


def _call_that_did_it(job: Job, law: Law, grace: float) -> str:
    """Code of the last call of a second run; empty if that run comes to its end."""
    again = _follow(replace(job, laws=[law.name], record=True), Watcher(), grace)
    return job.recorded.read_text(encoding="utf-8") if again.report is None and job.recorded.exists() else ""


def _what_happened(run: _Run) -> str:
    if run.silent:
        limit = float(run.job.how.get("limit", LIMIT))
        return f"did not return within {limit:g} s and let no other Python thread run"
    code = run.exitcode
    if code is None or code >= 0:
        return f"ended the interpreter (exit status {'unknown' if code is None else code})"
    name = signal.Signals(-code).name if -code in list(signal.Signals) else "unknown"
    if name == "SIGKILL":
        return "was killed (signal 9, SIGKILL: is there enough memory?)"
    return f"crashed the interpreter (signal {-code}, {name})"


def _place(run: _Run) -> str:
    """Where in the target's code it was, and what was printed last, as far as they are known."""
    lines = list(run.printed.tail)
    dump = next(
        (i for i, line in enumerate(lines) if line.startswith("Fatal Python error") or STACK in line), len(lines)
    )
    stacks: list[list[str]] = []
    for line in lines[dump:]:
        if STACK in line:
            stacks.append([])
        elif stacks:
            stacks[-1].append(line)
    mark = f" in {serve.__name__}"  # of the thread that calls the target
    chosen = next((stack for stack in stacks if any(line.endswith(mark) for line in stack)), [])
    matches = [re.match(r'\s*File "(.+)", line (\d+)', line) for line in chosen]
    place = innermost([(m[1], int(m[2])) for m in matches[::-1] if m])
    said = _last(lines[:dump])
    return (f", at {place}" if place else "") + (f"; the last that was printed: {said}" if said else "")


def _last(lines: Iterable[str]) -> str:
    """The last line with anything on it, fit for a terminal. The code under a warning is not what it says."""
    full = [line for line in lines if line.strip()]
    line = next((line for line in reversed(full) if not line[0].isspace()), full[-1] if full else "")
    return "".join(c if c.isprintable() else "?" for c in line.strip())[:200]


# ---- Signals -------------------------------------------------------------------------


def _as_json(job: Job) -> str:
    return json.dumps({name: getattr(job, name) for name in job.__dataclass_fields__})


@contextlib.contextmanager
def _interrupts_are_ours() -> Iterator[None]:
    """A process that is started in here takes no notice of Ctrl-C: we do, and end it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _ends_when_terminated() -> Iterator[None]:
    """SIGTERM ends us by way of an exception, so that nothing that we started is left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
