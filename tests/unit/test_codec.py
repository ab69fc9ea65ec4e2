"""The bytes of messages to and from bert-serving-client 1.10.0, our clients and the workers."""

from __future__ import annotations

import importlib.util
import json
import sys
from contextlib import suppress
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from bert_serving.protocol import (
    MAX_IDENTITY_BYTES,
    Command,
    CommandRequest,
    DeadlineExceeded,
    EncodeOptions,
    EncodeReply,
    EncodeRequest,
    ErrorReply,
    Frames,
    InfoReply,
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
    ServingError,
    TraceContext,
    Unauthorized,
    Unavailable,
    Usage,
    WorkerFailed,
    codec,
    encoding,
    reply_from_frames,
    reply_to_frames,
    request_from_frames,
    request_to_frames,
    sender_of,
    with_deadline,
)
from bert_serving.protocol.workers import (
    Batch,
    Failed,
    Heartbeat,
    ModelFacts,
    Part,
    Ready,
    Refused,
    Rejected,
    Result,
    Stop,
    Vectors,
    worker_message_from_frames,
    worker_message_to_frames,
)
from hypothesis import given
from hypothesis import strategies as st

IDENTITY = b"1f0c9f1e-8b8e-4d0e-9f43-0c2ab9a1f3aa"

WORDS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1)
TEXTS = (
    st.lists(WORDS, min_size=1)
    | st.lists(st.lists(WORDS, min_size=1), min_size=1)
    | st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=1), min_size=1)
    | st.lists(st.fixed_dictionaries({"text": WORDS, "text_pair": WORDS}), min_size=1)
)
OPTIONS = st.builds(
    EncodeOptions,
    pooling_strategy=st.none()
    | st.lists(st.sampled_from(["REDUCE_MEAN", "CLS_TOKEN"]), min_size=1, unique=True).map(tuple),
    pooling_layer=st.none() | st.lists(st.integers(-12, 11), min_size=1, unique=True).map(tuple),
    normalize=st.none() | st.booleans(),
    dimensions=st.none() | st.integers(1, 768),
    truncate=st.sampled_from(["right", "left", "error"]),
    long_text=st.sampled_from(["truncate", "chunk"]),
    prompt=st.none() | WORDS,
    pairs=st.booleans(),
    ragged=st.booleans(),
    show_tokens=st.booleans(),
    show_offsets=st.booleans(),
    show_usage=st.booleans(),
)
NAMES = st.none() | st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=128)
SHARES = st.none() | st.floats(0, 1, exclude_min=True)
NUMBERS = st.integers(0, 10**18).map(lambda n: b"%d" % n)
IDENTITIES = st.binary(min_size=1, max_size=MAX_IDENTITY_BYTES)


def plain(frames: Frames) -> list[bytes]:
    return [bytes(frame) for frame in frames]


def old_client_reads_vectors(frames: Frames) -> tuple[int, npt.NDArray[Any], Any]:
    """Read a reply with the steps of `_recv` and `_recv_ndarray` in bert-serving-client 1.10.0."""
    response = plain(frames)
    request_id = int(response[-1])
    arr_info, arr_val = json.loads(response[1]), response[2]
    rows = np.frombuffer(memoryview(arr_val), dtype=str(arr_info["dtype"]))
    return request_id, rows.reshape(arr_info["shape"]), arr_info.get("tokens", "")


# -- requests of the old client ------------------------------------------------------------------------


def test_request_of_the_old_client_is_read() -> None:
    frames = [IDENTITY, b'["First do it", "then do it right"]', b"1", b"2"]
    assert request_from_frames(frames) == EncodeRequest(IDENTITY, b"1", ["First do it", "then do it right"])


def test_escaped_text_of_the_old_client_is_read() -> None:
    request = request_from_frames([IDENTITY, b'["caf\\u00e9 \\ud83d\\ude00"]', b"12", b"1"])
    assert request == EncodeRequest(IDENTITY, b"12", ["café \N{GRINNING FACE}"])


def test_tokenized_request_of_the_old_client_is_read() -> None:
    request = request_from_frames([IDENTITY, b'[["First", "do", "it"], ["then"]]', b"3", b"2"])
    assert request == EncodeRequest(IDENTITY, b"3", [["First", "do", "it"], ["then"]])


