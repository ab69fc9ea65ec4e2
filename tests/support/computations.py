"""Compute batches without the threads of a worker."""

from __future__ import annotations

from bert_serving.protocol.workers import Failed, Result
from bert_serving.server.worker.computation import Computation, Plan, Turns


def step(turns: Turns) -> Result | Failed | None:
    """Let the batch whose turn it is compute a micro-batch; return its result if it is finished."""
    has_computed = False
    while (chosen := turns.next()) is not None:
        if has_computed and chosen.next_step is not Plan.NEXT:
            return None
        taken = turns.take(chosen)
        has_computed = has_computed or taken is not Plan.NEXT
        if (end := chosen.give_back(chosen.run(taken))) is not None:
            turns.remove(chosen)
            return end
    return None


def computed(computation: Computation) -> Result | Failed:
    """Compute a batch."""
    turns = Turns()
    turns.add(computation)
    while (end := step(turns)) is None:
        pass
    return end
