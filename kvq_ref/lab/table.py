"""A table of text, built once, then aligned for a terminal or marked up as Markdown or HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """A head and rows of text.

    Attributes
    ----------
    head : tuple of str
    rows : sequence of tuple of str
    text_columns : int
        So many columns from the left are text; the others are numbers.
    bad : set of int
        Rows that hold a refuted claim.
    """

    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    text_columns: int = 1
    bad: set[int] = field(default_factory=set)

    def as_text(self) -> str:
        """Aligned columns: text to the left, numbers to the right.

        Examples
        --------
        >>> print(Table(("form", "error"), [("linear", "1e-16"), ("Intention", "3e-16")]).as_text())
        form       error
        ---------  -----
        linear     1e-16
        Intention  3e-16
        """
        widths = [max(map(len, column)) for column in zip(self.head, *self.rows, strict=True)]
        lines = [self.head, tuple("-" * width for width in widths), *self.rows]
        return "\n".join("  ".join(self._aligned(line, widths)).rstrip() for line in lines)

    def as_markdown(self) -> str:
        """A table of GitHub's.

        Examples
        --------
        >>> print(Table(("form", "error"), [("linear", "1e-16")]).as_markdown())
        | form | error |
        | :--- | ----: |
        | linear | 1e-16 |
        """
        rule = tuple(":---" if i < self.text_columns else "----:" for i in range(len(self.head)))
        return "\n".join(f"| {' | '.join(line)} |" for line in (self.head, rule, *self.rows))

    def _aligned(self, line: Sequence[str], widths: Sequence[int]) -> list[str]:
        return [
            f"{cell:<{width}}" if i < self.text_columns else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
