"""How many bytes a request and its vectors will take, before they take them. Does no I/O.

The broker reserves these bytes before it accepts a request (see account.py). The size of plain vectors is exact as
soon as a worker has reported its model. The number of token vectors is not known before the texts are tokenized;
it is estimated, and the reservation is corrected with each result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from bert_serving.protocol import EncodeOptions, EncodeRequest
from bert_serving.protocol.encoding import Frame
from bert_serving.protocol.workers import ModelFacts

from .job import TextCost
from .job_result import OFFSET_BYTES, TOKEN_BYTES

# The bytes that Python needs for a value, by the character before it. A list takes 56 bytes, an object with one
# key about 250, and a short string with its place in a list 60 to 90.
_VALUE_BYTES = {b",": 80, b"[": 64, b":": 64, b"{": 256}
_SHORT_BODY_BYTES = 8 << 10  # numpy's calls take longer than those of bytes for a shorter body
_CHUNK_BYTES = 256 << 10  # fits into a processor's cache
_BACKSLASH, _U, _D, _LOWER_CASE_BIT = ord("\\"), ord("u"), ord("d"), 0x20
_FIRST_OF_2_BYTES, _FIRST_OF_4_BYTES = 0x80, 0xF0  # smallest bytes that begin a character beyond U+7F, U+FFFF

_JOB_BYTES = 2048  # the objects of one request: job, options, deadlines, places in queues
_TEXT_BYTES = 48  # the number of tokens of a text, and its places in lists
_TERM_BYTES = 8
_TERMS_PER_TEXT = 256  # terms of a SPLADE vector; an estimate
_WIDTH_UNTIL_READY = 1024  # components of a vector of most models


class ParsedSize(NamedTuple):
    """Upper estimates for a JSON body that is not parsed yet: the memory and the number of its values."""

    num_bytes: int
    num_values: int


def parsed_size(body: Frame) -> ParsedSize:
    """Estimate how large a JSON body is when it is parsed.

    `[]` takes 25 times as many bytes parsed as it takes in the body, so the length of the body is no limit. The
    estimate needs only a few passes over the body.
    """
    if len(body) < _SHORT_BODY_BYTES:
        return _short_parsed_size(bytes(body))
    codes = np.frombuffer(body, np.uint8)
    counts, char_bytes = dict.fromkeys(_VALUE_BYTES, 0), 1
    for start in range(0, len(codes), _CHUNK_BYTES):
        chunk = codes[start : start + _CHUNK_BYTES]
        for mark in counts:
            counts[mark] += int(np.count_nonzero(chunk == ord(mark)))
        with_next = codes[start : start + _CHUNK_BYTES + 2]  # an escape may lie across the end of a chunk
        char_bytes = max(char_bytes, _char_bytes(with_next))  # the chunks may be parts of one string
    return _size_of(counts, len(body) * char_bytes)


def _short_parsed_size(body: bytes) -> ParsedSize:
    char_bytes = 1 if body.isascii() and b"\\" not in body else 4
    return _size_of(dict(zip(_VALUE_BYTES, map(body.count, _VALUE_BYTES), strict=True)), len(body) * char_bytes)


def _size_of(counts: Mapping[bytes, int], string_bytes: int) -> ParsedSize:
    num_bytes = string_bytes + sum(count * _VALUE_BYTES[mark] for mark, count in counts.items())
    return ParsedSize(num_bytes, counts[b","] + counts[b"["] + counts[b"{"])


def _char_bytes(codes: npt.NDArray[np.uint8]) -> int:
    """Return how many bytes Python needs for a character of the strings in a part of a body, at most.

    A string takes 1, 2 or 4 bytes for each of its characters, depending on the largest of them.
    """
    largest = codes.max()
    width = 4 if largest >= _FIRST_OF_4_BYTES else 2 if largest >= _FIRST_OF_2_BYTES else 1
    is_escape = codes[:-2] == _BACKSLASH
    if width == 4 or not is_escape.any():
        return width
    is_escape &= codes[1:-1] == _U
    if not is_escape.any():
        return width
    is_escape &= codes[2:] | _LOWER_CASE_BIT == _D  # half of a surrogate pair, so the character is beyond U+FFFF
    return 4 if is_escape.any() else 2


class ResultSizes:
    """Estimates the bytes of a request's job and of its vectors, from the options and from the model's facts.

    itemsize: bytes of a component. num_layers: number of layers that are pooled if a request names none.
    max_seq_len: limit for the tokens of a text. token_rows: rows of each text when token vectors are padded to one
    array; None: as many as the longest text has. show_tokens: tokens are sent with every reply.
    """

    def __init__(
        self,
        *,
        itemsize: int = 4,
        num_layers: int = 1,
        max_seq_len: int = 512,
        token_rows: int | None = None,
        show_tokens: bool = False,
    ) -> None:
        self._itemsize = itemsize
        self._num_layers = num_layers
        self._max_seq_len = max_seq_len
        self._token_rows = token_rows
        self._show_tokens = show_tokens
        self._facts: ModelFacts | None = None

    def learn(self, facts: ModelFacts) -> None:
        """Note what a worker has reported about its model."""
        self._facts = facts

    def of(self, request: EncodeRequest, cost: TextCost) -> int:
        """Return the estimated bytes of the job and the vectors of a request. cost: the tokens of a text."""
        options, texts = request.options, request.texts
        num_bytes = _JOB_BYTES + len(texts) * _TEXT_BYTES
        shows = TOKEN_BYTES * (options.show_tokens or self._show_tokens) + OFFSET_BYTES * options.show_offsets
        strategies = self._strategies(options)
        is_token_level = strategies == ("NONE",) and request.spans is None
        tokens = [min(cost(text), self._max_seq_len) for text in texts] if shows or is_token_level else []
        if options.long_text == "chunk" and tokens:
            tokens = [cost(text) for text in texts]
        num_bytes += int(sum(tokens)) * shows
        if strategies == ("SPLADE",):
            return num_bytes + 2 * len(texts) * _TERMS_PER_TEXT * _TERM_BYTES
        row_bytes = self._itemsize * self._width(options, strategies)
        if is_token_level:
            return num_bytes + row_bytes * (int(sum(tokens)) + self._num_reply_rows(options, tokens))
        if request.spans is not None:
            return num_bytes + 2 * row_bytes * sum(map(len, request.spans))
        return num_bytes + row_bytes * len(texts)

    def has_one_row(self, request: EncodeRequest) -> bool:
        """Whether each text has one vector, judging by the options and by the model's facts."""
        return request.spans is None and self._strategies(request.options) not in (("NONE",), ("SPLADE",))

    def _num_reply_rows(self, options: EncodeOptions, tokens: Sequence[float]) -> int:
        """Return the number of token vectors in the reply: until it is made, it exists beside the results."""
        if options.ragged:
            return int(sum(tokens))
        return len(tokens) * max(int(max(tokens)), self._token_rows or 0)

    def _strategies(self, options: EncodeOptions) -> tuple[str, ...]:
        named = options.pooling_strategy
        if named is not None and named != ("auto",):
            return named
        return tuple(self._facts.poolings) if self._facts is not None else ("REDUCE_MEAN",)

    def _width(self, options: EncodeOptions, strategies: Sequence[str]) -> int:
        """Return the estimated number of components of a vector."""
        is_default = options.pooling_strategy in (None, ("auto",)) and options.pooling_layer is None
        if is_default and self._facts is not None:
            width = self._facts.dimension
        else:
            num_layers = self._num_layers if options.pooling_layer is None else len(options.pooling_layer)
            width = sum(self._width_of(name, num_layers) for name in strategies)
        return min(width, options.dimensions or width)

    def _width_of(self, strategy: str, num_layers: int) -> int:
        hidden = _WIDTH_UNTIL_READY if self._facts is None else self._facts.hidden_size
        num_labels = 1 if self._facts is None else max(1, len(self._facts.labels))
        fixed = {"CLS_POOLED": hidden, "REGRESSION": 1, "CLASSIFICATION": num_labels, "LOGITS": num_labels}
        return fixed.get(strategy, hidden * num_layers * (2 if strategy == "REDUCE_MEAN_MAX" else 1))
