"""The page at / in a real browser, used as a person would, with the keyboard too."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from bert_serving.client import BertClient
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import WatchedPage, running_browser
from tests.support.model_servers import ModelServers
from tests.support.running_server import RunningServer
from tests.support.sentences import sentences
from tests.support.waiting import HANG_S, wait_until

ARTIFACTS = Path(__file__).parents[2] / "artifacts/page"
EXAMPLES = (
    "How do I reset my password?",
    "I forgot my password and cannot log in.",
    "What is the capital of France?",
    "Paris is the capital of France.",
)

OpenPage = Callable[..., WatchedPage]


def lines(count: int) -> list[str]:
    """Return so many sentences without line breaks, each at most 200 characters long."""
    found = [text for text in sentences(4 * count) if len(text) <= 200 and text.isprintable() and text.strip()]
    return found[:count]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as running:
        yield running


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """A function that opens a window. At the end, nothing must have gone wrong in any of them."""
    opened = []

    def open_page(url: str, **window: object) -> WatchedPage:
        opened.append(WatchedPage(browser, url, **window))
        return opened[-1]

    yield open_page
    for each in opened:
        each.close()
        assert each.errors == []


def encode_examples(page: Page) -> None:
    page.get_by_role("button", name="Encode").click()
    page.locator("output.sum").wait_for()


def is_no_wider_than_the_window(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def check_accessibility(page: Page, name: str) -> None:
    """Look at the page with axe-core in light and dark, wide and narrow, and keep a picture of each."""
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    window = page.viewport_size
    for size, (width, height) in {"wide": (1280, 900), "narrow": (390, 844)}.items():
        page.set_viewport_size({"width": width, "height": height})
        wait_until(partial(is_no_wider_than_the_window, page), f"{name}, {size}: wider than the window")
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # colours change at once
            serious = [
                (violation["id"], node["html"], node["failureSummary"])
                for violation in Axe().run(page).response["violations"]
                if violation["impact"] in ("serious", "critical")
                for node in violation["nodes"]
            ]
            assert serious == [], f"{name}, {size}, {scheme}"
            page.screenshot(path=ARTIFACTS / f"{name}-{scheme}-{size}.png", full_page=True)
    if window:
        page.set_viewport_size(window)


def make_map(page: Page, texts: list[str]) -> None:
    page.get_by_label("Texts, one in a line (at most 5000)").fill("\n".join(texts))
    page.get_by_role("button", name="Make the map").click()
    page.get_by_text("placed by UMAP").wait_for()


# -- Now -----------------------------------------------------------------------------------------------


def test_a_fresh_page_shows_what_the_server_did_before(
    server: RunningServer, client: BertClient, open_page: OpenPage
) -> None:
    client.encode(["before any page is open"] * 64)
    httpx.post(f"{server.url}/encode", json={"id": 1, "texts": ["a", ""]}, timeout=HANG_S)

    def history() -> Any:
        with httpx.stream("GET", f"{server.url}/page/live", timeout=HANG_S) as stream:
            return json.loads(next(stream.iter_lines()).removeprefix("data: "))

    def num_texts() -> float:
        found = history()
        return sum(point[found["fields"].index("texts")] for point in found["points"])

    wait_until(lambda: num_texts() > 0)  # the server adds a point every two seconds
    page = open_page(server.url).open()
    expect(page.get_by_role("status").first).to_have_text("Ready")
    parity = re.compile(r"^(0\.99\d+|1\.0+)$")  # 1 in float32
    expect(page.get_by_role("cell", name=parity)).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("worker-0: computes .* ready"))).to_be_visible()
    expect(page.locator(".chart canvas")).to_have_count(10)
    expect(page.locator(".chart")).to_have_count(10)
    num_points = len(history()["points"])
    wait_until(lambda: page.locator(".timeline rect").count() >= num_points - 2)


def test_the_page_is_live(client: BertClient, server: RunningServer, open_page: OpenPage) -> None:
    page = open_page(server.url).open()
    tile = page.locator(".tiles div", has_text="texts/s").locator("dd").first
    expect(tile).to_have_text("0")  # what earlier tests have caused is over
    is_seen = threading.Event()

    def encode() -> None:
        while not is_seen.is_set():
            client.encode(sentences(64))

    with ThreadPoolExecutor(1) as pool:
        encoding = pool.submit(encode)
        try:
            expect(tile).not_to_have_text("0")
        finally:
            is_seen.set()
        encoding.result()


def test_errors_are_counted_by_code(server: RunningServer, open_page: OpenPage) -> None:
    with BertClient(**server.ports) as client, pytest.raises(ValueError, match="dimensions"):
        client.encode(["too many"], dimensions=100_000)
    page = open_page(server.url).open()
    expect(page.get_by_role("rowheader", name="invalid_request")).to_be_visible()


def test_a_server_that_dies_and_comes_back_is_shown(tiny: Path, browser: Browser) -> None:
    with RunningServer("-model_dir", tiny, "-cpu") as first:
        watched = WatchedPage(browser, first.wait_ready().url)  # the browser logs each failed attempt to connect
        page = watched.open()
        status = page.get_by_role("status").first
        expect(status).to_have_text("Ready")
        first.signal(signal.SIGKILL)
        expect(status).to_contain_text("No connection")
        check_accessibility(page, "no-connection")
        page.evaluate("window.isSame = true")
    with RunningServer("-model_dir", tiny, "-cpu", "-http_port", first.http_port) as second:
        second.wait_ready()
        expect(status).to_have_text("Ready")
        assert page.evaluate("window.isSame"), "the page was loaded again"
        watched.close()


def test_what_was_typed_survives_a_worker(tiny: Path, open_page: OpenPage) -> None:
    with RunningServer("-model_dir", tiny, "-cpu") as server:
        watched = open_page(server.wait_ready().url)
        page = watched.open("Try")
        field = page.get_by_label("Texts, one in a line (at most 50)")
        field.fill("my text")
        (pid,) = server.worker_pids()
        os.kill(pid, signal.SIGKILL)
        status = page.get_by_role("status").first
        expect(status).to_have_text(re.compile("Not ready: worker-0 is starting"))
        expect(status).to_have_text("Ready")
        assert field.input_value() == "my text"
        watched.close()


def test_a_page_is_no_request_in_flight(server: RunningServer) -> None:
    assert (
        httpx.head(f"{server.url}/page/live", timeout=HANG_S)
        .headers["content-type"]
        .startswith("text/event-stream")
    )
    with httpx.stream("GET", f"{server.url}/page/live", timeout=HANG_S) as stream:
        next(stream.iter_lines())

        def in_flight() -> str:
            text = httpx.get(f"{server.url}/metrics", timeout=HANG_S).text
            (line,) = [line for line in text.splitlines() if "http_requests_in_flight{" in line]
            return line.split()[-1]

        wait_until(lambda: in_flight() == "1.0")  # /metrics itself
    text = httpx.get(f"{server.url}/metrics", timeout=HANG_S).text
    assert 'http_request_seconds_count{route="/page/live"} 1.0' in text  # that of HEAD


def test_one_address_cannot_take_all_pages(tiny: Path, browser: Browser) -> None:
    with (
        RunningServer("-model_dir", tiny, "-cpu") as server,
        ExitStack() as pages,
        httpx.Client(limits=httpx.Limits(max_connections=None), timeout=HANG_S) as caller,
    ):
        url = f"{server.wait_ready().url}/page/live"
        events: list[Iterator[str]] = []
        for _ in range(100):
            page = pages.enter_context(caller.stream("GET", url))
            if page.status_code != 200:
                break
            events.append(page.iter_lines())  # kept: the connection ends with its iterator
            next(events[-1])
        assert page.status_code == 429
        assert len(events) == 50
        watched = WatchedPage(browser, server.url)  # the browser logs each 429
        watched.page.goto(server.url)
        expect(watched.page.get_by_role("status").first).to_contain_text(
            "50 pages are open for this key or address"
        )
        watched.close()


def test_an_open_page_does_not_delay_the_end_of_the_server(tiny: Path, open_page: OpenPage) -> None:
    with (
        RunningServer("-model_dir", tiny, "-cpu", "-drain_timeout", 60) as server,
        httpx.Client(timeout=HANG_S) as caller,
    ):
        with caller.stream("GET", f"{server.wait_ready().url}/page/live") as stream:
            lines = stream.iter_lines()
            assert next(lines).startswith("data: ")
            server.signal(signal.SIGTERM)
            assert "event: end" in list(lines)
        assert server.wait_end() == 0


# -- Try -----------------------------------------------------------------------------------------------


def test_similarities_are_the_cosines_of_the_vectors(
    server: RunningServer, client: BertClient, open_page: OpenPage
) -> None:
    page = open_page(server.url).open("Try")
    encode_examples(page)
    rows = client.encode(list(EXAMPLES))
    cosines = rows @ rows.T / np.outer(*[np.linalg.norm(rows, axis=1)] * 2)
    shown = page.get_by_role("button", name=re.compile(r"^texts \d and \d")).evaluate_all(
        "cells => cells.map(cell => cell.ariaLabel)"
    )
    assert len(shown) == 12
    for label in shown:
        first, second, value = re.fullmatch(r"texts (\d) and (\d): (-?[\d.]+)", label).groups()  # type: ignore[union-attr]
        assert float(value) == pytest.approx(cosines[int(first) - 1, int(second) - 1], abs=2e-3)


def test_the_pairs_of_tokens_add_up_to_the_cosine(server: RunningServer, open_page: OpenPage) -> None:
    page = open_page(server.url).open("Try")
    encode_examples(page)
    pair = page.get_by_role("button", name=re.compile("^texts 3 and 4"))
    pair.click()
    page.get_by_role("heading", name="Why texts 3 and 4 are similar").wait_for()
    total = float(page.locator("output.sum").inner_text())
    assert total == pytest.approx(float((pair.get_attribute("aria-label") or "").split(": ")[1]), abs=2e-3)
    parts = page.locator("table.why .cell").all_inner_texts()
    assert sum(map(int, parts)) / 1000 == pytest.approx(total, abs=0.5e-3 * len(parts))
    assert len(parts) == 9 * 9


def test_what_was_cut_is_struck_out(server: RunningServer, open_page: OpenPage) -> None:
    page = open_page(server.url).open("Try")
    page.get_by_label("Texts, one in a line (at most 50)").fill("short\n" + "word " * 300 + "the end 😀")
    encode_examples(page)
    assert page.locator(".cut").count() == 1
    assert page.locator(".cut").inner_text().endswith("the end 😀")
    assert "of the text was cut" in page.locator(".tokens li").nth(1).inner_text()


def test_vectors_that_are_no_means_are_explained(server: RunningServer, open_page: OpenPage) -> None:
    page = open_page(server.url).open("Try")
    page.get_by_label("Dimensions").fill("64")
    encode_examples(page)
    expect(page.get_by_text("cut to fewer dimensions")).to_be_visible()


def test_a_server_with_a_vector_for_each_token(tiny: Path, open_page: OpenPage) -> None:
    with RunningServer("-model_dir", tiny, "-cpu", "-pooling_strategy", "NONE", "-fp16") as server:
        watched = open_page(server.wait_ready().url)
        page = watched.open("Try")
        encode_examples(page)
        assert page.get_by_role("button", name=re.compile(r"^texts \d and \d")).count() == 12
        page.get_by_role("tab", name="Map").click()
        page.get_by_label("Texts, one in a line (at most 5000)").fill("a\na\n")
        page.get_by_role("button", name="Make the map").click()
        page.get_by_text("2 texts, placed by PCA").wait_for()  # equal texts, at one place
        assert "NaN" not in page.content()
        watched.close()


def test_formats_lengths_and_poolings_side_by_side(server: RunningServer, open_page: OpenPage) -> None:
    page = open_page(server.url).open("Try")
    encode_examples(page)
    page.get_by_role("button", name="Compare").click()
    rows = page.locator("table.variants tbody tr")
    expect(rows).to_have_count(6)
    table = {name: values for name, *values in (row.split("\t") for row in rows.all_inner_texts())}
    assert [values[0] for values in table.values()] == ["384", "48", "768", "192", "1536", "1536"]
    assert 0 < float(table["int8"][1]) < 0.01 < float(table["bits"][1])
    assert float(table["mean of the tokens"][2]) < 0.001 < float(table["CLS token"][2])
    assert table["int8"][3] == "4 of 4"


def test_the_code_to_copy_runs(server: RunningServer, open_page: OpenPage) -> None:
    page = open_page(server.url).open("Try")
    page.get_by_label("Texts, one in a line (at most 50)").fill('it\'s "quoted" \\ 1\nécole\nthree')
    encode_examples(page)
    copied = {}
    for name in ("curl", "Python, BertClient", "Python, OpenAI's client"):
        page.get_by_role("button", name=f"Copy: {name}").click()
        copied[name] = page.evaluate("navigator.clipboard.readText()")
    reply = subprocess.run(["bash", "-c", copied["curl"]], capture_output=True, text=True, check=True).stdout
    assert reply.count("[") == 4
    run = [sys.executable, "-c", copied["Python, BertClient"] + "\nprint(vectors.shape)"]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "(3, 384)\n"
    compile(copied["Python, OpenAI's client"], "snippet", "exec")  # tests/clients runs OpenAI's client
    assert f'base_url="{server.url}/v1"' in copied["Python, OpenAI's client"]


def test_an_error_of_the_server_is_shown(server: RunningServer, browser: Browser) -> None:
    page = WatchedPage(browser, server.url).open("Try")  # the browser logs the status
    page.get_by_label("Dimensions").evaluate("field => field.removeAttribute('max')")
    page.get_by_label("Dimensions").fill("9999")
    page.get_by_role("button", name="Encode").click()
    expect(page.get_by_role("alert")).to_contain_text("dimensions must be")


# -- Map -----------------------------------------------------------------------------------------------


def test_a_map_of_a_file(server: RunningServer, client: BertClient, open_page: OpenPage, tmp_path: Path) -> None:
    texts = [f"a sentence about {topic}, number {i}" for topic in ("cats", "the law") for i in range(40)]
    with (tmp_path / "texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("body", "topic"), *((text, text.split()[-3]) for text in texts)])
    page = open_page(server.url).open("Map")
    page.get_by_label(re.compile("or a file")).set_input_files(tmp_path / "texts.csv")
    expect(page.get_by_role("combobox", name="Text", exact=True)).to_have_value("body")
    page.get_by_role("combobox", name="Colour").select_option("topic")
    page.get_by_role("button", name="Make the map").click()
    page.get_by_text("80 texts, placed by UMAP").wait_for()
    assert page.locator(".map-legend li").all_inner_texts() == ["cats,", "law,"]

    page.get_by_label("Search by meaning").fill("a judge in court")
    page.keyboard.press("Enter")
    found = page.locator("ol.found li")
    expect(found).to_have_count(10)
    assert all("the law" in line for line in found.all_inner_texts())

    with page.expect_download() as download:
        page.get_by_role("button", name="Vectors").click()
    rows = np.load(download.value.path())
    expected = client.encode(texts)
    assert rows.dtype == np.float32
    assert np.abs(rows - expected / np.linalg.norm(expected, axis=1, keepdims=True)).max() < 0.02  # bfloat16
    with page.expect_download() as download:
        page.get_by_role("button", name="Picture").click()
    titles = [each.text for each in ET.parse(download.value.path()).iter("{http://www.w3.org/2000/svg}title")]
    assert titles == texts


def test_hover_and_keys_show_texts(server: RunningServer, open_page: OpenPage) -> None:
    texts = lines(20)
    page = open_page(server.url).open("Map")
    make_map(page, texts)
    plot = page.get_by_role("application", name="Map of 20 texts")
    plot.focus()
    page.keyboard.press(".")
    expect(page.locator(".tip")).to_have_text(texts[0])
    page.keyboard.press(".")
    expect(page.locator(".tip")).to_have_text(texts[1])
    page.keyboard.press("Escape")
    expect(page.locator(".tip")).to_have_count(0)
    box = plot.bounding_box()
    assert box is not None
    for x in range(0, int(box["width"]), 8):  # some point lies in the middle of the height
        page.mouse.move(box["x"] + x, box["y"] + box["height"] / 2)
        if page.locator(".tip").count():
            break
    assert page.locator(".tip").inner_text() in texts


def test_a_finger_chooses_a_text(server: RunningServer, open_page: OpenPage) -> None:
    page = open_page(server.url, has_touch=True, viewport={"width": 390, "height": 844}).open("Map")
    make_map(page, lines(200))
    page.get_by_role("button", name="Larger").tap()
    page.get_by_role("button", name="Whole").tap()
    plot = page.get_by_role("application")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert box is not None
    for share in np.arange(0.1, 0.9, 0.02):  # some point lies near the diagonal
        page.touchscreen.tap(box["x"] + box["width"] * share, box["y"] + box["height"] * share)
        if page.locator(".tip").count():
            break
    assert page.locator(".tip").inner_text() in lines(200)


@pytest.mark.parametrize(
    ("name", "content", "column", "num_rows"),
    [
        ("pandas.csv", ",text,n\n0,one,5\n1,two\n2,three,5,6\n", "text", 3),
        ("one.csv", "sentence\nno, quotes, here\nnone\n", "sentence", 2),
        ("long.tsv", "id\twhat\n1\ta long sentence\n2\tanother one\n", "what", 2),
        ("quotes.tsv", 'text\tn\n"Well", she said.\t1\n"No."\t2\nAn end.\t3\n', "text", 3),
        ("screens.csv", 'text,n\n"a, b",1\n"5" screen",2\n"two\nlines",3\n', "text", 3),
        ("rows.jsonl", '{"a": 1, "body": "x"}\n\n{"body": "y", "tags": ["t"]}\n', "body", 2),
        ("texts.jsonl", '"one"\nnull\n3\n', "text", 3),
    ],
)
def test_files_are_read(
    name: str, content: str, column: str, num_rows: int, server: RunningServer, open_page: OpenPage, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    page = open_page(server.url).open("Map")
    page.get_by_label(re.compile("or a file")).set_input_files(tmp_path / name)
    page.get_by_text(f"{num_rows} rows in {name}").wait_for()
    expect(page.get_by_role("combobox", name="Text", exact=True)).to_have_value(column)
    page.get_by_role("button", name="Make the map").click()
    page.get_by_text(f"{num_rows} texts, placed by PCA").wait_for()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("latin.txt", "école\n".encode("latin-1"), "is not a text in UTF-8"),
        ("bad.jsonl", b'{"a": 1}\n\n{"a"\n', "line 3 is not JSON"),
        ("empty.csv", b"", "has no rows"),
    ],
)
def test_files_that_cannot_be_read(
    name: str, content: bytes, expected: str, server: RunningServer, open_page: OpenPage, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    page = open_page(server.url).open("Map")
    page.get_by_label(re.compile("or a file")).set_input_files(tmp_path / name)
    expect(page.get_by_role("alert")).to_contain_text(expected)


def test_five_thousand_lines(server: RunningServer, open_page: OpenPage, tmp_path: Path) -> None:
    texts = [f"{text} {i}" for i, text in enumerate(lines(1000) * 6)]
    page = open_page(server.url).open("Map")
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    page.get_by_label(re.compile("or a file")).set_input_files(tmp_path / "texts.txt")
    page.get_by_text("6000 rows in texts.txt").wait_for()
    page.get_by_role("button", name="Make the map").click()
    expect(page.get_by_role("alert")).to_have_text("Only the first 5000 of 6000 texts are shown.")
    page.get_by_text("5000 texts, placed by PCA").wait_for()  # the page stays usable meanwhile:
    page.get_by_role("application").focus()
    page.keyboard.press("+")
    page.keyboard.press(".")
    expect(page.locator(".tip")).to_have_text(texts[0])
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("progress")).to_have_count(0)


# -- other models --------------------------------------------------------------------------------------


def test_a_reranker_has_the_tab_rank(model_servers: ModelServers, open_page: OpenPage) -> None:
    page = open_page(model_servers.reranker.running.url).open("Rank")
    assert page.get_by_role("tab").all_inner_texts() == ["Now", "Rank"]
    page.get_by_role("button", name="Rank").click()
    rows = page.locator("table.scores tbody tr")
    expect(rows).to_have_count(3)
    scores = [float(row.split("\t")[1]) for row in rows.all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    check_accessibility(page, "rank")


def test_a_classifier_has_the_tab_classify(model_servers: ModelServers, open_page: OpenPage) -> None:
    page = open_page(model_servers.classifier.running.url).open("Classify")
    assert page.get_by_role("tab").all_inner_texts() == ["Now", "Classify"]
    page.get_by_role("button", name="Classify").click()
    page.locator("table.scores").wait_for()
    scores = [float(row.split("\t")[1]) for row in page.locator("table.scores tbody tr").all_inner_texts()]
    assert sum(scores) == pytest.approx(1, abs=1e-3)
    check_accessibility(page, "classify")


# -- the API key ---------------------------------------------------------------------------------------


def test_nothing_is_shown_before_the_key(model_servers: ModelServers, browser: Browser) -> None:
    url = model_servers.prompted.running.url
    watched = WatchedPage(browser, url)  # the browser logs each 401
    watched.page.goto(url)
    field = watched.page.get_by_label("API key")
    field.wait_for()
    assert "worker" not in watched.page.content()
    field.fill("wrong")
    field.press("Enter")
    expect(watched.page.get_by_role("alert")).to_have_text("The server does not accept this key.")
    check_accessibility(watched.page, "key")
    field.fill("one")
    field.press("Enter")
    expect(watched.page.get_by_role("status").first).to_have_text("Ready")
    watched.page.get_by_role("tab", name="Try").click()
    encode_examples(watched.page)
    assert "Bearer YOUR_KEY" in watched.page.content()
    assert "Bearer one" not in watched.page.content()
    another = watched.another()  # of the same window: the key stays in the tab
    another.goto(url)
    another.get_by_label("API key").wait_for()
    watched.close()


# -- for everybody -------------------------------------------------------------------------------------


def test_the_keyboard_is_enough(server: RunningServer, open_page: OpenPage) -> None:
    page = open_page(server.url).open()
    page.get_by_role("tab", name="Now").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Try")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_label("Texts, one in a line (at most 50)")).to_be_focused()
    for _ in range(3):
        page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Encode")).to_be_focused()
    page.keyboard.press("Enter")
    page.locator("output.sum").wait_for()
    page.get_by_role("button", name=re.compile("^texts 1 and 2")).focus()
    page.keyboard.press("ArrowDown")  # over the diagonal
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("button", name=re.compile("^texts 4 and 2"))).to_be_focused()
    page.keyboard.press("Space")
    expect(page.get_by_role("heading", name="Why texts 4 and 2 are similar")).to_be_visible()


def test_no_serious_fault_for_people_with_disabilities(
    server: RunningServer, open_page: OpenPage, tmp_path: Path
) -> None:
    """Other tests look at the tabs of other models, the field for the key, and a page without a server."""
    page = open_page(server.url).open()
    check_accessibility(page, "now")
    page.get_by_role("tab", name="Try").click()
    encode_examples(page)
    check_accessibility(page, "try")
    page.get_by_role("tab", name="Map").click()
    page.get_by_role("button", name="Make the map").click()
    page.get_by_role("alert").wait_for()
    check_accessibility(page, "map-error")
    rows = [f"{text}\t{i % 5}" for i, text in enumerate(lines(300))]
    (tmp_path / "texts.tsv").write_text("\n".join(["text\tkind", *rows]))
    page.get_by_label("or a file").set_input_files(tmp_path / "texts.tsv")
    page.get_by_text("300 rows in texts.tsv").wait_for()
    page.get_by_label("Colour").select_option("kind")
    page.route("**/encode", lambda route: None)  # is not answered yet
    page.get_by_role("button", name="Make the map").click()
    page.get_by_role("progressbar").wait_for()
    check_accessibility(page, "map-progress")
    page.get_by_role("button", name="Stop").click()
    page.unroute("**/encode")
    page.get_by_role("button", name="Make the map").click()
    page.get_by_text("placed by UMAP").wait_for()
    page.get_by_label("Search by meaning").fill("a good film")
    page.get_by_label("Search by meaning").press("Enter")
    expect(page.locator("ol.found li")).to_have_count(10)
    check_accessibility(page, "map")


def test_the_page_is_light_and_strict(server: RunningServer, browser: Browser, open_page: OpenPage) -> None:
    watched = open_page(server.url)
    urls: set[str] = set()
    watched.page.on("request", lambda request: urls.add(request.url))
    page = watched.open("Map")
    make_map(page, lines(10))
    files = [url for url in urls if "/page/" in url and not url.endswith("/live")]
    assert len(files) > 20
    assert sum(len(gzip.compress(httpx.get(url, timeout=HANG_S).content)) for url in files) < 300_000
    reply = httpx.get(server.url, headers={"Accept": "text/html"}, timeout=HANG_S)
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert httpx.get(f"{server.url}/page/app.mjs", timeout=HANG_S).headers["content-security-policy"] == policy
    assert httpx.get(server.url, timeout=HANG_S).json() == {"status": "live"}
