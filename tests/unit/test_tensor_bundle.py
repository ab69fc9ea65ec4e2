"""Reading TensorFlow's checkpoints: valid ones that TensorFlow wrote, damaged ones, and invalid ones."""

from __future__ import annotations

import hashlib
import json
import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from bert_serving.server.model.errors import ModelError
from bert_serving.server.model.tensorflow.tensor_bundle import TensorBundle
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.tensor_bundles import (
    GOOGLE_BERT,
    block,
    entry,
    header,
    message,
    number,
    table,
    trailed,
    varint,
    write_bundle,
)

EXPECTED: dict[str, dict[str, Any]] = json.loads((GOOGLE_BERT / "expected.json").read_text())
UNREAD = ("float64", "sliced", "string")
TYPES = {name: what for name, what in EXPECTED["types.ckpt"].items() if name not in UNREAD}


def digest(value: np.ndarray, dtype: str) -> str:
    raw = (value.view("<u4") >> 16).astype("<u2") if dtype == "bfloat16" else value
    return hashlib.sha256(raw.tobytes()).hexdigest()


@pytest.fixture
def types(tmp_path: Path) -> Path:
    """Return a copy of the checkpoint with tensors of all types. Tests may damage the copy."""
    for file in GOOGLE_BERT.glob("types.ckpt.*"):
        shutil.copy(file, tmp_path)
    return tmp_path / "types.ckpt"


def index_of(prefix: Path) -> Path:
    return Path(f"{prefix}.index")


def read_all(prefix: Path) -> None:
    """Read all tensors. The only error allowed is a ModelError with one line that names the file."""
    try:
        bundle = TensorBundle(prefix)
        for name in bundle.names:
            bundle.read(name)
    except ModelError as exc:
        error = str(exc)
    else:
        return
    assert "\n" not in error
    assert str(prefix) in error


# -- checkpoints written by TensorFlow -----------------------------------------------------------------


@pytest.mark.parametrize("name", EXPECTED)
def test_values_equal_those_that_tensorflow_reads(name: str) -> None:
    bundle = TensorBundle(GOOGLE_BERT / name)
    assert bundle.names == sorted(EXPECTED[name])
    for tensor, what in EXPECTED[name].items():
        assert bundle.shape(tensor) == tuple(what["shape"])
        if tensor in UNREAD:
            continue
        value = bundle.read(tensor)
        assert value.shape == tuple(what["shape"])
        assert value.dtype.name == what["dtype"].replace("bfloat16", "float32")
        assert digest(value, what["dtype"]) == what["sha256"]


def test_values_equal_those_that_were_written_to_the_fixture() -> None:
    bundle = TensorBundle(GOOGLE_BERT / "types.ckpt")
    assert bundle.read("bfloat16").tolist() == [1.5, float(np.float32(-3.00405527e38)), 0.0078125]
    assert bundle.read("float32").tolist() == [[1.5, -2.25], [np.inf, float(np.float32(1e-40))]]
    assert bundle.read("int64").tolist() == [-(2**63), 2**63 - 1]
    assert bundle.read("scalar").shape == ()


@pytest.mark.parametrize(
    ("name", "said"), [("float64", "is float64"), ("string", "is string"), ("sliced", "is saved in slices")]
)
def test_unsupported_tensors_raise_an_error_with_the_reason(name: str, said: str) -> None:
    with pytest.raises(ModelError, match=rf"types\.ckpt\.data-0000\d-of-00004: {name} {said}"):
        TensorBundle(GOOGLE_BERT / "types.ckpt").read(name)


def error_of(prefix: Path, name: str) -> str | None:
    """Read a tensor; return the error, or None. If there is no error, check the value."""
    try:
        value = TensorBundle(prefix).read(name)
    except ModelError as exc:
        return str(exc)
    assert digest(value, TYPES[name]["dtype"]) == TYPES[name]["sha256"]
    return None


# -- damaged files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_a_changed_byte_of_the_index_is_an_error_or_changes_nothing(types: Path, flip: int) -> None:
    content = index_of(types).read_bytes()
    num_errors = 0
    for i in range(len(content)):
        index_of(types).write_bytes(content[:i] + bytes([content[i] ^ flip]) + content[i + 1 :])
        try:
            bundle = TensorBundle(types)
            found = {name: digest(bundle.read(name), what["dtype"]) for name, what in TYPES.items()}
        except ModelError:
            num_errors += 1
        else:
            assert found == {name: what["sha256"] for name, what in TYPES.items()}
    assert num_errors >= len(content) - 61  # changes to an empty block or parts of the footer have no effect


