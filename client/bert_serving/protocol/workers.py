"""Messages between the broker and its workers, and their frames. Clients do not import this module.

    worker -> broker   Ready, Changed, Refused, Result, Failed, Heartbeat
    broker -> worker   Batch, Stop

A message is sent as `kind | header | array ...`. The header is a JSON object. Nothing is pickled. A worker has two
addresses: one that batches go to, and the same with RESULTS at its end, which results come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from .encoding import Frame, Frames, array_frame, array_from_frame, array_info, dump_json, load_json
from .errors import ServingError, error_from_info
from .known_options import known_options, options_to_json
from .messages import JsonObject, Rows, Spans, Text, TextError
from .options import EncodeOptions
from .trace_names import TraceNames

RESULTS = b"#results"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a worker reports about its process and its model when it is ready.

    fingerprint: a hash of the weights, the tokenizer and the configuration. Workers with the same fingerprint
    compute the same vectors.
    device: torch's name of the device. dtype: number format of the forward pass. dimension: length of a vector.
    hidden_size: length of the hidden state of a token in one layer.
    kind: "embedding", "splade", "classifier" or "reranker".
    poolings: the strategies that are used if a request names no strategy.
    splits_specials: the tokenizer treats the name of a special token in a text as ordinary text.
    prompts: the text of each prompt, by its name. labels: the labels of the classification head, if there is one.
    max_seq_len: longest sequence in tokens. forward: "compiled", "cuda-graphs", "packed" or "padded".
    parity: lowest cosine, over a few probe texts, between a row that the model serves without options (or of its
        classification head) and the float32 reference of that row.
    tokens_per_s: speed during the warm-up. max_batch_tokens: limit for the tokens in a batch.
    """

    pid: int
    fingerprint: str
    device: str
    dtype: str
    dimension: int
    hidden_size: int
    kind: str
    poolings: Sequence[str]
    splits_specials: bool
    prompts: Mapping[str, str]
    labels: Sequence[str]
    max_seq_len: int
    forward: str
    parity: float
    tokens_per_s: float
    max_batch_tokens: int

    def to_info(self) -> dict[str, object]:
        """Return the facts by name. Empty `labels` are left out."""
        return {name: getattr(self, name) for name in self.__slots__ if name != "labels" or self.labels}


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker has loaded its model and warmed it up."""

    facts: ModelFacts


@dataclass(frozen=True, slots=True)
class Changed:
    """A worker that is ready computes in another way from now on, such as with a compiled forward pass."""

    facts: ModelFacts


@dataclass(frozen=True, slots=True)
class Refused:
    """A worker cannot serve its model. A new attempt would fail for the same reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Part:
    """Texts of one request in a batch, and the options of that request. trace: the name of the request in logs."""

    texts: Sequence[Text]
    options: EncodeOptions = EncodeOptions()  # noqa: RUF009
    spans: Sequence[Spans] | None = None
    trace: str | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts of any number of requests, merged for one worker."""

    batch_id: int
    parts: Sequence[Part]

    @property
    def traces(self) -> TraceNames:
        """The names of the requests, for logs."""
        return TraceNames.of(part.trace for part in self.parts)


@dataclass(frozen=True, slots=True)
class Vectors:
    """The vectors of a part, in the order of its texts.

    rows: (R, D), one row for each text, or counts[i] rows for text i. num_tokens: tokens that the model
    computed for each text, special tokens included. truncated: indices of the texts that were cut.
    errors: the texts that could not be encoded, if the option on_error is "null".
    """

    rows: Rows
    num_tokens: Sequence[int]
    truncated: Sequence[int] = ()
    counts: Sequence[int] | None = None
    tokens: Sequence[Sequence[str]] | None = None
    offsets: Sequence[Sequence[Sequence[int]] | None] | None = None
    errors: Sequence[TextError] = ()


@dataclass(frozen=True, slots=True)
class Rejected:
    """A part that cannot be encoded. index: the index of the wrong text; None: the options are wrong."""

    error: ServingError
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """The results of a batch, one for each part, in the order of the parts.

    tokenize_ms, compute_ms: duration of each stage. busy_share: which part of the worker's threads were busy with
    the batch while it was computed, on average. padding_tokens: the number of padding tokens that were computed in
    addition to the tokens of the texts.
    """

    batch_id: int
    part_results: Sequence[PartResult]
    tokenize_ms: float = 0.0
    compute_ms: float = 0.0
    busy_share: float = 1.0
    padding_tokens: int = 0

    @property
    def busy_ms(self) -> float:
        """The time that the batch would have taken with all threads of the worker."""
        return self.compute_ms * self.busy_share


@dataclass(frozen=True, slots=True)
class Failed:
    """The computation of a batch raised an exception. The worker continues with the next batch."""

    batch_id: int
    message: str


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A worker sends this message every second.

    forward_age_s: time since the last forward pass that succeeded. num_forwards: the number of micro-batches of
    batches since the worker became ready. device_bytes: the GPU memory that the worker has taken; None: no GPU.
    """

    forward_age_s: float
    num_forwards: int = 0
    device_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """The worker must end at once. The broker sends this message when it no longer waits for results."""


