"""The pipe between the arena and a driver, in the driver's process. Each driver calls `answer` with its loader.

The arena writes one command a line, as JSON, and reads one reply a line. Times are measured here, so the pipe does
not count. What a library prints goes to standard error.
"""

import json
import os
import sys
import time


def seconds(run):
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def best(ways, texts, repeats=1):
    """Return the name of the fastest way: name -> function of texts. Each is run once to warm up."""
    found = {}
    for name, way in ways.items():
        way(texts)
        found[name] = min(seconds(lambda: way(texts)) for _ in range(repeats))  # noqa: B023
    return min(found, key=found.__getitem__)


def answer(load):
    """Answer commands until standard input ends.

    load(folder, arguments, sample) returns (encode, facts). encode(texts) returns an array with one row for each
    text. facts is a dict for the results. sample: texts with which the loader may choose the best way.
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    encode = None
    for line in sys.stdin:
        command = json.loads(line)
        try:
            if command["do"] == "load":
                encode, facts = load(command["folder"], command["arguments"], command["sample"])
                reply = {"facts": facts}
            elif command["do"] == "encode":
                reply = {"seconds": seconds(lambda: encode(command["texts"]))}  # noqa: B023
            elif command["do"] == "each":
                reply = {"seconds": [seconds(lambda: encode([text])) for text in command["texts"]]}  # noqa: B023
            else:
                import numpy

                numpy.save(command["file"], numpy.asarray(encode(command["texts"]), "float32"))
                reply = {}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