def test_a_changed_byte_of_a_tensor_is_an_error_that_names_it(types: Path) -> None:
    for shard in types.parent.glob("*.data-*"):
        content = shard.read_bytes()
        for i in range(len(content)):
            shard.write_bytes(content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :])
            errors = [error for name in TYPES if (error := error_of(types, name)) is not None]
            assert len(errors) <= 1  # none if the byte belongs to a tensor that is not read
            assert all(str(shard) in error and "has a wrong checksum" in error for error in errors)
        shard.write_bytes(content)


def test_a_truncated_index_is_an_error(types: Path) -> None:
    content = index_of(types).read_bytes()
    for size in range(len(content)):
        index_of(types).write_bytes(content[:size])
        with pytest.raises(ModelError, match=r"types\.ckpt\.index"):
            TensorBundle(types)


def test_a_truncated_or_missing_shard_is_an_error(types: Path) -> None:
    shard = Path(f"{types}.data-00001-of-00004")
    shard.write_bytes(shard.read_bytes()[:5])
    with pytest.raises(ModelError, match="float32 should end at byte 16, but the file has 5"):
        TensorBundle(types).read("float32")
    shard.unlink()
    with pytest.raises(ModelError, match=rf"cannot read {shard}: No such file"):
        TensorBundle(types).read("float32")


def test_a_missing_index_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.index: No such file"):
        TensorBundle(tmp_path / "none")


# -- invalid content with valid checksums --------------------------------------------------------------

FLOAT = entry(1, [1], 0, 0, 4, 0)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        (table([[(b"", header())]], compression=1), r"compressed \(type 1\)"),
        (table([[(b"", header(endianness=1))]]), "big-endian"),
        (table([[(b"", header(min_consumer=2))]]), "its version is 2"),
        (table([[(b"", header(-1))]]), "files must not be negative"),
        (table([[(b"a", FLOAT)]]), "no header"),
        (table([]), "no header"),
        (table([[(b"", header()), (b"b", FLOAT), (b"a", FLOAT)]]), "not in order"),
        (table([[(b"", header())], [(b"", header())]]), "not in order"),
        (table([[(b"", header())]] * 2, overlap=True), "blocks overlap"),
        (table([[(b"", header()), (b"\xff", FLOAT)]]), "is not valid UTF-8"),
        (table([[(b"", header()), (b"a" * 2000, FLOAT)]]), "name is too long"),
        (table([[(b"", header()), (b"a", entry(1, [-1], 0, 0, 4, 0))]]), "size in a shape must not be negative"),
        (table([[(b"", header()), (b"a", entry(1, [1 << 40] * 2, 0, 0, 4, 0))]]), "shape is too large"),
        (table([[(b"", header()), (b"a", entry(1, [0, 1 << 60], 0, 0, 0, 0))]]), "shape is too large"),
        (table([[(b"", header()), (b"a", entry(1, [1] * 99, 0, 0, 4, 0))]]), "shape is too large"),
        (table([[(b"", header()), (b"a", message(2, number(3, 1)))]]), "has no shape"),
        (table([[(b"", header()), (b"a", entry(1, [1], 0, 0, -4, 0))]]), "size must not be negative"),
        (table([[(b"", header()), (b"a", entry(1, [1], 0, -4, 4, 0))]]), "offset must not be negative"),
        (table([[(b"", header()), (b"a", entry(1, [1], -1, 0, 4, 0))]]), "file must not be negative"),
        (table([[(b"", header()), (b"a", message(1, b""))]]), "a field must be a number, got bytes"),
        (table([[(b"", header()), (b"a", number(2, 1))]]), "a field must be a message, got a number"),
        (table([[(b"", header()), (b"a", b"\x0b")]]), "unknown kind 3"),
        (table([[(b"", header()), (b"a", b"\x08" + b"\xff" * 11)]]), "has no end"),
        (table([[(b"", header()), (b"a", b"\x12\x7f")]]), "outside"),
        (table([[(b"", header()), *((b"%06d" % i, b"") for i in range(100_001))]]), "100000 tensors"),
        (bytes((16 << 20) + 1), "may have at most 16777216 bytes"),
    ],
)
def test_an_invalid_index_raises_an_error_with_the_reason(tmp_path: Path, index: bytes, said: str) -> None:
    index_of(tmp_path / "x").write_bytes(index)
    with pytest.raises(ModelError, match=said):
        TensorBundle(tmp_path / "x")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (entry(1, [1 << 50], 0, 0, 1 << 52, 0), "should end at byte 4503599627370496, but the file has 4"),
        (entry(1, [1], 0, 1 << 62, 4, 0), "should end at byte"),
        (entry(1, [2], 0, 0, 4, 0), r"has 4 bytes, but shape \(2,\) needs 4 for each number"),
        (entry(1, [1], 1, 0, 4, 0), "refers to number 1"),
        (entry(99, [1], 0, 0, 4, 0), "of type 99"),
        (entry(1, [1], 0, 0, 4, 7), "has a wrong checksum"),
    ],
)
def test_an_invalid_entry_raises_an_error_with_the_reason(tmp_path: Path, wrong: bytes, said: str) -> None:
    prefix = write_bundle(tmp_path / "x", {"a": np.ones(1, np.float32)})
    index_of(prefix).write_bytes(table([[(b"", header()), (b"a", wrong)]]))
    with pytest.raises(ModelError, match=said):
        TensorBundle(prefix).read("a")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with TemporaryDirectory() as name:
        yield Path(name)


