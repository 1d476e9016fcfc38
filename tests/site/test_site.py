"""The site as a reader has it: built as CONTRIBUTING.md says, opened in a real browser with the network cut.

Needs what builds it and what opens it (``pip install '.[docs,browser]'`` and a Chromium); skipped without. The first
run executes the tutorials, some minutes; later ones take what they gave from build/.jupyter_cache.
"""

from __future__ import annotations

import functools
import http.server
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from kvq_ref.lab.looks import THEMES

NEEDED = "axe_playwright_python playwright sphinx myst_nb numpydoc pydata_sphinx_theme sphinx_copybutton sphinx_design"
if missing := [name for name in NEEDED.split() if importlib.util.find_spec(name) is None]:
    pytest.skip(f"needs {', '.join(missing)}: pip install '.[docs,browser]'", allow_module_level=True)
if "PYTEST_XDIST_WORKER" in os.environ:
    pytest.skip("one folder, built once: run pytest tests/site without -n", allow_module_level=True)

from axe_playwright_python.sync_playwright import Axe  # noqa: E402
from browser import chromium, open_offline  # noqa: E402

ROOT = Path(__file__).parents[2]
SITE = ROOT / "build" / "site-under-test"
SERIOUS = ("serious", "critical")
ON_COLOURS = ["color-contrast", "link-in-text-block"]  # of axe's rules, those that see light and dark
NARROW = 390


def build() -> str:
    """The documented command, into a folder of its own; what it says."""
    command = [sys.executable, "-P", "-m", "sphinx", "-W", "--keep-going", "-c", "docs", ".", str(SITE)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C.UTF-8"})
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-5000:]}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def site() -> Path:
    """Everything is read and written anew, so that a warning is not passed over because its page is an old one."""
    shutil.rmtree(SITE, ignore_errors=True)
    build()
    return SITE


@pytest.fixture(scope="module")
def pages(site: Path) -> list[Path]:
    found = sorted(path for path in site.rglob("*.html") if "_static" not in path.relative_to(site).parts)
    assert len(found) > 50
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as launched:
        yield launched


@pytest.fixture(scope="module", params=["file", "http"])
def address(request: pytest.FixtureRequest, site: Path) -> Iterator[str]:
    """Where the site begins: as files, and as a server on this machine has it."""
    if request.param == "file":
        yield site.as_uri()
        return

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """A page of the site and nothing else; whatever it complains of fails the test in the end."""
    complaints: list[str] = []
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light", base_url=address)
    yield open_offline(context, complaints, origin=address)
    context.close()
    assert not complaints


def test_second_build_is_incremental(site: Path) -> None:
    said = build()
    assert "0 added, 0 changed, 0 removed" in said
    assert "Executing notebook" not in said


# ---- Every page ------------------------------------------------------------------------


def test_every_page(pages: list[Path], browser: Any) -> None:
    """From file://: nothing fails, formulas are formulas, axe-core finds nothing serious, nothing overflows."""
    found: list[str] = []
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    with_formulas = 0
    for path in pages:
        complaints: list[str] = []
        page = open_offline(context, complaints)
        page.goto(path.as_uri())
        page.wait_for_load_state()
        if "http-equiv" in path.read_text(encoding="utf-8"):  # it leads to the first page at once
            page.wait_for_url("**/docs/index.html")
        page.add_style_tag(content="* { transition: none !important; }")  # colours half-way are nobody's
        formulas, rendered, errors = page.evaluate(
            "[':not(.katex) > .math, body > .math', '.math > .katex, .math > .katex-display', '.katex-error']"
            ".map((selector) => document.querySelectorAll(selector).length)"
        )
        with_formulas += formulas > 0
        if formulas != rendered or errors:
            complaints.append(f"{formulas} formulas, {rendered} rendered, {errors} errors")
        complaints += [f"light: {x}" for x in violations(page)]
        page.evaluate("document.documentElement.dataset.theme = 'dark'")  # what the switch of the theme does
        complaints += [f"dark: {x}" for x in violations(page, ON_COLOURS)]
        page.set_viewport_size({"width": NARROW, "height": 844})
        page.wait_for_timeout(400)  # the theme looks after 0.3 s which boxes have come to scroll
        complaints += [f"narrow: {x}" for x in violations(page, ["scrollable-region-focusable"])]
        if (width := page.evaluate("document.scrollingElement.scrollWidth")) > NARROW:
            complaints.append(f"{width} pixels wide on a screen of {NARROW}")
        found += [f"{path.relative_to(SITE)}: {x}" for x in complaints]
        page.close()
    context.close()
    assert not found, "\n".join(found)
    assert with_formulas > 20


