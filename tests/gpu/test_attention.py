"""On a GPU, attention gives a sequence the same output, bit for bit, alone and in any company."""

from __future__ import annotations

import pytest
import torch
from bert_serving.server.worker import attention
from bert_serving.server.worker.packing import groups_of
from torch import Tensor

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

HEADS, WIDTH = 12, 32


def attended(parts: list[Tensor], window: int | None) -> list[Tensor]:
    """Return the attention output of sequences that lie in one packed row. parts: (3, T, N, D) each."""
    lengths = [part.shape[1] for part in parts]
    groups = groups_of(lengths)
    ends = torch.from_numpy(attention.cumulative_lengths(groups)).cuda()
    query, key, value = torch.cat(parts, dim=1).transpose(1, 2)[:, None]  # (1, N, T, D) each
    with attention.packed_row(attention.PackedRow(groups, None, ends)):
        output, _ = attention.packed_attention(torch.nn.Module(), query, key, value, None, sliding_window=window)
    return list(output[0].split(lengths))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 64])
def test_a_sequence_has_the_same_output_alone_and_in_company(dtype: torch.dtype, window: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = [2048, 512, 300, *[37] * 50, 5, 1]
    parts = [torch.randn(3, n, HEADS, WIDTH, generator=generator).to("cuda", dtype) for n in lengths]
    together = attended(parts, window)
    for i in (0, 1, 2, 3, 52, 53, 54):
        (alone,) = attended([parts[i]], window)
        assert torch.equal(alone, together[i]), f"a sequence of {lengths[i]} tokens"
