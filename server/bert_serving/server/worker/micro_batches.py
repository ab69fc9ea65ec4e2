"""Computes the rows of prepared texts in micro-batches, and returns them in the order of the texts.

    micro_batches    plans MicroBatches, lets the caller compute them, then finishes
    MicroBatch       one forward pass, then the output of each sequence in it
    _finish          outputs of a text's sequences -> the text's rows

Shapes: B texts, T tokens, H hidden size, D components of a vector, V terms of the vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, islice
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from bert_serving.protocol import Rows
from torch import Tensor

from .device import Pace
from .packing import MAX_LANE_TOKENS, plan_for_lanes, plan_micro_batches
from .pooling import SegmentArrays, Segments, partial_segments, whole_segments
from .pooling_plan import PoolingPlan
from .sequences import TokenizedText, TokenSequence
from .splade import nonzero_terms, terms_of_texts
from .transfers import as_array, start_to_host, to_device, to_host, wait_for
from .transformer import Transformer

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")


class PreparedText(NamedTuple):
    """A tokenized text, and what to compute from its hidden states."""

    text: TokenizedText
    plan: PoolingPlan

    @property
    def keeps_token_vectors(self) -> bool:
        """Whether the vectors of all tokens are kept after the forward pass: for NONE, and to pool spans."""
        return self.plan.is_token_level or self.text.spans is not None

    @property
    def is_ragged(self) -> bool:
        """Whether texts have different numbers of rows: a text has one row for each token, span or term."""
        return self.keeps_token_vectors or self.plan.is_sparse


@dataclass(slots=True)
class Budget:
    """The largest number of tokens in a micro-batch. It shrinks when the GPU runs out of memory."""

    tokens: int

    def shrink(self, tried: int) -> None:
        """Lower the budget after a micro-batch of `tried` tokens ran out of memory."""
        # Every micro-batch that was planned with the old budget may fail. The new budget is half of `tried`,
        # not half of the old budget: otherwise each of these failures would halve it again.
        self.tokens = max(1, min(self.tokens, tried // 2))
        log.warning("out of GPU memory tokens=%d, forward passes now limited to tokens=%d", tried, self.tokens)


@dataclass(slots=True, eq=False)
class _BatchedSequence:
    """A sequence in a micro-batch.

    output: None until the forward pass has run; then the pooled vector (D,), the weight of each term (V,), or the
    vectors of all its tokens (T, D) on the host, valid when the device has done the whole batch.
    """

    sequence: TokenSequence
    prepared: PreparedText
    output: Tensor | None = None

    @property
    def length(self) -> int:
        return len(self.sequence.ids)


class MicroBatch:
    """Sequences that share a forward pass. Any thread may compute it, once.

    num_tokens: of all sequences. is_lane_sized: whether it should run in one thread, while others compute other
    micro-batches of this kind (see lanes.py). is_computed: whether `compute` has computed it.
    """

    def __init__(
        self,
        transformer: Transformer,
        sequences: Sequence[_BatchedSequence],
        budget: Budget,
        pace: Pace,
        *,
        hide_specials: bool,
        lanes: int,
    ) -> None:
        self.num_tokens = sum(sequence.length for sequence in sequences)
        self.is_lane_sized = (
            lanes > 1
            and self.num_tokens <= MAX_LANE_TOKENS
            and transformer.runs_compiled(self.num_tokens, _layers_of(sequences))
        )
        self._transformer = transformer
        self._sequences = sequences
        self._budget = budget
        self._pace = pace
        self._hide_specials = hide_specials
        self.is_computed = False

    def compute(self) -> None:
        """Run the forward pass. If the GPU has too little memory, its halves must be computed in its place.

        Raises OutOfMemoryError if there is too little memory for a single sequence.
        """
        try:
            _forward_and_pool(self._transformer, self._sequences, hide_specials=self._hide_specials)
        except torch.OutOfMemoryError:
            if len(self._sequences) == 1:
                raise
            torch.cuda.empty_cache()
            self._budget.shrink(self.num_tokens)
            return
        self._pace.wait()
        self.is_computed = True

    def halves(self) -> list[Sequence[_BatchedSequence]]:
        """Return the two halves of the sequences."""
        half = len(self._sequences) // 2
        return [self._sequences[:half], self._sequences[half:]]


def micro_batches(
    transformer: Transformer,
    texts: Sequence[PreparedText],
    budget: Budget,
    *,
    hide_specials: bool = False,
    lanes: int = 1,
) -> Generator[list[MicroBatch], None, list[Rows]]:
    """Yield the micro-batches to compute, longest first; at the end, return the rows of each text.

    The caller computes all that were yielded, in any threads, before it goes on. Rows are returned even if they
    are not finite. hide_specials: do not pool special tokens. lanes: how many threads compute micro-batches at the
    same time, if there are enough of them.
    """
    sequences_of = [[_BatchedSequence(s, prepared) for s in prepared.text.sequences] for prepared in texts]
    sequences = [sequence for of_text in sequences_of for sequence in of_text]
    plan = _plan(transformer, sequences, budget, hide_specials=hide_specials, lanes=lanes)
    pace = Pace(transformer.device)
    while plan:
        planned = [
            MicroBatch(transformer, each, budget, pace, hide_specials=hide_specials, lanes=lanes) for each in plan
        ]
        yield planned
        plan = [half for each in planned if not each.is_computed for half in each.halves()]
    return _finish(texts, sequences_of, transformer, hide_specials=hide_specials)


def _plan(
    transformer: Transformer,
    sequences: Sequence[_BatchedSequence],
    budget: Budget,
    *,
    hide_specials: bool,
    lanes: int,
) -> list[Sequence[_BatchedSequence]]:
    """Divide sequences into micro-batches."""
    lengths = [sequence.length for sequence in sequences]
    is_padded = transformer.padded_because is not None
    if lanes > 1 and transformer.runs_compiled(MAX_LANE_TOKENS, _layers_of(sequences)):
        plan = plan_for_lanes(lengths, lanes)
    else:
        plan = plan_micro_batches(
            lengths,
            budget.tokens,
            padded=is_padded,
            # In some models (DeBERTa), all tokens are masked for a hidden special token. It then attends to all of
            # them, padding included. Sequences of equal length need no padding.
            equal=is_padded and hide_specials,
        )
    return [[sequences[i] for i in indices] for indices in plan]


def _layers_of(sequences: Iterable[_BatchedSequence]) -> frozenset[int]:
    """Return the layers whose hidden states the sequences need."""
    return frozenset[int]().union(*(sequence.prepared.plan.reads for sequence in sequences))


def computed(steps: Generator[list[MicroBatch], None, _Result]) -> _Result:
    """Compute what the generator yields, such as `micro_batches`, and return its result."""
    try:
        while True:
            for each in next(steps):
                each.compute()
    except StopIteration as end:
        result: _Result = end.value
        return result


@torch.inference_mode()
def _forward_and_pool(
    transformer: Transformer, micro_batch: Sequence[_BatchedSequence], *, hide_specials: bool
) -> None:
    """Run one forward pass over a micro-batch and set the output of each of its sequences."""
    layers = _layers_of(micro_batch)
    starts = [0, *accumulate(item.length for item in micro_batch)]
    alike: dict[tuple[PoolingPlan, bool], list[int]] = {}  # sequences with the same plan are pooled together
    for i, item in enumerate(micro_batch):
        alike.setdefault((item.prepared.plan, item.prepared.keeps_token_vectors), []).append(i)
    groups = [[micro_batch[i] for i in members] for members in alike.values()]
    arrays = [array for items in groups for array in _segments(items, hide_specials=hide_specials)]
    sequences = [item.sequence for item in micro_batch]
    hidden, tensors = transformer.hidden_with(sequences, layers, arrays)  # hidden: (T, H) for each layer
    pooled = iter(tensors)
    for items, members in zip(groups, alike.values(), strict=True):
        own = hidden
        if len(items) < len(micro_batch):  # copy only what this plan needs: there may be as many plans as texts
            ranges = [slice(starts[i], starts[i + 1]) for i in members]
            reads = items[0].prepared.plan.reads
            own = {layer: torch.cat([hidden[layer][rows] for rows in ranges]) for layer in reads}
        _pool(items, own, pooled, transformer)


def _pool(
    items: Sequence[_BatchedSequence],
    hidden: dict[int, Tensor],
    segments: Iterator[Tensor],
    transformer: Transformer,
) -> None:
    """Set the output of sequences that have the same plan.

    hidden: by layer, the hidden states of these sequences end to end, (T, H). segments: if the tokens are pooled,
    the fields of the sequences' Segments come next.
    """
    plan = items[0].prepared.plan
    outputs: Iterable[Tensor]
    if plan.is_sparse:
        assert transformer.sparse_head is not None, "sparse plans are made only for models with a SPLADE head"
        outputs = transformer.sparse_head(hidden[max(plan.reads)], [item.length for item in items])  # (B, V)
    elif items[0].prepared.keeps_token_vectors:
        tokens = plan.token_vectors(hidden)
        if plan.is_token_level:
            tokens = plan.finish(tokens)  # before the copy, which is then shorter if the request gives dimensions
        # A text's windows may lie in several micro-batches, so its token vectors wait for them on the host.
        outputs = torch.split(start_to_host(tokens), [item.length for item in items])
    else:
        outputs = plan.pool(hidden, Segments(*islice(segments, len(SegmentArrays._fields))), transformer.heads)
    for item, output in zip(items, outputs, strict=True):
        item.output = output


def _segments(items: Sequence[_BatchedSequence], *, hide_specials: bool) -> SegmentArrays | tuple[()]:
    """Return which rows of the hidden states are pooled for each sequence; () if no tokens are pooled.

    items: sequences of the same plan; they lie end to end.
    """
    prepared, sequences = items[0].prepared, [item.sequence for item in items]
    if prepared.is_ragged:
        return ()
    if not hide_specials and not any(s.num_left_out for s in sequences):
        return whole_segments([len(s.ids) for s in sequences])
    starts = [0, *accumulate(len(s.ids) for s in sequences)][:-1]
    rows, first, last = [], [], []
    for sequence, start in zip(sequences, starts, strict=True):
        left_out = set(sequence.specials) if hide_specials else set()
        rows.append([start + i for i in range(sequence.num_left_out, len(sequence.ids)) if i not in left_out])
        first.append(start + min(sequence.num_left_out, len(sequence.ids) - 1))
        # In bert-as-service, the last token is number (sum of the mask - 1), even if masked ones come before it.
        last.append(start + max(0, len(sequence.ids) - len(left_out) - 1))
    return partial_segments(rows, first=first, last=last, origin=starts)


@torch.inference_mode()
def _finish(
    texts: Sequence[PreparedText],
    sequences_of: Sequence[Sequence[_BatchedSequence]],
    transformer: Transformer,
    *,
    hide_specials: bool,
) -> list[Rows]:
    """Return the rows of each text from the outputs of its sequences; they come from the device in one copy."""
    device, head = transformer.device, transformer.sparse_head
    rows_of: list[Rows] = [np.empty(0, np.float32)] * len(texts)
    if any(prepared.keeps_token_vectors for prepared in texts):
        wait_for(device)
    finished: list[_Finished] = []
    alike: dict[PoolingPlan, list[int]] = {}  # texts whose vectors are finished together
    for i, prepared in enumerate(texts):
        if not prepared.keeps_token_vectors:
            alike.setdefault(prepared.plan, []).append(i)
            continue
        rows_of[i] = _kept_tokens(sequences_of[i], hide_specials)
        if prepared.text.spans is not None:
            finished.append(_Finished([i], _span_vectors(prepared, rows_of[i], device), lambda rows: [rows]))
    for plan, members in alike.items():
        size = len(members) if head is None or not plan.is_sparse else head.rows_at_once
        for some in (members[j : j + size] for j in range(0, len(members), size)):
            windows_of = [sequences_of[i] for i in some]
            if plan.is_sparse:
                nonzero = nonzero_terms(torch.stack([_maximum_of_windows(windows) for windows in windows_of]))
                finished.append(_Finished(some, nonzero, partial(terms_of_texts, num_texts=len(some))))
            else:
                vectors = torch.stack([_mean_of_windows(windows) for windows in windows_of])  # (B, D)
                finished.append(_Finished(some, plan.finish(vectors), list))
    for each, array in zip(finished, to_host([each.rows for each in finished], device), strict=True):
        for i, rows in zip(each.texts, each.split(array), strict=True):
            rows_of[i] = rows
    return rows_of


class _Finished(NamedTuple):
    """Finished rows of texts, on the device. split: gives the rows of each of these texts."""

    texts: Sequence[int]
    rows: Tensor
    split: Callable[[Rows], Sequence[Rows]]


def _kept_tokens(windows: Sequence[_BatchedSequence], hide_specials: bool) -> Rows:
    """Return the vectors of the tokens that a text's windows keep, (T, D), with zeros for hidden tokens."""
    kept = []
    for window in windows:
        tokens = as_array(_output(window))
        if hide_specials:
            tokens = tokens.copy()
            tokens[list(window.sequence.specials)] = 0
        kept.append(tokens[slice(*window.sequence.kept)])
    return np.concatenate(kept)  # a copy, because a view would keep the token vectors of the whole micro-batch


