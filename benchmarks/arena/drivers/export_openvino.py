"""Writes FOLDER/openvino/openvino_model.xml and openvino_model_int8.xml from the weights in FOLDER.

int8 is static, as in sentence-transformers: NNCF derives the scales of activations from texts on standard input.
"""

import json
import sys
from pathlib import Path

import nncf
import openvino
from optimum.exporters.openvino import main_export
from words import make_tokenizer, rows_of

folder = Path(sys.argv[1])
out = folder / "openvino"
texts = json.load(sys.stdin)
main_export(str(folder), output=out, task="feature-extraction", library_name="transformers")

model = openvino.Core().read_model(out / "openvino_model.xml")
names = [each.any_name for each in model.inputs]
tokenizer = make_tokenizer(folder)
samples = [rows_of(tokenizer, [text], names) for text in texts]
quantized = nncf.quantize(
    model, nncf.Dataset(samples), subset_size=len(samples), model_type=nncf.ModelType.TRANSFORMER
)
openvino.save_model(quantized, out / "openvino_model_int8.xml", compress_to_fp16=False)
