"""The runs behind the tutorials' tables and figures.

    python docs/make_results.py run STUDY DIR      train what DIR does not have yet; an interrupted one goes on
    python docs/make_results.py write STUDY DIR    put the results into tutorials/results/STUDY.json

STUDY is ladder, in_context or cost: a module of docs/studies, where each sweep is a name, its folder in DIR, and the
arguments of a ``kvq-ref run``.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from studies import cost, in_context, ladder

from kvq_ref.files import write_atomically

STUDIES = {"ladder": ladder, "in_context": in_context, "cost": cost}
RESULTS = Path(__file__).parents[1] / "tutorials" / "results"


def run(study: ModuleType, folder: Path) -> None:
    """Train what is missing. Sweeps are asked for one by one: what one found may decide what the next one trains."""
    for name, arguments in study.studies(folder):
        command = ["kvq-ref", "run", *shlex.split(arguments), "--jobs", study.JOBS, "--out", str(folder / name)]
        print("$", shlex.join(command), flush=True)
        if subprocess.run(command).returncode not in (0, 1):
            raise SystemExit("stopped; the same command goes on")


def write(study: ModuleType, folder: Path, path: Path) -> None:
    """A line for each row, so that what changes can be seen."""
    path.parent.mkdir(exist_ok=True)
    lines = (
        f"{json.dumps(name)}: [\n" + ",\n".join(map(json.dumps, rows)) + "\n]"
        for name, rows in study.results(folder).items()
    )
    write_atomically(path, "{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    what, which, where = sys.argv[1:]
    if what == "run":
        run(STUDIES[which], Path(where))
    else:
        write(STUDIES[which], Path(where), RESULTS / f"{which}.json")
