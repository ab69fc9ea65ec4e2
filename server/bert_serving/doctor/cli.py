"""The command bert-serving-doctor."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings

from pydantic import ValidationError

from ..server.model.spec import validation_line
from ..server.settings import Settings, settings_parser
from ..server.supervisor.launch import worker_env

_SECONDS = 10.0


def main(argv: list[str] | None = None) -> int:
    """Examine this machine. Returns 0; 1 if there is a problem; 130 after Ctrl-C."""
    parser = settings_parser("bert-serving-doctor")
    parser.description = "Say what a server would do on this machine, how fast it would be, and what to change."
    parser.epilog = "All options of bert-serving-start are accepted, and mean the same."
    parser.add_argument("-json", "--json", action="store_true", help="print the result as JSON")
    parser.add_argument(
        "-seconds", "--seconds", type=float, default=_SECONDS, help="how long to measure (default: 10); 0: do not"
    )
    flags = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    as_json, seconds = flags.pop("json"), flags.pop("seconds")
    if not 0 <= seconds <= 3600:
        parser.error(f"seconds must be in 0..3600, got {seconds:g}")
    try:
        settings = Settings(**flags)
    except ValidationError as exc:
        parser.error(validation_line(exc))
    os.environ.update(worker_env(os.environ))  # before torch starts its threads
    logging.basicConfig(level=logging.ERROR)
    if settings.verbose:
        logging.getLogger(__package__).setLevel(logging.DEBUG)
    warnings.simplefilter("ignore")  # about texts that are cut
    from .examination import examine
    from .report import text_of

    try:
        found = examine(settings, seconds, _say)
    except KeyboardInterrupt:
        return 130
    sys.stdout.write((json.dumps(found.to_json(), indent=2) if as_json else text_of(found)) + "\n")
    return 1 if found.problems else 0


def _say(line: str) -> None:
    sys.stderr.write(f"bert-serving-doctor: {line}\n")
