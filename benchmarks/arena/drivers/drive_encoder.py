"""This project's Encoder, in process."""

from bert_serving.server import Encoder
from pipe import answer


def load(folder, arguments, sample):
    """arguments: those of Encoder."""
    encoder = Encoder(folder, device="cpu", **arguments)
    return encoder.encode, {}


answer(load)
