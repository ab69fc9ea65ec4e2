"""The parsers that programs written for bert-as-service import from bert_serving.server.helper."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any

from pydantic import ValidationError

from ..model.spec import validation_line
from ..settings import OneLineParser, Settings, settings_parser
from .termination import terminate_parser


class ArgsParser(OneLineParser):
    """A parser of the server's flags. Its result has every setting, from flags, variables and defaults."""

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """Return (namespace, arguments that are not flags)."""
        found, rest = super().parse_known_args(args, namespace)
        flags = {name: value for name, value in vars(found).items() if name in Settings.model_fields}
        try:
            settings = Settings(**{name: value for name, value in flags.items() if value is not None})
        except ValidationError as exc:
            self.error(validation_line(exc))
        others = {name: value for name, value in vars(found).items() if name not in flags}
        return argparse.Namespace(**others | vars(namespace_of(settings))), rest


def get_args_parser() -> argparse.ArgumentParser:
    """Return the parser of bert-serving-start. Its result can be passed to BertServer, also after changes."""
    return settings_parser("bert-serving-start", ArgsParser)


def get_shutdown_parser() -> argparse.ArgumentParser:
    """Return the parser of bert-serving-terminate."""
    return terminate_parser()


def get_benchmark_parser() -> argparse.ArgumentParser:
    """Return the parser of bert-serving-benchmark. Its result can be passed to BertServer too."""
    from .benchmark.experiments import benchmark_parser

    return benchmark_parser(ArgsParser)


def get_run_args(
    parser_fn: Callable[[], argparse.ArgumentParser] = get_args_parser, printed: bool = True
) -> argparse.Namespace:
    """Return the arguments of this process. printed: print them as a table."""
    args = parser_fn().parse_args()
    if printed:
        rows = sorted(vars(args).items())
        width = max(len(name) for name, _ in rows)
        sys.stdout.write("".join(f"{name:>{width}} = {value}\n" for name, value in rows))
    return args


def namespace_of(settings: Settings) -> argparse.Namespace:
    """Return settings as a namespace with bert-as-service's attributes; tuples become lists.

    num_worker is never None, because old programs calculate with it. bert-as-service's default was 1.
    """
    # In Python mode, the keys stay SecretStr, so that printing the namespace does not show them.
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.model_dump().items()}
    values["do_lower_case"] = not values.pop("cased_tokenization")
    values["num_worker"] = settings.num_worker or 1
    return argparse.Namespace(**values)


def settings_of(args: argparse.Namespace) -> Settings:
    """Return the settings in a namespace. Attributes that are not settings are ignored. Raises ValueError.

    A value of None means the default of the setting.
    """
    fields = Settings.model_fields
    given = {name: value for name, value in vars(args).items() if name in fields}
    if getattr(args, "do_lower_case", None) is not None:
        given.setdefault("cased_tokenization", not args.do_lower_case)
    values = {name: fields[name].default if value is None else _plain(value) for name, value in given.items()}
    try:
        return Settings(**values)
    except ValidationError as exc:
        raise ValueError(validation_line(exc)) from exc


def _plain(value: object) -> Any:
    """Return a PoolingStrategy as its name and a path as a string, also in lists; other values are unchanged."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.name if isinstance(value, Enum) else value
