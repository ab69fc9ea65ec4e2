"""Reads the requests of clients that the tests cannot install, sends their bytes, and looks into the replies.

The requests are in requests/*.http. Above each request, its file says which client sends it (`### CLIENT`), where
this is known from (`# source: ...`), and what the client reads from the reply (`# reads: data[].embedding, ...`).
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.waiting import HANG_S

FOLDER = Path(__file__).parent / "requests"


@dataclass(frozen=True)
class SentRequest:
    """A request as a client sends it.

    reads: the places of the reply that the client uses, such as "data[].embedding". head: the first line and the
    headers, without the empty line.
    """

    client: str
    reads: list[str]
    head: str
    body: bytes

    def __str__(self) -> str:
        return self.client

    @property
    def is_chunked(self) -> bool:
        """Whether the body is sent in chunks."""
        return "transfer-encoding: chunked" in self.head.lower()

    @property
    def content_length(self) -> int | None:
        """The length in the headers."""
        found = re.search(r"^content-length: (\d+)$", self.head, re.I | re.M)
        return int(found[1]) if found else None

    @property
    def texts(self) -> list[str]:
        """The texts that are to be embedded; none in a request for a ranking or for the names of models."""
        fields = json.loads(self.body or "{}")
        found = fields.get("input", fields.get("inputs", []))
        return [found] if isinstance(found, str) else found

    def send(self, port: int) -> tuple[int, Any]:
        """Send the bytes to a server on this machine; return the status and the parsed body of the response."""
        head = self.head.replace("\n", "\r\n").encode() + b"\r\n\r\n"
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(self.body), self.body) if self.is_chunked else self.body
        with socket.create_connection(("127.0.0.1", port), timeout=HANG_S) as connection:
            connection.sendall(head + body)
            response = http.client.HTTPResponse(connection)
            response.begin()
            content = response.read()
        return response.status, json.loads(content)


def requests_of(path: Path) -> Iterator[SentRequest]:
    """Yield the requests of a file. Raises ValueError if one does not name its source."""
    for part in re.split(r"^### ", path.read_text(), flags=re.M)[1:]:
        title, _, rest = part.partition("\n")
        comments, reads = [], ""
        while rest.startswith("# "):
            line, _, rest = rest.partition("\n")
            comments.append(line)
            if line.startswith("# reads: "):
                reads = line.removeprefix("# reads: ")
        if not any(line.startswith("# source: ") for line in comments):
            raise ValueError(f"{path}: {title} has no source")
        head, _, body = rest.partition("\n\n")
        yield SentRequest(title, reads.split(", "), head, body.strip().encode())


def values_at(reply: Any, place: str) -> list[Any]:
    """Return the values at a place of a reply. `[]` stands for each item of a list, `a.b` for the field b of a.

    Raises KeyError, or TypeError if the reply has another shape.
    """
    values = [reply]
    for step in re.findall(r"\[\]|[^.\[\]]+", place):
        if step == "[]":
            values = [item for value in values for item in _checked(value, list)]
        else:
            values = [_checked(value, dict)[step] for value in values]
    return values


def _checked(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"expected a {kind.__name__}, got {value!r:.100}")
    return value


def vectors_in(reply: Any) -> np.ndarray:
    """Return the vectors of a reply in the format of OpenAI, TEI or Ollama."""
    if isinstance(reply, list):
        return np.array(reply, np.float32)
    if "embeddings" in reply:
        return np.array(reply["embeddings"], np.float32)
    rows = [item["embedding"] for item in reply["data"]]
    if isinstance(rows[0], str):
        return np.array([np.frombuffer(base64.b64decode(row), "<f4") for row in rows])
    return np.array(rows, np.float32)


def scores_in(reply: Any) -> dict[int, float]:
    """Return the score of each document, from a reply in the format of TEI or Cohere."""
    if isinstance(reply, list):
        return {item["index"]: item["score"] for item in reply}
    return {item["index"]: item["relevance_score"] for item in reply["results"]}
