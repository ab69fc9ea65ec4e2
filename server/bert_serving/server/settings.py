"""Every option of the server.

`Settings` defines the server's own options and inherits those of the model (see model/spec.py). The name, type,
default and help text of an option are defined only in one of these two places. Flags, `BERT_SERVING_...`
variables, `--help` and the table that is printed at start are all made from these definitions. A flag overrides a
variable, and a variable overrides the default.
"""

from __future__ import annotations

import argparse
import re
import types
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from pydantic import Field, SecretStr, ValidationError, field_serializer, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

from .keys import hash_of
from .logs import LogFormat, LogOptions
from .model.spec import ModelOptions, split_list, validation_line
from .trace_address import check_trace_address

_ENV_PREFIX = "BERT_SERVING_"
_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*/?")


def own_version() -> str:
    """Return the version of the installed distribution."""
    try:
        return version("bert-embedding-service")
    except PackageNotFoundError:
        return "unknown"


class Settings(ModelOptions, BaseSettings):
    """Settings of one server. Frozen; raises pydantic.ValidationError for values out of range."""

    model_config = SettingsConfigDict(
        env_prefix=_ENV_PREFIX,
        env_ignore_empty=True,
        hide_input_in_errors=True,  # it may be a key or a password
        enable_decoding=False,  # a variable holds a list as `0 1` or `0,1`, not as JSON
    )

    num_worker: int | None = Field(
        None, ge=1, le=256, description="number of worker processes; default: one for each GPU, or one on the CPU"
    )
    device_map: tuple[int, ...] = Field(
        (), description="GPU ids, assigned to the workers in turn; default: all visible GPUs"
    )
    cpu: bool = Field(False, description="run on the CPU even if there is a GPU")
    host: str = Field(
        "127.0.0.1", description="address that port and port_out listen on; 0.0.0.0: every interface"
    )
    http_host: str | None = Field(None, description="address that http_port listens on; default: host")
    curve_dir: str | None = Field(
        None,
        description="folder with the keys that bert-serving-keys makes; port and port_out then encrypt all "
        "messages and accept only the clients whose keys are in DIR/clients; default: no encryption",
    )
    port: int = Field(
        5555,
        ge=1,
        le=65535,
        description="port for requests",
        json_schema_extra={"aliases": ["port_in", "port_data"]},
    )
    port_out: int = Field(
        5556, ge=1, le=65535, description="port for replies", json_schema_extra={"aliases": ["port_result"]}
    )
    http_port: int | None = Field(None, ge=1, le=65535, description="port for HTTP; default: no HTTP")
    http_socket: str | None = Field(
        None,
        description="path of a UNIX socket for HTTP, with or without http_port; users who may write to it may "
        "connect, as the umask decides; default: none",
    )
    http_workers: int = Field(1, ge=1, le=64, description="number of processes that serve HTTP, all on http_port")
    http_max_connect: int = Field(
        4096,
        ge=1,
        description="largest number of simultaneous connections of one HTTP process; beyond it, the connection "
        "that has waited longest for its caller is closed",
    )
    http_max_head_kb: int = Field(
        64, ge=1, le=1024, description="largest head of an HTTP request (path and headers), in KiB; beyond it: 431"
    )
    http_max_headers: int = Field(128, ge=1, description="largest number of headers in a request; beyond it: 431")
    http_head_timeout: float = Field(
        20, gt=0, description="seconds in which the head of a request must arrive; beyond it: 408"
    )
    http_body_timeout: float = Field(
        30,
        gt=0,
        description="seconds over which a body must arrive at 1 KiB/s or more on average; slower: 408",
    )
    http_response_timeout: float = Field(
        60,
        gt=0,
        description="seconds over which a caller must read its response at 1 KiB/s or more; slower: it is closed",
    )
    http_keep_alive: float = Field(
        75, gt=0, description="seconds that an HTTP connection stays open between two requests"
    )
    http_memory_mb: int | None = Field(
        None,
        ge=1,
        description="memory of one HTTP process, in MiB, for large bodies and replies; beyond it: 429, and for a "
        "request that alone needs more than half of it: 413; default: 8 times max_message_mb",
    )
    http_max_texts: int | None = Field(
        None,
        ge=1,
        description="largest number of texts in a request; beyond it: 413; default: flow_share of queue_capacity",
    )
    http_max_nesting: int = Field(
        200, ge=1, le=200, description="most levels of lists and objects in a JSON body; beyond it: 400"
    )
    http_max_form_fields: int = Field(
        1000, ge=1, description="largest number of fields in an HTML form; beyond it: 400"
    )
    http_max_tokenize_chars: int = Field(
        1 << 20,
        ge=1,
        description="largest number of characters, or of ids, in /tokenize and /decode; beyond it: 413",
    )
    http_trusted_proxies: str = Field(
        "",
        description="addresses of proxies whose X-Forwarded-For is believed, such as 10.0.0.0/8; unix stands for "
        "the callers of http_socket; default: none",
    )
    tls_cert: str | None = Field(
        None,
        description="PEM file with the certificate of http_port and its chain, read again after SIGHUP; needs "
        "tls_key; default: no TLS",
    )
    tls_key: str | None = Field(None, description="PEM file with the private key of tls_cert, without a password")
    root_path: str = Field(
        "",
        description="prefix under which a proxy publishes the server, such as /vectors; the proxy may remove it "
        "from the path or leave it there",
    )
    api_key: tuple[SecretStr, ...] = Field(
        (),
        description="accepted keys for HTTP (Authorization: Bearer KEY); safer as BERT_SERVING_API_KEY, which "
        "process lists do not show; default: no key is required",
    )
    api_key_file: str | None = Field(
        None,
        description="file with accepted keys for HTTP, read again after SIGHUP; each line has a name, a key or "
        "sha256:HASH, and optional limits such as texts_per_minute=6000 share=0.2",
    )
    protect_metrics: bool = Field(False, description="require a key for /metrics too")
    served_model_name: str | None = Field(
        None, description="name of the model in HTTP replies; default: its name on the hub, or that of its folder"
    )
    max_batch_size: int = Field(256, ge=1, description="largest number of texts in one batch of a worker")
    priority_batch_size: int = Field(
        16, ge=0, description="requests of at most this many texts overtake larger ones"
    )
    fixed_embed_length: bool = Field(
        False,
        description="with pooling_strategy NONE, pad the vectors of each text to the model's number of positions",
    )
    fp16: bool = Field(
        False, description="send vectors as float16, which takes half the bytes; for the forward pass see -dtype"
    )
    show_tokens_to_client: bool = Field(False, description="send the tokens with every reply")
    queue_capacity: int = Field(
        524_288,
        ge=1,
        description="largest number of texts that may wait in total; one client may have at most flow_share of "
        "what others leave free, so one request of 262,144 texts fits into an empty queue",
    )
    memory_mb: int = Field(
        2048,
        ge=16,
        description="memory, in MiB, that the server may use for clients: for their requests, vectors and waiting "
        "replies; the default holds a million vectors of 384 components, or eight requests of 100 MB",
    )
    flow_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="largest part of the memory and of the queue, as far as others leave it free, that one client "
        "or HTTP caller may use; with 0.5, there is always room for another one",
    )
    max_message_mb: int = Field(
        128,
        ge=1,
        le=2047,
        description="largest request in MiB; the default is enough for 262,144 texts of 500 bytes, and the server "
        "needs at most about half a second to read it",
    )
    cache_mb: int = Field(
        0,
        ge=0,
        description="MiB for earlier texts with their vectors, in addition to memory_mb; 0: none are kept",
    )
    outbox_age: float = Field(300, gt=0, description="seconds that vectors wait for a client that does not read")
    worker_timeout: float = Field(
        120, gt=0, description="a worker that has a batch and finishes no pass for so many seconds is replaced"
    )
    start_timeout: float = Field(
        600, gt=0, description="seconds in which a worker must load its model; after that, it is started again"
    )
    unavailable_after: float = Field(
        120,
        ge=0,
        description="seconds without any worker after which requests are refused; until then, and during the "
        "first start, they wait",
    )
    max_worker_rss: int | None = Field(
        None,
        ge=1,
        description="memory of one worker process, in MiB, above which it is replaced; default: no limit",
    )
    drain_timeout: float = Field(5, ge=0, description="seconds in which accepted work may finish after SIGTERM")
    allow_remote_termination: bool = Field(
        False, description="obey bert-serving-terminate from other machines too"
    )
    otel_endpoint: str | None = Field(
        None,
        description="base address of an OTLP/HTTP receiver of traces, such as http://localhost:4318; needs the "
        "extra otel; default: OTEL_EXPORTER_OTLP_ENDPOINT; if neither is set, there are no traces",
    )
    cors: str = Field(
        "loopback",
        description="origin whose pages may call the HTTP port; loopback: pages of web servers on the browser's "
        "own machine; *: any origin",
    )
    verbose: bool = Field(False, description="log each batch")
    log_format: LogFormat = Field("text", description="format of log lines; json: one object in each line")
    access_log: bool = Field(
        False, description="log each HTTP request: its route, status, time, ids and sizes, never a text or a key"
    )
    xla: bool = Field(False, description="flag of bert-as-service; accepted, but has no effect")
    gpu_memory_fraction: float = Field(0.5, description="flag of bert-as-service; accepted, but has no effect")
    graph_tmp_dir: str | None = Field(None, description="flag of bert-as-service; accepted, but has no effect")
    prefetch_size: int = Field(10, description="flag of bert-as-service; accepted, but has no effect")

    @field_validator("api_key", "device_map", mode="before")
    @classmethod
    def _server_lists_are_split(cls, value: object) -> object:
        return split_list(value)

    @field_validator("api_key")
    @classmethod
    def _keys_are_kept_as_hashes(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        try:
            return tuple(SecretStr(hash_of(key.get_secret_value())) for key in keys)
        except ValueError as exc:
            raise ValueError(f"api_key: {exc}") from exc

    @field_validator("http_socket", "otel_endpoint", "tls_cert", "tls_key", mode="before")
    @classmethod
    def _empty_is_not_set(cls, value: object) -> object:
        return None if value == "" else value  # a compose file sets variables to nothing

    @field_validator("otel_endpoint")
    @classmethod
    def _otel_endpoint_is_an_address(cls, value: str | None) -> str | None:
        if value is not None:
            check_trace_address("otel_endpoint", value)
        return value

    @field_validator("root_path")
    @classmethod
    def _root_path_is_a_path(cls, value: str) -> str:
        if not _ROOT_PATH.fullmatch(value):
            raise ValueError(
                f"root_path must be a path such as /vectors, of letters, digits and -._~, got {value[:80]!r}"
            )
        return value.rstrip("/")

    @field_serializer("api_key", when_used="json")
    def _json_has_the_hashes(self, keys: tuple[SecretStr, ...]) -> list[str]:
        return [key.get_secret_value() for key in keys]  # BertServer sends the settings to its process as JSON

    @model_validator(mode="after")
    def _ports_differ(self) -> Settings:
        ports = [port for port in (self.port, self.port_out, self.http_port) if port is not None]
        if len(set(ports)) != len(ports):
            raise ValueError(f"port, port_out and http_port must differ, got {ports}")
        return self

    @model_validator(mode="after")
    def _certificate_has_a_key(self) -> Settings:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key must be given together")
        return self

    @model_validator(mode="after")
    def _devices_are_gpu_ids(self) -> Settings:
        if any(gpu < 0 for gpu in self.device_map):
            raise ValueError(f"device_map must hold GPU ids from 0, got {list(self.device_map)}")
        return self

    @model_validator(mode="after")
    def _metrics_can_be_protected(self) -> Settings:
        if self.protect_metrics and not self.requires_key:
            raise ValueError("protect_metrics needs api_key or api_key_file")
        return self

    @property
    def http_address(self) -> str:
        """The address that http_port listens on."""
        return self.http_host or self.host

    @property
    def serves_http(self) -> bool:
        """Whether there is a port or a socket for HTTP."""
        return self.http_port is not None or self.http_socket is not None

    @property
    def requires_key(self) -> bool:
        """Whether HTTP callers must send an API key."""
        return bool(self.api_key) or self.api_key_file is not None

    @property
    def log_options(self) -> LogOptions:
        """How every process of the server logs."""
        return LogOptions(self.log_format, self.verbose)

    def without_effect(self) -> list[str]:
        """Return a line for each group of settings that were given and have no effect."""
        given = [name for name in _WITHOUT_EFFECT if getattr(self, name) != type(self).model_fields[name].default]
        lines = [f"-{name} has no effect: {_WITHOUT_EFFECT[name]}" for name in given]
        if not self.serves_http and self.requires_key:
            lines.append(
                "-api_key and -api_key_file have no effect without -http_port or -http_socket: only HTTP has keys"
            )
        if not self.serves_http and self.access_log:
            lines.append("-access_log has no effect without -http_port or -http_socket")
        if not self.serves_http and self.root_path:
            lines.append("-root_path has no effect without -http_port or -http_socket")
        if self.http_port is None and self.tls_cert is not None:
            lines.append("-tls_cert and -tls_key have no effect without -http_port: only this port has TLS")
        return lines

    def table(self) -> str:
        """Return the settings in force as the two-column table that is printed at start."""
        rows = self.shown()
        width = max(map(len, rows))
        return "\n".join(f"{name:>{width}} = {value}" for name, value in rows.items())

    def shown(self) -> dict[str, str]:
        """Return the settings in force as texts, without those that have no effect. API keys are hidden."""
        names = [name for name in type(self).model_fields if name not in _WITHOUT_EFFECT]
        return {name: _shown(getattr(self, name)) for name in names}


# The flags of bert-as-service 1.10.0. Their abbreviations keep their meaning: -num still stands for -num_worker,
# although there is a flag -num_labels now.
_ORIGINAL_FLAGS = {
    "model_dir",
    "tuned_model_dir",
    "ckpt_name",
    "config_name",
    "graph_tmp_dir",
    "max_seq_len",
    "pooling_layer",
    "pooling_strategy",
    "mask_cls_sep",
    "no_special_token",
    "no_position_embeddings",
    "cors",
    "cased_tokenization",
    "show_tokens_to_client",
    "fixed_embed_length",
    "port",
    "port_out",
    "http_port",
    "cpu",
    "http_max_connect",
    "num_worker",
    "max_batch_size",
    "priority_batch_size",
    "xla",
    "fp16",
    "device_map",
    "gpu_memory_fraction",
    "prefetch_size",
    "verbose",
    "version",
}

# The flags of bert-as-service that are accepted and ignored, and why.
_WITHOUT_EFFECT = {
    "xla": "there is no TensorFlow graph to compile",
    "gpu_memory_fraction": "a worker uses what its batches need, up to -max_batch_tokens",
    "graph_tmp_dir": "no graph is written to disk",
    "prefetch_size": "a worker always receives one batch in advance",
}


class OneLineParser(argparse.ArgumentParser):
    """A parser that reports errors in one line, and accepts the abbreviations that bert-as-service accepted."""

    def _get_option_tuples(self, option_string: str) -> list[Any]:  # argparse's private tuples
        """Return the flags that match an abbreviation. If only one is bert-as-service's, return only this flag."""
        found: list[Any] = super()._get_option_tuples(option_string)
        originals = [match for match in found if match[0].dest in _ORIGINAL_FLAGS]
        return originals if len({match[0].dest for match in originals}) == 1 else found

    def error(self, message: str) -> NoReturn:
        """Print one line, not the whole usage, and exit with 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def parse_settings(argv: Sequence[str] | None = None, *, prog: str = "bert-serving-start") -> Settings:
    """Return the settings from flags and environment. Prints one line and exits with 2 if a value is invalid."""
    parser = settings_parser(prog)
    flags = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    try:
        return Settings(**flags)
    except ValidationError as exc:
        parser.error(validation_line(exc))


def settings_parser(prog: str, kind: type[OneLineParser] = OneLineParser) -> OneLineParser:
    """Return a parser with the flags `-name` and `--name` for each setting. Without a flag, its value is None."""
    parser = kind(
        prog=prog,
        description="Serve sentence vectors over ZeroMQ and HTTP.",
        epilog=f"Each option is also an environment variable: {_ENV_PREFIX} and its name in upper case.",
    )
    add_flags(parser, Settings.model_fields)
    return parser


def add_flags(parser: argparse.ArgumentParser, fields: Mapping[str, FieldInfo]) -> None:
    """Add -version, and the flags `-name` and `--name` for each option. Without a flag, its value is None."""
    parser.add_argument("-version", "--version", action="version", version=f"%(prog)s {own_version()}")
    for name, field in fields.items():
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        aliases = extra.get("aliases", [])
        assert isinstance(aliases, list)
        flags = [f"{dash}{spelling}" for spelling in (name, *aliases) for dash in ("-", "--")]
        is_bool = bool in (field.annotation, *get_args(field.annotation))
        default = "" if is_bool or field.default in (None, ()) else f" (default: {_shown(field.default)})"
        help_text = f"{field.description}{default}".replace("%", "%%")
        if is_bool:
            # `-cpu` means true; `-cpu false` overrides an environment variable.
            parser.add_argument(*flags, dest=name, nargs="?", const="true", metavar="BOOL", help=help_text)
        else:
            nargs = "+" if _is_tuple(field.annotation) else None
            metavar = "SECONDS" if help_text.startswith("seconds") else _metavar(field.annotation)
            parser.add_argument(*flags, dest=name, nargs=nargs, metavar=metavar, help=help_text)


def _is_tuple(annotation: object) -> bool:
    if get_origin(annotation) in (Union, types.UnionType):
        return any(_is_tuple(arg) for arg in get_args(annotation))
    return get_origin(annotation) is tuple


def _metavar(annotation: object) -> str:
    if get_origin(annotation) is Literal:
        return "{" + ",".join(get_args(annotation)) + "}"
    kinds = [arg for arg in get_args(annotation) if arg is not type(None)] or [annotation]
    kind = get_args(kinds[0])[0] if _is_tuple(annotation) and get_args(kinds[0]) else kinds[0]
    return "TEXT" if kind in (str, SecretStr) else "N"


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)
