"""One HTML page of a tour: what :mod:`kvq_ref.page` has, and tables and figures."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING

from kvq_ref.lab.table import Table
from kvq_ref.page import details, page, paragraph, section

if TYPE_CHECKING:
    from kvq_ref.lab.picture import Picture

__all__ = ["details", "figure", "page", "paragraph", "section", "table"]


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