@pytest.mark.parametrize("command", [Command.SHOW_CONFIG, Command.SHOW_STATUS])
def test_command_of_the_old_client_is_read(command: Command) -> None:
    request = request_from_frames([IDENTITY, command.value, b"1", b"0"])
    assert request == CommandRequest(IDENTITY, b"1", command)


def test_termination_from_the_old_command_is_read() -> None:
    request = request_from_frames([b"0", b"TERMINATION", b"0", b"0"])
    assert request == CommandRequest(b"0", b"0", Command.TERMINATION)


def test_termination_from_the_oldest_command_has_empty_number_frames() -> None:
    request = request_from_frames([b"0", b"TERMINATION", b"", b""])
    assert request == CommandRequest(b"0", b"", Command.TERMINATION)


def test_identity_is_opaque_bytes() -> None:
    identity = "ä#b@c".encode("latin-1")
    assert request_from_frames([identity, b'["a"]', b"1", b"1"]).identity == identity


def test_request_id_keeps_its_bytes() -> None:
    assert request_from_frames([IDENTITY, b'["a"]', b"007", b"1"]).request_id == b"007"


def test_frames_may_be_memoryviews() -> None:
    views = [memoryview(frame) for frame in (IDENTITY, b'["a"]', b"1", b"1")]
    assert request_from_frames(views) == EncodeRequest(IDENTITY, b"1", ["a"])


# -- requests of our clients ---------------------------------------------------------------------------


def test_request_without_options_is_a_list_as_from_the_old_client() -> None:
    frames = request_to_frames(EncodeRequest(IDENTITY, b"1", ["a", "b"]))
    assert plain(frames) == [IDENTITY, b'["a","b"]', b"1", b"2"]


def test_request_with_a_deadline_is_an_object() -> None:
    frames = request_to_frames(EncodeRequest(IDENTITY, b"1", ["a"], deadline_ms=250))
    assert plain(frames) == [IDENTITY, b'{"deadline_ms":250,"texts":["a"]}', b"1", b"1"]


@pytest.mark.parametrize("text", ["a", '{"deadline_ms":1'])
@pytest.mark.parametrize("deadline_ms", [None, 0, 250])
def test_a_deadline_can_be_replaced(text: str, deadline_ms: int | None) -> None:
    old, new = (
        request_to_frames(EncodeRequest(IDENTITY, b"1", [text], deadline_ms=each))
        for each in (deadline_ms, None if deadline_ms is None else 7)
    )
    assert with_deadline(old, 7) == new


def test_request_for_tokens_is_an_object_with_options() -> None:
    frames = request_to_frames(EncodeRequest(IDENTITY, b"1", ["a"], EncodeOptions(show_tokens=True)))
    assert plain(frames) == [IDENTITY, b'{"texts":["a"],"options":{"show_tokens":true}}', b"1", b"1"]


def test_request_with_every_field_is_read() -> None:
    body = b'{"texts": ["a"], "deadline_ms": 9, "options": {"show_tokens": true}, "spans": [[[0, 1]]]}'
    expected = EncodeRequest(IDENTITY, b"1", ["a"], EncodeOptions(show_tokens=True), 9, [[[0, 1]]])
    assert request_from_frames([IDENTITY, body, b"1", b"1"]) == expected


TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_the_span_of_the_caller_is_in_the_body_as_w3c_trace_context() -> None:
    request = EncodeRequest(IDENTITY, b"1", ["a"], trace_context=TraceContext(TRACEPARENT, "vendor=value"))
    frames = request_to_frames(request)
    assert frames[1] == b'{"texts":["a"],"traceparent":"%s","tracestate":"vendor=value"}' % TRACEPARENT.encode()
    assert request_from_frames(frames) == request
    assert request.trace_context is not None
    assert request.trace_context.trace_id == "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize(
    ("traceparent", "tracestate", "expected"),
    [
        (TRACEPARENT, None, TraceContext(TRACEPARENT)),
        (TRACEPARENT.replace("00-", "01-", 1) + "-more", None, TraceContext("01" + TRACEPARENT[2:] + "-more")),
        (TRACEPARENT, "x" * 513, TraceContext(TRACEPARENT)),
        (TRACEPARENT, "é", TraceContext(TRACEPARENT)),
        (TRACEPARENT, 7, TraceContext(TRACEPARENT)),
        (TRACEPARENT.upper(), "a=b", None),
        ("ff" + TRACEPARENT[2:], "a=b", None),
        (TRACEPARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32), None, None),
        (TRACEPARENT.replace("00f067aa0ba902b7", "0" * 16), None, None),
        (TRACEPARENT + "\n", None, None),
        (7, "a=b", None),
        (None, "a=b", None),
    ],
)
def test_what_is_no_trace_context_is_ignored(
    traceparent: object, tracestate: object, expected: TraceContext | None
) -> None:
    body = json.dumps({"texts": ["a"], "traceparent": traceparent, "tracestate": tracestate}).encode()
    request = request_from_frames([IDENTITY, body, b"1", b"1"])
    assert isinstance(request, EncodeRequest)
    assert request.trace_context == expected


