"""Products of packed weights give what float32 gives, apart from the rounding of their numbers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from bert_serving.server.worker.compiled import operators
from bert_serving.server.worker.compiled.packed_weights import LinearParts, to_dtype, to_int8
from torch import Tensor
from torch.nn import functional

pytestmark = [
    pytest.mark.usefixtures("code_of_operators"),
    pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="needs a processor with AVX-512 VNNI"),
]
ROWS = [1, 15, 16, 31, 33, 64, 65, 200, 600]
SIZES = [(48, 208), (64, 64), (384, 1536)]
EPSILON = 1e-5


def integers(weight: Tensor, bias: Tensor) -> LinearParts:
    return to_int8(weight, bias, torch.full(weight.shape[1:], 3.0), 0.5)


def numbers(weight: Tensor, bias: Tensor) -> LinearParts:
    """Return a linear layer in bfloat16, or in float32 if the processor has no bfloat16."""
    dtype = operators.product_dtype()
    assert dtype is not None
    return to_dtype(weight, bias, dtype)


KINDS: dict[str, Callable[[Tensor, Tensor], LinearParts]] = {"numbers": numbers, "int8": integers}


def largest_deviation(kind: str, *, gelu: bool) -> float:
    """Return the largest deviation that rounding explains, and in float32 the operators' GELU."""
    if kind == "int8":
        return 3e-2
    if operators.product_dtype() is torch.bfloat16:
        return 8e-3
    return 2e-4 if gelu else 1e-5


def linear(inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    return torch.randn(outputs, inputs) / inputs**0.5, torch.randn(outputs)


def deviation(found: Tensor, expected: Tensor) -> float:
    """Return the largest deviation in a row, relative to the row's length."""
    return float(((found.float() - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


def check(kind: str, rows: int, width: int, inner: int) -> None:
    torch.manual_seed(rows)
    parts, dtype = KINDS[kind], operators.product_dtype()
    ops = torch.ops.bert_serving
    x, residual = torch.randn(rows, width), torch.randn(rows, width)
    up, down, out = linear(width, inner), linear(inner, width), linear(width, width)
    norm = (torch.randn(width), torch.randn(width))
    for given in (x, x.to(dtype)):
        for gelu in (False, True):
            expected = functional.linear(x, *up)
            found = ops.product(given, list(parts(*up)), gelu)
            assert found.dtype is dtype
            limit = largest_deviation(kind, gelu=gelu)
            assert deviation(found, functional.gelu(expected) if gelu else expected) <= limit
        found = ops.product_and_norm(given, list(parts(*out)), residual, *norm, EPSILON)
        expected = functional.layer_norm(functional.linear(x, *out) + residual, (width,), *norm, EPSILON)
        assert deviation(found, expected) <= largest_deviation(kind, gelu=False)
    found = ops.feed_forward(x, list(parts(*up)), list(parts(*down)), *norm, EPSILON)
    expected = functional.layer_norm(
        functional.linear(functional.gelu(functional.linear(x, *up)), *down) + x, (width,), *norm, EPSILON
    )
    assert deviation(found, expected) <= largest_deviation(kind, gelu=True)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_products(kind: str, num_threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        for rows in ROWS:
            for sizes in SIZES:
                check(kind, rows, *sizes)
    finally:
        torch.set_num_threads(before)


OWN_DTYPE = torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32
EMULATED_TILES = Path(__file__).parents[1] / "support/emulated_tiles.h"
_AS_ON_OTHERS = """
import sys
from pathlib import Path
import torch
from bert_serving.server.worker.compiled import operators
from tests.model.test_compiled import test_attention_within_each_sequence
from tests.model.test_products import KINDS, ROWS, SIZES, check
operators.may_use_tiles = lambda: True  # the flags decide
operators.build(operators.find_compiler(), Path(sys.argv[1]), *sys.argv[2:])
operators.use(Path(sys.argv[1]))
for kind in KINDS:
    for rows in ROWS:
        for sizes in SIZES:
            check(kind, rows, *sizes)
for window in (None, 5, 64):
    for width in (20, 32, 64):
        test_attention_within_each_sequence(None, window, width, torch.bfloat16)
print("right", operators._loaded[0].uses_tiles(), operators.product_dtype())
"""


@pytest.mark.parametrize(
    ("flags", "runs"),
    [
        (["-include", str(EMULATED_TILES)], "1 torch.bfloat16"),
        (["-DBERT_SERVING_NO_AMX"], f"0 {OWN_DTYPE}"),
        (["-DBERT_SERVING_NO_AMX", "-DBERT_SERVING_NO_BFLOAT16"], "0 torch.float32"),
    ],
    ids=["tiles", "bfloat16", "neither"],
)
def test_what_other_processors_run(flags: list[str], runs: str, tmp_path: Path) -> None:
    # In a process of its own, because a process can load the operators only once.
    command = [sys.executable, "-c", _AS_ON_OTHERS, str(tmp_path / "operators.so"), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == f"right {runs}\n", done.stderr


@pytest.mark.parametrize("may", [True, False])
def test_tiles_need_permission(may: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "may_use_tiles", lambda: may)
    monkeypatch.setattr(subprocess, "run", compile_ := Mock())
    operators.build("g++", tmp_path / "operators.so")
    compiled, linked = compile_.call_args_list[:-1], compile_.call_args_list[-1]
    assert len(compiled) == len([source for source in operators.SOURCES if source.suffix == ".cpp"])
    assert all(("-DBERT_SERVING_NO_AMX" in call.args[0]) is not may for call in compiled)
    assert "-shared" in linked.args[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_its_company(kind: str) -> None:
    parts = KINDS[kind]
    up, down = linear(64, 208), linear(208, 64)
    norm = (torch.randn(64), torch.randn(64))
    x = torch.randn(300, 64)
    x[7] *= 1000
    arguments = (list(parts(*up)), list(parts(*down)), *norm, EPSILON)
    together = torch.ops.bert_serving.feed_forward(x, *arguments)
    for i in (0, 6, 7, 150, 299):
        alone = torch.ops.bert_serving.feed_forward(x[i : i + 1].clone(), *arguments)
        assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_stays_visible(kind: str, number: float) -> None:
    parts = KINDS[kind]
    up, down = linear(64, 208), linear(208, 64)
    x = torch.randn(40, 64)
    x[9, 3] = number
    y = torch.ops.bert_serving.feed_forward(x, list(parts(*up)), list(parts(*down)), down[1], down[1], EPSILON)
    finite = y.isfinite().all(-1)
    assert not finite[9]
    assert finite.sum() == 39
