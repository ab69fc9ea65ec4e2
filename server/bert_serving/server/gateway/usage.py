"""What a request used: characters, tokens and time, as numbers and as HTTP headers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from bert_serving.protocol import EncodeReply, Usage

#: Counts texts whose vectors have been computed, and their tokens.
CountComputed: TypeAlias = Callable[[int, int], None]

#: Key in the ASGI scope of a request: a CountComputed that counts for the route of the request.
ON_COMPUTED = "bert_serving.on_computed"

_MAX_LISTED = 256  # number of indices in x-truncated: servers and proxies limit a header to a few kilobytes


def num_chars(texts: Sequence[object]) -> int:
    """Return the number of characters in the texts that are strings."""
    return sum(len(text) for text in texts if isinstance(text, str))


def num_tokens(reply: EncodeReply) -> int:
    """Return the number of tokens that the model computed, special tokens included."""
    return sum(_usage_of(reply).num_tokens)


def usage_headers(reply: EncodeReply, num_chars: int) -> dict[str, str]:
    """Return TEI's headers with counts and times (in milliseconds), and headers that list truncated texts."""
    usage = _usage_of(reply)
    headers = {
        "x-compute-characters": str(num_chars),
        "x-compute-tokens": str(num_tokens(reply)),
        "x-compute-time": str(round(usage.tokenize_ms + usage.compute_ms)),
        "x-total-time": str(round(usage.total_ms)),
        "x-tokenization-time": str(round(usage.tokenize_ms)),
        "x-queue-time": str(round(usage.queue_ms)),
        "x-inference-time": str(round(usage.compute_ms)),
    }
    if reply.truncated:
        headers["x-truncated-count"] = str(len(reply.truncated))
        headers["x-truncated"] = ",".join(map(str, reply.truncated[:_MAX_LISTED]))
    return headers


def _usage_of(reply: EncodeReply) -> Usage:
    assert reply.usage is not None, "Service.encode_reply requests the usage"
    return reply.usage
