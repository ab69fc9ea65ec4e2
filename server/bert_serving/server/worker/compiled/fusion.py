"""Replaces parts of a traced graph by operators that compute them in one step.

What is replaced is recognized by the operations of the graph, not by the names of layers, so it is the same for
every family: a linear layer, with GELU after it, or with a residual and layer normalization; and the feed-forward
block of a layer. Linear layers that read the same input become one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from . import operators
from .packed_weights import LinearParts, to_dtype

_aten = torch.ops.aten
_MULTIPLE = 16  # the operators need whole vectors
_NORM_DEFAULTS = (None, None, None, None, 1e-5)  # of aten.layer_norm's first arguments
_OPERATORS = {operators.operation(name) for name in operators.NAMES}
_OF_SHAPE = {
    *(_aten.view.default, _aten.reshape.default, _aten.transpose.int, _aten.permute.default, _aten.unbind.int),
    *(_aten.split.Tensor, _aten.split_with_sizes.default, _aten.contiguous.default, getitem),
}


class FusedLinear(NamedTuple):
    """A linear layer of the fused graph, or several that read the same input.

    weight: (N, K). bias: (N,). first: the name of its (first) weight in the module.
    """

    weight: Tensor
    bias: Tensor
    first: str


@dataclass(frozen=True, slots=True)
class _Layer:
    """A linear layer in the graph."""

    node: Node
    name: str
    weight: Tensor
    bias: Tensor

    @property
    def x(self) -> Node:
        """Its input, which changes when what comes before it is replaced."""
        x = self.node.args[0]
        assert isinstance(x, Node)
        return x

    @classmethod
    def of(cls, node: object) -> _Layer | None:
        """Return the linear layer that a node computes; None if it computes something else."""
        if not isinstance(node, Node) or node.target is not _aten.linear.default:
            return None
        found = _weight_and_bias(node)
        if found is None or any(size % _MULTIPLE for size in found[0].shape):
            return None
        weight: Any = node.args[1]
        return cls(node, str(weight.target), *found)


def fuse(module: GraphModule, dtype: torch.dtype) -> dict[str, FusedLinear]:
    """Replace what can be replaced in the graph of a module; return the linear layers that were replaced, by name.

    dtype: `operators.product_dtype()`. Their products are in this dtype until `store` changes this. Float32 stays
    between the operators. Linear layers whose sizes the operators cannot compute are in the same dtype.
    """
    return _Fusion(module, dtype).run()


def store(module: GraphModule, name: str, parts: LinearParts) -> None:
    """Let a linear layer of a fused module compute with other parts."""
    for kind, tensor in parts._asdict().items():
        module.register_buffer(_buffer(name, kind), tensor)


def linear_input(node: Node) -> tuple[str, Node] | None:
    """Return the name and the input of the linear layer that a node of a traced graph computes, or None."""
    layer = _Layer.of(node)
    return None if layer is None else (layer.name, layer.x)


class _Fusion:
    def __init__(self, module: GraphModule, dtype: torch.dtype) -> None:
        self._module = module
        self._dtype = dtype
        self._graph = module.graph
        self._linears: dict[str, FusedLinear] = {}
        operators.define()

    def run(self) -> dict[str, FusedLinear]:
        for node in list(self._graph.nodes):
            if node.target is _aten.dropout.default:  # the model is not in training
                node.replace_all_uses_with(node.args[0])
                self._graph.erase_node(node)
            elif node.target is _aten._assert_tensor_metadata.default:  # a dtype may change
                self._graph.erase_node(node)
        self._graph.eliminate_dead_code()
        for node in list(self._graph.nodes):
            if node.target is _aten.layer_norm.default:
                self._fuse_norm(node)
        self._graph.eliminate_dead_code()  # what was replaced must not be replaced again
        for node in list(self._graph.nodes):
            if node.target is _aten.gelu.default and self._is_exact_gelu(node):
                self._fuse_gelu(node)
        self._graph.eliminate_dead_code()
        self._fuse_others()
        self._cast_rest()
        self._graph.eliminate_dead_code()
        self._module.recompile()
        return self._linears

    def _fuse_norm(self, norm: Node) -> None:
        """Replace norm(linear(x) + residual), and norm(linear(gelu(linear(x))) + x)."""
        given: tuple[Any, ...] = norm.args
        added, shape, weight, bias, epsilon = (*given, *_NORM_DEFAULTS[len(given) :])[:5]
        if added.target is not _aten.add.Tensor or len(added.users) > 1 or added.kwargs or len(added.args) != 2:
            return
        if None in (weight, bias) or len(shape) != 1:
            return
        for i in (0, 1):
            last, residual = _Layer.of(added.args[i]), added.args[1 - i]
            if last is None or len(last.node.users) > 1 or _shape(residual) != _shape(last.node):
                continue
            first = self._up(last)
            with self._graph.inserting_before(norm):
                exact: Any = self._graph.call_function(_aten.to.dtype, (residual, torch.float32))
                rest = (weight, bias, epsilon)
                if first is not None and first.x is residual:
                    inputs = (exact, self._parts(first), self._parts(last))
                    new = self._graph.call_function(torch.ops.bert_serving.feed_forward.default, (*inputs, *rest))
                else:
                    others = (last.x, self._parts(last), exact)
                    new = self._graph.call_function(
                        torch.ops.bert_serving.product_and_norm.default, (*others, *rest)
                    )
            new.meta["val"] = norm.meta["val"]
            norm.replace_all_uses_with(new)
            self._erase(norm, added, last.node)
            return

    def _up(self, last: _Layer) -> _Layer | None:
        """Return the first of two linear layers with GELU between them; None if `last` is not the second."""
        gelu = last.x
        if gelu.target is not _aten.gelu.default or not self._is_exact_gelu(gelu) or len(gelu.users) > 1:
            return None
        first = _Layer.of(gelu.args[0])
        return first if first is not None and len(first.node.users) == 1 else None

    def _fuse_gelu(self, gelu: Node) -> None:
        layer = _Layer.of(gelu.args[0])
        if layer is not None and len(layer.node.users) == 1:
            self._replace(gelu, layer, gelu=True)

    def _fuse_others(self) -> None:
        layers = [layer for node in self._graph.nodes if (layer := _Layer.of(node)) is not None]
        of_input: dict[Node, list[_Layer]] = {}
        for layer in layers:
            of_input.setdefault(layer.x, []).append(layer)
        for siblings in of_input.values():
            if len(siblings) == 1:
                self._replace(siblings[0].node, siblings[0], gelu=False)
                continue
            with self._graph.inserting_before(siblings[0].node):
                whole = self._product(siblings, gelu=False)
                sizes = [len(layer.weight) for layer in siblings]
                pieces = self._graph.call_function(_aten.split_with_sizes.default, (whole, sizes, -1))
                picked = [self._graph.call_function(getitem, (pieces, i)) for i in range(len(sizes))]
            for layer, piece in zip(siblings, picked, strict=True):
                self._take_place(layer.node, piece)

    def _replace(self, node: Node, layer: _Layer, *, gelu: bool) -> None:
        with self._graph.inserting_before(node):
            self._take_place(node, self._product([layer], gelu=gelu))

    def _take_place(self, node: Node, new: Node) -> None:
        """Let a new node, in the dtype of products, take the place of a node in float32."""
        if self._dtype is not torch.float32 and not _takes_any_dtype(node):
            with self._graph.inserting_after(new):
                new = self._graph.call_function(_aten.to.dtype, (new, torch.float32))
        new.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(new)
        self._erase(node)

    def _cast_rest(self) -> None:
        """Let linear layers that no operator has replaced compute in the dtype of products."""
        if self._dtype is torch.float32:
            return
        for node in list(self._graph.nodes):
            if node.target is not _aten.linear.default or (found := _weight_and_bias(node)) is None:
                continue
            x: Any = node.args[0]
            with self._graph.inserting_before(node):
                constants = []
                for kind, tensor in zip(("weight", "bias"), found, strict=True):
                    name = _buffer(node.name, kind)
                    self._module.register_buffer(name, tensor.to(self._dtype))
                    constants.append(self._graph.get_attr(name))
                rounded = self._graph.call_function(_aten.to.dtype, (x, self._dtype))
                self._take_place(node, self._graph.call_function(_aten.linear.default, (rounded, *constants)))

    def _product(self, layers: Sequence[_Layer], *, gelu: bool) -> Node:
        arguments = (layers[0].x, self._parts(*layers), gelu)
        return self._graph.call_function(torch.ops.bert_serving.product.default, arguments)

    def _parts(self, *layers: _Layer) -> list[Node]:
        """Store the parts of a linear layer, or of several side by side, in the module; return their nodes."""
        name = " ".join(
            f"{layer.name} {layer.node.args[2:]}" for layer in layers
        )  # weights may be shared by layers
        weight, bias = (torch.cat([getattr(layer, field) for layer in layers]) for field in ("weight", "bias"))
        self._linears[name] = FusedLinear(weight, bias, layers[0].name)
        store(self._module, name, to_dtype(weight, bias, self._dtype))
        return [self._graph.get_attr(_buffer(name, kind)) for kind in LinearParts._fields]

    def _erase(self, *nodes: Node) -> None:
        for node in nodes:
            if not node.users:
                self._graph.erase_node(node)

    @staticmethod
    def _is_exact_gelu(node: Node) -> bool:
        return node.kwargs.get("approximate", "none") == "none"


def _buffer(name: str, kind: str) -> str:
    return re.sub(r"\W+", "_", f"{name} {kind}")


def _weight_and_bias(linear: Node) -> tuple[Tensor, Tensor] | None:
    """Return the constants of a linear layer, in float32; None if the graph computes them."""
    _, weight, *rest = linear.args
    matrix = _constant(linear.graph.owning_module, weight)
    if matrix is None:
        return None
    if not rest or rest[0] is None:
        return matrix, torch.zeros(len(matrix))
    bias = _constant(linear.graph.owning_module, rest[0])
    return None if bias is None else (matrix, bias)


def _constant(module: GraphModule | None, node: object) -> Tensor | None:
    if not isinstance(node, Node) or node.op != "get_attr":
        return None
    value: object = module
    for name in str(node.target).split("."):
        value = getattr(value, name)
    return value.detach().float() if isinstance(value, Tensor) else None


def _shape(node: object) -> object:
    """Return the shape of a node's value; None if it is unknown."""
    return getattr(node.meta.get("val"), "shape", None) if isinstance(node, Node) else None


def _takes_any_dtype(node: Node) -> bool:
    """Whether all that reads a node's value accepts it in bfloat16, too, maybe after its shape was changed."""
    return all(
        user.target in _OPERATORS or (user.target in _OF_SHAPE and _takes_any_dtype(user)) for user in node.users
    )
