"""`bert_serving.server.graph`, which programs for bert-as-service import. See compat/pooling_strategy.py."""

from .compat.pooling_strategy import PoolingStrategy

__all__ = ["PoolingStrategy"]
