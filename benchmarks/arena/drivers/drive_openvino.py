"""OpenVINO, in process, in the fastest of several ways.

They differ in the size of batches, the hint (throughput or latency) and the number of streams. Shapes are dynamic.
Many texts are sorted by length. The way for many texts and the way for one text are chosen separately.
"""

from functools import partial
from pathlib import Path

import numpy as np
import openvino
from pipe import answer, best
from words import batches_by_length, inputs_of, make_tokenizer, pooled

SIZES = (1, 4, 8, 16, 32)
#: Ways to compile: the hint, and the number of streams (None: OpenVINO's choice for the hint).
WAYS = {
    "latency": {"PERFORMANCE_HINT": "LATENCY"},
    "throughput": {"PERFORMANCE_HINT": "THROUGHPUT"},
    "1 stream": {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"},
    "2 streams": {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": "2"},
}


class Compiled:
    """A compiled model with a queue of requests."""

    def __init__(self, model, way, precision, tokenizer):
        config = {**WAYS[way], "INFERENCE_PRECISION_HINT": precision}
        self.model = openvino.Core().compile_model(model, "CPU", config)
        self.names = [each.any_name for each in self.model.inputs]
        self.queue = openvino.AsyncInferQueue(self.model)
        self.single = self.model.create_infer_request()
        self.tokenizer = tokenizer

    def encode(self, size, texts):
        """Return the vectors of many texts."""
        rows = [None] * len(texts)

        def done(request, told):
            indices, mask = told
            for i, vector in zip(indices, pooled(request.get_output_tensor(0).data, mask), strict=True):
                rows[i] = vector

        self.queue.set_callback(done)
        for indices, encodings in batches_by_length(self.tokenizer, texts, size):
            inputs = inputs_of(encodings, self.names)
            self.queue.start_async(inputs, (indices, inputs["attention_mask"]))
        self.queue.wait_all()
        return np.stack(rows)

    def encode_one(self, texts):
        """Return the vector of one text."""
        inputs = inputs_of(self.tokenizer.encode_batch(texts), self.names)
        self.single.infer(inputs, share_inputs=True)
        return pooled(self.single.get_output_tensor(0).data, inputs["attention_mask"])


def load(folder, arguments, sample):
    """arguments: file of the model; precision; what was chosen before: bulk_way, size, one_way."""
    model = openvino.Core().read_model(Path(folder) / arguments["file"])
    tokenizer = make_tokenizer(folder)
    chosen = {name: arguments[name] for name in ("bulk_way", "size", "one_way") if name in arguments}
    needed = {chosen["bulk_way"], chosen["one_way"]} if chosen else WAYS
    compiled = {way: Compiled(model, way, arguments["precision"], tokenizer) for way in needed}
    if not chosen:
        ways = {(way, size): partial(compiled[way].encode, size) for way in WAYS for size in SIZES}
        bulk_way, size = best(ways, sample)
        singles = {
            way: lambda texts, way=way: [compiled[way].encode_one([text]) for text in texts] for way in WAYS
        }
        chosen = {"bulk_way": bulk_way, "size": size, "one_way": best(singles, sample[:32])}
    bulk, one = compiled[chosen["bulk_way"]], compiled[chosen["one_way"]]

    def encode(texts):
        return one.encode_one(texts) if len(texts) == 1 else bulk.encode(chosen["size"], texts)

    return encode, {"chosen": chosen}


answer(load)
