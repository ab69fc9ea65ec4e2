"""What a driver reads from stdin, and how it returns its answers: as JSON in the last line of stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

TOLD: dict[str, Any] = json.load(sys.stdin)
#: URLs of four servers: embeddings with an API key, embeddings without a key, a reranker, a SPLADE model.
URL: str = TOLD["url"]
OPEN_URL: str | None = TOLD.get("open_url")
RANKER_URL: str | None = TOLD.get("ranker_url")
SPLADE_URL: str | None = TOLD.get("splade_url")
KEY: str = TOLD["key"]
TEXTS: list[str] = TOLD["texts"]
QUERY: str = TOLD["query"]
DOCUMENTS: list[str] = TOLD["documents"]


def refusal(call: Callable[[], Any]) -> str:
    """Make a call that must fail; return the type and the message of its error."""
    try:
        answer = call()
    except Exception as exc:
        return f"{type(exc).__name__}: {exc}"
    raise AssertionError(f"the call did not fail, it returned {answer!r:.200}")


def say(**answers: Any) -> None:
    """Print the answers as one line of JSON."""
    print()  # some clients print text without a line break at the end
    print(json.dumps(answers, default=lambda array: array.tolist()))
