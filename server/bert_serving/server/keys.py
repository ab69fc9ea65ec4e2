"""API keys: their hashes, and the file that holds them. A key is kept in memory only as its hash.

A key file has one key in each line: a name, the key, and optional limits. Lines that begin with # are comments.

    # name    key                 limits
    search    4c81f0c7a1b2e3d4    texts_per_minute=6000 share=0.2
    reports   sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_HASHED = re.compile(r"sha256:[0-9a-f]{64}")
_FORMAT = "expected NAME KEY [texts_per_minute=N] [share=S]"


class KeyFileError(ValueError):
    """The key file cannot be used. The message is one line and contains no key."""


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


@dataclass(frozen=True, slots=True)
class KeySource:
    """Where a gateway process gets its keys from.

    fixed: the keys of the setting api_key. file: the key file. from_file: the keys that it had when the server
    started. num_gateways: the number of gateway processes, which share the limits of each key.
    """

    fixed: tuple[ApiKey, ...] = ()
    file: Path | None = None
    from_file: tuple[ApiKey, ...] = ()
    num_gateways: int = 1


def hash_of(key: str) -> str:
    """Return `sha256:` and the hash of a key. A text of this form is a hash already, and comes back unchanged.

    Raises ValueError, with a message that does not contain the key.
    """
    if not (key and key.isascii()):
        raise ValueError("a key must be a non-empty text of ASCII characters: HTTP headers allow no others")
    return key if _HASHED.fullmatch(key) else hash_of_sent(key)


def hash_of_sent(key: str) -> str:
    """Return the hash of a key that a caller sent. Unlike in `hash_of`, a hash in its place does not count."""
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def read_key_file(path: Path) -> tuple[ApiKey, ...]:
    """Return the keys in a file. Raises KeyFileError."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8 text"
        raise KeyFileError(f"cannot read api_key_file {path}: {reason}") from exc
    keys = []
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                keys.append(_key_of(line))
            except ValueError as exc:
                raise KeyFileError(f"api_key_file {path}, line {number}: {exc}") from exc
    if not keys:
        raise KeyFileError(f"api_key_file {path} has no key: {_FORMAT} in each line")
    _check_that_all_differ(path, keys)
    return tuple(keys)


def unnamed_keys(hashes: Iterable[str]) -> tuple[ApiKey, ...]:
    """Return the keys of the setting api_key, which have no names: api_key-1, api_key-2 and so on."""
    return tuple(ApiKey(f"api_key-{i}", hashed) for i, hashed in enumerate(hashes, start=1))


def _key_of(line: str) -> ApiKey:
    name, *rest = line.split()
    if not _NAME.fullmatch(name):
        raise ValueError(f"a name must have 1 to 64 letters, digits, '_', '.' or '-'; {_FORMAT}")
    if not rest:
        raise ValueError(f"{name!r} has no key; {_FORMAT}")
    key, *limits = rest
    values: dict[str, float] = {}
    for limit in limits:
        what, _, value = limit.partition("=")
        if what not in _LIMITS:
            raise ValueError(f"{name!r} has an unknown limit {what!r:.80}; {_FORMAT}")
        values[what] = _LIMITS[what](value)
    return ApiKey(name, hash_of(key), **values)  # type: ignore[arg-type]  # _LIMITS has the types of the fields


def _texts_per_minute(value: str) -> int:
    if not (value.isascii() and value.isdigit() and int(value) > 0):
        raise ValueError(f"texts_per_minute must be a whole number above 0, got {value!r:.80}")
    return int(value)


def _share(value: str) -> float:
    try:
        share = float(value)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise ValueError(f"share must be a number above 0 and at most 1, got {value!r:.80}")
    return share


_LIMITS: dict[str, Callable[[str], float]] = {"texts_per_minute": _texts_per_minute, "share": _share}


def _check_that_all_differ(path: Path, keys: list[ApiKey]) -> None:
    names, hashes = [key.name for key in keys], [key.hashed for key in keys]
    for i, key in enumerate(keys):
        if key.name in names[:i]:
            raise KeyFileError(f"api_key_file {path}: names must differ, got {key.name!r} twice")
        if key.hashed in hashes[:i]:
            other = names[hashes.index(key.hashed)]
            raise KeyFileError(f"api_key_file {path}: {other!r} and {key.name!r} have the same key")
