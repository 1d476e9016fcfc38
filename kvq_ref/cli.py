"""The command ``kvq-ref``: tour, forms, verify, run, report, bench, config."""

from __future__ import annotations

import argparse
import difflib
import inspect
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import kvq_ref
from kvq_ref.dispatch import FORMS, capabilities, file_name

OK, CHECK_FAILED, UNUSABLE, INTERRUPTED = 0, 1, 2, 130

DESCRIPTION = "The reference that people check attention against: readable forms, and kernels that agree with them."
EXAMPLES = """\
examples:
  kvq-ref tour                                  check everything, write ./kvq-tour/tour.html
  kvq-ref tour --quick --seed 1                 less of it, and the same numbers each time
  kvq-ref tour --data my.csv --target price     attention as a predictor on your own table
  kvq-ref forms                                 every form, with equation, cost and source
  kvq-ref forms intention                       the whole lesson on one of them
  kvq-ref verify my.kernels:attention --form softmax     hold your own kernel to the laws
  kvq-ref run nt --form expressive --tau 5      train a small model on any form
  kvq-ref run nt --set form=softmax,expressive --set tau=2:12 --seeds 10 --jobs 2
  kvq-ref run all --quick                       a small version of every task, in some minutes
  kvq-ref report kvq-runs                       tables, figures and a page of these runs
  kvq-ref bench --quick                         time the forms against PyTorch and JAX
  kvq-ref config                                versions and kernels, for a bug report
"""
TOUR = """\
Check every attention form against brute force, finite differences and its
compiled kernel; use attention as a predictor on real data with nothing trained;
measure the theorem that makes linear attention a limit of Intention; draw which
keys are attended to; time the kernels. Writes tour.html (one file that needs no
network), tour.json (every number) and the figures.

With --data only the predictor part runs, on your table.
"""
TOUR_EXAMPLES = """\
examples:
  kvq-ref tour
  kvq-ref tour --out /tmp/tour --seed 7
  kvq-ref tour --data houses.csv --target price
  kvq-ref tour --data irises.csv --target species --splits 20

exit status: 0 all checks hold, 1 a check failed (it is named), 2 unusable
arguments or data, 130 interrupted.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the process.

    Returns
    -------
    int
        The exit status: 0, or 1 if a check failed, 2 for unusable arguments, 130 if interrupted.
    """
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except KeyboardInterrupt:
        print("kvq-ref: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as head, has seen enough
        sys.stderr.close()
        return OK


# ---- The commands --------------------------------------------------------------------


def _tour(options: argparse.Namespace) -> int:
    from kvq_ref import tour

    if (options.data is None) != (options.target is None):
        return refuse("tour", "--data and --target go together: the file, and the column in it to predict")
    if options.task and options.data is None:
        return refuse("tour", "--task is about --data, which was not given")
    wanted = {name: value for name, value in vars(options).items() if name != "command"}
    try:
        findings = tour.take_tour(tour.Options(**wanted))
    except tour.TourError as error:
        return refuse("tour", str(error))
    return CHECK_FAILED if findings.failures else OK


def _forms(options: argparse.Namespace) -> int:
    if options.name is not None:
        names = {name.lower(): name for name in FORMS} | {file_name(name): name for name in FORMS}
        chosen = names.get(options.name.lower().replace("-", "_"))
        if chosen is None:
            near = difflib.get_close_matches(options.name.lower(), names, n=1, cutoff=0.4)
            hint = f"; did you mean {names[near[0]]}?" if near else "."
            return refuse("forms", f"no form {options.name!r}{hint} The forms are: {', '.join(FORMS)}.")
        print(f"kvq_ref.{chosen}\n\n{_lesson(chosen)}\n\n{_served_by(chosen)}")
        return OK
    for name in FORMS:
        parts = lesson_parts(_lesson(name))
        print(name)
        print(f"  {parts['title']}\n")
        print(textwrap.indent(parts["equation"], "    "))
        print(textwrap.indent(f"\nCost: {parts['cost']}\nSource: {parts['source']}\n{_served_by(name)}\n", "  "))
    print("kvq-ref forms NAME prints the whole lesson.")
    return OK


def _config(options: argparse.Namespace) -> int:
    kvq_ref.show_config()
    return OK


# ---- What a form's file says of itself -----------------------------------------------


def lesson_parts(lesson: str) -> dict[str, str]:
    r"""Title, equation (the indented lines), cost and source of a form's docstring.

    Examples
    --------
    >>> lesson_parts('''A form.
    ...
    ...     out = q
    ...
    ... Words.
    ...
    ... Cost: none,
    ... at all.
    ... Source: here.''')
    {'title': 'A form.', 'equation': 'out = q', 'cost': 'none,\nat all.', 'source': 'here.'}
    """
    lines = lesson.splitlines()
    parts = {"title": lines[0], "equation": "", "cost": "", "source": ""}
    equation = [line for line in lines[1:] if line.startswith("    ")]
    parts["equation"] = textwrap.dedent("\n".join(equation))
    current = ""
    for line in lines[1:]:
        word, colon, rest = line.partition(": ")
        if colon and word in ("Cost", "Source"):
            current = word.lower()
            parts[current] = rest
        elif not line.strip():
            current = ""
        elif current:
            parts[current] += "\n" + line
    return parts


def _lesson(name: str) -> str:
    return inspect.cleandoc(FORMS[name].module.__doc__ or name)


def _served_by(name: str) -> str:
    served = []
    for row in capabilities():
        if row["form"] == name:
            why = "" if row["available"] == "yes" else f" (not installed: {row['available'].removeprefix('no: ')})"
            served.append(f"{row['implementation']} on {row['arrays']}{why}")
    return "Served by: " + "; ".join(served)


# ---- Arguments -----------------------------------------------------------------------


def refuse(command: str, message: str) -> int:
    print(f"kvq-ref {command}: {message}", file=sys.stderr)
    return UNUSABLE


class _Parser(argparse.ArgumentParser):
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Refuse an option that there is not, and say which one is near: here, where a command's own are known."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            known = [option for action in self._actions for option in action.option_strings]
            near = difflib.get_close_matches(unknown[0].partition("=")[0], known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        self.exit(UNUSABLE, f"{self.prog}: {message}\nTry '{self.prog} --help'.\n")


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def seed(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"expected a number >= 0, got {number}")
    return number


positive.__name__ = seed.__name__ = "whole number"  # argparse puts it into its message


def _parser() -> argparse.ArgumentParser:
    from kvq_ref import cli_bench, cli_report, cli_run, cli_verify  # they take their kinds of argument from here

    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser("kvq-ref", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"kvq_ref {kvq_ref.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    tour = commands.add_parser(
        "tour", help="check everything, and write a report", description=TOUR, epilog=TOUR_EXAMPLES, formatter_class=raw
    )
    tour.add_argument(
        "--out", type=Path, default=Path("kvq-tour"), metavar="DIR", help="folder of the report (default: ./kvq-tour)"
    )
    tour.add_argument(
        "--seed", type=seed, metavar="N", help="of all random numbers (default: a new one, which is printed)"
    )
    tour.add_argument("--quick", action="store_true", help="fewer splits, less data, shorter timings")
    tour.add_argument(
        "--splits", type=positive, metavar="N", help="random splits into context and test rows (default: 10)"
    )
    own = tour.add_argument_group("your own data")
    own.add_argument("--data", type=Path, metavar="CSV", help="a file whose first line names the columns")
    own.add_argument("--target", metavar="COLUMN", help="the column to predict")
    own.add_argument("--task", choices=("regression", "classification"), help="default: by the target's values")
    own.add_argument(
        "--rows", type=positive, default=2000, metavar="N", help="use at most N rows, drawn at random (default: 2000)"
    )
    tour.set_defaults(command=_tour)

    forms = commands.add_parser(
        "forms", help="the forms: equation, cost, source", description="List the attention forms."
    )
    forms.add_argument("name", nargs="?", metavar="NAME", help="print the whole lesson on one form")
    forms.set_defaults(command=_forms)

    cli_verify.add_parser(commands)
    cli_run.add_parser(commands)
    cli_report.add_parser(commands)
    cli_bench.add_parser(commands)

    config = commands.add_parser(
        "config", help="versions and kernels", description="What this installation has, for a bug report."
    )
    config.set_defaults(command=_config)
    return parser
