"""What is recognized in a traced graph is replaced by an operator; everything else computes as before."""

from __future__ import annotations

from operator import attrgetter

import pytest
import torch
from bert_serving.server.worker.compiled import operators
from bert_serving.server.worker.compiled.fusion import fuse
from torch import Tensor, nn
from torch.nn import functional

pytestmark = [
    pytest.mark.usefixtures("code_of_operators"),
    pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="needs a processor with AVX-512 VNNI"),
]
WIDTH = 64


class Parts(nn.Module):
    """The parts that the modules of this file are made of."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm, self.other_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.vector = nn.Parameter(torch.randn(width))
        self.conv = nn.Conv1d(width, width, 3, padding=1)


class FeedForward(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.down(functional.gelu(self.up(x))) + x)


class ResidualFirst(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.a(x))


class TwoUsersOfTheInput(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.down(functional.gelu(self.up(x))) + x) + self.a(x)


class VectorAsResidual(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.a(x) + self.vector)


class ScaledResidual(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.add(x, self.a(x), alpha=0.5))


class ApproximateGelu(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.down(functional.gelu(self.up(x), approximate="tanh")) + x)


class LinearTwice(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.a(self.norm(self.a(x) + x)) + x)


class ComputedWeight(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(functional.linear(x, self.a.weight * 2, self.a.bias) + x)


class ConvolutionAfterwards(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.a(x).transpose(1, 2)).transpose(1, 2) * self.b(x)


class SiblingsOfOtherKinds(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.a(x)) * self.b(x) + functional.gelu(self.up(x))[..., : x.shape[-1]]


CASES = [
    (FeedForward, {"feed_forward"}),
    (ResidualFirst, {"product_and_norm"}),
    (TwoUsersOfTheInput, {"feed_forward", "product"}),
    (VectorAsResidual, {"product"}),
    (ScaledResidual, {"product"}),
    (ApproximateGelu, {"product", "product_and_norm"}),
    (LinearTwice, {"product_and_norm"}),
    (ComputedWeight, set()),
    (ConvolutionAfterwards, {"product"}),
    (SiblingsOfOtherKinds, {"product"}),
]


def check(module: nn.Module, width: int) -> set[str]:
    """Compare a module before and after the fusion; return which operators it has then."""
    x = torch.randn(1, 40, width)
    with torch.no_grad():
        expected = module(x)
        fused = torch.export.export(module, (x,)).module(check_guards=False)
        fuse(fused, operators.product_dtype())
        again = torch.export.export(fused, (x,))
        found = again.module()(x)
    assert found.dtype is torch.float32
    assert functional.cosine_similarity(found, expected, dim=-1).min() >= 0.9995
    assert ((found - expected).norm() / expected.norm()) <= 0.02
    return {str(n.target).split(".")[1] for n in again.graph.nodes if str(n.target).startswith("bert_serving.")}


@pytest.mark.parametrize(("kind", "operations"), CASES)
def test_a_fused_module_computes_the_same(kind: type[Parts], operations: set[str]) -> None:
    assert check(kind(), WIDTH) == operations


@pytest.mark.parametrize("kind", [FeedForward, SiblingsOfOtherKinds])
def test_sizes_that_no_operator_computes_are_in_the_same_dtype(kind: type[Parts]) -> None:
    module = kind(60)
    assert check(module, 60) == set()
    x = torch.randn(1, 40, 60)
    fused = torch.export.export(module, (x,)).module(check_guards=False)
    dtype = operators.product_dtype()
    fuse(fused, dtype)
    targets = [node for node in fused.graph.nodes if node.target is torch.ops.aten.linear.default]
    assert targets
    assert all(attrgetter(str(node.args[1].target))(fused).dtype is dtype for node in targets)