def violations(page: Any, rules: list[str] | None = None) -> list[str]:
    """What axe-core finds serious, and where first.

    Left out is what KaTeX makes of a formula, some hundred spans in the colour of the text; and preload, which fetches
    stylesheets, as a page from file:// may not.
    """
    options = {"preload": False, "resultTypes": ["violations"]} | ({"runOnly": rules} if rules else {})
    response = Axe().run(page, context={"exclude": [[".katex"]]}, options=options).response
    return [f"{x['id']}: {x['nodes'][0]['html']}" for x in response["violations"] if x["impact"] in SERIOUS]


# ---- Links -----------------------------------------------------------------------------


class Links(HTMLParser):
    """What a page points at, and what can be pointed at in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.targets.append(value)
            if name == "id" or (name == "name" and tag == "a"):
                self.anchors.add(value or "")


def test_every_link_resolves(pages: list[Path]) -> None:
    """Pages, pictures, styles and scripts are there, and so is the place in a page that is meant."""
    links = {path: Links(path.read_text(encoding="utf-8")) for path in pages}
    broken = []
    for path, found in links.items():
        for target in found.targets:
            parts = urlsplit(target)
            if parts.scheme in ("https", "data"):
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not there.is_file():
                broken.append(f"{path.relative_to(SITE)}: {target}")
            elif parts.fragment and there in links and unquote(parts.fragment) not in links[there].anchors:
                broken.append(f"{path.relative_to(SITE)}: no such place in {target}")
    assert not broken, "\n".join(broken)


# ---- What a reader does ----------------------------------------------------------------


def test_search(page: Any, address: str) -> None:
    """Sherman-Morrison, by keyboard alone."""
    page.goto(f"{address}/docs/index.html")
    page.keyboard.press("Control+k")
    page.keyboard.type("Sherman-Morrison")
    page.keyboard.press("Enter")
    page.locator("#search-results a[href*='forms/intention.html']").first.click()
    page.wait_for_url("**/docs/forms/intention.html*")
    assert "Sherman-Morrison" in page.locator("main").inner_text()


def test_copy_button(page: Any, address: str) -> None:
    """What is copied can be pasted, into the search field for one."""
    page.goto(f"{address}/docs/index.html")
    page.locator("div.highlight").first.hover()
    page.locator("button.copybtn").first.click()
    page.keyboard.press("Control+k")
    page.keyboard.press("Control+v")
    assert "import kvq_ref as kvq" in page.locator("input[type=search]:focus").input_value()


def test_map(page: Any, address: str) -> None:
    """It has the colours of the theme that is chosen; a road leads to its law, and its tick to an open check."""
    page.goto(f"{address}/docs/index.html")
    for theme in ("dark", "light"):
        page.evaluate("(theme) => (document.documentElement.dataset.theme = theme)", theme)
        colour = page.locator(".map > rect.paper").evaluate("(paper) => getComputedStyle(paper).fill")
        red, green, blue = (int(THEMES[theme].paper[at : at + 2], 16) for at in (1, 3, 5))
        assert colour == f"rgb({red}, {green}, {blue})"
    page.locator(".words", has_text="α → ∞, times α").click()
    page.wait_for_url("**/docs/forms/intention.html#*")
    assert page.locator(":target").inner_text() == "intention tends to linear attention"
    page.go_back()
    page.get_by_role("link", name="the check that intention tends to linear attention").click()
    page.wait_for_url("**/docs/laws.html#*")
    assert page.get_by_text("def intention_tends_to_linear_attention").is_visible()


def test_explorer(page: Any, address: str) -> None:
    """The first page's picture of it leads to it."""
    page.goto(f"{address}/docs/index.html")
    page.locator("a[href='explorer/index.html']:visible").click()
    page.wait_for_function("window.explorer && explorer.state().points.length > 0")
