"""PoolingStrategy, which programs written for bert-as-service import from bert_serving.server.graph."""

from __future__ import annotations

from enum import Enum


class PoolingStrategy(Enum):
    """bert-as-service's strategies and their numbers. Newer strategies have no number; see EncodeOptions."""

    NONE = 0
    REDUCE_MAX = 1
    REDUCE_MEAN = 2
    REDUCE_MEAN_MAX = 3
    FIRST_TOKEN = 4
    LAST_TOKEN = 5
    CLS_POOLED = 6
    CLASSIFICATION = 7
    REGRESSION = 8
    CLS_TOKEN = 4
    SEP_TOKEN = 5

    def __str__(self) -> str:
        return self.name

    @staticmethod
    def from_string(name: str) -> PoolingStrategy:
        """Return the strategy with this name. Raises ValueError if there is none."""
        try:
            return PoolingStrategy[name]
        except KeyError:
            raise ValueError(
                f"pooling_strategy must be one of {', '.join(PoolingStrategy.__members__)}, got {name!r}"
            ) from None
