"""Which sequences share a forward pass: sorted by length, bounded by tokens."""

from __future__ import annotations

from collections.abc import Sequence


def plan_micro_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Return the indices of `lengths`, cut into micro-batches of similar length, longest first.

    A micro-batch takes at most `max_tokens` tokens, its padding counted, or holds one sequence.
    Longest first: if memory is short it shows in the first forward pass, not in the last.
    """
    plan: list[list[int]] = []
    room = 0
    for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if room < 1:
            plan.append([])
            room = max_tokens // max(1, lengths[i])  # the first is the longest: it sets the width
        plan[-1].append(i)
        room -= 1
    return plan