def test_flow_and_trace_are_in_the_body() -> None:
    request = EncodeRequest(IDENTITY, b"1", ["a"], flow="key:alice", flow_share=0.5, trace="4bf92f35")
    frames = request_to_frames(request)
    assert frames[1] == b'{"texts":["a"],"flow":"key:alice","flow_share":0.5,"trace":"4bf92f35"}'
    assert request_from_frames(frames) == request


def test_cancel_names_the_request_by_its_id() -> None:
    frames = request_to_frames(CommandRequest(IDENTITY, b"4", Command.CANCEL))
    assert plain(frames) == [IDENTITY, b"CANCEL", b"4", b"0"]
    assert request_from_frames(frames) == CommandRequest(IDENTITY, b"4", Command.CANCEL)


def test_command_is_written_as_by_the_old_client() -> None:
    frames = request_to_frames(CommandRequest(IDENTITY, b"4", Command.SHOW_STATUS))
    assert plain(frames) == [IDENTITY, b"SHOW_STATUS", b"4", b"0"]


@given(
    st.builds(
        EncodeRequest,
        IDENTITIES,
        NUMBERS,
        TEXTS,
        OPTIONS,
        st.none() | st.integers(0, 2**53),
        flow=NAMES,
        flow_share=SHARES,
        trace=NAMES,
    )
    | st.builds(CommandRequest, IDENTITIES, NUMBERS, st.sampled_from(Command))
)
def test_every_request_survives_a_round_trip(request_: EncodeRequest | CommandRequest) -> None:
    assert request_from_frames(request_to_frames(request_)) == request_


