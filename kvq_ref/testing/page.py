"""A report as one HTML page."""

from __future__ import annotations

from html import escape

from kvq_ref.page import details, page, paragraph, section
from kvq_ref.testing.render import IN_FULL, by_cause, called_with, causes, error_and_limit, telling, unchecked, verdict
from kvq_ref.testing.report import Finding, Report

UNITS = (
    "Error and its limit are in units of the best achievable rounding error: what a careful implementation "
    "in this dtype may lose on the same call."
)


def as_html(report: Report) -> str:
    """The whole page: the verdict, every broken law in full, a table of all laws, and how to repeat it."""
    sections = []
    if report.broken:
        known = causes(report)
        often = "".join(f"<li>{escape(cause)} <span class='soft'>({_laws(n)})</span></li>" for cause, n in known)
        listed = f"<ul>{often}</ul>" if len(known) > 1 else ""
        broken = by_cause(report)
        shown = telling(broken, IN_FULL)
        rest = [details(f"{x.law}: {x.broken.what}", _broken(x)) for x in broken if x not in shown and x.broken]
        sections.append(section("Broken laws", listed, *map(_broken, shown), *rest))
    if report.checked:
        sections.append(section("All laws", paragraph(UNITS, "soft"), _table(report.checked)))
    groups = unchecked(report)
    if groups:
        rows = "".join(f"<li>{escape(why)}: {escape(', '.join(laws))}</li>" for why, laws in groups.items())
        sections.append(section("Not checked", f"<ul>{rows}</ul>"))
    if report.remarks:
        sections.append(section("Remarks", "<ul>", *(f"<li>{escape(x)}</li>" for x in report.remarks), "</ul>"))
    again = f"<pre>{escape(report.command)}</pre>" if report.command else ""
    seeds = f"Seed {report.seed}, {report.examples} examples of each law, {report.seconds:.1f} s."
    sections.append(section("The same again", paragraph(seeds), again))
    introduction = paragraph(f"Held to the laws of {report.form}: {called_with(report)}.")
    return page(report.target, verdict(report), report.status == 0, introduction, sections)


def _broken(finding: Finding) -> str:
    broken = finding.broken
    assert broken is not None
    parts = [
        f'<h3 id="{_anchor(finding)}">{escape(finding.law)}</h3>',
        paragraph(finding.statement),
        details("The formula, in LaTeX", f"<pre>{escape(finding.latex)}</pre>"),
        paragraph(broken.what, "fault"),
    ]
    if broken.cause:
        parts.append(f"<p><strong>Likely cause:</strong> {escape(broken.cause)}</p>")
    if broken.got:
        sides = (("got", broken.got), ("expected", broken.expected))
        parts.append(
            '<div class="sides">'
            + "".join(f"<div><p class='soft'>{name}</p><pre>{escape(text)}</pre></div>" for name, text in sides)
            + "</div>"
        )
    if broken.code:
        parts += [paragraph("on the call", "soft"), f"<pre>{escape(broken.code)}</pre>"]
    return "\n".join(parts)


def _table(findings: list[Finding]) -> str:
    head = "".join(
        f'<th scope="col"{kind}>{name}</th>'
        for name, kind in (
            ("law", ' class="text"'),
            ("", ' class="text"'),
            ("error", ""),
            ("limit", ""),
            ("tried", ""),
            ("time", ""),
        )
    )
    rows = []
    for x in findings:
        bad = x.status == "broken"
        name = f'<a href="#{_anchor(x)}">{escape(x.law)}</a>' if bad else escape(x.law)
        error, allowed = error_and_limit(x)
        numbers = "".join(f"<td>{cell}</td>" for cell in (error, allowed, x.examples, f"{x.seconds:.1f} s"))
        law = f'<td class="text wrap" title="{escape(x.statement)}">{name}</td><td class="text">{x.status}</td>'
        kind = ' class="bad"' if bad else ""
        rows.append(f"<tr{kind}>{law}{numbers}</tr>")
    body = "\n".join(rows)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _anchor(finding: Finding) -> str:
    return escape(finding.law.replace(" ", "-"))


def _laws(n: int) -> str:
    return "1 law" if n == 1 else f"{n} laws"
