"""The result of an examination, as lines for a person."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping

from .examination import Choices, Examination
from .machine import Machine
from .measured import GpuMemory, Measured, OneText

_WIDTH = 100
_INDENT = 12


def text_of(found: Examination) -> str:
    """Return the whole report. Each line begins with what it is about."""
    lines = [*_of_machine(found.machine)]
    lines.append(("folder", _of_folder(found)))
    if found.choices is not None:
        lines += _of_choices(found.choices, found.why)
    if found.measured is not None:
        lines += _of_figures(found.measured, found.why)
    lines.append(("ports", ", ".join(f"{port} {owner or 'free'}" for port, owner in found.ports.items())))
    lines += [("problem", problem) for problem in found.problems]
    lines += [("advice", advice) for advice in found.advice]
    if not found.problems:
        lines.append(("result", _result(found)))
    return "\n".join(_wrapped(about, text) for about, text in lines)


def _of_folder(found: Examination) -> str:
    if found.folder_is_whole:
        return "whole: configuration, tokenizer and weights are there and can be read"
    return "not whole, or not for these settings; a problem below says why"


def _result(found: Examination) -> str:
    if found.measured is None:
        return "nothing keeps a server from starting, as far as is known: the model was not loaded (-seconds 0)"
    return "a server can start here"


def _of_machine(machine: Machine) -> Iterator[tuple[str, str]]:
    cores = f"{machine.cores} cores"
    if machine.cores < machine.all_cores:
        cores += f" of {machine.all_cores}"
    yield "processor", f"{machine.processor}, {cores}; {' '.join(machine.flags) or 'no fast instructions'}"
    yield "memory", f"{machine.memory / 1e9:.1f} GB, of which {machine.free_memory / 1e9:.1f} GB are free"
    yield "GPUs", ", ".join(machine.torch_gpus or machine.driver_gpus) or "none"
    yield "versions", ", ".join(f"{name} {number}" for name, number in machine.versions.items())


def _of_choices(choices: Choices, why: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    yield "model", choices.model
    yield "workers", f"{choices.workers}, because: {why['workers']}; {choices.threads} threads each"
    yield "device", f"{', '.join(choices.devices)}, because: {why['device']}"


def _of_figures(measured: Measured, why: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    yield "dtype", f"{measured.dtype}, because: {why['dtype']}; cosine with float32: {measured.parity:.6f}"
    yield "forward", f"{measured.forward_kind}, because: {why['forward pass']}"
    yield "vectors", f"{measured.dimension} components; texts are cut after {measured.max_seq_len} tokens"
    yield "start", f"{measured.load_s:.1f} s to load the model; {measured.memory / 1e6:,.0f} MB for a worker"
    if measured.gpu is not None:
        yield "GPU memory", _of_gpu(measured.gpu)
    yield "rate", f"{measured.texts_per_s:,.0f} texts/s, {measured.tokens_per_s:,.0f} tokens/s, without sockets"
    yield "one text", _of_one_text(measured.one_text)


def _of_gpu(gpu: GpuMemory) -> str:
    total, free, used = (f"{size / 1e6:,.0f} MB" for size in (gpu.total, gpu.free, gpu.used))
    return f"{used} for a worker; of {total}, {free} were free before the model was loaded"


def _of_one_text(times: OneText) -> str:
    if times.p99_ms is None:
        return f"{times.median_ms:.1f} ms; the slowest of {times.calls} took {times.max_ms:.1f} ms"
    return f"{times.median_ms:.1f} ms; 99 of 100 took less than {times.p99_ms:.1f} ms ({times.calls} measured)"


def _wrapped(about: str, text: str) -> str:
    return textwrap.fill(
        text, _WIDTH, initial_indent=f"{about:<{_INDENT}}", subsequent_indent=" " * _INDENT, break_on_hyphens=False
    )