# -- invalid requests ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "4 frames"),
        ([IDENTITY, b'["a"]', b"1"], "4 frames .* got 3"),
        ([IDENTITY, b'["a"]', b"1", b"1", b""], "4 frames .* got 5"),
        ([b"", b'["a"]', b"1", b"1"], "identity must have 1 to 255 bytes, got 0"),
        ([b"x" * 256, b'["a"]', b"1", b"1"], "identity must have 1 to 255 bytes, got 256"),
        ([IDENTITY, b'["a"]', b"", b"1"], "request id must be 1 to 20 decimal digits"),
        ([IDENTITY, b'["a"]', b"-1", b"1"], "request id must be 1 to 20 decimal digits"),
        ([IDENTITY, b'["a"]', b"1" * 21, b"1"], "request id must be 1 to 20 decimal digits"),
        ([IDENTITY, b"SHOW_CONFIG", b"one", b"0"], "request id must be 1 to 20 decimal digits"),
        ([IDENTITY, b'["a"]', b"1", b""], "number of texts must be 1 to 20 decimal digits"),
        ([IDENTITY, b'["a"]', b"1", "²".encode("latin-1")], "number of texts must be 1 to 20 decimal digits"),
        ([IDENTITY, b'["a"]', b"1", b"2"], "announces 2 texts but holds 1"),
        ([IDENTITY, b'["a","b"]', b"1", b"1"], "announces 1 texts but holds 2"),
        ([IDENTITY, b"GET / HTTP/1.1", b"1", b"1"], "not JSON"),
        ([IDENTITY, b"", b"1", b"0"], "not JSON"),
        ([IDENTITY, b"REGISTER", b"1", b"1"], "not JSON"),
        ([IDENTITY, b'["\xff"]', b"1", b"1"], "not JSON"),
        ([IDENTITY, b"[" * 100_000, b"1", b"1"], "not JSON"),
        ([IDENTITY, b"[" * 100_000 + b"]" * 100_000, b"1", b"1"], "not JSON"),
        ([IDENTITY, b"[]", b"1", b"0"], "texts must not be empty"),
        ([IDENTITY, b"1", b"1", b"1"], "texts must be a list of strings, got int"),
        ([IDENTITY, b'"a text"', b"1", b"1"], "texts must be a list of strings, got str"),
        ([IDENTITY, b"{}", b"1", b"1"], "texts must be a list of strings, got null"),
        ([IDENTITY, b'["a", 1]', b"1", b"2"], r"texts\[1\] must be a string, got int"),
        ([IDENTITY, b'["a", "\\u0000"]', b"1", b"2"], r"texts\[1\] contains a NUL"),
        ([IDENTITY, b'["a", "\\ud800"]', b"1", b"2"], r"texts\[1\] contains a lone surrogate"),
        ([IDENTITY, b'{"texts": ["a"], "x": NaN}', b"1", b"1"], "not JSON"),
        ([IDENTITY, b'{"texts": ["\\ud800"], "x": -Infinity}', b"1", b"1"], "-Infinity is not a JSON value"),
        (
            [IDENTITY, b"[[18446744073709551615]]", b"1", b"1"],
            r"texts\[0\] contains a number that is not a token id",
        ),
        ([IDENTITY, b"[[18446744073709551616]]", b"1", b"1"], r"texts\[0\]\[0\] must be a string, got float"),
        ([IDENTITY, b'{"texts":["\\ud800"],"x":' + b"9" * 5000 + b"}", b"1", b"1"], "not JSON"),
        (
            [IDENTITY, b'{"texts": [[4294967296]], "x": "\\ud800"}', b"1", b"1"],
            r"texts\[0\] contains a number that is not a token id",
        ),
        (
            [
                IDENTITY,
                b'{"texts": ["a"], "options": {"dimensions": 36893488147419103232}, "x": "\\ud800"}',
                b"1",
                b"1",
            ],
            "dimensions must be a whole number from 1",
        ),
        (
            [
                IDENTITY,
                b'{"texts": ["a"], "options": {"pooling_layer": 36893488147419103232}, "x": "\\ud800"}',
                b"1",
                b"1",
            ],
            "pooling_layer must be the number of a layer",
        ),
        (
            [IDENTITY, b'{"texts": ["a"], "spans": [[[0, 36893488147419103232]]], "x": "\\ud800"}', b"1", b"1"],
            r"spans\[0\] must hold",
        ),
        ([IDENTITY, b'{"texts": ["a"], "options": [1]}', b"1", b"1"], "options must be a JSON object"),
        ([IDENTITY, b'{"texts": ["a"], "options": {"pool": 1}}', b"1", b"1"], "unknown option 'pool'"),
        ([IDENTITY, b'{"texts": ["a"], "deadline_ms": -1}', b"1", b"1"], "deadline_ms must be"),
        ([IDENTITY, b'{"texts": ["a"], "deadline_ms": 1.5}', b"1", b"1"], "deadline_ms must be"),
        ([IDENTITY, b'{"texts": ["a"], "deadline_ms": true}', b"1", b"1"], "deadline_ms must be"),
        ([IDENTITY, b'{"texts": ["a"], "deadline_ms": "5"}', b"1", b"1"], "deadline_ms must be"),
        ([IDENTITY, b'{"texts": ["a"], "flow": 7}', b"1", b"1"], "flow must be a string of 1 to 128 .* got 7"),
        ([IDENTITY, b'{"texts": ["a"], "flow": ""}', b"1", b"1"], "flow must be a string of 1 to 128"),
        ([IDENTITY, b'{"texts": ["a"], "trace": "a\\n"}', b"1", b"1"], "trace must be .* printable"),
        ([IDENTITY, b'{"texts": ["a"], "trace": "%s"}' % (b"x" * 129), b"1", b"1"], "trace must be"),
        ([IDENTITY, b'{"texts": ["a"], "flow_share": 0}', b"1", b"1"], "flow_share must be .* got 0"),
        ([IDENTITY, b'{"texts": ["a"], "flow_share": 1.1}', b"1", b"1"], "flow_share must be"),
        ([IDENTITY, b'{"texts": ["a"], "flow_share": true}', b"1", b"1"], "flow_share must be"),
        (
            [IDENTITY, b'{"texts": ["a"], "flow_share": NaN}', b"1", b"1"],
            "NaN is not a JSON value|the body is not JSON",
        ),
    ],
)
def test_invalid_request_frames_are_refused_with_what_was_expected(frames: list[bytes], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        request_from_frames(frames)


def test_huge_deadline_is_refused() -> None:
    body = b'{"texts": ["a"], "deadline_ms": 1' + b"0" * 400 + b"}"
    with pytest.raises(InvalidRequest, match="number is infinity"):
        request_from_frames([IDENTITY, body, b"1", b"1"])


@given(st.lists(st.binary(max_size=40) | st.sampled_from([b"1", b'["a"]', b"{}", IDENTITY]), max_size=6))
def test_any_bytes_are_read_or_raise_invalid_request(frames: list[bytes]) -> None:
    with suppress(InvalidRequest):
        request_from_frames(frames)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["texts", "options", "deadline_ms", "show_tokens", "x"]), inner)
    ),
)


