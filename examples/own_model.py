"""Defines an architecture that Transformers does not know. Run as a script, it encodes sentences without a server.

    python examples/own_model.py

The script writes a small checkpoint with random weights and prints the shape of the vectors. To serve such a
checkpoint:

    bert-serving-start -model_dir FOLDER -model_module examples/own_model.py

The worker imports this file before it loads FOLDER, whose config.json contains `"model_type": "pyramid"`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from bert_serving.server import Encoder
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutput


class PyramidConfig(PreTrainedConfig):
    """The config of PyramidModel.

    The server reads `num_hidden_layers` and `max_position_embeddings`; if the latter is missing, it assumes 512.
    """

    model_type = "pyramid"

    def __init__(
        self, vocab_size: int = 64, hidden_size: int = 32, num_hidden_layers: int = 4, **options: object
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        super().__init__(**options)


class PyramidModel(PreTrainedModel):
    """Convolutions over the tokens. Each layer sees twice as far as the one below it."""

    config_class = PyramidConfig
    base_model_prefix = "pyramid"

    def __init__(self, config: PyramidConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            nn.Conv1d(config.hidden_size, config.hidden_size, kernel_size=3, padding=2**i, dilation=2**i)
            for i in range(config.num_hidden_layers)
        )
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, output_hidden_states: bool = False, **_: object
    ) -> BaseModelOutput:
        """Return the hidden states. attention_mask: (B, T), 1 = real token, 0 = padding, to be ignored."""
        mask = attention_mask[..., None]  # (B, T, 1)
        hidden = self.embeddings(input_ids) * mask  # (B, T, H)
        states = [hidden]
        for layer in self.layers:
            hidden = (hidden + torch.tanh(layer(hidden.transpose(1, 2)).transpose(1, 2))) * mask
            states.append(hidden)
        return BaseModelOutput(
            last_hidden_state=hidden,
            hidden_states=tuple(states) if output_hidden_states else None,  # embeddings, then each layer
        )


# exist_ok: when this file runs as a script, the encoder imports it a second time.
AutoConfig.register("pyramid", PyramidConfig, exist_ok=True)
AutoModel.register(PyramidConfig, PyramidModel, exist_ok=True)


def save_checkpoint(folder: Path) -> None:
    """Write a checkpoint with random weights, and a tokenizer whose tokens are letters, to the folder."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz0123456789.,!?'"]
    ids = {token: i for i, token in enumerate(tokens)}
    letters = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    letters.normalizer = normalizers.Lowercase()
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    letters.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    PreTrainedTokenizerFast(
        tokenizer_object=letters, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    PyramidModel(PyramidConfig(pad_token_id=ids["[PAD]"])).save_pretrained(folder)


def main() -> None:
    """Encode two sentences with a random checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder))
        encoder = Encoder(folder, model_module=__file__, device="cpu")
        print(encoder.encode(["First do it", "then do it right"]).shape)


if __name__ == "__main__":
    main()
