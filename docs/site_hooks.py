"""Hooks of MkDocs, which builds the site from docs/ (see mkdocs.yml).

The pages of docs/ are written for the repository: they link to files outside of docs/, and their lists are
indented by two spaces. The hooks add those files to the site under repository/, turn the links to them, and indent
lists by four spaces, as Python-Markdown needs it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
OUTSIDE = "repository"

_LINK = re.compile(r"(?P<text>!?\[[^\]]*\])\((?!\w+:|#|/)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]+)?\)")
_FENCE = re.compile(r" *```")
_ITEM = re.compile(r" *([-*]|\d+\.) ")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside of docs/ to which pages link."""
    for path in outside_files():
        files.append(File.generated(config, place_of(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return the text of a page as the site needs it."""
    assert page.file.abs_src_path is not None
    return indented_by_four(with_links_of_the_site(markdown, Path(page.file.abs_src_path)))


def outside_files() -> list[Path]:
    """Return the files outside of docs/ to which the pages link, and those to which these link in turn."""
    found: set[Path] = set()
    to_read = sorted(DOCS.rglob("*.md"))
    while to_read:
        page = to_read.pop()
        new = {target for target in _targets(page) if target.is_file() and not target.is_relative_to(DOCS)} - found
        found |= new
        to_read += [path for path in new if path.suffix == ".md"]
    return sorted(found)


def _targets(page: Path) -> Iterator[Path]:
    for found in _LINK.finditer(page.read_text("utf-8")):
        yield (page.parent / found["path"]).resolve()


def place_of(path: Path) -> str:
    """Return where the site has a file of the repository: the path of its source, as MkDocs counts it."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    return f"{OUTSIDE}/{path.relative_to(ROOT).as_posix()}"


def with_links_of_the_site(markdown: str, page: Path) -> str:
    """Return the text with its links as they are in the site. A link to a folder becomes its text."""

    def turned(found: re.Match[str]) -> str:
        target = (page.parent / found["path"]).resolve()
        if target.is_dir():
            return found["text"].strip("[]")
        if not target.is_relative_to(ROOT):
            return found[0]
        path = os.path.relpath(place_of(target), Path(place_of(page)).parent)
        return f"{found['text']}({path}{found['anchor'] or ''})"

    return _LINK.sub(turned, markdown)


def indented_by_four(markdown: str) -> str:
    """Return the text with four spaces for each level of a list, in place of two or three."""
    lines = []
    widths: list[int] = []  # of the indents of the open lists, from the outer to the inner one
    shift: int | None = None  # within a code block: by how much its lines move to the right
    for line in markdown.split("\n"):
        indent = len(line) - len(line.lstrip())
        if shift is None and line.strip():
            while widths and indent < widths[-1]:
                widths.pop()
        move = 4 * len(widths) - (widths[-1] if widths else 0) if shift is None else shift
        lines.append(" " * move + line if line.strip() else line)
        if _FENCE.match(line):
            shift = move if shift is None else None
        elif shift is None and (item := _ITEM.match(line)):
            widths.append(item.end())
    return "\n".join(lines)
