"""A report in words: what the table, the page and a failing test have in common."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence

from kvq_ref.testing.report import Finding, Report

IN_FULL = 3  # broken laws that are told in full: many of them often have one cause


def explain(finding: Finding, width: int = 100) -> str:
    """A broken law in full: what it says, where it fails, what was expected, and the likely cause."""
    broken = finding.broken
    if broken is None:
        return f"{finding.law}: {finding.status}"

    def fill(text: str) -> str:
        return textwrap.fill(
            text, width, initial_indent="  ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )

    lines = [f"{finding.law}: broken", fill(finding.statement), "", fill(broken.what)]
    if broken.got:
        lines += ["  got", textwrap.indent(broken.got, "    "), "  expected", textwrap.indent(broken.expected, "    ")]
    if broken.code:
        lines += ["  on the call", textwrap.indent(broken.code, "    ")]
    if broken.cause:
        lines.append(fill(f"likely cause: {broken.cause}"))
    return "\n".join(lines)


def units(x: float | None) -> str:
    """A number of units of rounding, in few characters.

    >>> [units(x) for x in (None, 0.0, 0.0612, 3.14159, 271.8, 31415926.0)]
    ['-', '0', '0.061', '3.1', '272', '3.1e+07']
    """
    if x is None:
        return "-"
    if x == 0 or 10 <= x < 1e6:
        return f"{x:.0f}"
    return f"{x:.2g}"


def error_and_limit(finding: Finding) -> tuple[str, str]:
    """Both in units of rounding; "equal" where both sides agreed to the last bit wherever they were compared."""
    if finding.status == "holds" and not finding.units:
        return "equal", "-"
    return units(finding.units), units(finding.limit)


def verdict(report: Report) -> str:
    """The outcome in a sentence or two: how many laws, and the likely causes, the most frequent first."""
    if report.unusable:
        return f"Could not be verified: {report.unusable}."
    checked, broken = len(report.checked), len(report.broken)
    left = len(report.findings) - checked
    rest = f"; {left} {'was' if left == 1 else 'were'} not checked" if left else ""
    if not broken:
        return f"{'The one law' if checked == 1 else f'All {checked} laws'} {_hold(checked)}{rest}."
    of = "The one law" if checked == 1 else f"{broken} of {checked} laws"
    text = f"{of} {'is' if broken == 1 else 'are'} broken{rest}."
    known = causes(report)
    if len(known) == 1:
        return f"{text} Likely cause: {_sentence(known[0][0])}"
    if known:
        several = "; ".join(f"{cause.rstrip('.')} ({n} {'law' if n == 1 else 'laws'})" for cause, n in known[:3])
        return f"{text} Likely causes: {several}."
    return text


def causes(report: Report) -> list[tuple[str, int]]:
    """The likely causes and how many laws point at each, the most frequent first."""
    return Counter(cause for x in report.broken if (cause := _cause(x))).most_common()


def by_cause(report: Report) -> list[Finding]:
    """The broken laws, those of the most frequent cause first, and those without one last."""
    rank = {cause: i for i, (cause, _) in enumerate(causes(report))}
    return sorted(report.broken, key=lambda x: rank.get(_cause(x), len(rank)))


def telling(broken: Sequence[Finding], n: int) -> list[Finding]:
    """At most n of them, each with another cause where there are so many, and none that tells what another does."""
    chosen: list[Finding] = []
    for same_cause in (False, True):
        for x in broken:
            if len(chosen) == n or x.broken is None or x in chosen:
                continue
            new = not any(_cause(x) == _cause(y) for y in chosen)
            says_more = not any(y.broken and y.broken.code == x.broken.code for y in chosen)
            if new or (same_cause and says_more):
                chosen.append(x)
    return sorted(chosen, key=broken.index)


def unchecked(report: Report) -> dict[str, list[str]]:
    """Names of the laws that were not checked, by the reason why."""
    groups: dict[str, list[str]] = {}
    for finding in report.findings:
        if finding.status == "not checked":
            groups.setdefault(finding.why, []).append(finding.law)
    return groups


def called_with(report: Report) -> str:
    """How the target was called, in one line."""
    device = f" on {report.device}" if report.device else ""
    layout = "" if report.layout == "any" else f", layout {report.layout}"
    options = ", ".join(report.options) or "none"
    return f"{report.framework} arrays in {report.dtype}{device}{layout}; options: {options}"


def _cause(finding: Finding) -> str:
    """The likely cause; where the target did not return an array, what it did instead says it all."""
    broken = finding.broken
    if broken is None:
        return ""
    return broken.cause or ("" if broken.got else broken.what)


def _hold(n: int) -> str:
    return "holds" if n == 1 else "hold"


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."
