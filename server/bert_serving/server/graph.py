"""`bert_serving.server.graph`, which old programs import; see compat/pooling_strategy.py."""

from .compat.pooling_strategy import PoolingStrategy

__all__ = ["PoolingStrategy"]
