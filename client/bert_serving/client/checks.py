"""What both clients check and say in the same words."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from bert_serving.protocol import (
    EncodeOptions,
    EncodeReply,
    Rows,
    TokenVectors,
    check_texts,
    options_from_json,
    split_rows,
)

from .session import Session

#: The wire that this client speaks; servers report it as `server_version`.
WIRE_VERSION = "1.10.0"

#: The options of a request for the vectors of all tokens.
TOKEN_LEVEL = {"pooling_strategy": "NONE", "ragged": True, "show_tokens": True, "show_offsets": True}

#: Options about the form of a reply, which a method stands for.
_OF_REPLIES = {"ragged", "show_tokens", "show_offsets", "show_usage"}


class Response(NamedTuple):
    """A result. `embedding`: (B, D), or a list of lists; `tokens`: '' where none were sent."""

    id: int
    embedding: Any
    tokens: Any


def client_version() -> str:
    """Return the version of the installed distribution."""
    try:
        return version("bert-embedding-service")
    except PackageNotFoundError:
        return "unknown"


class _Client(Protocol):
    ip: str
    port: int
    port_out: int
    output_fmt: str
    timeout: int


def client_status(client: _Client, session: Session) -> dict[str, Any]:
    """Return the state of a client under bert-as-service's keys."""
    outstanding = session.outstanding
    return {
        "identity": session.identity,
        "num_request": session.num_request,
        "num_pending_request": len(outstanding),
        "pending_request": outstanding,
        "output_fmt": client.output_fmt,
        "port": client.port,
        "port_out": client.port_out,
        "server_ip": client.ip,
        "client_version": client_version(),
        "timeout": client.timeout,
    }


def check_request(texts: Any, *, is_tokenized: bool) -> None:
    """Raise TypeError or ValueError for texts that are none, are blank, or are not of the announced kind."""
    if check_texts(texts) != is_tokenized:
        expected = "lists of tokens" if is_tokenized else "strings (or pass is_tokenized=True)"
        raise TypeError(f"texts must be a list of {expected}")
    if is_tokenized:
        for i, tokens in enumerate(texts):
            _refuse_blank(tokens, f"texts[{i}]")
    else:
        _refuse_blank(texts, "texts")


def _refuse_blank(strings: list[str], name: str) -> None:
    # The server has a vector for a blank text too, but users of this class rely on its refusing them.
    if any(map(str.isspace, strings)):
        i = next(i for i, string in enumerate(strings) if string.isspace())
        raise ValueError(f"{name}[{i}] is blank: {strings[i]!r}")


def options_of(options: Mapping[str, Any], **always: Any) -> EncodeOptions:
    """Return the options of a call. Raises TypeError or ValueError, which name the one that is wrong.

    always: what the call itself stands for, and its caller may not choose.
    """
    if refused := sorted(options.keys() & _OF_REPLIES):
        raise TypeError(f"{refused[0]} is no option of a call; see encode_tokens and encode_spans")
    options = {**options, **always}
    if unknown := sorted(options.keys() - {*EncodeOptions.__slots__}):
        known = [name for name in EncodeOptions.__slots__ if name not in _OF_REPLIES]
        raise TypeError(f"encode() has no option {unknown[0]!r}; there are {', '.join(known)}")
    return options_from_json(options)


def show_config(config: Mapping[str, Any]) -> None:
    """Print the configuration of a server."""
    sys.stdout.write("".join(f"{key:>30} = {value!r}\n" for key, value in sorted(config.items())))


def check_version_of(config: Mapping[str, Any]) -> None:
    """Raise AttributeError if the server of this configuration speaks another wire."""
    found = config.get("server_version")
    if found != WIRE_VERSION:
        raise AttributeError(
            f"version mismatch: this client speaks {WIRE_VERSION}, the server {found}; "
            "pass check_version=False to go on all the same"
        )


def response_of(request_id: int, reply: EncodeReply, *, as_list: bool, warn: bool) -> Response:
    """Return the reply as the caller wants it. warn: say so if texts were cut."""
    if warn:
        warn_of_cuts(reply)
    # The frame's memory is read-only; a caller may want to write to what is his.
    rows: npt.NDArray[np.floating[Any]] = np.array(reply.rows)
    return Response(request_id, rows.tolist() if as_list else rows, "" if reply.tokens is None else reply.tokens)


def warn_of_cuts(reply: EncodeReply) -> None:
    """Warn if texts were cut."""
    if reply.truncated:
        warnings.warn(
            f"{len(reply.truncated)} of {len(reply.counts or reply.rows)} texts are longer than the server's "
            "max_seq_len and were cut, "
            f"first texts[{reply.truncated[0]}]",
            stacklevel=5,
        )


def token_vectors_of(reply: EncodeReply) -> list[TokenVectors]:
    """Return the tokens of each text in a reply that has them all."""
    assert reply.tokens is not None
    offsets = reply.offsets or [None] * len(reply.tokens)
    rows = rows_by_text(reply)
    return [TokenVectors(*of_text) for of_text in zip(rows, reply.tokens, offsets, strict=True)]


def rows_by_text(reply: EncodeReply) -> list[Rows]:
    """Return the rows of each text in a reply that has any number of them."""
    assert reply.counts is not None
    return split_rows(np.array(reply.rows), reply.counts)
