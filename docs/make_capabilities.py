"""Write docs/capabilities.md from the declarations in kvq_ref.dispatch: python docs/make_capabilities.py"""

from __future__ import annotations

from pathlib import Path

from kvq_ref.dispatch import capabilities

PAGE = Path(__file__).with_name("capabilities.md")

HEAD = """# What serves what

Written by `python docs/make_capabilities.py` from the declarations in `kvq_ref/dispatch.py`; a test keeps it in step.

`implementation=None` takes the first row of a form that serves the call: the compiled kernel for NumPy arrays where the
kernels are installed, else the reference, which runs on the library and the device of its arguments. Half precision is
computed in float32 and rounded once.

| form | implementation | arrays | dtypes | options |
|---|---|---|---|---|
"""


def page() -> str:
    """The page's text."""
    columns = ("form", "implementation", "arrays", "dtypes", "options")
    return HEAD + "".join("| " + " | ".join(row[name] for name in columns) + " |\n" for row in capabilities())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
