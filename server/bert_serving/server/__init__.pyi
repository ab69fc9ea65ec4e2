from .compat.bert_server import BertServer as BertServer
from .engine.async_encoder import AsyncEncoder as AsyncEncoder
from .worker.encoder import Encoder as Encoder

__all__ = ["AsyncEncoder", "BertServer", "Encoder", "__version__"]

__version__: str
