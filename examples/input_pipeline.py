"""Computes vectors as one stage of a training pipeline, with four requests in flight. Needs a server.

    bert-serving-start & python examples/input_pipeline.py [-port 5555] [-port_out 5556]

It prints the shape of each batch, in order. The loop in `main` stands for the training. PyTorch's
DataLoader, or any other consumer of an iterator, works the same way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from bert_serving.client import ConcurrentBertClient
from common import ports, python_sentences

NUM_IN_FLIGHT = 4


def encoded(client: ConcurrentBertClient, batches: Iterable[list[str]]) -> Iterator[np.ndarray]:
    """Yield the vectors of each batch in order, while the server computes the next batches."""
    with ThreadPoolExecutor(NUM_IN_FLIGHT) as pool:
        pending: deque[Future[np.ndarray]] = deque()
        for batch in batches:
            pending.append(pool.submit(client.encode, batch))
            if len(pending) >= NUM_IN_FLIGHT:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def main() -> None:
    sentences = python_sentences()[:320]
    batches = (sentences[i : i + 32] for i in range(0, len(sentences), 32))
    with ConcurrentBertClient(max_concurrency=NUM_IN_FLIGHT, **ports(__doc__)) as client:
        for step, vectors in enumerate(encoded(client, batches)):
            print(f"training step {step} on {vectors.shape}")


if __name__ == "__main__":
    main()
