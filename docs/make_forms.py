"""A page for each form, from its file and from what is declared of it: docs/conf.py writes them at every build.

Nothing on such a page is written twice: the equation, the cost and the words are those of the form's file, its sources
are included as they stand, and the laws, the relatives and what serves it are read off from the package's data. The
figure and the edges are calls of the form. Only the derivations are written by hand, in docs/derivations.md, each under
the line that it takes back; tests/test_docs.py holds them to the code.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import form_edges
import form_figures
import form_steps
from form_equations import displayed

import kvq_ref as kvq
from kvq_ref.cli import lesson_parts
from kvq_ref.dispatch import FORMS, capabilities, file_name
from kvq_ref.grid import GRID, Place
from kvq_ref.testing import LAWS, Law

DIFFERENT = {"query": "another query", "score": "another score", "row": "another row"}

# The sidebar goes, for code side by side needs the width.
PAGE = """---
html_theme.sidebar_secondary.remove: true
---

# {title}

{summary}

{equation}

{{py:func}}`kvq_ref.{name}` · [`kvq_ref/forms/{file}.py`](../../kvq_ref/forms/{file}.py)

{words}

## What it attends to

{figure}

## Forward and backward

:::::{{grid}} 1 1 2 2
:gutter: 2
:class-container: source

::::{{grid-item}}
```{{literalinclude}} ../../kvq_ref/forms/{file}.py
:pyobject: forward
```
::::

::::{{grid-item}}
```{{literalinclude}} ../../kvq_ref/forms/{file}.py
:pyobject: backward
```
::::
:::::

:::{{dropdown}} The whole file
```{{literalinclude}} ../../kvq_ref/forms/{file}.py
```
:::

## Backward, line by line

Each step takes back a line of `forward`, the last one first. $dX$ is the gradient of the loss with respect to $X$, and
[five rules](../derivations.md) do nearly all of it.

{steps}

{called}

## Cost

{cost}

## At the edges

These were called, and what came out was printed, when this page was built{alpha}. Gradients are those of `out`:
0 where all are zero, finite where not all are.

{edges}

## What serves it

{served}

## Its place, and its relatives

{place}

{relatives}

## The laws that it obeys

[`kvq-ref verify`](../../tutorials/03_verify_your_own_kernel.md) holds a kernel to these.

{laws}

## Source

{source}
"""

FIGURE = """::::{{grid}} 1 1 2 3
:gutter: 2
:class-container: figures

{panels}
::::

{caption}"""

PANEL = """:::{{grid-item}}
```{{image}} figures/{stem}-light.png
:alt: {alt}
:class: only-light
```
```{{image}} figures/{stem}-dark.png
:alt: {alt}
:class: only-dark
```
:::
"""

STEP = """::::{{grid}} 12
:gutter: 2
:class-container: step

:::{{grid-item}}
:columns: 12 12 12 5

**`{line}`**

{derivation}
:::

:::{{grid-item}}
:columns: 12 12 12 7

```python
{code}
```
:::
::::
"""

CALLED = """::::{{dropdown}} `{name}`
{is_open}
{derivation}

```{{literalinclude}} ../../{path}
:pyobject: {function}
```
::::
"""

CAPTION = """Seven points, the same for every form{settings}. Left: the weight of each in the output, against the
place of the query; dashed their sum. Middle: the same, causal, where query i is a little to the right of point i, and
sees that point and those before it; negative weights are grey. Right: the weights times the points' values."""


def page(name: str) -> str:
    """The page of a form, in MyST markdown."""
    lesson = inspect.cleandoc(FORMS[name].module.__doc__ or "")
    parts = lesson_parts(lesson)
    summary = inspect.cleandoc(getattr(kvq, name).__doc__ or "").split("\n\n")[0]
    return PAGE.format(
        name=name,
        file=file_name(name),
        title=title(name),
        summary=escape(summary),
        equation=mathematics(first_equation(lesson)),
        words=words(lesson),
        figure=figure(name),
        steps=steps(name),
        called=called(name),
        cost=orders(parts["cost"]),
        source=sentence(parts["source"]),
        served=served_by(name),
        place=described(GRID[name]),
        relatives=relatives(name),
        laws=laws(name),
        alpha=f", with alpha = {form_edges.ALPHA:g}" if "alpha" in FORMS[name].options else "",
        edges=form_edges.table(name),
    )


