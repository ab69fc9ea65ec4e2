"""A request inside the broker: which of its texts wait, which are being computed, which are done."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from bert_serving.protocol import EncodeOptions, EncodeReply, EncodeRequest, Rows, Text, Usage
from bert_serving.protocol.workers import Part, Vectors

from .account import Reservation
from .job_result import JobResult

#: Whether a request is small or large: small ones go first; see JobQueue.
Priority: TypeAlias = Literal["small", "large"]
PRIORITIES: tuple[Priority, ...] = ("small", "large")
#: Estimates the tokens of a text.
TextCost: TypeAlias = Callable[[Text], float]


# A worker tokenizes so many characters in about the time in which it computes a token.
_CHARS_READ_PER_TOKEN = 256
_CHARS_READ_FREE = (
    1 << 17
)  # reading a shorter text takes no longer than computing the longest sequence of most models
_MOST_CHARS_READ = 1 << 20  # see worker/excerpts.py


def _reading_cost(text: Text) -> float:
    """Return the cost, in tokens, of reading a very long text.

    A text of a million blanks has no token, but a worker must read all of it to find this out.
    """
    if not isinstance(text, str) or len(text) <= _CHARS_READ_FREE:
        return 0.0
    return min(len(text), _MOST_CHARS_READ) / _CHARS_READ_PER_TOKEN


@dataclass(eq=False, slots=True)
class Job:
    """One encode request.

    job_id: the broker's own number, because two clients may use the same identity and request_id. flow: key of the
    job's flow in the fair queue; see JobQueue. reservation: the bytes of the job and of its vectors. waiting: the
    texts that were not given to a worker yet. options: the options of the request, and those that the server sets
    for every request. num_bytes: the bytes of the job without its vectors. max_text_tokens: limit for the
    estimated tokens of one text. priority: see JobQueue. kind: number of its
    options, if its texts may share vectors with equal texts; see repeats.py. settled: indices of the texts whose
    vectors were found in the cache. attempt: how many times the job was started again. num_taken: number of texts
    that were given to workers. begun_at: when the first text was given to a worker. tokenize_ms, compute_ms: sums
    of the times of all batches with texts of this job. trace_handle: what the JobTracer
    returned for the request.
    """

    job_id: int
    request: EncodeRequest
    arrived_at: float
    flow: bytes
    reservation: Reservation
    waiting: Reservation
    options: EncodeOptions = EncodeOptions()  # noqa: RUF009
    num_bytes: int = 0
    max_text_tokens: float = math.inf
    priority: Priority = "small"
    kind: int | None = None
    settled: Container[int] = ()
    is_open: bool = True
    attempt: int = 0
    num_taken: int = 0
    num_done: int = 0
    begun_at: float | None = None
    tokenize_ms: float = 0.0
    compute_ms: float = 0.0
    trace_handle: object | None = None
    num_texts: int = field(init=False)
    result: JobResult = field(init=False)

    def __post_init__(self) -> None:
        self.num_texts = len(self.request.texts)
        self.result = JobResult(self.num_texts)

    def __repr__(self) -> str:
        return f"<Job {self.job_id} texts={self.num_texts} taken={self.num_taken} done={self.num_done}>"

    @property
    def identity(self) -> bytes:
        """The identity of the client that sent the request."""
        return self.request.identity

    @property
    def is_large(self) -> bool:
        """Whether small requests go first."""
        return self.priority == "large"

    @property
    def texts(self) -> Sequence[Text]:
        """The texts of the request."""
        return self.request.texts

    @property
    def num_waiting(self) -> int:
        """The number of texts that were not given to a worker yet."""
        return self.num_texts - self.num_taken if self.is_open else 0

    @property
    def is_waiting(self) -> bool:
        """Whether some texts have not been given to a worker yet."""
        return self.is_open and self.num_taken < self.num_texts

    @property
    def is_done(self) -> bool:
        """Whether the vectors of all texts have arrived."""
        return self.num_done == self.num_texts

    def tokens_of(self, text: Text, cost: TextCost) -> float:
        """Return the estimated tokens of one of the texts. A text that is cut also costs something to read."""
        tokens = cost(text)
        return tokens if tokens <= self.max_text_tokens else self.max_text_tokens + _reading_cost(text)

    def reach(self, max_tokens: float, max_texts: int, cost: TextCost) -> tuple[int, float]:
        """Return (index after the last waiting text within the limits, tokens up to this index).

        The first waiting text is included even if it exceeds the limit.
        """
        first, texts = self.num_taken, self.request.texts
        last, tokens_of = min(self.num_texts, first + max_texts), self.tokens_of
        tokens = tokens_of(texts[first], cost)
        stop = first + 1
        while stop < last and tokens < max_tokens:
            more = tokens_of(texts[stop], cost)
            if tokens + more > max_tokens:
                break
            tokens += more
            stop += 1
        return stop, tokens

    def take(self, stop: int) -> Slice:
        """Mark the texts up to `stop` as given to a worker; return them as a slice."""
        taken = Slice(self, self.num_taken, stop, self.attempt)
        self.num_taken = stop
        self.waiting.resize(min(self.waiting.amount, self.num_texts - stop))
        return taken

    def mixes_models(self, model: str) -> bool:
        """Whether the stored vectors are of another model than the one with this fingerprint."""
        return self.result.model not in (None, model)

    def store(self, start: int, vectors: Vectors, model: str = "") -> None:
        """Store the vectors of consecutive texts, beginning with texts[start].

        model: fingerprint of the model that computed them.
        """
        self.result.model = model
        self.result.store(start, vectors)
        self.num_done += len(vectors.num_tokens)

    def restart(self) -> None:
        """Drop the stored vectors. All texts wait again; the results of earlier slices will be ignored."""
        self.attempt += 1
        self.settled = ()
        self.num_taken = self.num_done = 0
        self.result = JobResult(self.num_texts)

    def queue_s(self, now: float) -> float:
        """Return the seconds from arrival until a worker got the first text, or until `now` if no worker has."""
        return (now if self.begun_at is None else self.begun_at) - self.arrived_at

    def usage(self, now: float) -> Usage:
        """Return the tokens and times of the job. The job must be done."""
        return Usage(
            self.result.num_tokens,
            total_ms=(now - self.arrived_at) * 1000,
            queue_ms=self.queue_s(now) * 1000,
            tokenize_ms=self.tokenize_ms,
            compute_ms=self.compute_ms,
            model=self.result.model or "",
        )

    def to_reply(self, usage: Usage, *, token_rows: int | None) -> EncodeReply:
        """Return the reply. The job must be done. Raises NoRoom if the reply needs more than is reserved.

        token_rows: when the vectors of tokens are padded to one array, each text gets at least this many rows;
        None: as many rows as the longest text has.
        """
        options, result = self.options, self.result
        rows, counts = self._reply_rows(token_rows)
        return EncodeReply(
            self.request.identity,
            self.request.request_id,
            rows,
            result.tokens if options.show_tokens else None,
            sorted(result.truncated) if result.truncated else (),
            counts,
            result.offsets,
            usage if options.show_usage else None,
            sorted(result.errors, key=lambda error: error["index"]) if result.errors else (),
        )

    def _reply_rows(self, token_rows: int | None) -> tuple[Rows, list[int] | None]:
        result = self.result
        if result.ragged is None:
            assert result.rows is not None
            return result.rows, None
        joined_bytes = result.num_bytes if self.options.ragged else result.padded_bytes(token_rows)
        needed = self.num_bytes + result.num_bytes + joined_bytes  # for a moment, both arrays exist
        self.reservation.resize(max(needed, self.reservation.amount))
        return result.joined() if self.options.ragged else (result.padded(token_rows), None)


@dataclass(frozen=True, slots=True)
class Slice:
    """The texts of a job from index `start` up to, but not including, `stop`.

    attempt: the value of `Job.attempt` when the slice was taken.
    """

    job: Job
    start: int
    stop: int
    attempt: int = 0

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def is_needed(self) -> bool:
        """Whether the job still waits for the vectors of this slice."""
        return self.job.is_open and self.job.attempt == self.attempt

    @property
    def texts(self) -> Sequence[Text]:
        """The texts of this slice."""
        return self.job.texts[self.start : self.stop]

    def to_part(self) -> Part:
        """Return the slice as a part of the message to a worker."""
        spans = self.job.request.spans
        spans = None if spans is None else spans[self.start : self.stop]
        return Part(self.texts, self.job.options, spans, self.job.request.trace)

    def split(self, count: int) -> tuple[Slice, Slice]:
        """Return the first `count` texts and the rest."""
        middle = self.start + count
        return replace(self, stop=middle), replace(self, start=middle)
