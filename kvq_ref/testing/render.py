"""A report for people: the table in a terminal, and a page."""

from __future__ import annotations

import textwrap

from kvq_ref.testing.report import Finding


def explain(finding: Finding) -> str:
    """A broken law in full: what it says, where it fails, what was expected, and the likely cause."""
    broken = finding.broken
    if broken is None:
        return f"{finding.law}: {finding.status}"
    lines = [f"{finding.law}: broken", f"  {finding.statement}", f"  {broken.what}"]
    if broken.got:
        lines += ["  got", textwrap.indent(broken.got, "    "), "  expected", textwrap.indent(broken.expected, "    ")]
    lines += ["  on the call", textwrap.indent(broken.code, "    ")]
    if broken.cause:
        lines.append(f"  likely cause: {broken.cause}")
    return "\n".join(lines)