@given(JSON)
def test_any_json_is_read_or_raises_invalid_request(value: Any) -> None:
    body = json.dumps(value).encode()
    try:
        request = request_from_frames([IDENTITY, body, b"1", b"1"])
    except InvalidRequest as error:
        reply_to_frames(ErrorReply(IDENTITY, b"1", error))
    else:
        assert len(request.texts) == 1  # type: ignore[union-attr]


# -- the sender of bad frames --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "sender"),
    [
        ([IDENTITY, b"nonsense", b"7", b"1"], (IDENTITY, b"7")),
        ([IDENTITY, b'["a"]', b"7"], (IDENTITY, b"7")),
        ([IDENTITY, b'["a"]'], (IDENTITY, b"0")),
        ([IDENTITY, b'["a"]', b"seven", b"1"], (IDENTITY, b"0")),
        ([IDENTITY], None),
        ([], None),
        ([b"", b'["a"]', b"7", b"1"], None),
        ([b"x" * 256, b'["a"]', b"7", b"1"], None),
    ],
)
def test_sender_of_bad_frames_is_found_if_possible(
    frames: list[bytes], sender: tuple[bytes, bytes] | None
) -> None:
    assert sender_of(frames) == sender


# -- replies to the old client -------------------------------------------------------------------------


def test_vectors_are_written_as_the_old_client_reads_them() -> None:
    rows = np.array([[1.0, -2.0], [0.5, 0.0]], np.float32)
    assert plain(reply_to_frames(EncodeReply(IDENTITY, b"7", rows))) == [
        IDENTITY,
        b'{"dtype":"float32","shape":[2,2],"tokens":""}',
        b"\x00\x00\x80\x3f\x00\x00\x00\xc0\x00\x00\x00\x3f\x00\x00\x00\x00",
        b"7",
    ]


def test_tokens_and_truncated_rows_are_in_the_array_info() -> None:
    rows = np.zeros((1, 1), np.float16)
    frames = reply_to_frames(EncodeReply(IDENTITY, b"7", rows, [["[CLS]", "a", "[SEP]"]], [0]))
    assert plain(frames)[1:3] == [
        b'{"dtype":"float16","shape":[1,1],"tokens":[["[CLS]","a","[SEP]"]],"truncated":[0]}',
        b"\x00\x00",
    ]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_old_client_reads_the_vectors(dtype: str) -> None:
    rows = np.arange(12).reshape(4, 3).astype(dtype)
    request_id, read, tokens = old_client_reads_vectors(reply_to_frames(EncodeReply(IDENTITY, b"7", rows)))
    assert (request_id, tokens) == (7, "")
    assert read.dtype == dtype
    assert read.tolist() == rows.tolist()


def test_old_client_reads_the_tokens() -> None:
    frames = reply_to_frames(EncodeReply(IDENTITY, b"7", np.zeros((1, 1), np.float32), [["a", "b"]]))
    assert old_client_reads_vectors(frames)[2] == [["a", "b"]]


def test_info_reply_has_three_frames() -> None:
    frames = reply_to_frames(InfoReply(IDENTITY, b"7", {"server_version": "1.10.0", "max_seq_len": None}))
    assert plain(frames) == [IDENTITY, b'{"server_version":"1.10.0","max_seq_len":null}', b"7"]


