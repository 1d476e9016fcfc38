"""A Chromium for the tests that open pages, and what a page complains of.

Import it after ``pytest.importorskip("playwright.sync_api")``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

SYSTEM_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Playwright's own or the system's; the test is skipped where there is neither."""
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        path = own if os.path.exists(own) else next(filter(None, map(shutil.which, SYSTEM_BROWSERS)), None)
        if path is None:
            pytest.skip(f"needs a Chromium: none of Playwright's own, and no {', '.join(SYSTEM_BROWSERS)} on PATH")
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


def open_offline(context: Any, complaints: list[str], origin: str = "file:") -> Any:
    """A new page of a context that gets nothing but what starts with ``origin``; what it complains of is gathered."""
    context.route(lambda url: not url.startswith(origin), lambda route: route.abort())
    page = context.new_page()
    page.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
    return page
