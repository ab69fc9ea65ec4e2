"""Make the pictures of the page in the browser that README.md and docs/page.md show.

    python docs/build_pictures.py

Starts a server with the demo model, lets clients use it for two minutes, and opens the page in Chromium.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

from bert_serving.client import BertClient
from playwright.sync_api import Page

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))  # for tests.support

from tests.support.browser import WatchedPage, running_browser  # noqa: E402
from tests.support.running_server import RunningServer  # noqa: E402
from tests.support.sentences import sentences  # noqa: E402

_LOAD_S = 120
_SIZE = {"width": 1200, "height": 830}


def main() -> None:
    """Make the pictures."""
    with RunningServer() as server, running_browser() as browser:
        server.wait_ready()
        use(server)
        watched = WatchedPage(browser, server.url, viewport=_SIZE)
        page = watched.open("Now")
        time.sleep(3)  # the newest points
        page.screenshot(path=DOCS / "page-now.png")
        show_similarities(watched.open("Try"))
        show_map(watched.open("Map"))
        assert watched.errors == []


def use(server: RunningServer) -> None:
    """Let a few clients send requests of different sizes, more and more of them."""
    end = time.monotonic() + _LOAD_S

    def work(index: int) -> None:
        texts = [text for text in sentences(600, seed=index) if len(text) < 400]
        with BertClient(**server.ports, check_length=False) as client:
            time.sleep(index * _LOAD_S / 8)
            while time.monotonic() < end:
                client.encode(texts[: 4 ** (index % 4 + 1)])
                time.sleep(0.05 * (index + 1))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def show_similarities(page: Page) -> None:
    """Encode the texts that the page proposes."""
    page.get_by_role("button", name="Encode").click()
    page.locator("output.sum").wait_for()
    page.screenshot(
        path=DOCS / "page-try.png", full_page=True, clip={"x": 0, "y": 0, "width": 1200, "height": 1000}
    )


def show_map(page: Page) -> None:
    """Make a map of sentences of Python's manual."""
    texts = [text for text in sentences(3000) if 20 < len(text) < 200 and text.isprintable()][:2000]
    page.get_by_label("Texts, one in a line (at most 5000)").fill("\n".join(texts))
    page.get_by_role("button", name="Make the map").click()
    page.get_by_text("placed by UMAP").wait_for()
    page.get_by_label("Search by meaning").fill("an error when a key is missing in a dictionary")
    page.keyboard.press("Enter")
    page.locator("ol.found").wait_for()
    page.screenshot(path=DOCS / "page-map.png", full_page=True)


if __name__ == "__main__":
    main()