def test_error_reply_is_written_so_that_numpy_refuses_its_dtype() -> None:
    assert plain(reply_to_frames(ErrorReply(IDENTITY, b"7", InvalidRequest("no, not that")))) == [
        IDENTITY,
        b'{"dtype":"invalid_request: no; not that","shape":[0],"tokens":"",'
        b'"error":{"code":"invalid_request","message":"no, not that"}}',
        b"",
        b"7",
    ]


ERROR_CLASSES = [
    ServingError,
    InvalidRequest,
    Unauthorized,
    PayloadTooLarge,
    Overloaded,
    WorkerFailed,
    Unavailable,
    DeadlineExceeded,
]


@pytest.mark.parametrize("cls", ERROR_CLASSES)
def test_old_client_raises_type_error_with_the_message(cls: type[ServingError]) -> None:
    frames = reply_to_frames(ErrorReply(IDENTITY, b"7", cls("texts[3] is an empty string")))
    with pytest.raises(TypeError, match=r"texts\[3\] is an empty string"):
        old_client_reads_vectors(frames)


@given(st.sampled_from(ERROR_CLASSES), st.text(st.characters(blacklist_categories=["Cs"])))
def test_old_client_raises_type_error_for_any_message(cls: type[ServingError], message: str) -> None:
    frames = reply_to_frames(ErrorReply(IDENTITY, b"7", cls(message)))
    with pytest.raises(TypeError) as caught:
        old_client_reads_vectors(frames)
    assert repr(f"{cls.code}: {message}".replace(",", ";")) in str(caught.value)


# -- replies to our clients ----------------------------------------------------------------------------


@given(
    cls=st.sampled_from(ERROR_CLASSES),
    message=st.text(st.characters(blacklist_categories=["Cs"])),
    retry_after_ms=st.none() | st.integers(0, 10**6),
)
def test_every_error_survives_a_round_trip(
    cls: type[ServingError], message: str, retry_after_ms: int | None
) -> None:
    error = cls(message, retry_after_ms=retry_after_ms)
    reply = reply_from_frames(reply_to_frames(ErrorReply(IDENTITY, b"7", error)))
    assert isinstance(reply, ErrorReply)
    assert (reply.identity, reply.request_id) == (IDENTITY, b"7")
    assert (type(reply.error), reply.error.message) == (cls, message)
    assert reply.error.retry_after_ms == retry_after_ms


@st.composite
def arrays(draw: st.DrawFn) -> npt.NDArray[Any]:
    """Return any two-dimensional float array, in either byte order, contiguous or not."""
    shape = draw(st.tuples(st.integers(0, 5), st.integers(0, 5)))
    dtype = draw(st.sampled_from(["<f4", "<f2", ">f4", ">f2", "<f8"]))
    size = shape[0] * shape[1]
    values = draw(st.lists(st.floats(width=16), min_size=size, max_size=size))
    rows = np.array(values, dtype).reshape(shape)
    return draw(st.sampled_from([rows, rows.T, rows[::2], np.asfortranarray(rows)]))


@given(
    rows=arrays(),
    tokens=st.none() | st.lists(st.lists(WORDS), min_size=1),
    truncated=st.lists(st.integers(0, 100)),
    request_id=NUMBERS,
    identity=IDENTITIES,
    usage=st.none() | st.builds(Usage, st.lists(st.integers(0, 512)), *[st.floats(0, 1e6)] * 4),
)
def test_every_encode_reply_survives_a_round_trip(
    rows: npt.NDArray[Any],
    tokens: list[list[str]] | None,
    truncated: list[int],
    request_id: bytes,
    identity: bytes,
    usage: Usage | None,
) -> None:
    frames = plain(reply_to_frames(EncodeReply(identity, request_id, rows, tokens, truncated, usage=usage)))
    reply = reply_from_frames(frames)
    assert isinstance(reply, EncodeReply)
    assert (reply.identity, reply.request_id) == (identity, request_id)
    assert (reply.tokens, list(reply.truncated), reply.usage) == (tokens, truncated, usage)
    assert reply.rows.dtype == rows.dtype.newbyteorder("<")
    np.testing.assert_array_equal(reply.rows, rows)


