"""The backward of a form, step by step: its code, cut at its comments, beside the derivation of each.

A comment in a ``backward`` names the line of ``forward`` that is taken back next. docs/derivations.md has a heading
for each of these, and for each function that a ``backward`` hands a gradient to.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

DERIVATIONS = Path(__file__).with_name("derivations.md")
HEADING = re.compile(r"^### `(.+?)`\n\n(.*?)\n(?=^##|\Z)", re.MULTILINE | re.DOTALL)

Function = Callable[..., Any]


class Step(NamedTuple):
    """Some lines of a ``backward``.

    Attributes
    ----------
    line : str
        The line of forward that they take back.
    code : str
        As it stands in the file, with its comments.
    """

    line: str
    code: str


def derivations() -> dict[str, str]:
    """The text under each heading of docs/derivations.md."""
    return dict(HEADING.findall(DERIVATIONS.read_text(encoding="utf-8")))


def steps(function: Function) -> Iterator[Step]:
    """The function's body from its first comment on, cut at each comment that begins a step."""
    known = derivations()
    lines: list[str] = []
    line = ""
    for row in textwrap.dedent(inspect.getsource(function)).splitlines():
        found = forward_line(row)
        if found in known:
            ahead = _opening(lines)  # the "if" or "else" that the comment stands under
            if line:
                yield Step(line, _code(lines[: len(lines) - len(ahead)]))
            line, lines = found, ahead
        lines.append(row)
    if line:
        yield Step(line, _code(lines))


def forward_line(row: str) -> str:
    """What a comment says before its first colon, or the like; empty for a row that is none.

    >>> forward_line("    # p = w / sum w, as in softmax attention: a sum"), forward_line("x = 1  # one")
    ('p = w / sum w', '')
    """
    text = row.strip()
    if not text.startswith("# "):
        return ""
    return re.sub(r"\s+", " ", re.split(r"[:;]|, as | \(Golub", text.removeprefix("# "))[0]).strip(" .")


def _opening(lines: list[str]) -> list[str]:
    """The last lines, as far as they open a block."""
    n = len(lines)
    while n and (not lines[n - 1].strip() or lines[n - 1].rstrip().endswith(":")):
        n -= 1
    return lines[n:]


def _code(lines: list[str]) -> str:
    return textwrap.dedent("\n".join(lines).strip("\n"))


# ---- What a backward calls ---------------------------------------------------------------


def called(function: Function) -> list[tuple[str, Function]]:
    """The functions named ``...backward`` that are called from here, and from those; by name, each once."""
    found: dict[str, Function] = {}
    waiting = [function]
    while waiting:
        for other in _direct(waiting.pop(0)):
            name = full_name(other)
            if name not in found and other is not function:
                found[name] = other
                if not is_form(other):
                    waiting.append(other)
    return list(found.items())


def _direct(function: Function) -> Iterator[Function]:
    scope = inspect.unwrap(function).__globals__
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        if not isinstance(node, ast.Call):
            continue
        match node.func:
            case ast.Name(id=name) if name.endswith("backward"):
                yield scope[name]
            case ast.Attribute(value=ast.Name(id=module), attr=name) if name.endswith("backward"):
                if isinstance(scope.get(module), ModuleType):
                    yield getattr(scope[module], name)


def full_name(function: Function) -> str:
    """Module and name, as ``solve.ridge_backward``."""
    return f"{function.__module__.rpartition('.')[2]}.{function.__name__}"


def is_form(function: Function) -> bool:
    """Whether it is the ``backward`` of a form, which has a page of its own."""
    return function.__module__.startswith("kvq_ref.forms.") and function.__name__ == "backward"
