"""Encoders that tests share, because loading and checking a model takes longer than most tests."""

from __future__ import annotations

from pathlib import Path

from bert_serving.server.worker.encoder import Encoder

_loaded: dict[str, Encoder] = {}


def shared_encoder(folder: Path, **options: object) -> Encoder:
    """Return an Encoder with these options, loaded once in each process.

    Tests must not change the encoder or its folder.
    """
    key = repr((folder, sorted(options.items())))
    if key not in _loaded:
        _loaded[key] = Encoder(folder, **options)  # type: ignore[arg-type]
    return _loaded[key]
