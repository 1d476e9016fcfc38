"""The page of all laws, from the laws themselves: docs/conf.py writes it at every build.

Each law comes with its formula, the forms that obey it, the code that checks it, proof included, and the test that
holds this package's own kernels to it.
"""

from __future__ import annotations

import inspect
import itertools
import sys

from make_forms import anchor, escape, link

from kvq_ref.dispatch import FORMS
from kvq_ref.testing import LAWS, Law

HEAD = """# The laws

What a sound implementation of a form obeys. A law is data, in `kvq_ref.testing.LAWS`: a sentence, a formula, the forms
that it speaks of, and a check that compares numbers within a bound computed for each call.
[`kvq-ref verify`](../tutorials/03_verify_your_own_kernel.md) holds your kernel to those of its form.
[`tests/testing/test_laws.py`](../tests/testing/test_laws.py) holds every form of this package to them, in every
implementation and in three dtypes, on fresh inputs in every run; and
[`tests/testing/test_mutants.py`](../tests/testing/test_mutants.py) makes sure that they catch mistakes.

"""
LAW = """({anchor})=
### {name}

{statement}

$$
{latex}
$$

{forms}

:::{{dropdown}} How it is checked
({check})=
By `pytest tests/testing/test_laws.py -k "test_holds[{test}-"`, which runs this, from [`{file}`](../{file}):

~~~python
{source}~~~
:::

"""


def page() -> str:
    """The page, in MyST markdown: a section for each file of laws."""
    sections = [HEAD]
    for module, laws in itertools.groupby(LAWS, lambda law: law.check.__module__):
        sections += [heading(module), *map(entry, laws)]
    return "".join(sections)


def heading(module: str) -> str:
    """What a file of laws is called, and what it says of itself."""
    title, lesson = module.rpartition(".")[2].replace("_", " ").capitalize(), inspect.getdoc(sys.modules[module]) or ""
    return f"## {title}\n\n{escape(lesson.partition(chr(10))[0])}\n\n"


def entry(law: Law) -> str:
    """All of a law."""
    return LAW.format(
        anchor=anchor(law),
        check=anchor(law, "check"),
        name=law.name,
        statement=escape(law.statement),
        latex=law.latex,
        forms=spoken_of(law),
        test=law.name.replace(" ", "_"),
        file=f"{law.check.__module__.replace('.', '/')}.py",
        source=inspect.getsource(law.check),
    )


def spoken_of(law: Law) -> str:
    """The forms that obey a law."""
    names = [name for name in FORMS if name in law.forms]
    forms = "all forms" if len(names) == len(FORMS) else ", ".join(link(name, "forms/") for name in names)
    strict = " Only asked for with `--strict`: a promise that many sound implementations do not make."
    return f"Obeyed by {forms}.{strict if law.strict else ''}"