PartResult: TypeAlias = "Vectors | Rejected"
WorkerMessage: TypeAlias = Ready | Changed | Refused | Result | Failed | Heartbeat
BrokerMessage: TypeAlias = Batch | Stop

_KINDS: dict[bytes, type[Any]] = {
    cls.__name__.upper().encode(): cls for cls in (Ready, Changed, Refused, Result, Failed, Heartbeat, Batch, Stop)
}


def worker_message_to_frames(message: WorkerMessage | BrokerMessage) -> Frames:
    """Return `kind | header`, followed by one array for each part of a Result that has vectors."""
    kind = type(message).__name__.upper().encode()
    header = {name: getattr(message, name) for name in message.__slots__}
    arrays: Frames = []
    if isinstance(message, Batch):
        header["parts"] = [_part_to_json(part) for part in message.parts]
    elif isinstance(message, Result):
        header["part_results"] = [_part_result_to_json(part_result) for part_result in message.part_results]
        arrays = [
            array_frame(part_result.rows)
            for part_result in message.part_results
            if isinstance(part_result, Vectors)
        ]
    elif isinstance(message, (Ready, Changed)):
        header["facts"] = asdict(message.facts)
    return [kind, dump_json(header), *arrays]


def worker_message_from_frames(frames: Sequence[Frame]) -> WorkerMessage | BrokerMessage:
    """Return the message in the frames.

    Both processes belong to the same server, so unreadable frames are a bug, and the exception may be of any type.
    """
    cls = _KINDS[bytes(frames[0])]
    header = load_json(frames[1])
    if cls is Batch:
        header["parts"] = [_part_from_json(part) for part in header["parts"]]
    elif cls is Result:
        arrays = iter(frames[2:])
        header["part_results"] = [
            _part_result_from_json(part_result, arrays) for part_result in header["part_results"]
        ]
    elif cls in (Ready, Changed):
        header["facts"] = ModelFacts(**header["facts"])
    message: WorkerMessage | BrokerMessage = cls(**header)
    return message


def _part_to_json(part: Part) -> JsonObject:
    value: JsonObject = {"texts": part.texts}
    if options := options_to_json(part.options):
        value["options"] = options
    for name in ("spans", "trace"):
        if (of_part := getattr(part, name)) is not None:
            value[name] = of_part
    return value


def _part_from_json(value: JsonObject) -> Part:
    options = known_options(value.get("options"))
    return Part(value["texts"], options, value.get("spans"), value.get("trace"))


def _part_result_to_json(part_result: PartResult) -> dict[str, Any]:
    if isinstance(part_result, Rejected):
        return {"error": part_result.error.to_info(), "index": part_result.index}
    names = ("num_tokens", "truncated", "counts", "tokens", "offsets", "errors")
    value = {name: getattr(part_result, name) for name in names if getattr(part_result, name)}
    return {"array": array_info(part_result.rows), **value}


def _part_result_from_json(value: JsonObject, arrays: Iterator[Frame]) -> PartResult:
    if "error" in value:
        return Rejected(error_from_info(value["error"]), value["index"])
    rows = array_from_frame(value.pop("array"), next(arrays))
    return Vectors(rows=rows, **value)
