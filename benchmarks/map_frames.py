"""Measure whether the page's map of 5,000 texts stays smooth while somebody drags it.

    python -m benchmarks.map_frames

Needs Chromium. Starts a server with the demo model and opens its page in a browser without a window. Prints the
seconds until the map is placed by PCA and by UMAP, and the milliseconds of a frame while the map is dragged, once
beside UMAP and once after it. A screen of 60 Hz has 16.7 ms for a frame.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page

from tests.support.browser import WatchedPage, running_browser
from tests.support.running_server import RunningServer
from tests.support.sentences import sentences

from .common import cpu_name

_NUM_TEXTS = 5000
_MAX_CHARS = 200
_STEPS = 240  # of a drag
_LONGEST_MS = 600_000
_RECORD_FRAMES = """() => {
  window.frames_ms = [];
  let last = null;
  const note = (now) => {
    if (last !== null) window.frames_ms.push(now - last);
    last = now;
    window.request = requestAnimationFrame(note);
  };
  window.request = requestAnimationFrame(note);
}"""
_END_FRAMES = "() => { cancelAnimationFrame(window.request); return window.frames_ms; }"


def frames_of_a_drag(page: Page) -> list[float]:
    """Drag the map with the mouse; return the milliseconds of each frame meanwhile."""
    box = page.get_by_role("application").bounding_box()
    if box is None:
        raise RuntimeError("the map is not visible")
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 4
    page.mouse.move(x, y)
    page.mouse.down()
    page.evaluate(_RECORD_FRAMES)
    for step in range(_STEPS):
        page.mouse.move(x + step % 100, y + step % 20)
    frames: list[float] = page.evaluate(_END_FRAMES)
    page.mouse.up()
    return frames


def main() -> None:
    """Measure and print."""
    short = [text for text in sentences(4 * _NUM_TEXTS) if len(text) <= _MAX_CHARS and text.isprintable()]
    with RunningServer() as server, running_browser() as browser, tempfile.TemporaryDirectory() as folder:
        page = WatchedPage(browser, server.wait_ready().url, viewport={"width": 1280, "height": 900}).open("Map")
        file = Path(folder) / "texts.txt"
        file.write_text("\n".join(f"{text} {i}" for i, text in enumerate((short * 2)[:_NUM_TEXTS])))
        page.get_by_label("or a file").set_input_files(file)
        page.get_by_text(f"{_NUM_TEXTS} rows in").wait_for()
        start = time.perf_counter()
        page.get_by_role("button", name="Make the map").click()
        for method, when in {"PCA": "beside", "UMAP": "after"}.items():
            page.get_by_text(f"{_NUM_TEXTS} texts, placed by {method}").wait_for(timeout=_LONGEST_MS)
            taken_s = time.perf_counter() - start
            frames = frames_of_a_drag(page)
            sys.stdout.write(
                f"{cpu_name()}: {_NUM_TEXTS} texts placed by {method} after {taken_s:.1f} s; dragged {when} UMAP: "
                f"{len(frames)} frames, median {statistics.median(frames):.1f} ms, longest {max(frames):.1f} ms\n"
            )


if __name__ == "__main__":
    main()
