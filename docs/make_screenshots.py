"""Write the pictures of the explorer in docs/figures, in light and dark: python docs/make_screenshots.py

Needs Playwright and a Chromium: pip install '.[browser]'.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
PAGE = (HERE / "explorer" / "index.html").as_uri()


def main() -> None:
    """Take both."""
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        path = own if os.path.exists(own) else shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for theme in ("light", "dark"):
            page = browser.new_page(viewport={"width": 1180, "height": 860}, color_scheme=theme)
            page.goto(PAGE)
            page.wait_for_timeout(500)
            page.screenshot(path=HERE / "figures" / f"explorer-{theme}.png")
        browser.close()


if __name__ == "__main__":
    main()
