"""What a training step costs with each form, beside what it learns: one run at a time, on a computer that has nothing
else to do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kvq_ref.lab.results import grouped, read_runs
from studies.in_context import COMMON, FORMS, UNIT

JOBS = "1"
TASKS = {
    "sinusoid": "sinusoid --steps 1000",
    "sinusoid-long": "sinusoid --K 1000 --steps 50",
}


def studies(folder: Path) -> Iterator[tuple[str, str]]:
    """Name and arguments of each sweep."""
    plain = [form for form in FORMS if form not in UNIT]
    for name, task in TASKS.items():
        for forms, norm in ((plain, ""), (UNIT, "--norm unit")):
            yield name, f"{task} --set form={','.join(forms)} {norm} {COMMON} --seeds 5"


def results(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Milliseconds of a step, from every seed."""
    found = {}
    for name in TASKS:
        runs = read_runs([folder / name]).finished
        rows = []
        for (form,), seeds in grouped([(run.config, run) for run in runs], ["form"]).items():
            costs = [json.loads((run.folder / "cost.json").read_text(encoding="utf-8")) for run in seeds]
            times = [float(f"{1e3 * cost['seconds'] / cost['steps']:.3g}") for cost in costs]
            rows.append({"form": form, "milliseconds": times, "command": seeds[0].config.command()})
        found[name] = rows
    return found
