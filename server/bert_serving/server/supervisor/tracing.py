"""Decides whether the server exports traces. OpenTelemetry is imported only if it does."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, cast

from ..broker.counting import Counter
from ..broker.observer import JobTracer
from ..settings import Settings, own_version
from ..trace_address import check_trace_address
from .startup import StartError

log = logging.getLogger(__name__)

_BASE = "OTEL_EXPORTER_OTLP_ENDPOINT"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", _BASE)
_INSTALL = "pip install 'bert-embedding-service[otel]'"


class ClosableTracer(JobTracer, Protocol):
    """A tracer that must be closed when the server ends."""

    def close(self) -> None:
        """Send what waits."""


@dataclass(frozen=True, slots=True)
class Tracing:
    """Where traces go. endpoint: base address of an OTLP/HTTP receiver; None: as the variables OTEL_... say."""

    endpoint: str | None
    model_name: str

    def job_tracer(self, num_lost: Counter) -> ClosableTracer:
        """Return what makes the spans of the server process. num_lost: counts the spans that are lost.

        Raises StartError if the SDK cannot use one of its variables.
        """
        kind = importlib.import_module("bert_serving.otel.jobs").JobTraces
        try:
            tracer = kind(self.endpoint, model_name=self.model_name, version=own_version(), on_lost=num_lost.inc)
        except ValueError as exc:
            raise StartError(f"OpenTelemetry cannot use one of the variables OTEL_...: {exc}") from exc
        return cast("ClosableTracer", tracer)

    def for_gateway(self) -> dict[str, str | None]:
        """Return the arguments of what makes the spans of a gateway."""
        return {"endpoint": self.endpoint, "version": own_version()}


def tracing_of(settings: Settings, env: Mapping[str, str] = os.environ) -> Tracing | None:
    """Return where traces go; None if there are none.

    Raises StartError if -otel_endpoint is set and OpenTelemetry is not installed. If only a variable of
    OpenTelemetry is set, this is a warning, and so is an address in it that cannot be used: some platforms set it
    for all of their programs.
    """
    if not _is_wanted(settings, env):
        return None
    try:
        importlib.import_module("bert_serving.otel.export")
    except ModuleNotFoundError as exc:
        if settings.otel_endpoint is not None:
            raise StartError(f"-otel_endpoint needs the extra otel ({exc}): {_INSTALL}") from exc
        log.warning("there are no traces, although OTEL_EXPORTER_OTLP_ENDPOINT is set: %s; %s", exc, _INSTALL)
        return None
    endpoint = settings.otel_endpoint
    if endpoint is None:
        name = next(name for name in _ENDPOINTS if env.get(name))
        try:
            check_trace_address(name, env[name])
        except ValueError as exc:
            log.warning("there are no traces: %s", exc)
            return None
        if name == _BASE:
            endpoint = env[name]  # the SDK would take the other variable, even if it is empty
    return Tracing(endpoint, settings.served_model_name or "model")


def _is_wanted(settings: Settings, env: Mapping[str, str]) -> bool:
    if env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or env.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    return settings.otel_endpoint is not None or any(env.get(name) for name in _ENDPOINTS)