def _span_vectors(prepared: PreparedText, tokens: Rows, device: torch.device) -> Tensor:
    """Return the vectors of a text's spans, (number of spans, D). tokens: the vectors of its tokens, (T, H)."""
    assert prepared.text.spans is not None
    rows = [range(start, stop) for start, stop in prepared.text.spans]
    first = [r[0] for r in rows]
    segments = partial_segments(rows, first=first, last=[r[-1] for r in rows], origin=first)
    on_device, *fields = to_device([tokens, *segments], device)
    return prepared.plan.finish(prepared.plan.pool_tokens(on_device, Segments(*fields)))


def _maximum_of_windows(windows: Sequence[_BatchedSequence]) -> Tensor:
    """Return the largest weight of each term in a text's windows, (V,)."""
    if len(windows) == 1:
        return _output(windows[0])
    return torch.stack([_output(window) for window in windows]).amax(0)


def _mean_of_windows(windows: Sequence[_BatchedSequence]) -> Tensor:
    """Return the mean of the windows' vectors, (D,), weighted by the numbers of tokens that each window keeps.

    So a token that lies in two windows has no more weight than the others.
    """
    if len(windows) == 1:
        return _output(windows[0])
    rows = torch.stack([_output(window) for window in windows])  # (number of windows, D)
    counts = np.array([window.sequence.num_new for window in windows], np.float32)
    (weights,) = to_device([counts], rows.device)
    return (rows * weights[:, None]).sum(0) / weights.sum()


def _output(item: _BatchedSequence) -> Tensor:
    assert item.output is not None, "every sequence is in a micro-batch"
    return item.output
