"""The thread in which an engine loads its model and computes, and those in which it tokenizes."""

from __future__ import annotations

import atexit
import logging
import threading
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from bert_serving.protocol.workers import Batch, Changed, Failed, ModelFacts, Ready, Refused, Result

from ..model.errors import ModelError, one_line
from ..model.spec import ModelSpec
from ..worker.batch_loop import BatchLoop, warm_up
from ..worker.encoder import Encoder
from ..worker.lanes import Compiled, Work
from ..worker.tokenization import TokenizerThreads

log = logging.getLogger(__name__)

_EXIT_S = 10.0  # a program that ends waits so long for the pass that is being computed

#: What the thread says: the model is ready, a batch is done or has failed, or why the thread has ended (Refused).
Message: TypeAlias = "Ready | Result | Failed | Changed | Refused"


class ComputingThread:
    """Computes batches with one model, from `start` to `stop`.

    model: an encoder that nobody else uses meanwhile, or what to load. say: gets each message; it is called in
    other threads. A program may end without `stop`: what is computed then is dropped.

    encoder: the encoder; None until it is loaded, and after `join`, which frees weights that were loaded.
    """

    def __init__(self, model: Encoder | ModelSpec, say: Callable[[Message], None]) -> None:
        self._model = model
        self._say = say
        self._work = Work()
        self._is_stopped = False
        self._tokenizers: TokenizerThreads | None = None
        self._thread = threading.Thread(target=self._run, name="encoder", daemon=True)
        self.encoder: Encoder | None = None

    def start(self) -> None:
        """Load the model, say that it is ready, and compute."""
        # Python ends threads in the middle of a pass, and PyTorch's code aborts the process then.
        atexit.register(self._end_with_program)
        self._thread.start()

    def put(self, batch: Batch) -> None:
        """Let a batch be tokenized and computed. The model must be ready."""
        assert self._tokenizers is not None
        self._tokenizers.put(batch)

    def stop(self) -> None:
        """Let the threads end as soon as they can. Batches that are not computed are dropped."""
        self._is_stopped = True
        self._work.put(None)

    def join(self) -> None:
        """Wait until the threads have ended."""
        self._thread.join()
        atexit.unregister(self._end_with_program)
        self.encoder = self._tokenizers = None

    def _end_with_program(self) -> None:
        self.stop()
        self._thread.join(_EXIT_S)

    def _run(self) -> None:
        reason = "a thread of the engine has ended"  # that is, if the work gets None before `stop` puts it there
        try:
            encoder = self.encoder = (
                self._model if isinstance(self._model, Encoder) else Encoder.from_spec(self._model)
            )
            self._serve(encoder, warm_up(encoder, max_batch_tokens=encoder.max_batch_tokens))
        except ModelError as exc:
            reason = str(exc)
        except BaseException as exc:  # whoever waits for a vector must hear of it, whatever it is
            log.debug("the computing thread has failed", exc_info=True)
            reason = f"{type(exc).__name__}: {one_line(exc)}"
        if not self._is_stopped:
            self._say(Refused(reason))

    def _serve(self, encoder: Encoder, facts: ModelFacts) -> None:
        self._tokenizers = TokenizerThreads(encoder, self._work)
        self._say(Ready(facts))
        if encoder.compiles_later and not self._is_stopped:
            threading.Thread(target=self._compile, args=(encoder,), name="compiler", daemon=True).start()
        loop = BatchLoop(
            encoder,
            self._work,
            dtype=np.dtype(np.float32),
            max_batch_tokens=encoder.max_batch_tokens,
            send=self._say,
        )
        try:
            loop.run()
        finally:
            self._tokenizers.close()

    def _compile(self, encoder: Encoder) -> None:
        if encoder.compile():
            self._work.put(Compiled())
