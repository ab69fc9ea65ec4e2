from .compat.bert_server import BertServer as BertServer
from .worker.encoder import Encoder as Encoder

__all__ = ["BertServer", "Encoder", "__version__"]

__version__: str
