"""A worker writes its tokenizer for the gateways, and serves without it if the disk is full."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from bert_serving.server.worker.encoder import Encoder
from bert_serving.server.worker.worker import save_tokenizer
from tokenizers import Tokenizer

from tests.support.tiny_models import make_model


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = make_model(tmp_path_factory.mktemp("bert"), "bert")
    return Encoder(folder, device="cpu", dtype="float32", pooling_layer=[-1])


def test_the_tokenizer_is_written_once_for_all_workers_with_a_model(encoder: Encoder, tmp_path: Path) -> None:
    save_tokenizer(encoder, tmp_path)
    [path] = tmp_path.iterdir()
    assert path.name == f"tokenizer-{encoder.fingerprint}.json"
    assert Tokenizer.from_file(str(path)).encode("the dog").tokens == ["<s>", "the", "dog", "</s>"]
    written = path.stat().st_mtime_ns, path.stat().st_ino
    save_tokenizer(encoder, tmp_path)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == written


def test_a_worker_whose_disk_is_full_serves_without_a_tokenizer_file(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def write_half(path: Path, text: str, **_: object) -> int:
        path.write_bytes(text[: len(text) // 2].encode())
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write_half)
    save_tokenizer(encoder, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert "cannot write the tokenizer" in caplog.text
