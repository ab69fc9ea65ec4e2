"""This module exists because programs for bert-as-service import it. See compat/args.py."""

from .compat.args import get_args_parser, get_benchmark_parser, get_run_args, get_shutdown_parser

__all__ = ["get_args_parser", "get_benchmark_parser", "get_run_args", "get_shutdown_parser"]
