"""A page in the house style: one HTML file with its style inside, nothing to load, light and dark."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from importlib import resources


def paragraph(text: str, kind: str = "") -> str:
    """Text, escaped; ``kind`` is a class of the style sheet.

    >>> paragraph("a < b", "soft")
    '<p class="soft">a &lt; b</p>'
    """
    attribute = f' class="{kind}"' if kind else ""
    return f"<p{attribute}>{escape(text)}</p>"


def details(summary: str, content: str) -> str:
    """What is folded away until asked for."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def section(title: str, *content: str) -> str:
    """A heading and what is under it."""
    return f"<section><h2>{escape(title)}</h2>\n" + "\n".join(content) + "</section>"


def page(title: str, verdict: str, holds: bool, introduction: str, sections: Iterable[str]) -> str:
    """The whole document.

    Parameters
    ----------
    title : str
    verdict : str
        One line on top.
    holds : bool
        Its colour.
    introduction : str
        HTML under it.
    sections : iterable of str
        From :func:`section`.

    Returns
    -------
    str
    """
    style = resources.files("kvq_ref").joinpath("page.css").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p class="verdict {"holds" if holds else "fails"}">{escape(verdict)}</p>
{introduction}
{"".join(sections)}
</body>
</html>
"""
