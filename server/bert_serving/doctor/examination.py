"""Examines a machine and a model for a server with given settings, and says what to change."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..server.model.errors import ModelError, one_line
from ..server.model.folder import ModelFolder
from ..server.model.spec import ModelSpec
from ..server.settings import Settings
from ..server.supervisor.startup import StartError, resolve, worker_spec
from ..server.worker.compiled.operators import find_compiler
from ..server.worker.device import pick_device
from .folder import check_whole
from .machine import Machine, this_machine
from .measured import Measured, measure
from .ports import taken_by

_FILES_BESIDE_CONNECTIONS = 128  # as in gateway/limits.py
_BUSY = 0.25  # part of the cores that other programs take from a server, from which on figures are too low
_MB = 1_000_000
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory")  # in the messages of PyTorch, which are RuntimeErrors

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choices:
    """What a server with these settings would choose. model: its folder. threads: of each worker."""

    model: str
    workers: int
    threads: int
    devices: tuple[str, ...]
    compiler: str | None


@dataclass(frozen=True)
class Examination:
    """The result.

    ports: who has each port; None: it is free. folder_is_whole: whether the model's folder has all files that
    these settings need, and each of them can be read; if not, a problem says which one cannot. why: the reason for
    each choice. problems: what keeps a server from starting, or from working as it should. advice: what would make
    it better.
    """

    machine: Machine
    ports: dict[int, str | None]
    folder_is_whole: bool = False
    choices: Choices | None = None
    measured: Measured | None = None
    why: dict[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return asdict(self)


def examine(settings: Settings, seconds: float, say: Callable[[str], None]) -> Examination:
    """Return what was found.

    seconds: how long to measure; 0: the model is not loaded. say: is called with lines for the user.
    """
    ports = [(settings.host, settings.port), (settings.host, settings.port_out)]
    if settings.http_port is not None:
        ports.append((settings.http_address, settings.http_port))
    found = Examination(this_machine(), {port: taken_by(host, port) for host, port in ports})
    try:
        check_whole(ModelFolder.of(settings))
        found = replace(found, folder_is_whole=True)
        resolved = resolve(settings)
        specs = _specs(resolved)
        choices = _choices(found.machine, resolved, specs)
        found = replace(found, choices=choices)
        if seconds:
            found = replace(found, measured=measure(specs[0], choices.threads, seconds, say))
    except Exception as exc:  # the rest of the report holds even if a library fails
        log.debug("the examination ended early", exc_info=True)
        found = replace(found, problems=(problem_line(exc),))
    return replace(
        found,
        why=reasons(found, settings),
        problems=(*found.problems, *problems_of(found, settings)),
        advice=(*advice_of(found, settings), *settings.without_effect()),
    )


def _choices(machine: Machine, resolved: Settings, specs: Sequence[ModelSpec]) -> Choices:
    assert resolved.model_dir is not None
    return Choices(
        model=resolved.model_dir,
        workers=len(specs),
        threads=max(1, machine.cores // len(specs)),
        devices=tuple(dict.fromkeys(str(pick_device(spec.device)) for spec in specs)),
        compiler=find_compiler(),
    )


def _specs(resolved: Settings) -> list[ModelSpec]:
    assert resolved.num_worker is not None
    return [worker_spec(resolved, i) for i in range(resolved.num_worker)]


def problem_line(exc: Exception) -> str:
    """Return why an examination ended early, and what to do, in one line."""
    is_known = isinstance(exc, StartError | ModelError)
    line = str(exc) if is_known else one_line(exc)
    if isinstance(exc, MemoryError) or any(words in str(exc).lower() for words in _OUT_OF_MEMORY):
        return f"{line}: the memory is used up; stop other programs, or use a smaller model or a larger machine"
    return line if is_known else f"the model cannot be examined: {line}; with -verbose you see where this happened"


def reasons(found: Examination, settings: Settings) -> dict[str, str]:
    """Return why the server would choose what it would, by the name of the choice."""
    machine, choices, measured = found.machine, found.choices, found.measured
    if choices is None:
        return {}
    on_cpu = choices.devices == ("cpu",)
    lines = {
        "workers": "-num_worker" if settings.num_worker else "one for the CPU" if on_cpu else "one for each GPU",
        "device": ("-cpu" if settings.cpu else "PyTorch sees no GPU") if on_cpu else "PyTorch sees a GPU",
    }
    if measured is None:
        return lines
    bfloat16 = next((flag for flag in machine.flags if flag.endswith("bf16")), None)
    if settings.dtype != "auto":
        lines["dtype"] = "-dtype"
    elif on_cpu:
        lines["dtype"] = f"the processor has {bfloat16}" if bfloat16 else "the processor has no bfloat16"
    else:
        lines["dtype"] = "it is fast on all GPUs"
    if measured.forward_kind == "compiled":
        lines["forward pass"] = f"there is a compiler, {choices.compiler}"
    elif measured.forward_kind == "cuda-graphs":
        lines["forward pass"] = "a recorded pass starts as a whole on a GPU"
    elif settings.compile == "off":
        lines["forward pass"] = "-compile off"
    elif on_cpu and choices.compiler is None:
        lines["forward pass"] = "there is no C++ compiler"
    else:
        lines["forward pass"] = measured.padded_because or "this model, device or dtype is not compiled"
    return lines


def problems_of(found: Examination, settings: Settings) -> list[str]:
    """Return what keeps a server from starting, or from working as it should, in sentences."""
    lines = [f"port {port} is in use: {owner}" for port, owner in found.ports.items() if owner is not None]
    machine = found.machine
    if found.measured is not None and found.choices is not None:
        needed = found.choices.workers * found.measured.memory + settings.memory_mb * (1 << 20)
        if needed > machine.memory:
            lines.append(
                f"a server may need {needed / _MB:,.0f} MB ({found.choices.workers} workers of "
                f"{found.measured.memory / _MB:,.0f} MB, and -memory_mb {settings.memory_mb}), and this machine "
                f"has {machine.memory / _MB:,.0f} MB: lower -num_worker or -memory_mb"
            )
        lines += _problem_of_gpu(found.choices, found.measured)
        if found.measured.parity < 0.999:
            lines.append(
                f"the vectors agree with those in float32 only to a cosine of {found.measured.parity:.4f}: use "
                "-dtype float32"
            )
    return lines


def _problem_of_gpu(choices: Choices, measured: Measured) -> list[str]:
    gpu = measured.gpu
    workers = math.ceil(choices.workers / len(choices.devices))
    if gpu is None or workers * gpu.used <= gpu.free:
        return []
    needed, each, free = (f"{size / _MB:,.0f} MB" for size in (workers * gpu.used, gpu.used, gpu.free))
    return [
        f"{workers} workers on {measured.device} may need {needed} of its memory, {each} each, and {free} are "
        "free: lower -num_worker, or stop other programs on this GPU"
    ]


def advice_of(found: Examination, settings: Settings) -> list[str]:
    """Return what would make the server better, in sentences."""
    machine, choices, measured = found.machine, found.choices, found.measured
    lines = []
    if machine.driver_gpus and not machine.torch_gpus and not settings.cpu:
        lines.append(
            f"NVIDIA's driver lists {len(machine.driver_gpus)} GPUs, but PyTorch {machine.versions['torch']} uses "
            "none: install a build of torch for CUDA"
        )
    # Also in a container, the load is that of the host. A server can use the cores of the host that it leaves.
    if measured is not None and machine.all_cores - machine.load < (1 - _BUSY) * machine.cores:
        lines.append(
            f"in the last minute, {machine.load:.1f} threads ran or waited on the {machine.all_cores} cores of "
            "the host, so the figures may be too low: measure again when fewer do"
        )
    if choices is not None and choices.workers > max(machine.cores, len(machine.torch_gpus)):
        lines.append(f"{choices.workers} workers share {machine.cores} cores: use at most one for each core")
    lines += _advice_on_files(machine, settings)
    if measured is None:
        return lines
    on_cpu = measured.device == "cpu"
    if on_cpu and choices is not None and choices.compiler is None and settings.compile == "auto":
        lines.append("install g++: the forward pass is then compiled, and faster")
    if on_cpu and measured.dtype == "float32" and settings.dtype == "auto":
        lines.append("this processor does not compute in bfloat16, so -dtype is float32, which is slower")
    if measured.padded_because is not None:
        lines.append(f"batches are padded, which costs time, because {measured.padded_because}")
    return lines


def _advice_on_files(machine: Machine, settings: Settings) -> list[str]:
    if not settings.serves_http or machine.max_files is None:
        return []
    connections = max(1, machine.max_files - _FILES_BESIDE_CONNECTIONS)
    if connections >= settings.http_max_connect:
        return []
    return [
        f"a process may open at most {machine.max_files} files, so HTTP keeps {connections} connections open and "
        f"not -http_max_connect {settings.http_max_connect}: raise the hard limit of open files"
    ]
