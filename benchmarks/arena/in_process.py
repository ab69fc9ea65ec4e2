"""A library in a process of its own, which answers commands over a pipe. The programs are in drivers/."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from bert_serving.protocol import Rows

_EXCEPTION = re.compile(r"[\w.]*(Error|Exception): .")
_DRIVERS = Path(__file__).parent / "drivers"


class LeftOutError(Exception):
    """A system cannot be measured; the message is the reason."""


def reason_in(log: str) -> str:
    """Return the line of a log that says why a process ended: its last exception, or else its last line."""
    lines = log.strip().splitlines() or ["it wrote nothing"]
    return next((line for line in reversed(lines) if _EXCEPTION.match(line)), lines[-1])


class Driver:
    """A running driver. The constructor starts it, and loads the model.

    arguments: what the driver passes on to its library. sample: texts with which it chooses the best way. own:
    whether it needs this project's packages. facts: what it says about itself, for example the way that it chose.
    """

    def __init__(
        self,
        python: Path,
        driver: str,
        folder: Path,
        arguments: dict[str, Any],
        *,
        sample: Sequence[str],
        own: bool,
    ) -> None:
        # PYTHONPATH has this project's packages, which a peer must not see.
        env = {name: value for name, value in os.environ.items() if own or name != "PYTHONPATH"}
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed by __exit__
        self._process = subprocess.Popen(
            [python, _DRIVERS / f"drive_{driver}.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**env, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"},
        )
        try:
            self.facts = self._ask("load", folder=str(folder), arguments=arguments, sample=list(sample))["facts"]
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()

    @property
    def ran(self) -> dict[str, str]:
        """How it computes, as far as it says so."""
        return dict(self.facts.get("ran", {}))

    def encode(self, texts: Sequence[str]) -> float:
        """Encode the texts in one call; return the seconds that it takes."""
        return float(self._ask("encode", texts=list(texts))["seconds"])

    def each(self, texts: Sequence[str]) -> list[float]:
        """Encode the texts one after the other; return the seconds of each."""
        return list(self._ask("each", texts=list(texts))["seconds"])

    def vectors(self, texts: Sequence[str]) -> Rows:
        """Return the vectors of the texts."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "vectors.npy"
            self._ask("save", texts=list(texts), file=str(file))
            rows: Rows = np.load(file)
            return rows

    def _ask(self, what: str, **arguments: object) -> dict[str, Any]:
        """Send a command; return its reply. Raises LeftOutError if the driver failed."""
        try:
            _stream(self._process.stdin).write(json.dumps({"do": what, **arguments}) + "\n")
            _stream(self._process.stdin).flush()
            line = _stream(self._process.stdout).readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            raise LeftOutError(f"its process ended with {self._process.returncode}: {self._last_line()}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise LeftOutError(reply["error"])
        return reply

    def _last_line(self) -> str:
        self._log.seek(0)
        return reason_in(self._log.read())


def _stream(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream
