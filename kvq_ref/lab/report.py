"""One HTML page of a tour: pictures and style inside it, nothing to load, light and dark."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape
from importlib import resources
from typing import TYPE_CHECKING

from kvq_ref.lab.tables import Table

if TYPE_CHECKING:
    from kvq_ref.lab.figures import Picture


def paragraph(text: str, kind: str = "") -> str:
    """Text, escaped; ``kind`` is a class of the style sheet.

    >>> paragraph("a < b", "soft")
    '<p class="soft">a &lt; b</p>'
    """
    attribute = f' class="{kind}"' if kind else ""
    return f"<p{attribute}>{escape(text)}</p>"


def table(content: Table) -> str:
    """A table that scrolls sideways on a narrow screen.

    >>> '<td class="text">linear</td>' in table(Table(("form", "error"), [("linear", "1e-16")]))
    True
    """

    def cells(tag: str, row: Iterable[str]) -> str:
        out = []
        for i, cell in enumerate(row):
            kind = "text" if i < content.text_columns else ""
            if tag == "td" and len(cell) > 40:
                kind += " wrap"
            scope = ' scope="col"' if tag == "th" else ""
            attribute = f' class="{kind.strip()}"' if kind else ""
            out.append(f"<{tag}{scope}{attribute}>{escape(cell)}</{tag}>")
        return "".join(out)

    head = f"<thead><tr>{cells('th', content.head)}</tr></thead>"
    rows = [f"<tr{_BAD if i in content.bad else ''}>{cells('td', row)}</tr>" for i, row in enumerate(content.rows)]
    body = "\n".join(rows)
    return f'<div class="wide"><table>\n{head}\n<tbody>\n{body}\n</tbody></table></div>'


_BAD = ' class="bad"'


def figure(picture: Picture, alt: str, caption: str) -> str:
    """A picture in the colours that the reader's screen prefers, inside the page."""
    light, dark = (f"data:image/png;base64,{base64.b64encode(picture[theme]).decode()}" for theme in ("light", "dark"))
    return (
        f'<figure><picture><source srcset="{dark}" media="(prefers-color-scheme: dark)">'
        f'<img src="{light}" alt="{escape(alt)}"></picture><figcaption>{escape(caption)}</figcaption></figure>'
    )


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
    style = resources.files("kvq_ref.lab").joinpath("report.css").read_text(encoding="utf-8")
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
