"""This module exists because programs for bert-as-service import it. See compat/pooling_strategy.py."""

from .compat.pooling_strategy import PoolingStrategy

__all__ = ["PoolingStrategy"]
