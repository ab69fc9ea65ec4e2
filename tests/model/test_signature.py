"""The arguments of Encoder have the names, order and defaults of the options in ModelSpec."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from bert_serving.server.model.spec import ModelSpec
from bert_serving.server.worker.encoder import Encoder


def parameters() -> dict[str, inspect.Parameter]:
    found = dict(inspect.signature(Encoder.__init__).parameters)
    del found["self"]
    return found


def test_the_arguments_have_the_options_names_in_their_order() -> None:
    assert list(parameters()) == list(ModelSpec.model_fields)


def test_the_arguments_have_the_options_defaults() -> None:
    given = {name: parameter.default for name, parameter in parameters().items()}
    assert ModelSpec.checked(**given) == ModelSpec()


def test_every_argument_is_described_in_the_options_order() -> None:
    described = re.findall(r"^    (\w+): ", inspect.cleandoc(Encoder.__doc__ or "").replace("\n", "\n    "), re.M)
    assert described == list(ModelSpec.model_fields)


def test_an_encoder_is_made_from_a_spec(demo_model: Path) -> None:
    spec = ModelSpec.checked(model_dir=demo_model, pooling_strategy=["CLS_TOKEN", "REDUCE_MAX"], device="cpu")
    assert Encoder.from_spec(spec).poolings == ("CLS_TOKEN", "REDUCE_MAX")