def title(name: str) -> str:
    """As the form's file has it, without what comes after a comma or a colon."""
    lesson = inspect.cleandoc(FORMS[name].module.__doc__ or "")
    return re.split(r"[,:.(]", lesson_parts(lesson)["title"])[0].strip()


def first_equation(lesson: str) -> str:
    """The first block of indented lines."""
    found = re.search(r"^(?:    .*\n)(?:(?:    .*)?\n)*?(?=\S|\Z)", lesson, re.MULTILINE)
    assert found is not None
    return inspect.cleandoc("\n" + found.group().rstrip())


def words(lesson: str) -> str:
    """What stands between the first equation and the cost; later equations as blocks."""
    body = lesson.partition("\n\n")[2].partition("\nCost: ")[0]
    paragraphs = re.split(r"\n\n", body)
    first = next(i for i, text in enumerate(paragraphs) if text.startswith("    "))
    return "\n\n".join(
        mathematics(inspect.cleandoc("\n" + text)) if text.startswith("    ") else escape(text)
        for i, text in enumerate(paragraphs)
        if i > first or (i < first and text.strip())
    )


def mathematics(equations: str) -> str:
    """A block of the file's equations, as LaTeX."""
    return f"$$\n{displayed(equations)}\n$$"


def sentence(text: str) -> str:
    return escape(text[:1].upper() + text[1:])


def orders(text: str) -> str:
    """Each O(...) as a formula, and the words around it as words."""

    def formula(found: re.Match[str]) -> str:
        order = re.sub(r"\bT([qk])|\bd(v)", lambda x: f"{x.group()[0]}_{x.group()[1]}", found.group())
        return "$" + re.sub(r"(?<=[\w)])\s+(?=[\w(])", r"\\, ", order) + "$"

    order = re.compile(r"O\((?:[^()]|\([^()]*\))*\)")
    around = [sentence(words) if i == 0 else escape(words) for i, words in enumerate(order.split(text))]
    return "".join(x for pair in zip(around, [*map(formula, order.finditer(text)), ""], strict=True) for x in pair)


def escape(text: str) -> str:
    """Words in which markdown's own signs are nothing but signs; ``code`` stays code."""
    pieces = re.split(r"(``.*?``|:\w+:`[^`]*`)", text, flags=re.DOTALL)
    return "".join(x if i % 2 else re.sub(r"([\\`*_{}\[\]<>$|~#])", r"\\\1", x) for i, x in enumerate(pieces))


ALTS = {
    "weights": "Weight of each point against the place of the query",
    "causal": "Matrix of the causal weights",
    "prediction": "The prediction through seven points",
}


def figure(name: str) -> str:
    """The three panels, and what they show."""
    given = ", ".join(f"`{option}={value:g}`" for option, value in form_figures.SETTINGS.get(name, {}).items())
    return FIGURE.format(
        panels="\n".join(PANEL.format(stem=stem, alt=ALTS[panel]) for panel, stem in form_figures.stems(name).items()),
        caption=CAPTION.format(settings=f", here with {given}" if given else ""),
    )


def steps(name: str) -> str:
    """The code of backward, and the derivation of each step beside it."""
    known = form_steps.derivations()
    return "\n".join(
        STEP.format(line=step.line, derivation=known[step.line], code=step.code)
        for step in form_steps.steps(FORMS[name].module.backward)
    )


