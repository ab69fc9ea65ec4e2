"""The targets of the links between the Markdown files, and to other files of the repository, exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.code_blocks import ROOT, pages

PAGES = pages()

_LINK = re.compile(r"\]\((?!https?://)([^)#\s]*)(?:#([^)\s]+))?\)")


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes from a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_other_files_and_headings_resolve(page: Path) -> None:
    for path, anchor in _LINK.findall(page.read_text("utf-8")):
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name} links to {path}, which does not exist"
        if anchor:
            assert anchor in anchors(target), f"{page.name} links to {path}#{anchor}, but there is no such heading"


def test_there_are_links_to_check() -> None:
    assert sum(len(_LINK.findall(page.read_text("utf-8"))) for page in PAGES) > 10