def test_info_reply_survives_a_round_trip() -> None:
    reply = InfoReply(IDENTITY, b"7", {"a": [1, None, "é"]})
    assert reply_from_frames(reply_to_frames(reply)) == reply


def test_reply_of_the_original_server_is_read() -> None:
    info = b'{"dtype": "float32", "shape": [1, 1], "tokens": ""}'
    reply = reply_from_frames([IDENTITY, info, b"\x00\x00\x80\x3f", b"3"])
    assert isinstance(reply, EncodeReply)
    assert (reply.request_id, reply.rows.tolist(), reply.tokens) == (b"3", [[1.0]], None)


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [IDENTITY, b"1"],
        [IDENTITY, b"{}", b"", b"", b"1"],
        [IDENTITY, b"no JSON", b"1"],
        [IDENTITY, b"no JSON", b"", b"1"],
        [IDENTITY, b"[]", b"", b"1"],
        [IDENTITY, b"{}", b"", b"1"],
        [IDENTITY, b'{"dtype":"float32","shape":[2]}', b"\0\0\0\0", b"1"],
        [IDENTITY, b'{"dtype":"float32","shape":[1]}', b"\0\0\0", b"1"],
        [IDENTITY, b'{"dtype":"no number","shape":[1]}', b"", b"1"],
    ],
)
def test_invalid_reply_frames_raise_value_error(frames: list[bytes]) -> None:
    with pytest.raises(ValueError, match=r"."):
        reply_from_frames(frames)


# -- broker and workers --------------------------------------------------------------------------------

ROWS = np.array([[1.0], [2.0]], np.float32)


@pytest.mark.parametrize(
    ("message", "frames"),
    [
        (
            Ready(
                ModelFacts(
                    pid=7,
                    fingerprint="00ff",
                    device="cpu",
                    dtype="float32",
                    dimension=384,
                    hidden_size=384,
                    kind="embedding",
                    poolings=["REDUCE_MEAN"],
                    splits_specials=False,
                    prompts={"query": "query: "},
                    labels=[],
                    max_seq_len=512,
                    forward="packed",
                    parity=0.99999,
                    tokens_per_s=9.5,
                    max_batch_tokens=16384,
                )
            ),
            [
                b"READY",
                b'{"facts":{"pid":7,"fingerprint":"00ff","device":"cpu","dtype":"float32","dimension":384,'
                b'"hidden_size":384,"kind":"embedding",'
                b'"poolings":["REDUCE_MEAN"],"splits_specials":false,"prompts":{"query":"query: "},"labels":[],'
                b'"max_seq_len":512,"forward":"packed","parity":0.99999,"tokens_per_s":9.5,'
                b'"max_batch_tokens":16384}}',
            ],
        ),
        (Refused("no GPU"), [b"REFUSED", b'{"reason":"no GPU"}']),
        (
            Batch(5, [Part(["a"]), Part(["b"], EncodeOptions(normalize=True), [[[0, 1]]], "t7")]),
            [
                b"BATCH",
                b'{"batch_id":5,"parts":[{"texts":["a"]},'
                b'{"texts":["b"],"options":{"normalize":true},"spans":[[[0,1]]],"trace":"t7"}]}',
            ],
        ),
        (Failed(5, "boom"), [b"FAILED", b'{"batch_id":5,"message":"boom"}']),
        (Heartbeat(1.5, 7), [b"HEARTBEAT", b'{"forward_age_s":1.5,"num_forwards":7,"device_bytes":null}']),
        (Stop(), [b"STOP", b"{}"]),
    ],
)
def test_worker_message_begins_with_its_kind_and_header(message: Any, frames: list[bytes]) -> None:
    assert plain(worker_message_to_frames(message)) == frames
    assert worker_message_from_frames(frames) == message


def test_result_has_an_array_frame_for_each_computed_part() -> None:
    rejected = Rejected(InvalidRequest("too long"), 3)
    result = Result(5, [Vectors(ROWS, [3, 4], [1]), rejected, Vectors(ROWS[:1], [2])], 0.5, 2.0)
    assert plain(worker_message_to_frames(result)) == [
        b"RESULT",
        b'{"batch_id":5,"part_results":['
        b'{"array":{"dtype":"float32","shape":[2,1]},"num_tokens":[3,4],"truncated":[1]},'
        b'{"error":{"code":"invalid_request","message":"too long"},"index":3},'
        b'{"array":{"dtype":"float32","shape":[1,1]},"num_tokens":[2]}],'
        b'"tokenize_ms":0.5,"compute_ms":2.0,"busy_share":1.0,"padding_tokens":0}',
        b"\x00\x00\x80\x3f\x00\x00\x00\x40",
        b"\x00\x00\x80\x3f",
    ]


