"""Vectors as a stage of an input pipeline: four calls are always under way, and batches come out in order.

    bert-serving-start & python examples/input_pipeline.py [-port 5555] [-port_out 5556]

The pipeline is PyTorch's DataLoader or any other that pulls from an iterator; here a loop stands for the training.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from bert_serving.client import ConcurrentBertClient
from common import ports, python_sentences

UNDER_WAY = 4


def encoded(client: ConcurrentBertClient, batches: Iterable[list[str]]) -> Iterator[np.ndarray]:
    """Yield the vectors of each batch in order, while the next ones are computed."""
    with ThreadPoolExecutor(UNDER_WAY) as pool:
        pending: deque[Future[np.ndarray]] = deque()
        for batch in batches:
            pending.append(pool.submit(client.encode, batch))
            if len(pending) >= UNDER_WAY:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def main() -> None:
    sentences = python_sentences()[:320]
    batches = (sentences[i : i + 32] for i in range(0, len(sentences), 32))
    with ConcurrentBertClient(max_concurrency=UNDER_WAY, **ports(__doc__)) as client:
        for step, vectors in enumerate(encoded(client, batches)):
            print(f"training step {step} on {vectors.shape}")


if __name__ == "__main__":
    main()
