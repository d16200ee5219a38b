"""A real browser for tests of pages: the system's Chromium, driven by Playwright, with a watch on its requests."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Nothing of its own over the network, and no sandbox: containers have none to offer.
ARGUMENTS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
ARGUMENTS += "--disable-component-update --disable-sync"
WAIT = 90_000  # milliseconds; a busy machine is slow

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser; `new_context()` is a person of its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS.split())
        try:
            yield browser
        finally:
            browser.close()


class Person:
    """Somebody with a browser window of their own.

    Attributes:
        page: Playwright's.
        foreign: what the page asked other servers for, none of which it got.
        problems: errors on the browser's console, and exceptions of scripts.
    """

    def __init__(self, browser: Any, home: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(WAIT)
        self.foreign: list[str] = []
        self.problems: list[str] = []
        self.context.route(lambda url: not url.startswith((home, "data:", "blob:")), self._refuse)
        self.page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda said: self.problems.append(said.text) if said.type == "error" else None)
        self.page.goto(home)

    def _refuse(self, route: Any) -> None:
        self.foreign.append(route.request.url)
        route.abort()
