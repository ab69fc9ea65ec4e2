"""API keys: their hashes, and the file that holds them. A key is kept in memory only as its hash.

A key file has one key in each line: a name, the key, and optional limits. Lines that begin with # are comments.

    # name    key                 limits
    search    4c81f0c7a1b2e3d4    texts_per_minute=6000 share=0.2
    reports   sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_RESERVED_NAME = re.compile(r"api_key-[0-9]+")  # see `unnamed_keys`
_HASHED = re.compile(r"sha256:[0-9a-f]{64}")
_MIN_KEY_LENGTH = 16
_FORMAT = "expected NAME KEY [texts_per_minute=N] [share=S]"

log = logging.getLogger(__name__)


class KeyFileError(ValueError):
    """The key file cannot be used. The message is one line.

    It tells the numbers of lines and repeats nothing that is in them: where a name should be, there may be a key.
    """


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that HTTP callers may send.

    name: stands for the key in logs and metrics. hashed: what `hash_of` returned for the key.
    texts_per_minute: limit for the texts of all requests with this key; None: no limit. share: the largest part of
    the server's memory that these requests may hold, 0 to 1; None: the same as for callers without a key.
    """

    name: str
    hashed: str = field(repr=False)
    texts_per_minute: int | None = None
    share: float | None = None


class KeySource:
    """The keys that are accepted: those of the setting api_key, and those of a file that can be read again.

    The server has one, and each new gateway process gets a copy of it. So a gateway starts with the keys that the
    server has read last, whatever the file contains at that time.

    fixed: the keys of the setting. num_gateways: the number of gateway processes, which share the limits of each
    key. The constructor reads the file and raises KeyFileError.
    """

    def __init__(self, fixed: Iterable[ApiKey] = (), file: Path | None = None, num_gateways: int = 1) -> None:
        self.num_gateways = num_gateways
        self._fixed = tuple(fixed)
        self._file = file
        self.keys = self._read()

    def reload(self) -> bool:
        """Read the file again, and return whether there is a file without errors. If it has one, keep the keys."""
        if self._file is None:
            return False
        try:
            self.keys = self._read()
        except KeyFileError as exc:
            log.error("kept the present API keys: %s", exc)
            return False
        log.info("read the API keys: %s", " ".join(key.name for key in self.keys))
        return True

    def _read(self) -> tuple[ApiKey, ...]:
        return self._fixed if self._file is None else (*self._fixed, *read_key_file(self._file, self._fixed))


def hash_of(key: str) -> str:
    """Return `sha256:` and the hash of a key. A text of this form is a hash already, and comes back unchanged.

    Raises ValueError, with a message that does not contain the key.
    """
    if not (key and key.isascii()):
        raise ValueError("a key must be a non-empty text of ASCII characters: HTTP headers allow no others")
    if not key.startswith("sha256:"):
        return hash_of_sent(key)
    if not _HASHED.fullmatch(key):
        raise ValueError("after sha256: there must be 64 characters of 0-9 and a-f")
    return key


def hash_of_sent(key: str) -> str:
    """Return the hash of a key that a caller sent. Unlike in `hash_of`, a hash in its place does not count."""
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def read_key_file(path: Path, fixed: Iterable[ApiKey] = ()) -> tuple[ApiKey, ...]:
    """Return the keys in a file. fixed: keys that must not be in the file too. Raises KeyFileError."""
    keys: dict[int, ApiKey] = {}  # by the numbers of their lines
    for number, line in enumerate(_lines_of(path), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                key = _key_of(line)
                _check_is_new(key, keys, fixed)
            except ValueError as exc:
                raise KeyFileError(f"api_key_file {path}, line {number}: {exc}") from exc
            keys[number] = key
    if not keys:
        raise KeyFileError(f"api_key_file {path} has no key: {_FORMAT} in each line")
    return tuple(keys.values())


def unnamed_keys(hashes: Iterable[str]) -> tuple[ApiKey, ...]:
    """Return the keys of the setting api_key, which have no names: api_key-1, api_key-2 and so on."""
    return tuple(ApiKey(f"api_key-{i}", hashed) for i, hashed in enumerate(hashes, start=1))


def _lines_of(path: Path) -> list[str]:
    try:
        if path.exists() and not path.is_file():  # a pipe could stop the server until somebody writes
            raise KeyFileError(f"cannot read api_key_file {path}: it is not a regular file")
        return path.read_text().splitlines()
    except UnicodeDecodeError as exc:
        raise KeyFileError(f"cannot read api_key_file {path}: it is not UTF-8 text") from exc
    except OSError as exc:
        raise KeyFileError(f"cannot read api_key_file {path}: {exc.strerror}") from exc


def _key_of(line: str) -> ApiKey:
    name, *rest = line.split()
    if not _NAME.fullmatch(name):
        raise ValueError(f"a name must have 1 to 64 letters, digits, '_', '.' or '-'; {_FORMAT}")
    if _RESERVED_NAME.fullmatch(name):
        raise ValueError("names of the form api_key-N stand for the keys of -api_key; choose another name")
    if not rest:
        raise ValueError(f"there is only one word; {_FORMAT}")
    key, *limits = rest
    if len(key) < _MIN_KEY_LENGTH:
        raise ValueError(f"the second word, the key, must have at least {_MIN_KEY_LENGTH} characters; {_FORMAT}")
    values: dict[str, float] = {}
    for limit in limits:
        what, _, value = limit.partition("=")
        if what not in _LIMITS:
            raise ValueError(f"after the key, only texts_per_minute=N and share=S may follow; {_FORMAT}")
        values[what] = _LIMITS[what](value)
    return ApiKey(name, hash_of(key), **values)  # type: ignore[arg-type]  # _LIMITS has the types of the fields


def _texts_per_minute(value: str) -> int:
    if not (re.fullmatch(r"[0-9]{1,12}", value) and int(value) > 0):
        raise ValueError("texts_per_minute must be a whole number above 0, of at most 12 digits")
    return int(value)


def _share(value: str) -> float:
    try:
        share = float(value)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise ValueError("share must be a number above 0 and at most 1")
    return share


_LIMITS: dict[str, Callable[[str], float]] = {"texts_per_minute": _texts_per_minute, "share": _share}


def _check_is_new(key: ApiKey, others: Mapping[int, ApiKey], fixed: Iterable[ApiKey]) -> None:
    """Raise ValueError if another key has the same name, or is the same key."""
    if any(key.hashed == other.hashed for other in fixed):
        raise ValueError("the key is also in -api_key or BERT_SERVING_API_KEY; it must be in one place only")
    for number, other in others.items():
        if key.hashed == other.hashed:
            raise ValueError(f"the key is the same as in line {number}")
        if key.name == other.name:
            raise ValueError(f"the name is the same as in line {number}")
