"""Number formats and containers of vectors, compared with NumPy and sentence-transformers."""

from __future__ import annotations

import asyncio
import base64
import io
from typing import Any

import numpy as np
import pytest
from bert_serving.server.gateway.errors import Unprocessable
from bert_serving.server.gateway.output import binary_response, container_for, convert, encoded
from bert_serving.server.number_formats import Dtype
from sentence_transformers.util import quantize_embeddings
from starlette.datastructures import Headers

ROWS = np.random.default_rng(0).standard_normal((50, 384)).astype(np.float32)


@pytest.mark.parametrize("dtype", ["binary", "ubinary"])
@pytest.mark.parametrize("width", [384, 8, 5, 1])
def test_bits_are_those_of_sentence_transformers(dtype: Dtype, width: int) -> None:
    rows = np.concatenate([ROWS[:, :width], np.zeros((1, width), np.float32)])
    expected = quantize_embeddings(rows, dtype)
    found = convert(rows, dtype)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30, 1e-44])
def test_int8_keeps_the_direction_of_a_vector_of_any_length(scale: float) -> None:
    rows = (ROWS * scale).astype(np.float32)
    found = convert(rows, "int8").astype(np.float64)
    exact = rows.astype(np.float64)
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(exact, axis=1)
    cosines = (found * exact).sum(axis=1) / norms
    # The smallest values are subnormal: they have few significant digits.
    assert cosines.min() >= (0.999 if scale > 1e-40 else 0.99)
    assert (np.abs(found).max(axis=1) == 127).all()


def test_uint8_is_int8_plus_128_and_zeros_stay_zeros() -> None:
    signed, unsigned = convert(ROWS, "int8"), convert(ROWS, "uint8")
    assert (signed.dtype, unsigned.dtype) == (np.int8, np.uint8)
    np.testing.assert_array_equal(unsigned.astype(int) - 128, signed)
    zeros = np.zeros((2, 4), np.float32)
    assert convert(zeros, "int8").tolist() == zeros.tolist()
    assert (convert(zeros, "uint8") == 128).all()


def test_floats_are_converted_as_by_numpy_and_values_too_large_for_float16_are_refused() -> None:
    np.testing.assert_array_equal(convert(ROWS, "float32"), ROWS)
    np.testing.assert_array_equal(convert(ROWS, "float16"), ROWS.astype(np.float16))
    assert convert(ROWS.astype(np.float16), None).dtype == np.float16
    assert convert(np.full((1, 1), 65504, np.float32), "float16").tolist() == [[65504]]
    with pytest.raises(Unprocessable, match="a component is too large for float16"):
        convert(np.full((1, 1), 65536, np.float32), "float16")
    assert convert(np.empty((0, 3), np.float32), "float16").shape == (0, 3)


def test_empty_and_three_dimensional_arrays_have_every_format() -> None:
    for dtype in ("float32", "float16", "int8", "uint8", "binary", "ubinary"):
        width = 2 if "binary" in dtype else 16
        assert convert(np.empty((0, 16), np.float32), dtype).shape == (0, width)
        tokens = convert(ROWS[:6, :16].reshape(2, 3, 16), dtype)
        np.testing.assert_array_equal(tokens.reshape(6, width), convert(ROWS[:6, :16], dtype))


def test_base64_is_little_endian_float32() -> None:
    rows = ROWS[:2].astype(">f4")
    found = encoded(convert(rows, "float32"), "base64")
    for text, row in zip(found, ROWS, strict=False):
        assert base64.b64decode(text) == row.astype("<f4").tobytes()
    assert encoded(convert(rows[0], "float32"), "base64") == found[0]
    assert encoded(ROWS, "float") is ROWS


def test_raw_has_dtype_and_shape_headers_and_npy_is_a_file_that_numpy_reads() -> None:
    vectors = convert(np.asfortranarray(ROWS), "float16")
    raw = binary_response(vectors, "raw", {"x-a": "b"})
    assert raw is not None
    found = {name: raw.headers[name] for name in ("x-a", "x-dtype", "x-shape", "content-type")}
    assert found == {
        "x-a": "b",
        "x-dtype": "float16",
        "x-shape": "50,384",
        "content-type": "application/octet-stream",
    }
    assert bytes(raw.body) == ROWS.astype("<f2").tobytes()
    npy = binary_response(vectors, "npy", {})
    assert npy is not None
    assert npy.headers["content-type"] == "application/x-npy"
    np.testing.assert_array_equal(np.load(io.BytesIO(bytes(npy.body))), vectors)
    assert binary_response(vectors, "float", {}) is binary_response(vectors, "base64", {}) is None


def test_the_body_has_precedence_over_the_accept_header() -> None:
    raw = Headers({"accept": "application/octet-stream"})
    assert container_for(raw, None) == "raw"
    assert container_for(raw, "base64") == "base64"
    assert container_for(Headers({"accept": "application/x-npy, */*"}), None) == "npy"
    assert container_for(Headers({"accept": "*/*"}), None) == container_for(Headers(), None) == "float"


@pytest.mark.parametrize(
    ("accept", "container"),
    [
        ("", "float"),
        ("*/*", "float"),
        ("application/json, application/octet-stream;q=0.1", "float"),
        ("application/json;q=0.1, application/octet-stream", "raw"),
        ("Application/X-NPY", "npy"),
        ("text/html, application/octet-stream;q=0", "float"),
        ("application/x-npy;q=high", "float"),
    ],
)
def test_the_weights_in_the_accept_header_are_respected(accept: str, container: str) -> None:
    assert container_for(Headers({"accept": accept}), None) == container


@pytest.mark.parametrize("num_rows", [0, 1, 5000])
def test_an_array_arrives_whole_in_one_piece_or_in_many(num_rows: int) -> None:
    rows = np.random.default_rng(0).standard_normal((num_rows, 384)).astype(np.float16)
    for container in ("raw", "npy"):
        sent: list[Any] = []

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        response = binary_response(rows, container, {"x-total-time": "1"})
        asyncio.run(response({"type": "http", "http_version": "1.1"}, None, send))
        body = b"".join(message["body"] for message in sent[1:])
        headers = dict(sent[0]["headers"])
        assert int(headers[b"content-length"]) == len(body)
        assert max(len(message["body"]) for message in sent[1:]) <= 1 << 20
        found = np.load(io.BytesIO(body)) if container == "npy" else np.frombuffer(body, "<f2").reshape(-1, 384)
        np.testing.assert_array_equal(found, rows)
