"""Writes FOLDER/onnx/model.onnx and model_quantized.onnx from the weights in FOLDER.

int8 is dynamic, as in sentence-transformers: the scales of activations come from each batch.
"""

import sys
from pathlib import Path

from optimum.exporters.onnx import main_export
from optimum.onnxruntime import ORTQuantizer
from optimum.onnxruntime.configuration import AutoQuantizationConfig

folder = Path(sys.argv[1])
out = folder / "onnx"
main_export(str(folder), output=out, task="feature-extraction", library_name="transformers")
quantizer = ORTQuantizer.from_pretrained(out, file_name="model.onnx")
quantizer.quantize(AutoQuantizationConfig.avx512_vnni(is_static=False), save_dir=out)
