"""The console scripts. Only here is logging set up and a process ended with an exit code.

Nothing but sys is imported at the top, for Ctrl-C while a module is imported there ends with a traceback.
"""

from __future__ import annotations

import sys


def start(argv: list[str] | None = None) -> int:
    """bert-serving-start: serve until told to stop. Returns the exit code: 0, or 1 with one line of why."""
    try:
        return _start(argv)
    except KeyboardInterrupt:
        return 0  # before there was anything to stop


main = start  # its name in bert-as-service


def _start(argv: list[str] | None) -> int:
    import signal

    # Until the supervisor takes over, SIGTERM ends the start as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    import logging

    try:
        from .child import set_up_logging
        from .settings import parse_settings
        from .supervisor import StartError, Supervisor, resolve, token_rows
    except ModuleNotFoundError as exc:  # the base install is the client alone
        sys.stderr.write(f"bert-serving-start: {exc}; pip install 'bert-embedding-service[server]'\n")
        return 1
    log = logging.getLogger(__name__)
    asked = parse_settings(argv)
    set_up_logging("server", verbose=asked.verbose)
    for line in asked.without_effect():
        log.warning("%s", line)
    try:
        settings = resolve(asked)
        supervisor = Supervisor(settings, token_rows=token_rows(asked, settings))
        with supervisor.stop_on_signals():
            sys.stdout.write(settings.table() + "\n")
            sys.stdout.flush()
            supervisor.run()
    except StartError as exc:
        log.error("%s", exc)
        return 1
    log.info("stopped")
    return 0


def terminate(argv: list[str] | None = None) -> int:
    """bert-serving-terminate: stop a server. Returns 0 when it did stop, else 1 with one line of why."""
    from .terminate import TerminateError, terminate_parser, terminate_server

    args = terminate_parser().parse_args(argv)
    try:
        terminate_server(args.ip, args.port, timeout_s=args.timeout / 1000)
    except TerminateError as exc:
        sys.stderr.write(f"bert-serving-terminate: {exc}\n")
        return 1
    sys.stdout.write(f"the server at {args.ip}:{args.port} has stopped\n")
    return 0


def status(argv: list[str] | None = None) -> int:
    """bert-serving-status: show what a server does. Returns 0, or 1 with one line of why there is nothing."""
    try:
        return _status(argv)
    except KeyboardInterrupt:
        return 0  # the way to end -watch


def _status(argv: list[str] | None) -> int:
    import argparse

    from .live_status import StatusError, show

    parser = argparse.ArgumentParser(prog="bert-serving-status", description="Show what a running server does.")
    parser.add_argument("-ip", "--ip", default="localhost", help="its address (default: localhost)")
    parser.add_argument(
        *("-port", "--port", "-port_in", "-port_data"), type=int, default=5555, help="its port for requests"
    )
    parser.add_argument(
        *("-port_out", "--port_out", "-port_result"), type=int, default=5556, help="its port for results"
    )
    parser.add_argument(
        "-watch", "--watch", type=float, metavar="SECONDS", help="refresh so often, until Ctrl-C; default: once"
    )
    parser.add_argument("-json", "--json", action="store_true", help="all that the server tells, as JSON")
    args = parser.parse_args(argv)
    if args.watch is not None and not args.watch > 0:
        parser.error(f"-watch must be more than 0 seconds, got {args.watch:g}")
    try:
        show(args.ip, args.port, args.port_out, watch_s=args.watch, as_json=args.json)
    except StatusError as exc:
        sys.stderr.write(f"bert-serving-status: {exc}\n")
        return 1
    return 0


def benchmark(argv: list[str] | None = None) -> int:
    """bert-serving-benchmark: measure servers on this machine. Returns 0, or 1 with one line of why not."""
    try:
        return _benchmark(argv)
    except KeyboardInterrupt:
        return 130  # as a shell says it; what was measured until then is in the file


def _benchmark(argv: list[str] | None) -> int:
    import signal

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from .benchmark.experiments import parse_plan
        from .benchmark.runner import BenchmarkError, run
    except ModuleNotFoundError as exc:  # the base install is the client alone
        sys.stderr.write(f"bert-serving-benchmark: {exc}; pip install 'bert-embedding-service[server]'\n")
        return 1
    try:
        run(parse_plan(argv))
    except BenchmarkError as exc:
        sys.stderr.write(f"bert-serving-benchmark: {exc}\n")
        return 1
    return 0
