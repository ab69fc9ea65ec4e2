"""The documentation site: it can be built, needs no other host, and its search finds what newcomers look for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from bert_serving.protocol.errors import ERROR_CODES
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort
from py_mini_racer import MiniRacer
from site_hooks import indented_by_four, with_links_of_the_site

from tests.support.code_blocks import ROOT, code_blocks

CONFIG = str(ROOT / "mkdocs.yml")

#: What a browser gives to the script of the search, which runs as a web worker there.
WEB_WORKER = """
var self = globalThis, replies = [], console = {warn() {}, log() {}};
function postMessage(message) { replies.push(message); }
function addEventListener(kind, listener) { self.send = data => listener({data}); }
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. mkdocs.yml says that warnings are errors."""
    folder = tmp_path_factory.mktemp("site")
    build(load_config(CONFIG, site_dir=str(folder)))
    return folder


@pytest.fixture(scope="module")
def search(site: Path) -> Callable[[str], list[str]]:
    """A function that returns the pages that the search of the site finds, the best one first.

    The site's own script searches in the site's own index, as in a browser.
    """
    (worker,) = (site / "assets/javascripts/workers").glob("search.*.js")
    index = json.loads((site / "search/search_index.json").read_text())
    engine = MiniRacer()
    engine.eval(WEB_WORKER + worker.read_text())
    engine.eval(f"send({json.dumps({'type': 0, 'data': {**index, 'options': {'suggest': True}}})})")

    def ask(query: str) -> list[str]:
        engine.eval(f"replies = []; send({json.dumps({'type': 2, 'data': query})})")
        (reply,) = json.loads(str(engine.eval("JSON.stringify(replies)")))
        return [page[0]["location"].partition("#")[0] for page in reply["data"]["items"]]

    return ask


@pytest.mark.parametrize(
    ("query", "page"),
    [
        ("text cut", "troubleshooting.html"),
        ("why is my text cut", "troubleshooting.html"),
        ("api key", "security.html"),
        ("how do I add a key", "security.html"),
        ("429", "troubleshooting.html"),
        ("what does 429 mean", "troubleshooting.html"),
        ("two GPUs", "scaling.html"),
        ("how do I run it on two GPUs", "scaling.html"),
        ("LangChain", "clients.html"),
        ("how do I use it from LangChain", "clients.html"),
    ],
)
def test_a_newcomer_finds_the_page_with_the_answer(
    search: Callable[[str], list[str]], query: str, page: str
) -> None:
    assert page in search(query)[:3]


def test_a_reader_needs_no_other_host(site: Path) -> None:
    loaded = re.compile(
        r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?(?:https?:)?//[^>]*>"
        r"|<link\b(?![^>]*rel=\"?canonical)[^>]*\bhref=\"?(?:https?:)?//[^>]*>"
    )
    assert {page.name: found for page in site.rglob("*.html") if (found := loaded.findall(page.read_text()))} == {}
    styles = {
        path.name: re.findall(r"(?:url\(|@import )[\"']?https?:", path.read_text()) for path in site.rglob("*.css")
    }
    assert styles
    assert not any(styles.values())


def test_lists_and_tables_are_not_shown_as_plain_text(site: Path) -> None:
    for path in site.rglob("*.html"):
        text = re.sub(r"<pre.*?</pre>|<code>.*?</code>", "", path.read_text(), flags=re.S)
        assert re.findall(r"<p>[^<]*\n(?:- |\d+\. |\|)[^<]{0,60}|<p>\s*\|[^<]{0,60}", text) == [], path.name


@pytest.mark.parametrize(
    ("markdown", "nav"),
    [
        ("[a](missing.md)", ["a.md"]),
        ("[a](#missing)", ["a.md"]),
        ("[a](/a.md)", ["a.md"]),
        ("a", ["a.md", "missing.md"]),
        ("a", []),
    ],
    ids=["link", "anchor", "absolute link", "entry of the navigation", "page outside the navigation"],
)
def test_what_is_broken_fails_the_build(markdown: str, nav: list[str], tmp_path: Path) -> None:
    pages = tmp_path / "docs"
    pages.mkdir()
    (pages / "a.md").write_text(f"# A\n\n{markdown}\n")
    (pages / "index.md").write_text("# Start\n")
    changed = {"docs_dir": str(pages), "site_dir": str(tmp_path / "site"), "hooks": []}
    with pytest.raises(Abort):
        build(load_config(CONFIG, nav=["index.md", *nav], **changed))


def test_the_troubleshooting_page_has_the_messages_of_the_code() -> None:
    sources = [path.read_text() for part in ("server", "client") for path in (ROOT / part).rglob("*.py")]
    code = re.sub(r'"\s*\n?\s*f?"', "", "\n".join(sources))  # a message may be written as several strings
    blocks = [block for page in ("troubleshooting", "packing") for block in code_blocks(ROOT / f"docs/{page}.md")]
    messages = [line for block in blocks if block.language == "text" for line in block.code.splitlines()]
    assert len(messages) > 20
    ours = (line.removesuffix("Address already in use") for line in messages)  # the system's words
    unknown = [part for line in ours for part in line.split("…") if part.strip() and part not in code]
    assert unknown == []


def test_every_error_code_is_explained() -> None:
    page = (ROOT / "docs/reference/errors.md").read_text()
    assert [code for code in ERROR_CODES if f"| `{code}` |" not in page] == []


def test_lists_are_indented_by_four_spaces_for_each_level() -> None:
    text = "- a\n  more\n  - b\n\n    ```sh\n      code\n    ```\n\n1. c\n   more\n\nend\n```\n- code\n```"
    assert indented_by_four(text).split("\n") == [
        *("- a", "    more", "    - b", "", "        ```sh", "          code", "        ```", ""),
        *("1. c", "    more", "", "end", "```", "- code", "```"),
    ]


def test_links_out_of_the_folder_of_pages_lead_to_copies_in_the_site() -> None:
    def turned(link: str, page: str) -> str:
        return with_links_of_the_site(link, ROOT / page)

    assert turned("[a](../CONTRIBUTING.md#style)", "docs/http.md") == "[a](repository/CONTRIBUTING.md#style)"
    assert turned("[a](docs/http.md)", "README.md") == "[a](../http.md)"
    assert turned("[a](http.md) [b](https://a.b/c)", "docs/a.md") == "[a](http.md) [b](https://a.b/c)"
    assert turned("see [the tests](../tests).", "docs/http.md") == "see the tests."