def called(name: str) -> str:
    """The functions that take a step further back: other forms by their pages, the rest with their code."""
    known = form_steps.derivations()
    pages = {form.module.__name__: other for other, form in FORMS.items()}
    parts = []
    for full, function in form_steps.called(FORMS[name].module.backward):
        if form_steps.is_form(function):
            parts.append(f"`{full}`: the page of {link(pages[function.__module__])} has it, line by line.\n")
            continue
        parts.append(
            CALLED.format(
                name=full,
                is_open=":open:\n" if function.__module__ == FORMS[name].module.__name__ else "",
                derivation=known[full],
                path=function.__module__.replace(".", "/") + ".py",
                function=function.__name__,
            )
        )
    return "\n".join(parts)


def served_by(name: str) -> str:
    """A table of the implementations."""
    columns = ("implementation", "arrays", "dtypes", "options")
    rows = [row for row in capabilities() if row["form"] == name]
    lines = [columns, ("---",) * len(columns), *(tuple(row[x] for x in columns) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def described(place: Place) -> str:
    return f"Query: {place.query}. Score: `{place.score}`. Row: {place.row}."


def relatives(name: str) -> str:
    """The forms at the same place, and those that differ from it in one thing."""
    own = axes(GRID[name])
    others = {x: axes(place) for x, place in GRID.items() if x != name}
    lines = []
    if same := [link(x) for x, place in others.items() if place == own]:
        lines.append(f"- the same place: {', '.join(same)}")
    for field, words in DIFFERENT.items():
        rest = {key: word for key, word in own.items() if key != field}
        near = {x: place for x, place in others.items() if place[field] != own[field] and rest.items() <= place.items()}
        if near:
            lines.append(f"- {words}: {', '.join(f'{link(x)} (`{place[field]}`)' for x, place in near.items())}")
    return "\n".join(lines)


def axes(place: Place) -> dict[str, str]:
    """What places are compared by: a query that a line is read off at is a plain one."""
    query = "plain" if place.query == "centred" else place.query
    return {"query": query, "score": place.score, "row": place.row}


def link(name: str, folder: str = "") -> str:
    return f"[{title(name)}]({folder}{file_name(name)}.md)"


def laws(name: str) -> str:
    """Every law of the form: its name, which leads to how it is checked, its statement and its formula."""
    lines = []
    for law in LAWS:
        if name in law.forms:
            strict = " (with `--strict` alone)" if law.strict else ""
            lines.append(
                f"[{law.name}](../laws.md#{anchor(law)}){{#{anchor(law, file_name(name))}}}\n"
                f": {escape(law.statement)}{strict}\n\n  $$\n  {law.latex}\n  $$\n"
            )
    return "\n".join(lines)


def anchor(law: Law, what: str = "law") -> str:
    """Where a law is on a page: labels are unique in all of the site, so a form's page has others than that of all."""
    return f"{what} {law.name}".replace(" ", "-").replace("_", "-")  # as Sphinx writes them


def index() -> str:
    """All forms, by query and by what is made of a row."""
    head = "# The forms\n\nBy what becomes of a query, of a score, and of a row, as `kvq_ref.grid` declares it.\n\n"
    table = "| form | query | score | row |\n|---|---|---|---|\n"
    rows = "".join(f"| {link(x)} | {p.query} | `{p.score}` | {p.row} |\n" for x, p in GRID.items())
    tree = "\n```{toctree}\n:hidden:\n\n" + "".join(f"{file_name(name)}\n" for name in FORMS) + "```\n"
    return head + table + rows + tree


def write(folder: Path) -> None:
    """Write all pages and figures; what has not changed is left alone, so that Sphinx does not read it again."""
    folder.mkdir(exist_ok=True)
    for name in FORMS:
        form_figures.draw(name, folder / "figures")
    pages = {file_name(name): page(name) for name in FORMS} | {"index": index()}
    for old in folder.glob("*.md"):
        if old.stem not in pages:
            old.unlink()
    for stem, text in pages.items():
        put(folder / f"{stem}.md", text)


def put(path: Path, text: str) -> None:
    """Write a file, unless that is what it says."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
