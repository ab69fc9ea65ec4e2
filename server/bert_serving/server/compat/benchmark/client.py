"""One client of the benchmark, as a process: `python -m ...compat.benchmark.client TASK`.

The client prints `ready` and waits for a line, so that all clients begin together. Then it sends its requests and
prints the seconds that each request took, as a JSON list. If the input ends without the line, the benchmark has
ended, so the client ends too.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from bert_serving.client import BertClient

from .sentences import make_sentences, vocabulary_of


@dataclass(frozen=True, slots=True)
class Task:
    """What the client sends, how often, and to which server."""

    port: int
    port_out: int
    vocab_file: str
    batch_size: int
    sentence_len: int
    protocol: str
    num_repeat: int
    seed: int

    def to_json(self) -> str:
        """Return the task as the command-line argument of a client process."""
        return json.dumps(asdict(self))


def main() -> int:
    """Run the task in the first argument; return the exit code."""
    task = Task(**json.loads(sys.argv[1]))
    vocabulary = vocabulary_of(Path(task.vocab_file).read_text("utf-8"))
    texts = make_sentences(vocabulary, task.batch_size, task.sentence_len, protocol=task.protocol, seed=task.seed)
    with BertClient(port=task.port, port_out=task.port_out, check_length=False) as client:
        _say("ready")
        if not sys.stdin.readline():
            return 1
        times = []
        for _ in range(task.num_repeat):
            start = time.perf_counter()
            client.encode(texts)
            times.append(time.perf_counter() - start)
    _say(json.dumps(times))
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
