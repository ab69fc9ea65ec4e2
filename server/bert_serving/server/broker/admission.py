"""Decides whether there is room for a request: for its bytes, for its vectors, and for its texts in the queue.

Everything that a request will need is reserved before the request is accepted. So an accepted request can always
be computed and answered. Does no I/O.
"""

from __future__ import annotations

from collections.abc import Callable

from bert_serving.protocol import MAX_TEXT_CHARS, EncodeRequest, Overloaded, PayloadTooLarge, ServingError
from bert_serving.protocol.encoding import Frame
from bert_serving.protocol.workers import Vectors

from .account import Account, NoRoom, Reservation
from .job import Job, Priority, TextCost
from .sizes import ResultSizes, parsed_size

# A flow that holds little may take a little more even if there is no room: a few short texts with their vectors.
_SMALL_BYTES = 64 << 10
_SMALL_TEXTS = 64
# Large enough for a thousand flows in addition to those that fill the rest.
_RESERVED_PART = 16
# Bytes of a body for each of its texts, on average, and once more for everything else. So a single text of the
# largest length fits in, if its characters take two bytes or less.
_BODY_BYTES_PER_TEXT = MAX_TEXT_CHARS
_MAX_VALUES = 4 << 20  # while the loop parses and checks them, nobody else is served
_RETRY_MS = 1000  # if the time cannot be estimated: no worker is ready, or no text waits


def check_length(body: Frame, num_texts: int, *, max_bytes: int, max_texts: int) -> None:
    """Raise PayloadTooLarge if a body is longer than its texts can make it. The body is not parsed for this.

    num_texts: the number of texts that its request announces. max_bytes, max_texts: limits for any request.
    """
    if num_texts > max_texts:
        raise PayloadTooLarge(f"a request holds at most {max_texts} texts, got {num_texts}")
    most = min(max_bytes, (num_texts + 1) * _BODY_BYTES_PER_TEXT)
    if len(body) > most:
        raise PayloadTooLarge(
            f"the body of a request of {num_texts} texts may have at most {most} bytes, got {len(body)}"
        )


#: Why there was no room for a request.
REASONS = ("memory", "queue", "too_large")


class Admission:
    """Reserves bytes and texts for requests.

    num_refused: how many requests found no room, by reason.

    memory_bytes: limit for all bytes that the server holds for its clients. queue_capacity: limit for the number
    of texts that wait for a worker. flow_share: see Account. cost: estimates the tokens of a text. wait_ms:
    estimates the milliseconds until this number of texts is computed; None: no worker is ready.
    """

    def __init__(
        self,
        *,
        memory_bytes: int,
        queue_capacity: int,
        flow_share: float,
        sizes: ResultSizes,
        cost: TextCost,
        wait_ms: Callable[[int], int | None],
    ) -> None:
        reserve = memory_bytes // _RESERVED_PART
        self.memory = Account(memory_bytes - reserve, share=flow_share, reserve=reserve, small=_SMALL_BYTES)
        reserve = queue_capacity // _RESERVED_PART
        self.texts = Account(queue_capacity, share=flow_share, reserve=reserve, small=_SMALL_TEXTS)
        self.num_refused = dict.fromkeys(REASONS, 0)
        self._sizes = sizes
        self._cost = cost
        self._wait_ms = wait_ms

    def reserve_body(self, flow: bytes, body: Frame, *, share: float | None = None) -> Reservation:
        """Return a reservation for the parsed body of a request. Raises PayloadTooLarge or Overloaded.

        share: the largest part of the memory that the flow may use, if it is smaller than that of others.

        The body is not parsed for this: parsing a few megabytes may take seconds and a gigabyte.
        """
        num_bytes, num_values = parsed_size(body)
        if num_values > _MAX_VALUES:
            self.num_refused["too_large"] += 1
            raise PayloadTooLarge(
                f"a request may hold at most {_MAX_VALUES} values (texts, tokens, numbers of spans; "
                f"a comma in a text counts too), got {num_values}"
            )
        try:
            return self.memory.reserve(flow, num_bytes, share=share)
        except NoRoom as exc:
            raise self.no_bytes(exc) from exc

    def reserve_job(
        self, request: EncodeRequest, flow: bytes, reservation: Reservation, *, priority: Priority = "small"
    ) -> Reservation:
        """Let the reservation of a body grow by the job and its vectors; return a reservation for the texts.

        flow: holds both reservations from now on. priority: the group of the texts. Raises PayloadTooLarge or
        Overloaded.
        """
        try:
            reservation.move_to(flow, share=request.flow_share)
            reservation.resize(reservation.amount + self._sizes.of(request, self._cost))
        except NoRoom as exc:
            raise self.no_bytes(exc) from exc
        try:
            return self.texts.reserve(flow, len(request.texts), share=request.flow_share, group=priority)
        except NoRoom as exc:
            raise self._too_many_texts(exc, len(request.texts)) from exc

    def reserve_result(self, job: Job, vectors: Vectors) -> ServingError | None:
        """Make sure that there is room for the vectors of a job; return an error if there is none."""
        needed = job.num_bytes + job.result.bytes_with(vectors)
        if needed > job.reservation.amount:
            try:
                job.reservation.resize(needed)
            except NoRoom as exc:
                return self.no_bytes(exc)
        return None

    def no_bytes(self, exc: NoRoom) -> ServingError:
        """Return the error for a request that does not fit into the memory."""
        self.num_refused["memory" if exc.is_possible else "too_large"] += 1
        if not exc.is_possible:
            return PayloadTooLarge(
                "the request and its vectors need more memory than one client may use, "
                f"which is {self.memory.largest >> 20} MiB: send fewer texts"
            )
        part = min(1.0, exc.missing / max(1, self.memory.held))
        return Overloaded(
            f"there is no room for the request and its vectors: {exc.missing} bytes are missing; "
            "send it again when earlier requests have their replies",
            retry_after_ms=self._retry_after_ms(round(part * self.texts.held)),
        )

    def _too_many_texts(self, exc: NoRoom, num_texts: int) -> ServingError:
        self.num_refused["queue" if exc.is_possible else "too_large"] += 1
        if not exc.is_possible:
            return PayloadTooLarge(f"a request holds at most {self.texts.largest} texts, got {num_texts}")
        return Overloaded(
            f"the queue is full: {self.texts.held} texts wait, and there is room for {exc.limit} of this client",
            retry_after_ms=self._retry_after_ms(exc.missing),
        )

    def _retry_after_ms(self, num_texts: int) -> int:
        return (self._wait_ms(num_texts) if num_texts else None) or _RETRY_MS
