"""The process in which a target is verified: whatever happens to it, the one that started it lives on.

It says how far it is in JSON, one message at a time, and that it is alive twice a second.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from kvq_ref.dispatch import form_name
from kvq_ref.files import write_atomically
from kvq_ref.testing.calls import Call
from kvq_ref.testing.load import TargetError, described, framework_of, load
from kvq_ref.testing.report import Report, as_code
from kvq_ref.testing.verify import verify

HEARTBEAT = 0.5
WHERE = getattr(signal, "SIGUSR1", 0)  # asks for the line that is being executed


@dataclass(frozen=True)
class Job:
    """What to verify, and how, as plain data.

    Attributes
    ----------
    target, form : str
        ``package.module:function`` or ``path/to/file.py:function``, and which form it claims to be.
    seed, examples, strict, laws, except_for
        As for :func:`kvq_ref.testing.verify`.
    backward : str
        Named like the target; empty for none.
    how : dict
        How to call it, as for :class:`kvq_ref.testing.Target`; without ``framework`` that is inferred.
    folder : str
        For what is kept for the time of the verification only.
    record : bool
        Whether to write each call into the folder, as code, before the target is called.
    """

    target: str
    form: str
    seed: int
    examples: int
    strict: bool = False
    laws: list[str] = field(default_factory=list)
    except_for: list[str] = field(default_factory=list)
    backward: str = ""
    how: dict[str, Any] = field(default_factory=dict)
    folder: str = ""
    record: bool = False

    @property
    def recorded(self) -> Path:
        """The file that holds the latest call."""
        return Path(self.folder, "call.py")

    def report(self, **fields: Any) -> Report:
        """A report on it, with what is known from the start."""
        known = {name: self.how[name] for name in ("framework", "layout", "device", "dtype") if self.how.get(name)}
        known |= {name: getattr(self, name) for name in ("target", "seed", "examples", "strict")}
        return Report(**{**known, "form": form_name(self.form), **fields})


def main(job: str, messages: Connection, output: Connection) -> NoReturn:
    """Verify, and end this process."""
    _stand_alone(output)
    lock = threading.Lock()

    def say(kind: str, **content: Any) -> None:
        try:
            with lock:
                messages.send_bytes(json.dumps({"kind": kind, **content}).encode())
        except OSError:  # nobody listens any more
            os._exit(1)

    def keep_alive() -> None:
        while True:
            time.sleep(HEARTBEAT)
            say("alive")

    threading.Thread(target=keep_alive, daemon=True).start()
    law = ""

    def on_law(name: str) -> None:
        nonlocal law
        law = name
        say("law", law=name)

    wanted = Job(**json.loads(job))
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = wanted.folder  # or it leaves a folder of its own where we are
    try:
        report = _verify(wanted, say, on_law)
    except BaseException as error:
        where = f"at the law {law!r}" if law else "before the first law"
        report = wanted.report(
            unusable=f"kvq_ref itself failed {where}, which is not the target's fault: {_all(error)}"
        )
    say("report", report=json.loads(report.to_json()))
    os._exit(0)  # a thread in which the target hangs would keep the interpreter from ending


def _verify(job: Job, say: Callable[..., None], on_law: Callable[[str], None]) -> Report:
    how = dict(job.how)
    started = False
    try:
        function, module = load(job.target)
        how["framework"] = how.get("framework") or framework_of(function, module)
        if job.backward:
            how["backward"] = load(job.backward)[0]
    except TargetError as error:
        return job.report(unusable=str(error))
    say("imported")

    def on_start(report: Report) -> None:
        nonlocal started
        started = True
        say("start", report=json.loads(report.to_json()))

    def on_call(call: Call) -> None:
        write_atomically(job.recorded, as_code(call, form_name(job.form), how.get("dtype", "float32")))

    try:
        return verify(
            function,
            job.form,
            examples=job.examples,
            seed=job.seed,
            strict=job.strict,
            laws=job.laws,
            except_for=job.except_for,
            on_start=on_start,
            on_law=on_law,
            on_finding=lambda finding: say("finding", finding=asdict(finding)),
            on_call=on_call if job.record else None,
            **how,
        )
    except ValueError as error:
        if started:
            raise
        return job.report(framework=how["framework"], unusable=str(error))


def _stand_alone(output: Connection) -> None:
    """What the target prints goes to whoever started us; what it starts ends with us; a crash says where it was."""
    if os.name == "posix":
        os.setsid()
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        output.close()
        faulthandler.register(WHERE, file=2, all_threads=True)
    faulthandler.enable(file=2, all_threads=False)
    sys.path.insert(0, os.getcwd())


def _all(error: BaseException) -> str:
    """An exception of our own code, with the line of it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    line = f" [{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}]" if trace is not None else ""
    return described(error) + line
