"""Decides which tests run in the same process of pytest-xdist, and which test files start first."""

from __future__ import annotations

from pathlib import PurePath

#: The test files that use the same servers. Each key is a name for these servers. One process starts the servers
#: and runs all tests of these files. Each of the other tests runs in whichever process is free.
_FILES = {
    "model_servers": (
        "test_dialects",
        "test_dialect_errors",
        "test_formats",
        "test_operations",
        "test_scrape",
        "test_stream",
        "test_openapi_examples",
        "test_bad_texts",
        "test_other_apis",
        "test_page",
    ),
    "Ray": ("test_ray_serve",),
    "server with a small queue": ("test_clients",),
    "server with two workers to harm": ("test_chaos",),
    "server with small limits": ("test_bounds",),
    "server in float32": ("test_service_options",),
    "server with bad neighbours": ("test_garbage", "test_neighbours"),
    "servers of the clients' tests": ("test_real_clients", "test_clients_page", "test_rag_programs"),
    "server of the documentation": ("test_docs",),
    "server of the OpenAPI document": ("test_openapi",),
    "server with CURVE": ("test_curve",),
    "server with a file of keys": ("test_keys",),
    "server with two workers to reload": ("test_reload",),
    "server with a cache": ("test_repeats",),
    "two hosts": ("test_two_hosts",),
    "server for callers of HTTP": ("test_http_callers",),
    "gateway with small limits": ("test_http_limits",),
    "gateway with small limits and TLS": ("test_tls_limits",),
    "server with TLS": ("test_tls",),
    "server behind proxies": ("test_proxies",),
    "server that logs as JSON": ("test_log_format",),
    "servers with traces": ("test_traces",),
    "Prometheus": ("test_observability",),
    "wheel and sdist": ("test_distributions",),
    "GPU": ("test_encoder", "test_cuda_graphs"),
}
SERVERS = {file: servers for servers, files in _FILES.items() for file in files}

#: The files that take longest, the slowest first. They start before all other files. Otherwise a process could
#: start one of them near the end, and run for a long time after the other processes have finished.
_SLOWEST = (
    "test_clients",
    *_FILES["model_servers"],
    "test_ray_serve",
    "test_garbage",
    "test_neighbours",
    "test_chaos",
    "test_worker_death",
    "test_stop",
    "test_examples",
    "test_openapi",
    "test_packaging",
    "test_kubernetes",
    "test_bert_server",
    "test_reload",
    "test_service_options",
    "test_distributions",
    "test_benchmark",
    "test_bad_input",
)


def slowest_files_first(path: PurePath) -> int:
    """Return the sort key of a test file: its index in _SLOWEST, or a larger number for other files."""
    return _SLOWEST.index(path.stem) if path.stem in _SLOWEST else len(_SLOWEST)
