"""``kvq-ref report``: what comes of the runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvq_ref.cli import CHECK_FAILED, OK, refuse
from kvq_ref.cli_run import packages_missing

if TYPE_CHECKING:
    from kvq_ref.lab.sweep_report import Findings

DESCRIPTION = """\
Tables, figures and one self-contained page of the runs in DIR: for every point of
the grid the share of seeds that reach the target (Wilson), the mean accuracy or
error (Student) and the median steps; forms, or the values of another setting,
compared over equal seeds; where a task has yardsticks, these beside the forms; and
a command that repeats a run of each point.

Writes report.html, report.md, report.json and the figures. Runs that have not
finished are counted, named and left out.
"""
EXAMPLES = """\
examples:
  kvq-ref report kvq-runs
  kvq-ref report kvq-runs --where form=softmax,expressive --where tau=2:8
  kvq-ref report kvq-runs --compare positions --by tau
  kvq-ref report kvq-runs --best rate,gain --best-on 0:2     each form at its own best
  kvq-ref report mine theirs --out together

exit status: 0 written, 1 written, but runs failed or cannot be read (they are
named), 2 unusable arguments or no finished runs.
"""


def report(options: argparse.Namespace) -> int:
    """The command ``report``."""
    if missing := packages_missing("report"):
        return refuse("report", missing)
    from kvq_ref.lab.sweep_report import missing as left_out
    from kvq_ref.lab.sweep_report import verdict, write_report
    from kvq_ref.lab.sweep_tables import acting_table, standing_table, verdict_table

    try:
        findings = _findings(options)
        page = write_report(findings, options.out or options.folders[0])
    except (TypeError, ValueError) as error:
        return refuse("report", str(error))
    except OSError as error:
        return refuse("report", f"{error.filename}: {error.strerror}")
    print("\n".join([verdict(findings), *findings.notes, *left_out(findings.found)]))
    if findings.standings:
        print(f"\n{standing_table(findings.standings).as_text()}")
    if any(x.acting for x in findings.standings):
        print(f"\n{acting_table(findings.standings).as_text()}")
    if findings.comparisons:
        print(f"\n{verdict_table(findings.comparisons, findings.has_target).as_text()}")
    print(f"\nreport   {page}")
    return CHECK_FAILED if findings.found.failed or findings.found.broken else OK


def _findings(options: argparse.Namespace) -> Findings:
    """Read the runs, pick those that are wanted, and analyse them.

    Raises
    ------
    OSError, TypeError, ValueError
    """
    from kvq_ref.lab.analysis import choose
    from kvq_ref.lab.config import FIELDS, check_setting
    from kvq_ref.lab.grid import axis, seeds
    from kvq_ref.lab.results import read_runs, varying, where
    from kvq_ref.lab.sweep_figures import numeric_axes
    from kvq_ref.lab.sweep_report import analyse

    found = read_runs(options.folders)
    runs, notes = found.finished, []
    for text in options.where:
        runs = where(runs, *axis(text))
        notes.append(f"Only runs with {text}.")
    chosen = [name for text in options.best for name in text.replace("-", "_").split(",")]
    for name in [*chosen, *([options.compare] if options.compare else []), *options.by]:
        check_setting(name)
    if not runs:
        raise ValueError(f"{', '.join(map(str, options.folders))}: no finished runs" + " that fit" * bool(notes))
    varies = varying(run.config for run in runs)
    compared = options.compare or ("form" if "form" in varies else None)
    for name in [*chosen, *([compared] if compared else []), *options.by]:
        if name not in varies:
            raise ValueError(f"{name}: it is the same in all runs; those that differ: {', '.join(varies) or 'none'}")
    for name in options.by:
        if FIELDS[name] is str:
            raise ValueError(f"{name}: expected a setting that is a number for the x axis")
    if compared in chosen:
        raise ValueError(f"{compared}: it is compared, so it cannot be what is chosen; choose another with --compare")
    if chosen:
        searched = seeds(options.best_on) if options.best_on else None
        runs = choose(runs, chosen, compared, searched)
        notes.append(_how_chosen(chosen, compared, options.best_on))
        if not runs:
            raise ValueError(f"--best-on {options.best_on}: no runs with other seeds remain")
    return analyse(runs, found, compared, options.by or numeric_axes(runs, compared), notes)


def _how_chosen(names: list[str], compared: str | None, seeds: str | None) -> str:
    each = f"each {compared} at its own best {' and '.join(names)}" if compared else f"the best {' and '.join(names)}"
    by = "the largest share solved, then the best mean score, then the fewest median steps"
    on = f"seeds {seeds}, which are left out here" if seeds else "the seeds that are shown, so these numbers flatter it"
    return f"At each point, {each}: by {by}, on {on}."


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command to those of ``kvq-ref``."""
    parser = commands.add_parser(
        "report",
        help="tables, figures and a page of what was run",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="DIR", help="folder of a sweep; several are put together"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to (default: the first DIR)")
    parser.add_argument("--compare", metavar="NAME", help="the setting whose values are compared (default: form)")
    parser.add_argument(
        "--by",
        nargs="+",
        default=[],
        metavar="NAME",
        help="settings on the x axes (default: numbers that vary, at most three)",
    )
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="NAME=VALUES",
        help="only these runs: tau=2:8; form=softmax,linear",
    )
    parser.add_argument(
        "--best", action="append", default=[], metavar="NAMES", help="at each point, only its best rate, gain, ..."
    )
    parser.add_argument("--best-on", metavar="SEEDS", help="seeds that choose the best, and are left out: 0:2")
    parser.set_defaults(command=report)
