"""Encoders on the machines of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray
from bert_serving.protocol import EncodeOptions

from ..model.errors import one_line
from .engines import Computed, InProcess
from .errors import FileError
from .options import FileJob

_TEXTS_PER_CALL = 2048
_CALLS_AT_ONCE = 2  # one is tokenized while another one is computed
_SILENCE_S = 30.0
_RESTARTS = 3  # of an actor that dies; what it had to compute is computed again


class OnRay:
    """An encoder on each GPU of a Ray cluster; on each of its machines, if it has no GPU.

    Raises FileError if there is no such cluster, or if the model cannot be used there. say: is called with a line
    while the cluster has no room for all encoders.
    """

    def __init__(self, job: FileJob, options: EncodeOptions, say: Callable[[str], None]) -> None:
        try:
            ray.init(address=job.ray, log_to_driver=False, logging_level="warning", ignore_reinit_error=True)
        except (ConnectionError, RuntimeError, ValueError, OSError) as exc:
            raise FileError(f"cannot use the Ray cluster at {job.ray}: {one_line(exc)}") from exc
        try:
            self._start_encoders(job, options, say)
        except BaseException:
            self.close()
            raise

    def _start_encoders(self, job: FileJob, options: EncodeOptions, say: Callable[[str], None]) -> None:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"] and "CPU" in node["Resources"]]
        num_gpus = int(sum(machine.get("GPU", 0) for machine in machines))
        # Ray lets an actor compute with as many threads as it has CPUs.
        num_cpus = 1 if num_gpus else int(min(machine["CPU"] for machine in machines))
        actor: Any = ray.remote(InProcess).options(
            num_cpus=num_cpus,
            num_gpus=1 if num_gpus else 0,
            scheduling_strategy="SPREAD",  # not two on the largest machine
            max_concurrency=_CALLS_AT_ONCE,
            max_restarts=_RESTARTS,
            max_task_retries=_RESTARTS,
        )
        of_actor = job.model_copy(update={"ray": None})
        self._actors = [actor.remote(of_actor, options) for _ in range(num_gpus or len(machines))]
        starting = [actor.facts.remote() for actor in self._actors]
        while len(ray.wait(starting, num_returns=len(starting), timeout=_SILENCE_S)[0]) < len(starting):
            needed = "a GPU" if num_gpus else f"{num_cpus} free CPUs"
            say(f"waiting for {len(starting)} encoders, each of which needs {needed} of the cluster")
        facts = [self._got(each) for each in starting]
        if any(each != facts[0] for each in facts):
            raise FileError("the machines of the cluster compute with different models or dtypes: use -dtype")
        self.identity: dict[str, str]
        self.identity, self.dimension = facts[0]

    def encode(self, texts: Sequence[str]) -> Computed:
        """Return the vectors of the texts, which are dealt to all encoders."""
        starts = range(0, len(texts), _TEXTS_PER_CALL)
        calls = [
            self._actors[i % len(self._actors)].encode.remote(list(texts[start : start + _TEXTS_PER_CALL]))
            for i, start in enumerate(starts)
        ]
        found: list[Computed] = [self._got(call) for call in calls]
        return Computed(
            np.concatenate([each.rows for each in found]),
            {
                start + i: error
                for start, each in zip(starts, found, strict=True)
                for i, error in each.errors.items()
            },
            sum(each.num_tokens for each in found),
            [start + i for start, each in zip(starts, found, strict=True) for i in each.cut],
        )

    def close(self) -> None:
        """Leave the cluster, which ends the encoders."""
        ray.shutdown()

    def _got(self, call: Any) -> Any:
        try:
            return ray.get(call)
        except ray.exceptions.RayTaskError as exc:
            raise FileError(one_line(exc.cause)) from exc
        except ray.exceptions.ActorDiedError as exc:
            # Of an error in the constructor, Ray gives only the text of the traceback.
            *_, last = [line for line in str(exc).splitlines() if line.strip()]
            raise FileError(last.removeprefix(f"{FileError.__module__}.{FileError.__name__}: ")) from exc
        except ray.exceptions.RayError as exc:
            raise FileError(f"the Ray cluster cannot compute the vectors: {one_line(exc)}") from exc
