"""``kvq-ref run all --quick``: a small version of every experiment, a report of each, and a page that leads there."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvq_ref.cli import CHECK_FAILED, OK, refuse
from kvq_ref.cli_run import PACKAGES, follow, heed_what_is_there, packages_missing, sweep, wanted

if TYPE_CHECKING:
    from kvq_ref.lab.cell import Outcome
    from kvq_ref.lab.config import Config
    from kvq_ref.lab.sweep_report import Findings
    from kvq_ref.lab.table import Table

PAGE = "all.html"  # in a folder that may hold a sweep, and so its report.html
CAUTION = (
    "A look at everything, not a result: few steps, and few seeds. What is ahead here may be behind after more "
    "steps, or by chance."
)


def run_all(options: argparse.Namespace) -> int:
    """The command ``run all``."""
    from kvq_ref import cli_progress

    if missing := packages_missing("report"):
        return refuse("run", missing)
    try:
        grids, left_out = _grids(options)
        for task in grids:
            (options.out / task / "cells").mkdir(parents=True, exist_ok=True)
    except (TypeError, ValueError) as error:
        return refuse("run", str(error))
    except OSError as error:
        return refuse("run", f"{error.filename}: {error.strerror}")
    for task, why in left_out.items():
        print(f"kvq-ref run: {task} is left out: {why}", file=sys.stderr)
    heed_what_is_there(options, {options.out / task: configs for task, configs in grids.items()})
    watch = cli_progress.Many(sum(map(len, grids.values())))
    findings: dict[str, Findings] = {}
    if (stopped := follow(options, watch, _outcomes(options, grids, watch, findings))) is not None:
        return stopped
    scores = score_table(findings)
    print(f"{scores.as_text()}\n\n{CAUTION}\n")
    print("".join(f"{task} is left out: {why}\n" for task, why in left_out.items()), end="")
    print(f"{cli_progress.failures(watch.failed)}\n" * bool(watch.failed), end="")
    print(f"{watch.so_far()}\nreport    {_write(options, scores, findings, left_out, watch)}")
    return CHECK_FAILED if watch.failed else OK


def _grids(options: argparse.Namespace) -> tuple[dict[str, list[Config]], dict[str, str]]:
    """The runs of each task, every one of them checked; and why others are left out.

    Raises
    ------
    OSError, TypeError, ValueError
    """
    from kvq_ref.arguments import check_word
    from kvq_ref.lab.catalogue import TASKS
    from kvq_ref.lab.grid import grid

    if not options.quick:
        raise ValueError(
            "all: only with --quick, a small version of every task; in full each is a command of its own, as in "
            "kvq-ref run sinusoid --set form=intention,softmax --seeds 10"
        )
    if options.resume and options.restart:
        raise ValueError("--resume continues what is there, --restart removes it: not both")
    given, axes = wanted(options)
    given.pop("task")
    tasks = dict(axes).get("task", list(TASKS))
    axes = [axis for axis in axes if axis[0] != "task"]
    found, left_out = {}, {}
    for task in tasks:
        check_word("task", task, tuple(TASKS))
        if task in PACKAGES and (missing := packages_missing(task)):
            left_out[task] = missing
            continue
        # whatever is given goes before the task's own
        own = {name: x for name, x in TASKS[task].quick.items() if name not in given and name not in dict(axes)}
        several = [(name, list(x)) for name, x in own.items() if isinstance(x, tuple)]
        one = {name: x for name, x in own.items() if not isinstance(x, tuple)}
        try:
            found[task] = grid({"task": task, **one, **given}, [*axes, *several])
        except (TypeError, ValueError) as error:
            raise type(error)(f"{task}: {error}") from None
    return found, left_out


def _outcomes(
    options: argparse.Namespace, grids: Mapping[str, list[Config]], watch: Any, findings: dict[str, Findings]
) -> Iterator[Outcome]:
    """Of all runs, task after task; after each its report, and a line."""
    for task, configs in grids.items():
        begin = time.monotonic()
        yield from sweep(options, configs, options.out / task)
        if found := _report(options.out / task, configs):
            findings[task] = found
            watch.tell(f"{_line(task, found)}; {time.monotonic() - begin:.0f} s")


def _report(folder: Path, configs: list[Config]) -> Findings | None:
    """Write the report of these runs; None if none has finished."""
    from kvq_ref.lab.results import Runs, read_runs, varying
    from kvq_ref.lab.sweep_figures import numeric_axes
    from kvq_ref.lab.sweep_report import analyse, write_report

    there, names = read_runs([folder]), {config.name for config in configs}
    runs = [run for run in there.finished if run.config.name in names]
    if not runs:
        return None
    found = Runs(runs, failed={path: why for path, why in there.failed.items() if path.name in names})
    compared = "form" if "form" in varying(run.config for run in runs) else None
    findings = analyse(runs, found, compared, numeric_axes(runs, compared), [CAUTION])
    write_report(findings, folder)
    return findings


# ---- What came of it -------------------------------------------------------------------


def _line(task: str, findings: Findings) -> str:
    """A task in a line."""
    points = score_table({task: findings})
    return "; ".join(
        f"{row[0]}: " + ", ".join(f"{form} {score}" for form, score in zip(points.head[2:-1], row[2:-1], strict=True))
        for row in points.rows
    )


def score_table(findings: Mapping[str, Findings]) -> Table:
    """Mean scores, a row for each point of each task, and a column for each form."""
    from kvq_ref.lab.results import axes_of, grouped, rank
    from kvq_ref.lab.statistics import mean
    from kvq_ref.lab.sweep_tables import as_word
    from kvq_ref.lab.table import Table

    forms = sorted({run.config.form for x in findings.values() for run in x.runs}, key=rank)
    rows = []
    for task, found in findings.items():
        score = found.judged_by
        others = [name for name in axes_of([run.config for run in found.runs], ["form"]) if name != "form"]
        best = next((x for x in found.standings if x.is_yardstick and not x.settings), None)
        yardstick = f"{score.as_word(best.score.value)} {best.who['form'].partition(' (')[0]}" if best else "-"
        for point, runs in grouped([(run.config, run) for run in found.runs], others).items():
            words = [f"{name} {as_word(value)}" for name, value in zip(others, point, strict=True)]
            of_form = {form: [run.score for run in runs if run.config.form == form] for form in forms}
            means = (score.as_word(mean(x).value) if x else "-" for x in of_form.values())
            rows.append((", ".join([task, *words]), score.name, *means, yardstick))
    return Table(("task", "score", *forms, "best yardstick"), rows, text_columns=2)


def _write(
    options: argparse.Namespace,
    scores: Table,
    findings: Mapping[str, Findings],
    left_out: Mapping[str, str],
    watch: Any,
) -> Path:
    """The page."""
    from kvq_ref.files import write_atomically
    from kvq_ref.lab import report as html

    links = ", ".join(f'<a href="{escape(task)}/report.html">{escape(task)}</a>' for task in findings)
    notes = "".join(html.paragraph(f"{task} is left out: {why}") for task, why in left_out.items())
    sections = [html.section("Scores", html.table(scores)), html.section("Reports", f"<p>{links}</p>", notes)]
    introduction = html.paragraph(CAUTION, "soft")
    page = html.page("Every task, a small version", f"{watch.so_far()}.", not watch.failed, introduction, sections)
    return write_atomically(options.out / PAGE, page)
