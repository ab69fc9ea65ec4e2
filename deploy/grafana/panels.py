"""What is on the dashboards. A panel has a title, a unit of Grafana, an explanation, and expressions by legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

#: The labels that are chosen at the top of a dashboard.
_CHOSEN = 'job=~"$job", instance=~"$instance"'

#: Stages of a request in the names of TEI.
_STAGES = ("tokenization", "queue", "inference")
#: Codes of errors that are not the caller's.
_OURS = "overloaded|unavailable|deadline_exceeded|worker_failed|internal"


class Panel(NamedTuple):
    """A panel. meaning: what the i in its corner shows. queries: PromQL by legend. is_number: no curves."""

    title: str
    unit: str
    meaning: str
    queries: Mapping[str, str]
    is_number: bool = False


class Board(NamedTuple):
    """A dashboard. metric: one that each server has, from which the lists of jobs and instances are made."""

    uid: str
    title: str
    about: str
    metric: str
    rows: Mapping[str, Sequence[Panel]]


def _of(metric: str, labels: str = "") -> str:
    return f"{metric}{{{_CHOSEN}{', ' if labels else ''}{labels}}}"


def _sum(metric: str, *by: str) -> str:
    return f"sum by ({', '.join(by)}) ({_of(metric)})"


def _count(metric: str, *by: str) -> str:
    return f"count by ({', '.join(by)}) ({_of(metric)})"


def _rate(metric: str, *by: str, labels: str = "") -> str:
    return f"sum by ({', '.join(by)}) (rate({_of(metric, labels)}[$__rate_interval]))"


def _increase(metric: str, *by: str) -> str:
    return f"sum by ({', '.join(by)}) (increase({_of(metric)}[10m]))"


def _share(part: str, whole: str) -> str:
    """Return a quotient that is 0 as long as there is nothing to divide."""
    return f"{part} / clamp_min({whole}, 1e-9)"


def _quantile(part: float, histogram: str, *by: str, labels: str = "") -> str:
    return f"histogram_quantile({part}, {_rate(f'{histogram}_bucket', 'le', *by, labels=labels)})"


def _quantiles(histogram: str) -> dict[str, str]:
    return {"median": _quantile(0.5, histogram), "p99": _quantile(0.99, histogram)}


def _mean(histogram: str) -> str:
    return _share(_rate(f"{histogram}_sum"), _rate(f"{histogram}_count"))


def _by_dialect(metric: str, *by: str) -> str:
    """Return a rate by dialect, which follows from the route."""
    routes = f"max by (instance, route, dialect) ({_of('bert_serving_http_route_info')})"
    rates = _rate(metric, "instance", "route", *by)
    return f"sum by ({', '.join(('dialect', *by))}) ({rates} * on (instance, route) group_left (dialect) {routes})"


_NO_PROBES = 'route!~"/live|/ready|/health|/ping|/metrics|/page/.*"'
_HTTP = _rate("bert_serving_http_requests_total", "instance", labels=_NO_PROBES)
_HTTP_ANSWERED = _rate("bert_serving_http_requests_total", "instance", labels=f'{_NO_PROBES}, status!~"5.."')

_NOW = (
    Panel(
        "Workers ready", "none", "Workers that can take a batch", {"": _sum("bert_serving_workers_ready")}, True
    ),
    Panel(
        "Requests", "reqps", "Requests for vectors per second", {"": _rate("bert_serving_requests_total")}, True
    ),
    Panel("Texts", "short", "Texts encoded per second", {"": _rate("bert_serving_texts_total")}, True),
    Panel(
        "Failed",
        "percentunit",
        "Part of the requests that fail because the server is full, slow or broken",
        {
            "": _share(
                _rate("bert_serving_errors_total", labels=f'code=~"{_OURS}"'), _rate("bert_serving_requests_total")
            )
        },
        True,
    ),
    Panel(
        "Response time, p99",
        "s",
        "99 of 100 requests have their reply within this time",
        {"": _quantile(0.99, "bert_serving_request_seconds")},
        True,
    ),
    Panel(
        "Oldest request",
        "s",
        "Age of the oldest request that waits",
        {"": f"max({_of('bert_serving_queue_age_seconds')})"},
        True,
    ),
)

_TRAFFIC = (
    Panel(
        "Requests by dialect",
        "reqps",
        "Which kind of client sends them",
        {
            "{{dialect}}": _by_dialect("bert_serving_http_requests_total"),
            "ZeroMQ": _rate("bert_serving_zeromq_requests_total"),
        },
    ),
    Panel(
        "HTTP requests by route and status",
        "reqps",
        "499: the caller left",
        {"{{route}} {{status}}": _rate("bert_serving_http_requests_total", "route", "status")},
    ),
    Panel(
        "Requests from all clients",
        "reqps",
        "Those of BertClient and of HTTP, as they arrive at the broker",
        {"requests": _rate("bert_serving_requests_total"), "commands": _rate("bert_serving_commands_total")},
    ),
    Panel(
        "Texts and tokens",
        "short",
        "Per second; a text that was found in the cache does not count",
        {"texts": _rate("bert_serving_texts_total"), "tokens": _rate("bert_serving_tokens_total")},
    ),
    Panel(
        "Errors by code",
        "reqps",
        "Requests that failed; docs/http.md explains the codes",
        {"{{code}}": _rate("bert_serving_errors_total", "code")},
    ),
    Panel(
        "HTTP errors by dialect",
        "reqps",
        "Requests that got an error response",
        {"{{dialect}} {{code}}": _by_dialect("bert_serving_http_errors_total", "code")},
    ),
    Panel(
        "HTTP requests that fail",
        "percentunit",
        "Part of the HTTP requests with status 5xx, also those that only a gateway has seen. Probes do not count",
        {"{{instance}}": _share(f"({_HTTP} - {_HTTP_ANSWERED})", _HTTP)},
    ),
    Panel(
        "Refused before a request was read",
        "reqps",
        "By status: not HTTP (400), too slow (408), too many on a connection (429), head too large (431), "
        "all connections in use (503)",
        {"{{status}}": _rate("bert_serving_http_refusals_total", "status")},
    ),
    Panel(
        "Refused for lack of room",
        "reqps",
        "Requests that found no room in the memory or in the queue, or that are too large for it",
        {"{{reason}}": _rate("bert_serving_refused_requests_total", "reason")},
    ),
    Panel(
        "Callers that left",
        "reqps",
        "Requests that were cancelled because nobody waits for them",
        {
            "HTTP": _rate("bert_serving_http_callers_left_total"),
            "all clients": _rate("bert_serving_cancelled_requests_total"),
            "replies dropped": _rate("bert_serving_dropped_replies_total"),
        },
    ),
    Panel(
        "Truncated texts",
        "short",
        "Texts per second that were cut because they were too long",
        {"texts": _rate("bert_serving_truncated_texts_total")},
    ),
)

_LATENCY = (
    Panel(
        "Time to a reply",
        "s",
        "From the arrival of a request at the broker to its reply",
        _quantiles("bert_serving_request_seconds"),
    ),
    Panel(
        "Time to an HTTP response",
        "s",
        "p99 of each route",
        {"{{route}}": _quantile(0.99, "bert_serving_http_request_seconds", "route")},
    ),
    Panel(
        "Time in the queue",
        "s",
        "Until a worker gets the first text of a request",
        _quantiles("bert_serving_queue_seconds"),
    ),
    Panel("Time to tokenize a batch", "s", "", _quantiles("bert_serving_tokenize_seconds")),
    Panel("Time to compute a batch", "s", "", _quantiles("bert_serving_compute_seconds")),
    Panel(
        "Loops",
        "s",
        "p99 of a turn of the server's loop, and of how late the loop of a gateway is. While they last, "
        "requests wait",
        {
            "server": _quantile(0.99, "bert_serving_loop_turn_seconds"),
            "{{process}}": _quantile(0.99, "bert_serving_http_event_loop_lag_seconds", "process"),
        },
    ),
)

_QUEUE = (
    Panel(
        "Texts that wait",
        "short",
        "By priority: small requests go first",
        {
            "{{priority}}": _sum("bert_serving_priority_queue_texts", "priority"),
            "capacity": _sum("bert_serving_queue_capacity_texts"),
        },
    ),
    Panel(
        "Tokens that wait",
        "short",
        "Estimated from the texts",
        {"{{priority}}": _sum("bert_serving_priority_queue_tokens", "priority")},
    ),
    Panel(
        "Age of the oldest request",
        "s",
        "By priority",
        {"{{priority}}": f"max by (priority) ({_of('bert_serving_priority_queue_age_seconds')})"},
    ),
    Panel(
        "Bytes held",
        "bytes",
        "For requests, vectors and replies; the capacity is -memory_mb",
        {
            "held": _sum("bert_serving_held_bytes"),
            "capacity": _sum("bert_serving_held_capacity_bytes"),
            "replies that wait": _sum("bert_serving_outbox_bytes"),
            "HTTP": _sum("bert_serving_http_held_bytes"),
        },
    ),
    Panel(
        "Open requests",
        "short",
        "Requests without a reply yet",
        {"broker": _sum("bert_serving_open_requests"), "HTTP": _sum("bert_serving_http_requests_in_flight")},
    ),
    Panel(
        "Clients",
        "short",
        "Connected clients, those with bytes (flows), and HTTP connections",
        {
            "clients": _sum("bert_serving_clients"),
            "flows": _sum("bert_serving_flows"),
            "HTTP connections": _sum("bert_serving_http_connections"),
        },
    ),
)

_BATCHES = (
    Panel("Texts in a batch", "short", "Mean", {"texts": _mean("bert_serving_batch_texts")}),
    Panel("Tokens in a batch", "short", "Mean", {"tokens": _mean("bert_serving_batch_tokens")}),
    Panel(
        "Batch fill",
        "percentunit",
        "Mean; a full batch is what a worker computes in 80 ms",
        {"fill": _mean("bert_serving_batch_fill_ratio")},
    ),
    Panel(
        "Padding",
        "percentunit",
        "Part of the computed tokens that are padding; 0 for models that run packed",
        {
            "padding": _share(
                _rate("bert_serving_padding_tokens_total"),
                f"({_rate('bert_serving_padding_tokens_total')} + {_rate('bert_serving_tokens_total')})",
            )
        },
    ),
    Panel(
        "Texts that were not computed",
        "short",
        "Found in the cache, or equal to a text that was being computed",
        {"cache": _rate("bert_serving_cache_hits_total"), "shared": _rate("bert_serving_shared_texts_total")},
    ),
    Panel(
        "Cache",
        "bytes",
        "",
        {"used": _sum("bert_serving_cache_bytes"), "capacity": _sum("bert_serving_cache_capacity_bytes")},
    ),
)

_PROCESSES = (
    Panel(
        "Workers by state",
        "none",
        "stale: a ready worker that has computed nothing for a minute",
        {"{{state}}": _sum("bert_serving_worker_state", "state")},
    ),
    Panel(
        "Busy share of each device",
        "percentunit",
        "Part of the time in which a worker's device computes",
        {"{{worker}}": _rate("bert_serving_device_busy_seconds_total", "instance", "worker")},
    ),
    Panel(
        "Restarts in 10 minutes",
        "none",
        "Processes of workers and of HTTP that have ended",
        {
            "{{worker}}": _increase("bert_serving_worker_restarts_total", "instance", "worker"),
            "{{process}}": _increase("bert_serving_gateway_restarts_total", "instance", "process"),
        },
    ),
    Panel(
        "Memory",
        "bytes",
        "Resident memory; what processes share counts in each of them",
        {"{{process}}": _sum("bert_serving_process_resident_memory_bytes", "instance", "process")},
    ),
    Panel(
        "GPU memory",
        "bytes",
        "Memory that a worker has taken on its GPU; 0 on CPUs",
        {
            "{{worker}}": f"{_sum('bert_serving_device_memory_bytes', 'instance', 'worker')} or "
            f"0 * {_sum('bert_serving_device_busy_seconds_total', 'instance', 'worker')}"
        },
    ),
    Panel(
        "CPU",
        "short",
        "Cores in use",
        {"{{process}}": _rate("bert_serving_process_cpu_seconds_total", "instance", "process")},
    ),
    Panel(
        "Open files",
        "percentunit",
        "Part of the files and connections that a process may open",
        {
            "{{process}}": f"max by (instance, process) ({_of('bert_serving_process_open_fds')} / "
            f"{_of('bert_serving_process_max_fds')})"
        },
    ),
    Panel(
        "Model of each worker",
        "none",
        "Workers that serve the model; two models are normal only during a reload",
        {
            "{{model}} {{fingerprint}} {{device}} {{dtype}}": _count(
                "bert_serving_model_info", "model", "fingerprint", "device", "dtype"
            )
        },
    ),
    Panel(
        "Version",
        "none",
        "Servers that run the version",
        {
            "{{version}}, torch {{torch}}, transformers {{transformers}}": _count(
                "bert_serving_build_info", "version", "torch", "transformers"
            )
        },
    ),
)

_TEI = {
    "Requests": (
        Panel(
            "Requests",
            "reqps",
            "Requests of one text (single) and of more",
            {"{{method}}": _rate("te_request_count", "method")},
        ),
        Panel(
            "Answered",
            "reqps",
            "Requests that got their vectors",
            {"{{method}}": _rate("te_request_success", "method")},
        ),
        Panel("Failed", "reqps", "By TEI's name of the error", {"{{err}}": _rate("te_request_failure", "err")}),
        Panel(
            "Texts",
            "short",
            "Texts per second",
            {
                "to embed": _rate("te_embed_count"),
                "embedded": _rate("te_embed_success"),
                "to classify": _rate("te_predict_count"),
                "classified": _rate("te_predict_success"),
            },
        ),
        Panel("Tokens of a text", "short", "", _quantiles("te_request_input_length")),
        Panel("Queue", "short", "Texts that wait", {"texts": _sum("te_queue_size")}),
    ),
    "Time": (
        Panel("Requests", "s", "From the arrival of a request to its reply", _quantiles("te_request_duration")),
        Panel(
            "Stages of a request, mean",
            "s",
            "",
            {stage: _mean(f"te_request_{stage}_duration") for stage in _STAGES},
        ),
        Panel(
            "Stages of a request, p99",
            "s",
            "",
            {stage: _quantile(0.99, f"te_request_{stage}_duration") for stage in _STAGES},
        ),
        Panel(
            "Requests to embed, mean", "s", "", {stage: _mean(f"te_embed_{stage}_duration") for stage in _STAGES}
        ),
        Panel(
            "Requests to classify, mean",
            "s",
            "",
            {stage: _mean(f"te_predict_{stage}_duration") for stage in _STAGES},
        ),
    ),
    "Batches": (
        Panel(
            "Texts in a batch",
            "short",
            "",
            {"mean": _mean("te_batch_next_size"), "p99": _quantile(0.99, "te_batch_next_size")},
        ),
        Panel(
            "Tokens in a batch",
            "short",
            "",
            {"mean": _mean("te_batch_next_tokens"), "p99": _quantile(0.99, "te_batch_next_tokens")},
        ),
    ),
}

DASHBOARDS = (
    Board(
        "bert-serving",
        "bert-serving",
        "What servers of bert-embedding-service do. docs/metrics.md explains the metrics",
        "bert_serving_workers_ready",
        {
            "Now": _NOW,
            "Traffic": _TRAFFIC,
            "Time": _LATENCY,
            "Queue": _QUEUE,
            "Batches": _BATCHES,
            "Processes": _PROCESSES,
        },
    ),
    Board(
        "text-embeddings-inference",
        "Text Embeddings Inference",
        "For servers with TEI's metrics: this one, and TEI itself",
        "te_queue_size",
        _TEI,
    ),
)
