"""Which sequences share a forward pass, and how they lie in it.

A micro-batch has no padding: its sequences lie end to end in one row of T tokens, in order of their length,
so that those of equal length are neighbours and form a group. Attention and pooling work group by group on
views; everything else in a transformer is done token by token and need not know where a sequence ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Group:
    """`count` sequences of `length` tokens each, from token `start` of the row on."""

    start: int
    count: int
    length: int

    @property
    def stop(self) -> int:
        return self.start + self.count * self.length


def plan_micro_batches(
    lengths: Sequence[int], max_tokens: int, *, padded: bool = False, equal: bool = False
) -> list[list[int]]:
    """Return the indices of `lengths`, cut into micro-batches of similar length, longest first.

    A micro-batch takes at most `max_tokens` tokens, or holds one sequence. padded: each sequence counts as
    many tokens as the longest beside it. equal: only sequences of equal length share one.
    Longest first: if memory is short it shows in the first forward
    pass, not in the last.
    """
    plan: list[list[int]] = []
    room = 0
    width = 0
    for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        cost = width if padded else lengths[i]
        if not plan or cost > room or (equal and lengths[i] != width):
            plan.append([])
            room = max_tokens
            cost = width = lengths[i]  # the first is the longest: it sets the width
        plan[-1].append(i)
        room -= cost
    return plan


def groups_of(lengths: Sequence[int]) -> list[Group]:
    """Return the groups of equal neighbours in lengths that are sorted, in either direction."""
    groups: list[Group] = []
    start = first = 0
    for i in range(1, len(lengths) + 1):
        if i == len(lengths) or lengths[i] != lengths[first]:
            groups.append(Group(start, i - first, lengths[first]))
            start, first = groups[-1].stop, i
    return groups
