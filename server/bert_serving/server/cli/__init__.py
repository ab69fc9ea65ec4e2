"""The console scripts, one file for each command.

Only here is logging set up and a process ended with an exit code. These files import nothing but sys at the
top: Ctrl-C while a module is imported there would end the start with a traceback.
"""

from __future__ import annotations

from .benchmark import main as benchmark
from .start import main as start
from .status import main as status
from .terminate import main as terminate

main = start  # the name in bert-as-service

__all__ = ["benchmark", "main", "start", "status", "terminate"]
