"""Decides which poolings and layers are used, from the configuration and the options of a request."""

from __future__ import annotations

from dataclasses import dataclass

from bert_serving.protocol import pooling_name

from .errors import ModelError
from .sentence_transformers import SentenceTransformersConfig
from .spec import ModelOptions

AUTO = ("auto",)

# bert-as-service's defaults
_PLAIN_STRATEGIES = ("REDUCE_MEAN",)
_PLAIN_LAYERS = (-2,)
# sentence-transformers pools the last layer.
_FOLDER_LAYERS = (-1,)


@dataclass(frozen=True, slots=True)
class Pooling:
    """The strategies and the layers of a pooling. The vectors are concatenated in this order.

    layers: -1 is the last layer.
    is_folders: whether this is the pooling configured in the model folder; Dense and Normalize modules may follow.
    """

    strategies: tuple[str, ...]
    layers: tuple[int, ...]
    is_folders: bool = False

    def highest_layer(self, num_layers: int) -> int:
        """Return the highest of the layers, counted from 0. Raises ModelError if a layer does not exist."""
        try:
            return max(layer_index(layer, num_layers) for layer in self.layers)
        except ValueError as exc:
            raise ModelError(str(exc)) from exc


@dataclass(frozen=True, slots=True)
class PoolingRules:
    """Decides which pooling a request gets.

    strategies, layers: the model's options. folders: the poolings configured in the model folder, if any.
    """

    strategies: tuple[str, ...]
    layers: tuple[int, ...] | None
    folders: tuple[str, ...] | None

    @classmethod
    def of(cls, options: ModelOptions, config: SentenceTransformersConfig | None) -> PoolingRules:
        """Return the rules for a model's options and its sentence-transformers configuration."""
        folders = None if config is None else tuple(map(pooling_name, config.pooling_modes))
        return cls(options.pooling_strategy, options.pooling_layer, folders)

    @property
    def default(self) -> Pooling:
        """The pooling of a request that names neither strategy nor layer."""
        return self.choose()

    def choose(self, strategies: tuple[str, ...] | None = None, layers: tuple[int, ...] | None = None) -> Pooling:
        """Return the pooling of a request that names these strategies and layers; None: it names none."""
        strategies = strategies or self.strategies
        layers = layers or self.layers
        if strategies != AUTO:
            return Pooling(strategies, layers or self._unnamed_layers)
        if layers is None and self.folders is not None:
            return Pooling(self.folders, _FOLDER_LAYERS, is_folders=True)
        return Pooling(_PLAIN_STRATEGIES, layers or self._unnamed_layers)

    @property
    def _unnamed_layers(self) -> tuple[int, ...]:
        """The layers of a request that names a strategy but no layers: those of the default pooling."""
        is_folders = self.folders is not None and self.strategies == AUTO
        return _FOLDER_LAYERS if is_folders else _PLAIN_LAYERS


def layer_index(layer: int, num_layers: int) -> int:
    """Return the layer's number; the lowest is 0. A negative `layer` counts from the top. Raises ValueError."""
    if not -num_layers <= layer < num_layers:
        raise ValueError(f"pooling_layer must be in {-num_layers}..{num_layers - 1} for this model, got {layer}")
    return layer % num_layers
