"""Repeated texts: a text that a worker computes already is not sent again, and vectors may be remembered.

- A text is *in flight* from the moment when it is given to a worker until its vectors or an error arrive. A text
  of another request, or of the same one, with equal options follows it: it is not sent, and gets a copy of the
  vectors.
- Whether a text follows another one is decided when its turn has come, or when it arrives. So it never waits
  behind a request that would be computed later than its own.
- Texts of small requests follow only each other, and so do those of large ones: a small request would wait for the
  batches of a large one, which take longer.
- It does not matter what happens to the request that the worker computes for: if it is cancelled or passes its
  deadline, the vectors still go to the followers. If there are no vectors, one of the followers is sent to a
  worker: an error is never shared.
- Only texts with one row each are shared: not the vectors of tokens or of spans, and not those of SPLADE.

Does no I/O. The cost for a text that is not repeated is that of one entry in a dict: all of them are made at once.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat

import numpy as np
from bert_serving.protocol.workers import PartResult, Rejected, Vectors

from .job import Job, Slice
from .sizes import ResultSizes
from .vector_cache import VectorCache, hashable, kind_of

# Slices of equal texts that follow one text. They are answered in one step of the loop, which must not take long;
# further ones are computed.
_MAX_FOLLOWERS = 32


class InFlightTexts:
    """The texts that workers compute, and which texts follow each of them.

    num_shared: how many texts followed another one.
    """

    def __init__(self) -> None:
        self.num_shared = 0
        # By the kind of the options and whether the request is large, and by the text; None: it has no followers.
        self._groups: dict[tuple[int | None, bool], dict[Hashable, list[Slice] | None]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))

    def begin(self, slice_: Slice, now: float) -> list[Slice]:
        """Return the parts of a slice that must be computed; its other texts follow those in flight."""
        job = slice_.job
        keys = None if job.kind is None else hashable(slice_.texts)
        if job.kind is None or keys is None:
            return [slice_]
        place = job.kind, job.is_large
        group = self._groups.setdefault(place, {})
        fresh: dict[Hashable, list[Slice] | None] = dict.fromkeys(keys)
        if len(fresh) == len(keys) and not job.settled and group.keys().isdisjoint(fresh):
            group.update(fresh)
            return [slice_]
        needed = list(self._without_repeats(slice_, keys, group, now))
        if not group:
            del self._groups[place]
        return needed

    def _without_repeats(
        self, slice_: Slice, keys: Sequence[Hashable], group: dict[Hashable, list[Slice] | None], now: float
    ) -> Iterator[Slice]:
        start = slice_.start
        for i, key in enumerate(keys, slice_.start):
            if i not in slice_.job.settled and not self._follow(key, group, slice_.job, i, now):
                group.setdefault(key, None)
                continue
            if i > start:
                yield replace(slice_, start=start, stop=i)
            start = i + 1
        if start < slice_.stop:
            yield replace(slice_, start=start)

    def _follow(
        self, key: Hashable, group: dict[Hashable, list[Slice] | None], job: Job, index: int, now: float
    ) -> bool:
        """Let a text follow the one with this key; return False if there is none, or if too many follow it."""
        if key not in group:
            return False
        followers = group[key]
        if followers is None:
            followers = group[key] = []
        last = followers[-1] if followers else None
        if last is not None and last.job is job and last.stop == index and last.attempt == job.attempt:
            followers[-1] = Slice(job, last.start, index + 1, job.attempt)
        elif len(followers) >= _MAX_FOLLOWERS:
            return False
        else:
            followers.append(Slice(job, index, index + 1, job.attempt))
        self.num_shared += 1
        if job.begun_at is None:
            job.begun_at = now
        return True

    def follow_first(self, job: Job, now: float) -> int:
        """Let the first texts of a new job follow those in flight; return their number."""
        group = self._groups.get((job.kind, job.is_large))
        first = hashable(job.texts[:1]) if group else None
        if group is None or first is None or first[0] not in group:
            return 0
        keys = hashable(job.texts) or ()
        return next((i for i, key in enumerate(keys) if not self._follow(key, group, job, i, now)), len(keys))

    def end(self, slice_: Slice) -> list[tuple[int, list[Slice]]]:
        """Forget the texts of a slice; return (place in the slice, followers) for each text that has followers."""
        place = slice_.job.kind, slice_.job.is_large
        group = self._groups.get(place)
        keys = hashable(slice_.texts) if group else None
        if group is None or keys is None:
            return []
        found = list(map(group.pop, keys, repeat(None)))
        if not group:
            del self._groups[place]
        return [(i, texts) for i, texts in enumerate(found) if texts] if any(found) else []


@dataclass(slots=True)
class Ended:
    """What the end of a slice means for the texts that follow it.

    vectors: those that get vectors. left: those that must be computed, because there is nothing to share.
    """

    vectors: list[tuple[Slice, Vectors]] = field(default_factory=list)
    left: list[Slice] = field(default_factory=list)


_NOTHING = Ended()


class Repeats:
    """What the scheduler asks about repeated texts. sizes: knows which requests have one vector for each text.

    cache_bytes: limit for the vectors that are remembered; 0: none are. in_flight, cache: public for metrics.
    """

    def __init__(self, sizes: ResultSizes, *, cache_bytes: int = 0) -> None:
        self.in_flight = InFlightTexts()
        self.cache = VectorCache(cache_bytes)
        self._sizes = sizes

    def arrived(self, job: Job, model: str, now: float) -> int:
        """Store the known vectors of a new job; return how many of its first texts follow texts in flight."""
        if not self._sizes.has_one_row(job.request) or job.options.show_tokens or job.options.show_offsets:
            return 0
        job.kind = kind_of(job.options)
        settled: set[int] = set()
        for start, vectors in self.cache.find(job.kind, job.texts):
            job.store(start, vectors, model)
            settled.update(range(start, start + len(vectors.num_tokens)))
        job.settled = settled
        return 0 if settled else self.in_flight.follow_first(job, now)

    def begin(self, slices: Iterable[Slice], now: float) -> list[Slice]:
        """Return the texts that must be computed; the others follow those in flight, or are known."""
        return [part for slice_ in slices for part in self.in_flight.begin(slice_, now)]

    def end(self, slice_: Slice, part_result: PartResult | None, model: str, *, is_newest: bool = True) -> Ended:
        """Note that a worker has returned this for a slice; None: the slice is not computed any more.

        model: fingerprint of the worker's model. is_newest: whether this is the server's model.
        """
        followed = self.in_flight.end(slice_)
        if not followed and not self.cache.max_bytes:
            return _NOTHING
        ended = Ended()
        vectors = None if isinstance(part_result, Rejected) else part_result
        if vectors is None or vectors.counts is not None:
            ended.left = [text for _, followers in followed for text in followers]
            return ended
        if slice_.job.kind is not None and is_newest:
            self.cache.add(slice_.job.kind, slice_.texts, vectors)
        wrong = {error["index"] for error in vectors.errors}
        for i, followers in followed:
            if i in wrong:
                ended.left += followers
            else:
                ended.vectors += [(texts, _repeated(vectors, i, len(texts))) for texts in followers]
        return ended


def _repeated(vectors: Vectors, i: int, times: int) -> Vectors:
    """Return the vector of text i as that of so many texts."""
    truncated = range(times) if i in vectors.truncated else ()
    return Vectors(np.repeat(vectors.rows[i : i + 1], times, axis=0), [vectors.num_tokens[i]] * times, truncated)
