"""Sends requests without waiting and fetches the results later, in three ways. Needs a server.

bert-serving-start & python examples/fire_and_fetch.py [-port 5555] [-port_out 5556]
"""

from __future__ import annotations

from collections.abc import Iterator

from bert_serving.client import BertClient
from common import ports, python_sentences

SENTENCES = python_sentences()[:400]


def batches() -> Iterator[list[str]]:
    """Yield lists of 20 sentences."""
    for start in range(0, len(SENTENCES), 20):
        yield SENTENCES[start : start + 20]


def main() -> None:
    with BertClient(**ports(__doc__)) as client:
        for batch in batches():
            client.encode(batch, blocking=False)
        rows = client.fetch_all(concat=True)
        assert rows is not None  # None: no request was pending
        print("all at once, in the order of sending:", rows.shape)

        for batch in batches():
            client.encode(batch, blocking=False)
        for response in client.fetch():
            print(f"request {response.id} has arrived: {response.embedding.shape}")

        vectors = sum(len(response.embedding) for response in client.encode_async(batches()))
        print("streamed, while another thread sends:", vectors)


if __name__ == "__main__":
    main()
