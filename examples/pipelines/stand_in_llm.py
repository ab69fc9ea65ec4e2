"""A server in place of a language model, for machines that have none: its answer is a sentence of the prompt.

    python examples/pipelines/stand_in_llm.py     # on port 8100

It has OpenAI's route POST /v1/chat/completions, but it cannot write. It answers with the sentence of the context
that shares most words with the question. A word counts less, the more sentences have it. So an answer is only as
good as the passages in the prompt. docs/applications/pipelines.md uses it to run the RAG programs.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# The question is the last line of the prompt that begins like this. The context is before it.
_PROMPT = re.compile(r"(?P<context>.*)^(?:Question|Query): (?P<question>[^\n]+)", re.M | re.S)


def answer_to(prompt: str) -> str:
    """Return the sentence of the prompt's context that shares most words with its question."""
    found = _PROMPT.search(prompt)
    if found is None:
        return "The prompt has no line that begins with 'Question:' or 'Query:'."
    sentences = [" ".join(part.split()) for part in re.split(r"(?<=[.!?])\s+|\n[\s-]*\n", found["context"])]
    words = [set(re.findall(r"\w+", sentence.lower())) for sentence in sentences]
    asked = set(re.findall(r"\w+", found["question"].lower()))
    weights = {word: 1 / (1 + sum(word in each for each in words)) for word in asked}
    scores = [sum(weights[word] for word in asked & each) for each in words]
    return sentences[scores.index(max(scores))]


class StandIn(ThreadingHTTPServer):
    """The server. It keeps every prompt that it has answered."""

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.prompts: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    server: StandIn

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.path.endswith("/chat/completions"):
            self.send_error(404)
            return
        prompt = body["messages"][-1]["content"]
        if not isinstance(prompt, str):  # a list of parts
            prompt = "".join(part["text"] for part in prompt)
        self.server.prompts.append(prompt)
        message = {"role": "assistant", "content": answer_to(prompt)}
        reply = {
            "id": f"answer-{len(self.server.prompts)}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        }
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(reply).encode())

    def log_message(self, *_: object) -> None:
        """Print no line for each request."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8100)
    with StandIn(parser.parse_args().port) as server:
        server.serve_forever()
