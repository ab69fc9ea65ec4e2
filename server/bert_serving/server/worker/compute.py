"""From tasks to answers: micro-batches through the transformer, pooled, finished, in the order of the tasks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from bert_serving.protocol import Rows
from torch import Tensor

from .packing import plan_micro_batches
from .pooling import Segments, segments, whole_segments
from .pooling_plan import PoolingPlan
from .sequences import TokenizedText, TokenSequence
from .splade import terms
from .transformer import Transformer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PreparedText:
    """A text, ready for the model."""

    text: TokenizedText
    recipe: PoolingPlan

    @property
    def keeps_tokens(self) -> bool:
        """Whether the answer is made of the vectors of all tokens: NONE, or a vector for each span."""
        return self.recipe.is_token_level or self.text.spans is not None

    @property
    def is_ragged(self) -> bool:
        """Whether texts have any number of rows: of tokens, spans or terms."""
        return self.keeps_tokens or self.recipe.is_sparse


@dataclass(slots=True)
class Budget:
    """Most tokens of a micro-batch; less once memory was short."""

    tokens: int

    def shrink(self, tried: int) -> None:
        # All that was planned with the old budget fails in turn: it must not be halved for each of them.
        self.tokens = max(1, min(self.tokens, tried // 2))
        log.warning("out of GPU memory with %d tokens in a forward pass, going on with %d", tried, self.tokens)


@dataclass(slots=True, eq=False)
class _Piece:
    """One sequence of a task. rows: (D,) if it is pooled, or a weight for each term; (T, D) if tokens are kept;
    None: not computed yet.
    """

    sequence: TokenSequence
    task: PreparedText
    rows: Tensor | None = None

    @property
    def length(self) -> int:
        return len(self.sequence.ids)


@torch.inference_mode()
def compute(
    transformer: Transformer, tasks: Sequence[PreparedText], budget: Budget, *, hide_specials: bool = False
) -> list[Rows]:
    """Return the answer to each task, finite or not. hide_specials: pooling leaves special tokens out."""
    pieces_of = [[_Piece(sequence, task) for sequence in task.text.sequences] for task in tasks]
    pieces = [piece for of_task in pieces_of for piece in of_task]
    is_padded = transformer.padded_because is not None
    pending = plan_micro_batches(
        [piece.length for piece in pieces],
        budget.tokens,
        padded=is_padded,
        # A row that sees no token of its own would see its company's padding instead.
        equal=is_padded and hide_specials,
    )
    pending.reverse()
    while pending:
        indices = pending.pop()
        batch = [pieces[i] for i in indices]
        try:
            _run(transformer, batch, hide_specials=hide_specials)
            continue
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        # Behind the handler, where the failed pass' tensors are let go.
        torch.cuda.empty_cache()
        budget.shrink(sum(piece.length for piece in batch))
        half = len(indices) // 2
        pending += [indices[half:], indices[:half]]
    return _finish(tasks, pieces_of, transformer.device)


def _run(transformer: Transformer, batch: Sequence[_Piece], *, hide_specials: bool) -> None:
    """Fill in the rows of pieces that share a forward pass."""
    layers = frozenset[int]().union(*(piece.task.recipe.reads for piece in batch))
    hidden = transformer.hidden([piece.sequence for piece in batch], layers)
    starts = [0, *accumulate(piece.length for piece in batch)]
    kinds: dict[tuple[PoolingPlan, bool], list[int]] = {}
    for i, piece in enumerate(batch):
        kinds.setdefault((piece.task.recipe, piece.task.keeps_tokens), []).append(i)
    for (recipe, keeps_tokens), members in kinds.items():
        if recipe.is_sparse:
            assert transformer.terms is not None, "the recipe needs it"
            states = hidden[max(recipe.reads)]
            ranges = [range(starts[i], starts[i + 1]) for i in members]
            if len(members) < len(batch):
                states = states[[row for of_text in ranges for row in of_text]]
            for i, weights in zip(members, transformer.terms(states, list(map(len, ranges))), strict=True):
                batch[i].rows = weights
        elif keeps_tokens:
            tokens = recipe.tokens(hidden).cpu()
            for i in members:
                # A copy, lest the whole micro-batch stay in memory for it.
                batch[i].rows = _own_tokens(batch[i].sequence, tokens[starts[i] : starts[i + 1]], hide_specials)
        else:
            is_whole = len(members) == len(batch) and not hide_specials
            of = _segments(
                [batch[i].sequence for i in members],
                [starts[i] for i in members],
                transformer.device,
                is_whole=is_whole,
                hide_specials=hide_specials,
            )
            for i, row in zip(members, recipe.pool(hidden, of, transformer.heads).unbind(), strict=True):
                batch[i].rows = row


def _segments(
    sequences: Sequence[TokenSequence],
    starts: Sequence[int],
    device: torch.device,
    *,
    is_whole: bool,
    hide_specials: bool,
) -> Segments:
    """Return which rows of the hidden states are pooled for each sequence. is_whole: they are all of the rows."""
    if is_whole and not any(s.num_prompt for s in sequences):
        return whole_segments([len(s.ids) for s in sequences], device)
    rows, first, last = [], [], []
    for sequence, start in zip(sequences, starts, strict=True):
        left_out = set(sequence.specials) if hide_specials else set()
        rows.append([start + i for i in range(sequence.num_prompt, len(sequence.ids)) if i not in left_out])
        first.append(start + min(sequence.num_prompt, len(sequence.ids) - 1))
        # bert-as-service takes row (sum of the mask) - 1, also where the mask has holes.
        last.append(start + max(0, len(sequence.ids) - len(left_out) - 1))
    return segments(rows, first=first, last=last, origin=starts, device=device)


def _own_tokens(sequence: TokenSequence, tokens: Tensor, hide_specials: bool) -> Tensor:
    """Return a copy of the vectors of the tokens that stand for the text; hidden ones are zero."""
    tokens = tokens.clone()
    if hide_specials:
        tokens[list(sequence.specials)] = 0
    return tokens[slice(*sequence.owned)]


def _finish(
    tasks: Sequence[PreparedText], pieces_of: Sequence[Sequence[_Piece]], device: torch.device
) -> list[Rows]:
    answers: list[Rows] = [np.empty(0, np.float32)] * len(tasks)
    pooled: dict[PoolingPlan, list[int]] = {}
    for i, task in enumerate(tasks):
        if task.recipe.is_sparse:
            weights = torch.stack([_rows(piece) for piece in pieces_of[i]]).amax(0)
            answers[i] = terms(weights).cpu().numpy()
        elif task.keeps_tokens:
            answers[i] = _finish_tokens(task, torch.cat([_rows(piece) for piece in pieces_of[i]]).to(device))
        else:
            pooled.setdefault(task.recipe, []).append(i)
    for recipe, members in pooled.items():
        finished = recipe.finish(torch.stack([_mean_of_windows(pieces_of[i]) for i in members])).cpu().numpy()
        for i, row in zip(members, finished, strict=True):
            answers[i] = row
    return answers


def _finish_tokens(task: PreparedText, tokens: Tensor) -> Rows:
    """Return a row for each token of a text, or for each of its spans."""
    if task.text.spans is not None:
        rows = [range(start, stop) for start, stop in task.text.spans]
        first, last = [r[0] for r in rows], [r[-1] for r in rows]
        of = segments(rows, first=first, last=last, origin=first, device=tokens.device)
        tokens = task.recipe.pool_tokens(tokens, of)
    finished: Rows = task.recipe.finish(tokens).cpu().numpy()
    return finished


def _mean_of_windows(pieces: Sequence[_Piece]) -> Tensor:
    """Return the mean of the windows' rows, weighted by how many words' tokens are in each."""
    if len(pieces) == 1:
        return _rows(pieces[0])
    rows = torch.stack([_rows(piece) for piece in pieces])
    weights = [max(1, piece.length - len(piece.sequence.specials)) for piece in pieces]
    weight = torch.tensor(weights, dtype=rows.dtype, device=rows.device)[:, None]
    return (rows * weight).sum(0) / weight.sum()


def _rows(piece: _Piece) -> Tensor:
    assert piece.rows is not None, "every piece is in the plan"
    return piece.rows
