"""Chooses which linear layers of a fused graph compute in 8-bit integers.

The largest numbers in the input of each layer are found with texts of several languages and lengths. Then the
layers that harm the vectors least, for the work that they save, become integers, as many as keep the vectors of
all these texts close enough to those in float32. The others stay in the dtype of the fused graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from bert_serving.protocol import EncodeOptions
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from ..loading import LoadedModel
from ..parity import PROBES, ParityCheck, served_plans
from ..sequences import TokenizedText
from .fusion import FusedLinear, linear_input, store
from .packed_weights import to_dtype, to_int8

TEXTS = Path(__file__).with_name("calibration.txt")
_MIN_COSINE = 0.9993  # of the texts here, so that other texts have at least 0.999
_ALPHA = 0.5
_QUICK = 5  # to find out how much each layer harms, every so many texts are enough
MIN_INT8_COSINE = 0.999  # of the probes at load time


class TracedForward:
    """A traced graph that runs without being compiled, in place of a CompiledForward."""

    def __init__(self, run: Callable[..., Sequence[Tensor]], layers: Sequence[int]) -> None:
        self._run = run
        self._layers = tuple(layers)

    def can_compute(self, num_tokens: int, layers: frozenset[int]) -> bool:
        """Whether it computes these layers for a row of this length."""
        return num_tokens >= 2 and layers.issubset(self._layers)

    def __call__(self, ids: Tensor, positions: Tensor, ends: Tensor, types: Tensor) -> dict[int, Tensor]:
        """Return the hidden states of its layers, (T, H) each."""
        return dict(zip(self._layers, self._run(ids, positions, ends, types), strict=True))


class Quantization:
    """Quantizes the linear layers of one model.

    module: the graph as it was traced, in float32. layers: whose hidden states it returns. dtype: of the layers
    that are not quantized.
    """

    def __init__(
        self, loaded: LoadedModel, module: GraphModule, layers: Sequence[int], dtype: torch.dtype
    ) -> None:
        self._loaded = loaded
        self._layers = layers
        self._dtype = dtype
        recorder = _LargestInputs(module)
        exact = loaded.transformer.with_compiled(TracedForward(recorder.run, layers))
        plans = served_plans(loaded.planner, loaded.labels)
        texts = self._texts()
        self._check = ParityCheck(exact, texts, plans, hide_specials=False)
        self._quick_check = ParityCheck(exact, texts[::_QUICK], plans, hide_specials=False)
        self._highest = recorder.highest

    def apply(self, fused: GraphModule, linears: dict[str, FusedLinear]) -> int:
        """Let as many layers of the fused module as possible compute in 8-bit integers; return how many."""
        harm = {name: self._harm(fused, name, linear) for name, linear in linears.items()}
        order = sorted(linears, key=lambda name: harm[name] / linears[name].weight.numel())
        good, bad = 0, len(order) + 1  # so many layers are good enough; so many are too many
        while bad - good > 1:
            middle = (good + bad) // 2
            self._choose(fused, linears, order[:middle])
            if self._cosine(fused, self._check) >= _MIN_COSINE:
                good = middle
            else:
                bad = middle
        self._choose(fused, linears, order[:good])
        return good

    def _harm(self, fused: GraphModule, name: str, linear: FusedLinear) -> float:
        """Return how far the vectors are from float32 if only this layer is in integers."""
        self._choose(fused, {name: linear}, [name])
        cosine = self._cosine(fused, self._quick_check)
        self._choose(fused, {name: linear}, [])
        return 1 - cosine

    def _choose(self, fused: GraphModule, linears: dict[str, FusedLinear], chosen: Sequence[str]) -> None:
        """Let the chosen ones of these layers compute in integers, and the others in the usual dtype."""
        for name, linear in linears.items():
            if name in chosen:
                parts = to_int8(linear.weight, linear.bias, self._highest[linear.first], _ALPHA)
            else:
                parts = to_dtype(linear.weight, linear.bias, self._dtype)
            store(fused, name, parts)

    def _cosine(self, fused: GraphModule, check: ParityCheck) -> float:
        return check.cosine(self._loaded.transformer.with_compiled(TracedForward(fused, self._layers)))

    def _texts(self) -> list[TokenizedText]:
        config = self._loaded.sentence_transformers
        prompt = "" if config is None else config.default_prompt
        pool_prompt = config is None or config.include_prompt
        lines = [*PROBES, *TEXTS.read_text(encoding="utf-8").splitlines()]
        prepared = self._loaded.tokenizer(lines, EncodeOptions(), prompt=prompt, pool_prompt=pool_prompt)
        texts = [text for text in prepared if isinstance(text, TokenizedText)]
        num_ids = self._loaded.num_ids
        return [text for text in texts if num_ids is None or max(text.ids) < num_ids]


class _LargestInputs(Interpreter):
    """Runs a traced graph, and notes the largest absolute number in each component of the layers' inputs."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.highest: dict[str, Tensor] = {}
        self._input_of = {node: found for node in module.graph.nodes if (found := linear_input(node)) is not None}

    def run_node(self, node: Node) -> object:
        """Run a node of the graph."""
        if (found := self._input_of.get(node)) is not None:
            name, x = found[0], self.env[found[1]]
            largest = x.detach().reshape(-1, x.shape[-1]).abs().amax(0)
            self.highest[name] = torch.maximum(largest, self.highest.get(name, largest))
        return super().run_node(node)