def test_a_rejected_part_survives_a_round_trip() -> None:
    frames = worker_message_to_frames(Result(1, [Rejected(WorkerFailed("no number"), None)]))
    result = worker_message_from_frames(frames)
    assert isinstance(result, Result)
    (rejected,) = result.part_results
    assert isinstance(rejected, Rejected)
    assert (type(rejected.error), str(rejected.error), rejected.index) == (WorkerFailed, "no number", None)


@given(
    rows=arrays(),
    num_tokens=st.lists(st.integers(0, 512), min_size=1),
    tokens=st.none() | st.lists(st.lists(WORDS), min_size=1),
    truncated=st.lists(st.integers(0, 100)),
    counts=st.none() | st.lists(st.integers(0, 9), min_size=1),
    offsets=st.none() | st.lists(st.none() | st.lists(st.lists(st.integers(0, 9))), min_size=1),
)
def test_every_vector_survives_a_round_trip(
    rows: npt.NDArray[Any],
    num_tokens: list[int],
    tokens: list[list[str]] | None,
    truncated: list[int],
    counts: list[int] | None,
    offsets: list[list[list[int]] | None] | None,
) -> None:
    sent = Vectors(rows, num_tokens, truncated, counts, tokens, offsets)
    frames = worker_message_to_frames(Result(9, [sent], 0.25, 1.5))
    result = worker_message_from_frames([memoryview(bytes(frame)) for frame in frames])
    assert isinstance(result, Result)
    (vectors,) = result.part_results
    assert isinstance(vectors, Vectors)
    np.testing.assert_array_equal(vectors.rows, rows)
    assert (result.batch_id, result.tokenize_ms, result.compute_ms) == (9, 0.25, 1.5)
    assert (vectors.num_tokens, list(vectors.truncated)) == (num_tokens, truncated)
    assert (vectors.counts, vectors.tokens, vectors.offsets) == (counts, tokens, offsets)


@given(st.builds(Batch, st.integers(0, 2**53), st.lists(st.builds(Part, TEXTS, OPTIONS))))
def test_every_batch_survives_a_round_trip(batch: Batch) -> None:
    assert worker_message_from_frames(worker_message_to_frames(batch)) == batch


# -- a client without orjson ---------------------------------------------------------------------------


@pytest.fixture
def codec_without_orjson(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the codec module, imported as if orjson were not installed."""
    monkeypatch.setitem(sys.modules, "orjson", None)
    monkeypatch.setitem(sys.modules, encoding.__name__, imported_again(encoding))
    return imported_again(codec)


def imported_again(module: ModuleType) -> ModuleType:
    """Import a module a second time, with the current sys.modules; return the new copy."""
    assert module.__file__ is not None
    spec = importlib.util.spec_from_file_location(f"{module.__name__}_again", module.__file__)
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy


def test_server_reads_what_a_client_without_orjson_writes(codec_without_orjson: ModuleType) -> None:
    request = EncodeRequest(IDENTITY, b"1", ["café", "\N{GRINNING FACE}"], EncodeOptions(show_tokens=True), 250)
    assert request_from_frames(codec_without_orjson.request_to_frames(request)) == request


def test_client_without_orjson_escapes_as_the_old_client_does(codec_without_orjson: ModuleType) -> None:
    frames = codec_without_orjson.request_to_frames(EncodeRequest(IDENTITY, b"1", ["café"]))
    assert frames == [IDENTITY, b'["caf\\u00e9"]', b"1", b"1"]


def test_client_without_orjson_reads_what_the_server_writes(codec_without_orjson: ModuleType) -> None:
    frames = reply_to_frames(EncodeReply(IDENTITY, b"7", ROWS, [["é"], ["b"]], [1]))
    reply = codec_without_orjson.reply_from_frames([memoryview(bytes(frame)) for frame in frames])
    assert (reply.rows.tolist(), reply.tokens, reply.truncated) == ([[1.0], [2.0]], [["é"], ["b"]], [1])
