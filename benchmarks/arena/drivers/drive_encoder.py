"""This project's Encoder, in process."""

from bert_serving.server import Encoder
from pipe import answer


def load(folder, arguments, sample):
    """arguments: those of Encoder."""
    encoder = Encoder(folder, device="cpu", **arguments)
    packed = "packed" if encoder.padded_because is None else "padded"
    # A version without compiled passes has no forward_kind.
    return encoder.encode, {"ran": {"forward": getattr(encoder, "forward_kind", packed)}}


answer(load)
