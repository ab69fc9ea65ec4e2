"""Encodes larger and larger batches and prints the rate of each. Needs a server.

bert-serving-start & python examples/growing_batches.py [-port 5555] [-port_out 5556]
"""

from __future__ import annotations

import time

from bert_serving.client import BertClient
from common import ports, python_sentences


def main() -> None:
    sentences = python_sentences()
    with BertClient(**ports(__doc__)) as client:
        client.encode(sentences[:64])  # warm-up
        for exponent in range(4):
            batch = sentences[: 64 << exponent]
            start = time.perf_counter()
            vectors = client.encode(batch)
            seconds = time.perf_counter() - start
            print(f"{len(batch):5} sentences  {vectors.shape}  {len(batch) / seconds:6.0f} sentences/s")


if __name__ == "__main__":
    main()
