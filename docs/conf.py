"""The site: sphinx-build -W -c docs . build/site, from the root of the repository.

The source folder is the repository's root, so that pages, tutorials and code link to each other on the site by the same
paths as in the repository. Nothing is fetched, and no page asks for anything that is not in its folder: the mathematics
is KaTeX's, in docs/_static/katex.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from docutils import nodes

HERE = Path(__file__).parent
os.environ.pop("MPLBACKEND", None)  # notebooks draw into their pages, whatever is set elsewhere
sys.path.insert(0, str(HERE))

import make_forms  # noqa: E402
import make_laws  # noqa: E402
import make_map  # noqa: E402

import kvq_ref  # noqa: E402

project = "kvq_ref"
author = "The kvq_ref developers"
copyright = author  # noqa: A001
version = release = kvq_ref.__version__

root_doc = "docs/index"
include_patterns = ["docs/**", "tutorials/*.md"]
exclude_patterns = ["docs/_static/**", "docs/_templates/**"]
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "myst_nb",
    "sphinx_copybutton",
    "sphinx_design",
]

myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"  # a notebook is executed again where its code has changed
nb_execution_timeout = 600  # of a cell; the tests hold a whole tutorial to a minute, here a machine may be busy
nb_execution_raise_on_error = True
nb_merge_streams = True

autosummary_generate = True
autodoc_typehints = "none"  # the docstrings have them
numpydoc_show_class_members = False
templates_path = ["_templates"]

html_theme = "pydata_sphinx_theme"
html_title = "kvq_ref"
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system is
html_static_path = ["_static"]
html_extra_path = ["_extra"]
html_css_files = ["site.css"]
html_sidebars = {"docs/laws": [], "docs/explorer": []}  # chapters of a single page
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": "kvq_ref"},
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_prev_next": True,
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


# ---- Mathematics -----------------------------------------------------------------------


def formula(self: Any, node: nodes.math) -> None:
    self.body.append(self.starttag(node, "span", "", CLASS="math notranslate nohighlight"))
    self.body.append(self.encode(node.astext()) + "</span>")
    raise nodes.SkipNode


def displayed_formula(self: Any, node: nodes.math_block) -> None:
    latex = node.astext()
    if r"\\" in latex and r"\begin" not in latex:
        latex = rf"\begin{{aligned}}{latex}\end{{aligned}}"
    self.body.append(self.starttag(node, "div", "", CLASS="math notranslate nohighlight"))
    self.body.append(self.encode(latex) + "</div>")
    raise nodes.SkipNode


def load_scripts(app: Any, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """KaTeX where there is a formula, and nowhere else."""
    if doctree is not None and any(doctree.findall(lambda node: isinstance(node, nodes.math | nodes.math_block))):
        app.add_css_file("katex/katex.css")
        app.add_js_file("katex/katex.min.js")
        app.add_js_file("katex/render.js")
    if page == "search":
        app.add_js_file("search.js")


html_math_renderer = "katex"


# ---- The explorer ----------------------------------------------------------------------


def copy_explorer(app: Any, exception: Exception | None) -> None:
    """It is a page by itself, and has the same place on the site as in the repository."""
    if exception is None and app.builder.format == "html":
        shutil.copytree(HERE / "explorer", Path(app.outdir) / "docs" / "explorer", dirs_exist_ok=True)


def setup(app: Any) -> None:
    make_forms.write(HERE / "forms")
    make_forms.put(HERE / "laws.md", make_laws.page())
    make_forms.put(HERE / "map.html", make_map.svg(linked=True))
    app.add_html_math_renderer("katex", inline_renderers=(formula, None), block_renderers=(displayed_formula, None))
    app.connect("html-page-context", load_scripts)
    app.connect("build-finished", copy_explorer)
