"""What a training step costs with each form, beside what it learns: one run at a time. Read the ratios."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kvq_ref.lab.results import grouped, read_runs
from studies.in_context import COMMON, FORMS, UNIT

JOBS = "1"
TASKS = {"sinusoid": "sinusoid --steps 1000"}


def studies(folder: Path) -> Iterator[tuple[str, str]]:
    """Name and arguments of each sweep."""
    plain = [form for form in FORMS if form not in UNIT]
    for name, task in TASKS.items():
        for forms, norm in ((plain, ""), (UNIT, "--norm unit")):
            yield name, f"{task} --set form={','.join(forms)} {norm} {COMMON} --seeds 5"


def results(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Milliseconds of a step, from every seed; and the megabytes of a process that takes five."""
    found = {}
    for name in TASKS:
        rows = []
        finished = read_runs([folder / name]).finished
        for (form,), runs in grouped([(run.config, run) for run in finished], ["form"]).items():
            times = [float(f"{run.milliseconds:.3g}") for run in runs]
            command = runs[0].config.command()
            rows.append({"form": form, "milliseconds": times, "megabytes": peak(command), "command": command})
        found[name] = rows
    return found


def peak(command: str) -> float:
    """The largest memory of a process, the interpreter and all libraries included."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [*shlex.split(command), "--steps", "5", "--evaluate-every", "5", "--out", folder]
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 1):
        raise SystemExit(f"{shlex.join(arguments)} ended with {process.returncode}")
    return round(usage.ru_maxrss / 1024, 1)
