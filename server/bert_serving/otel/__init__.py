"""Traces with OpenTelemetry. Only processes that export traces import this package, and they do so by name."""
