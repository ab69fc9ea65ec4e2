"""`bert_serving.server.benchmark`, a module of bert-as-service; see compat/benchmark/."""

from .compat.benchmark.experiments import parse_plan
from .compat.benchmark.runner import BenchmarkError, run

__all__ = ["BenchmarkError", "parse_plan", "run"]
