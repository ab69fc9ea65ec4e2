"""Decides which sequences share a forward pass, and how they lie in a packed row.

A packed row has no padding: its sequences lie end to end as T tokens. They are sorted by length, so sequences of
equal length are neighbours and form a group. A group is a view of the row with shape (count, length), and
attention runs group by group. All other layers process each token separately and do not need to know where
sequences begin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: What a thread computes from input to result in a core's cache (compiled/native/products.cpp).
LANE_TOKENS = 256
_MIN_LANE_TOKENS = 24  # fewer are computed sooner by all threads together
#: Of more tokens than this, small requests would wait too long for one thread.
MAX_LANE_TOKENS = 2 * LANE_TOKENS


@dataclass(frozen=True, slots=True)
class Group:
    """`count` neighbouring sequences of `length` tokens each. The first one begins at token `start` of the row."""

    start: int
    count: int
    length: int

    @property
    def stop(self) -> int:
        """The index, in the row, of the first token after the group."""
        return self.start + self.count * self.length


def plan_micro_batches(
    lengths: Sequence[int], max_tokens: int, *, padded: bool = False, equal: bool = False
) -> list[list[int]]:
    """Return the indices of `lengths`, divided into micro-batches of similar lengths, longest first.

    A micro-batch has at most `max_tokens` tokens, or holds a single sequence. padded: count each sequence as if it
    were as long as the longest one in its micro-batch. equal: put only sequences of equal length into one
    micro-batch. The longest sequences come first, so that a lack of memory shows in the first forward pass and not
    in the last.
    """
    plan: list[list[int]] = []
    room = 0
    width = 0
    for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        cost = width if padded else lengths[i]
        if not plan or cost > room or (equal and lengths[i] != width):
            plan.append([])
            room = max_tokens
            cost = width = lengths[i]  # the first sequence is the longest and sets the width
        plan[-1].append(i)
        room -= cost
    return plan


def plan_for_lanes(lengths: Sequence[int], lanes: int) -> list[list[int]]:
    """Return the indices of `lengths`, divided into micro-batches for threads that each compute one at a time.

    Each thread gets as many micro-batches as the others, of about the same numbers of tokens; a few tokens are one
    micro-batch, for all threads together. lanes: the number of threads.
    """
    total = sum(lengths)
    count = lanes * -(-total // (lanes * LANE_TOKENS)) if total >= lanes * _MIN_LANE_TOKENS else 1
    plan: dict[int, list[int]] = {}
    before = 0
    for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        middle = before + lengths[i] / 2
        plan.setdefault(int(middle * count / total), []).append(i)
        before += lengths[i]
    return list(plan.values())


def groups_of(lengths: Sequence[int]) -> list[Group]:
    """Return the groups of neighbours of equal length. lengths: in ascending or descending order."""
    groups: list[Group] = []
    start = first = 0
    for i in range(1, len(lengths) + 1):
        if i == len(lengths) or lengths[i] != lengths[first]:
            groups.append(Group(start, i - first, lengths[first]))
            start, first = groups[-1].stop, i
    return groups
