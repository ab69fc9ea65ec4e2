"""Shorter sequences are padded to the length of the longest one."""

from __future__ import annotations

import numpy as np
from bert_serving.server.worker.attention import pad


def test_shorter_sequences_are_padded_with_the_padding_id() -> None:
    ids, _ = pad([[101, 7, 102], [101, 102]], pad_id=9)
    assert ids.tolist() == [[101, 7, 102], [101, 102, 9]]


def test_mask_is_one_for_real_tokens_only() -> None:
    _, mask = pad([[101, 102], [101, 7, 102], [5]], pad_id=0)
    assert mask.tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]


def test_real_token_with_the_padding_id_is_not_masked() -> None:
    _, mask = pad([[101, 0, 102], [101, 102]], pad_id=0)
    assert mask.tolist() == [[1, 1, 1], [1, 1, 0]]


def test_ids_and_mask_are_int64() -> None:
    assert {array.dtype for array in pad([[1]], pad_id=0)} == {np.dtype(np.int64)}
