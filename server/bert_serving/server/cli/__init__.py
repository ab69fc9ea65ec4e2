"""The console scripts, one file for each command.

The file of a command imports only sys at the top. It imports everything else inside functions, because Ctrl-C
during an import at the top would print a traceback.
"""

from __future__ import annotations

from .benchmark import main as benchmark
from .encode import main as encode
from .keys import main as keys
from .start import main as start
from .status import main as status
from .terminate import main as terminate

main = start  # bert-as-service's name for `start`

__all__ = ["benchmark", "encode", "keys", "main", "start", "status", "terminate"]
