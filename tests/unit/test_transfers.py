"""Arrays that travel together arrive with their values, shapes and dtypes."""

from __future__ import annotations

import numpy as np
import torch
from bert_serving.server.worker.transfers import packed, to_device, to_host, unpacked
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

SHAPES = arrays.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=9)
ARRAYS = st.one_of(
    [arrays.arrays(dtype, SHAPES) for dtype in (np.int64, np.int32, np.bool_)]
    + [arrays.arrays(np.float32, SHAPES, elements=st.floats(width=32, allow_nan=False))]
)


@given(st.lists(ARRAYS, min_size=1, max_size=6))
def test_packed_arrays_are_unpacked_as_they_were(originals: list[np.ndarray]) -> None:
    assume(any(array.size for array in originals))
    tensors = unpacked(torch.from_numpy(packed(originals)), [torch.from_numpy(array) for array in originals])
    for original, tensor in zip(originals, tensors, strict=True):
        array = tensor.numpy()
        assert (array.dtype, array.shape) == (original.dtype, original.shape)
        assert np.array_equal(array, original)


def test_on_the_cpu_nothing_is_copied() -> None:
    array, cpu = np.arange(3), torch.device("cpu")
    tensors = to_device([array], cpu)
    array[0] = 7
    assert tensors[0].tolist() == [7, 1, 2]
    (back,) = to_host(tensors, cpu)
    assert np.shares_memory(back, array)
