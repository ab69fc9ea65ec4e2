"""A real browser for the page: Chromium without a window, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

from tests.support.waiting import HANG_S

_NAMES = ("chromium", "chromium-browser", "google-chrome")
#: Chromium looks up hosts of its maker unless it is told not to. As root, it has no sandbox.
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Start the browser of this machine. If there is none, skips the test; CI must have one."""
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None and not os.environ.get("BERT_SERVING_NEEDS_BROWSER"):
        pytest.skip("needs Chromium: apt-get install chromium")
    expect.set_options(timeout=HANG_S * 1000)  # the default is five seconds
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_FLAGS)
        yield browser
        browser.close()


class WatchedPage:
    """A page of a browser in a window of its own; what goes wrong on it is noted.

    errors: messages of the console, exceptions, and requests to other hosts than the page's.
    """

    def __init__(self, browser: Browser, url: str, **window: object) -> None:
        self.url = url
        self.errors: list[str] = []
        self._context = browser.new_context(**window)  # type: ignore[arg-type]
        self._context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.page = self.another()

    def another(self) -> Page:
        """Open another tab of the same window."""
        page = self._context.new_page()
        page.set_default_timeout(HANG_S * 1000)
        page.on("console", self._on_message)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", self._on_request)
        return page

    def open(self, tab: str = "Now") -> Page:
        """Open the page and wait until it follows the server; return it."""
        self.page.goto(f"{self.url}/#{tab}")
        self.page.get_by_role("tab", name=tab, exact=True).wait_for()
        return self.page

    def close(self) -> None:
        """Close the window."""
        self._context.close()

    def _on_message(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(f"{message.text} {message.location}")

    def _on_request(self, request: Request) -> None:
        if not request.url.startswith((self.url, "blob:", "data:")):
            self.errors.append(f"request to {request.url}")
