"""The table in a terminal: a row for each law as it comes, then what is broken, in full."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from dataclasses import replace
from typing import TextIO

from tqdm import tqdm

from kvq_ref.testing.isolate import Watcher
from kvq_ref.testing.render import IN_FULL, by_cause, called_with, error_and_limit, explain, telling, unchecked, verdict
from kvq_ref.testing.report import Finding, Report

COLOURS = {"good": "32", "bad": "31;1", "strong": "1", "soft": "2"}
BAR = "{n} of {total}  {desc}  {elapsed}"


class Table(Watcher):
    """Prints while the verification goes on.

    Parameters
    ----------
    laws : list of str
        Names of the laws to come.
    inferred : bool
        Whether the array library was inferred.
    verbose : bool
        Whether every broken law is told in full.
    out : file, optional
        Where to; by default the standard output. The line of progress goes to the standard error.
    """

    def __init__(self, laws: list[str], *, inferred: bool = False, verbose: bool = False, out: TextIO | None = None):
        self.out = sys.stdout if out is None else out
        self.inferred, self.verbose = inferred, verbose
        terminal = self.out.isatty()
        self.colour = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self.width = min(max(shutil.get_terminal_size().columns, 60), 100) if terminal else 80
        self.name_width = min(max([8, *map(len, laws)]), self.width - 37)
        self.report: Report | None = None
        self.findings: list[Finding] = []
        self.bar = tqdm(total=len(laws), disable=None, leave=False, bar_format=BAR, file=sys.stderr, delay=0.2)
        self.bar.set_description_str("importing the target")

    # ---- As it goes ------------------------------------------------------------------

    def start(self, report: Report) -> None:
        self.report = report
        how = called_with(report)
        if self.inferred:
            how = how.replace(" arrays", " arrays (inferred)", 1)
        head = f"{'law':<{self.name_width + 8}}{'error':>8} {'limit':>5} {'tried':>5} {'time':>7}"
        lines = [
            f"{self.paint(report.target, 'strong')} as {report.form}",
            *textwrap.wrap(how, self.width),
            f"seed {report.seed}, {report.examples} examples of each law",
            *(line for remark in report.remarks for line in textwrap.wrap(remark, self.width)),
            "",
            self.paint("error and its limit in units of the best achievable rounding error", "soft"),
            self.paint(head, "soft"),
        ]
        self.say("\n".join(lines))

    def law(self, name: str) -> None:
        self.bar.set_description_str(name)

    def finding(self, finding: Finding) -> None:
        self.findings.append(finding)
        self.bar.update()
        if finding.status == "not checked":
            return
        error, limit = error_and_limit(finding)
        mark = self.paint("holds ", "good") if finding.status == "holds" else self.paint("BROKEN", "bad")
        name = textwrap.shorten(finding.law, self.name_width, placeholder="...")
        numbers = f"{error:>8} {limit:>5} {finding.examples or '-':>5} {finding.seconds:>5.1f} s"
        self.say(f"{mark}  {name:<{self.name_width}}{numbers}")

    def tick(self) -> None:
        self.bar.refresh()

    def close(self) -> None:
        self.bar.close()

    # ---- At the end ------------------------------------------------------------------

    def end(self, report: Report) -> None:
        """What is broken, what was not checked, and the verdict."""
        self.close()
        self._broken(report)
        groups = unchecked(report)
        if groups:
            self.say("\nnot checked")
            for why, laws in groups.items():
                self.say(self.wrap(f"{why}: {', '.join(laws)}"))
        told = self.report.remarks if self.report else []
        for remark in (x for x in report.remarks if x not in told):
            self.say("\n" + "\n".join(textwrap.wrap(remark, self.width)))
        text = "\n".join(textwrap.wrap(verdict(report), self.width))
        self.say(f"\n{self.paint(text, 'bad' if report.status else 'good')}")
        if report.command:
            self.say(f"the same again: {report.command}")

    def interrupted(self) -> None:
        """What is known so far, when the user has seen enough."""
        self.close()
        if self.report is None:
            return
        report = replace(self.report, findings=self.findings)
        self._broken(report)
        so_far = f"{len(report.checked)} of {self.bar.total} laws so far, {len(report.broken) or 'none'} broken"
        self.say(f"\nInterrupted: {so_far}.")

    def _broken(self, report: Report) -> None:
        broken = by_cause(report)
        shown = broken if self.verbose else telling(broken, IN_FULL)
        for finding in shown:
            head, _, body = explain(finding, self.width).partition("\n")
            self.say(f"\n{self.paint(head, 'bad')}\n{body}")
        rest = [x for x in broken if x not in shown]
        if rest:
            self.say("\nalso broken (--verbose tells all of it)")
            alike: dict[str, list[str]] = {}
            for finding in rest:
                alike.setdefault(finding.broken.what if finding.broken else "", []).append(finding.law)
            for what, laws in alike.items():
                if len(laws) > 1:
                    self.say(self.wrap(f"{what}: {', '.join(laws)}"))
                else:
                    line = f"  {laws[0]}: {what}"
                    self.say(line if len(line) <= self.width else line[: self.width - 4] + " ...")

    # ---- Text ------------------------------------------------------------------------

    def say(self, text: str) -> None:
        with tqdm.external_write_mode(file=self.out):
            print(text, file=self.out, flush=True)

    def paint(self, text: str, kind: str) -> str:
        return f"\033[{COLOURS[kind]}m{text}\033[0m" if self.colour else text

    def wrap(self, text: str) -> str:
        return textwrap.fill(text, self.width, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
