"""Rows that are filled up for CUDA graphs give the vectors of the rows as they are.

There is no GPU: the passes are computed again instead of replayed, on the CPU, with a plain attention in place of
the kernel for packed rows. tests/gpu has the same with graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from bert_serving.server.worker import attention, cuda_graphs
from bert_serving.server.worker.cuda_graphs import NotRecorded
from bert_serving.server.worker.encoder import Encoder
from bert_serving.server.worker.transfers import Array, packed
from torch import Tensor

from tests.support.fake_cuda import EagerRecorder, without_recording
from tests.support.tiny_models import make_model


def varlen(
    q: Tensor, k: Tensor, v: Tensor, row: attention.PackedRow, scaling: float | None, window: int | None
) -> Tensor:
    """Compute what the kernel computes. Tokens of no sequence get NaN, which must not reach the others."""
    output = torch.full_like(q, float("nan"))
    assert row.cu_seqlens is not None
    longest = max(group.length for group in row.groups)
    for start, stop in pairwise(row.cu_seqlens.tolist()):
        assert 0 <= stop - start <= longest
        part = slice(start, stop)
        mask = attention._window_mask(stop - start, window, q.device)
        each = (x[part].transpose(0, 1).float()[None] for x in (q, k, v))
        attended = torch.nn.functional.scaled_dot_product_attention(*each, attn_mask=mask, scale=scaling)
        output[part] = attended[0].transpose(0, 1)
    return output


def moved_together(arrays: Sequence[Array], device: torch.device) -> Tensor:
    return torch.from_numpy(packed(arrays))


@pytest.fixture
def no_gpu() -> Iterator[None]:
    with (
        without_recording(),
        mock.patch.object(attention, "_varlen", varlen),
        mock.patch.object(cuda_graphs, "moved_together", moved_together),
    ):
        yield


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert"])
def test_a_filled_row_gives_the_same_vectors(tmp_path: Path, family: str, no_gpu: None) -> None:
    plain = Encoder(make_model(tmp_path, family), device="cpu", dtype="float32", compile="off", pooling_layer=[-1])
    graphs = Encoder(plain._spec.model_dir, device="cpu", dtype="float32", compile="off", pooling_layer=[-1])
    loaded = graphs._loaded
    loaded.transformer._execution = replace(loaded.transformer._execution, has_varlen=True)
    transformer = loaded.transformer.with_graphs(loaded.check.layers, longest=loaded.max_seq_len, max_tokens=4096)
    graphs._loaded = replace(loaded, transformer=transformer)
    recorded = transformer._graphs
    assert recorded is not None
    with mock.patch.object(recorded, "run", wraps=recorded.run) as run:
        for count in (1, 2, 4, 5, 13, 100, 500, 600):
            texts = ["a", "one two ||| three", *["the quick brown fox"] * count][:count]
            assert np.abs(graphs.encode(texts) - plain.encode(texts)).max() <= 1e-5
        used = [call.args[0] for call in run.call_args_list]
    assert {16, 32, 128, 768, 3072} <= set(used)
    assert graphs.forward_kind == "cuda-graphs"


def test_the_size_follows_tokens_sequences_and_layers(no_gpu: None) -> None:
    graphs = cuda_graphs.CudaGraphs(
        lambda inputs, row: {5: inputs["input_ids"][0][:, None].float()},
        torch.device("cpu"),
        frozenset({5}),
        longest=512,
        max_tokens=3000,
        takes_types=False,
    )
    top = frozenset({5})
    assert graphs.sizes[-1] == 2048, "the largest that fits into max_tokens"
    found = [graphs.size_for(num_tokens, 1, top) for num_tokens in (1, 16, 17, 2048, 2049)]
    assert found == [16, 16, 32, 2048, None]
    assert graphs.size_for(20, 9, top) == 64, "a graph of 32 tokens has room for 8 sequences"
    assert graphs.size_for(300, 128, top) == 512
    assert graphs.size_for(300, 129, top) is None
    assert graphs.size_for(10, 1, frozenset({4, 5})) is None


def graphs_recorded_by(record: Callable[[], cuda_graphs.Recording]) -> cuda_graphs.CudaGraphs:
    with mock.patch.object(EagerRecorder, "record", side_effect=lambda run: record()):
        return cuda_graphs.CudaGraphs(
            lambda inputs, row: {}, torch.device("cpu"), frozenset(), longest=512, max_tokens=512, takes_types=True
        )


@pytest.mark.parametrize(("first_s", "sizes"), [(0.2, [16, 32, 64]), (0.6, [16])])
def test_no_pass_is_recorded_that_is_not_faster(no_gpu: None, first_s: float, sizes: list[int]) -> None:
    seconds = iter(first_s * 2**i for i in range(20))
    assert graphs_recorded_by(lambda: recording(next(seconds))).sizes == sizes


def test_a_slow_gpu_has_no_graphs(no_gpu: None) -> None:
    with pytest.raises(NotRecorded, match="no faster"):
        graphs_recorded_by(lambda: recording(2.0))


def test_graphs_end_where_the_memory_does(no_gpu: None, caplog: pytest.LogCaptureFixture) -> None:
    recordings = iter([recording(0.5), recording(0.5)])

    def record() -> cuda_graphs.Recording:
        for each in recordings:
            return each
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert graphs_recorded_by(record).sizes == [16, 32]
    assert "no GPU memory for more CUDA graphs than 2" in caplog.text


def recording(replay_s: float) -> cuda_graphs.Recording:
    return cuda_graphs.Recording(lambda: None, {}, start_s=1.0, replay_s=replay_s)


def test_only_packed_passes_in_half_precision_are_recorded(tmp_path: Path) -> None:
    encoder = Encoder(make_model(tmp_path, "bert"), device="cpu", compile="off")
    with pytest.raises(NotRecorded, match="half precision"):
        encoder._loaded.transformer.with_graphs(frozenset({2}), longest=512, max_tokens=512)
