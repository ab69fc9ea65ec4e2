"""What the clients check before they send a request, and how they turn a reply into a result."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from bert_serving.protocol import (
    WIRE_VERSION,
    EncodeOptions,
    EncodeReply,
    JsonObject,
    Rows,
    TokenVectors,
    check_texts,
    options_from_json,
    split_rows,
)

from .session import Session

#: The tokens of each text.
Tokens: TypeAlias = "Sequence[Sequence[str]]"

#: The options of a request for the vectors of all tokens.
TOKEN_LEVEL = {"pooling_strategy": "NONE", "ragged": True, "show_tokens": True, "show_offsets": True}

#: Options that set the form of the reply. A caller cannot set them, because each method needs a certain form.
_OF_REPLIES = {"ragged", "show_tokens", "show_offsets", "show_usage", "on_error"}


class Response(NamedTuple):
    """The result of one request.

    id: the number of the request. embedding: the vectors, as an array (B, D), or as nested lists if the client
    was created with output_fmt="list". tokens: the tokens of each text if the request had show_tokens, else "".
    """

    id: int
    embedding: Rows
    tokens: Tokens


def client_version() -> str:
    """Return the version of the installed distribution, or "unknown" if it is not installed."""
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


def client_status(client: _Client, session: Session) -> JsonObject:
    """Return the state of a client, with the keys that bert-as-service uses."""
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


def check_output_format(output_fmt: str) -> None:
    """Raise AttributeError, as bert-as-service does, unless the format of results is "ndarray" or "list"."""
    if output_fmt not in ("ndarray", "list"):
        raise AttributeError(f'"output_fmt" must be "ndarray" or "list", got {output_fmt!r}')


def check_request(texts: object, *, is_tokenized: bool) -> None:
    """Raise TypeError or ValueError if the texts are malformed or blank, or do not match `is_tokenized`."""
    if check_texts(texts) != is_tokenized:
        expected = "lists of tokens" if is_tokenized else "strings (or pass is_tokenized=True)"
        raise TypeError(f"texts must be a list of {expected}")
    assert isinstance(texts, list)
    if is_tokenized:
        for i, tokens in enumerate(texts):
            if isinstance(tokens[0], str):
                _refuse_blank(tokens, f"texts[{i}]")
    elif isinstance(texts[0], str):
        _refuse_blank(texts, "texts")


def _refuse_blank(strings: list[str], name: str) -> None:
    # The server accepts a blank text. The clients refuse it, as bert-as-service's client does.
    if any(map(str.isspace, strings)):
        i = next(i for i, string in enumerate(strings) if string.isspace())
        raise ValueError(f"{name}[{i}] is blank: {strings[i]!r}")


def options_of(options: Mapping[str, object], **fixed: object) -> EncodeOptions:
    """Return the options of a request. Raises TypeError or ValueError; the message names the wrong option.

    options: the keyword arguments of the caller. fixed: options that the called method sets itself.
    """
    if refused := sorted(options.keys() & _OF_REPLIES):
        raise TypeError(f"{refused[0]} is not an option of this call; see encode_tokens and encode_spans")
    options = {**options, **fixed}
    if unknown := sorted(options.keys() - {*EncodeOptions.__slots__}):
        known = [name for name in EncodeOptions.__slots__ if name not in _OF_REPLIES]
        raise TypeError(f"encode() has no option {unknown[0]!r}; the options are {', '.join(known)}")
    return options_from_json(options)


def show_config(config: Mapping[str, object]) -> None:
    """Print the configuration of a server to stdout."""
    sys.stdout.write("".join(f"{key:>30} = {value!r}\n" for key, value in sorted(config.items())))


def check_version_of(config: Mapping[str, object]) -> None:
    """Raise AttributeError if the server with this configuration does not use the client's wire version."""
    found = config.get("server_version")
    if found != WIRE_VERSION:
        raise AttributeError(
            f"version mismatch: this client uses wire version {WIRE_VERSION}, the server uses {found}; "
            "pass check_version=False to connect anyway"
        )


def response_of(request_id: int, reply: EncodeReply, *, as_list: bool) -> Response:
    """Return the result of a request. as_list: return the vectors as nested lists."""
    rows: Rows = np.array(reply.rows)  # a copy, because the memory of the frame is read-only
    return Response(request_id, rows.tolist() if as_list else rows, "" if reply.tokens is None else reply.tokens)


def warn_of_cuts(reply: EncodeReply) -> None:
    """Warn if the server cut texts. Call it only in a private method that a public method calls directly."""
    if reply.truncated:
        warnings.warn(
            f"{len(reply.truncated)} of {len(reply.counts or reply.rows)} texts are longer than the server's "
            f"max_seq_len and were cut; the first is texts[{reply.truncated[0]}]",
            stacklevel=4,  # the user's line; a public and a private method are between it and this function
        )


def token_vectors_of(reply: EncodeReply) -> list[TokenVectors]:
    """Return the tokens and vectors of each text, from the reply to a request with the options TOKEN_LEVEL."""
    assert reply.tokens is not None
    offsets = reply.offsets or [None] * len(reply.tokens)
    rows = rows_by_text(reply)
    return [TokenVectors(*of_text) for of_text in zip(rows, reply.tokens, offsets, strict=True)]


def rows_by_text(reply: EncodeReply) -> list[Rows]:
    """Return the rows of each text, from a reply with `counts`."""
    assert reply.counts is not None
    return split_rows(np.array(reply.rows), reply.counts)