@given(
    tensors=st.dictionaries(
        st.text(min_size=1, max_size=40).filter(lambda name: name[0] != "\0" and name.isprintable()),
        st.integers(0, 7),
        max_size=12,
    ),
    num_cuts=st.integers(0, 5),
)
def test_names_are_read_from_any_number_of_blocks(folder: Path, tensors: dict[str, int], num_cuts: int) -> None:
    entries = [(b"", header())]
    entries += sorted((name.encode(), entry(1, [size], 0, 0, 4 * size, 0)) for name, size in tensors.items())
    size = max(1, len(entries) // (num_cuts + 1))
    blocks = [entries[i : i + size] for i in range(0, len(entries), size)]
    index_of(folder / "x").write_bytes(table(blocks))
    bundle = TensorBundle(folder / "x")
    assert {name: bundle.shape(name) for name in bundle.names} == {name: (n,) for name, n in tensors.items()}


ANY_NUMBER = st.one_of(
    st.integers(-3, 20), st.sampled_from([1 << 31, 1 << 40, 1 << 62, (1 << 63) - 1, -(1 << 63)])
)


@given(ANY_NUMBER, st.lists(ANY_NUMBER, max_size=4), ANY_NUMBER, ANY_NUMBER, ANY_NUMBER, ANY_NUMBER)
@example(1, [1 << 40], 0, 0, 1 << 42, 1)
def test_any_numbers_are_read_or_raise_an_error_without_taking_memory(
    folder: Path, dtype: int, shape: list[int], shard: int, offset: int, size: int, num_shards: int
) -> None:
    prefix = write_bundle(folder / "numbers", {"a": np.arange(9, dtype=np.float32)})
    index_of(prefix).write_bytes(
        table([[(b"", header(num_shards)), (b"a", entry(dtype, shape, shard, offset, size, 0))]])
    )
    tracemalloc.start()
    read_all(prefix)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


@given(st.binary(max_size=60), st.sampled_from(["value", "header", "block", "index"]))
def test_any_bytes_with_a_valid_checksum_are_read_or_raise_an_error(folder: Path, junk: bytes, where: str) -> None:
    if where == "value":
        content = table([[(b"", header()), (b"a", junk)]])
    elif where == "header":
        content = table([[(b"", junk)]])
    else:
        good = block([(b"", header()), (b"a", FLOAT)])
        first = trailed(junk if where == "block" else good, 0)
        list_of_blocks = junk if where == "index" else block([(b"a", varint(0) + varint(len(first) - 5))])
        footer = varint(0) * 2 + varint(len(first)) + varint(len(list_of_blocks))
        content = first + trailed(list_of_blocks, 0) + footer.ljust(40, b"\0") + table([])[-8:]
    index_of(folder / "junk").write_bytes(content)
    read_all(folder / "junk")


@given(st.data())
def test_a_checkpoint_with_any_damage_is_read_or_raises_an_error(folder: Path, data: st.DataObject) -> None:
    for file in GOOGLE_BERT.glob("bert_model.ckpt.*"):
        content = bytearray(file.read_bytes())
        for _ in range(data.draw(st.integers(0, 3))):
            at = data.draw(st.integers(0, len(content) - 1))
            content[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
        (folder / file.name).write_bytes(content)
    read_all(folder / "bert_model.ckpt")
