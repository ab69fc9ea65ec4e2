"""The console scripts, one file for each command.

A command's file imports only sys at the top, and the rest inside its `main`: Ctrl-C during an import at the top
would print a traceback.
"""

from __future__ import annotations

from .benchmark import main as benchmark
from .start import main as start
from .status import main as status
from .terminate import main as terminate

main = start  # bert-as-service's name for it

__all__ = ["benchmark", "main", "start", "status", "terminate"]
