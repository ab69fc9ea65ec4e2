"""Stops a server from another process and waits until it has stopped."""

from __future__ import annotations

import argparse
import socket
import time

import zmq
from bert_serving.protocol import Command, CommandRequest, request_to_frames
from zmq.utils.monitor import recv_monitor_message

_HANDSHAKE_S = 3.0
_POLL_S = 0.05


class TerminateError(Exception):
    """The server was not stopped; the message says why."""


def terminate_parser() -> argparse.ArgumentParser:
    """Return the parser of bert-serving-terminate."""
    parser = argparse.ArgumentParser(prog="bert-serving-terminate", description="Stop a server.")
    parser.add_argument(
        "-port", "--port", "-port_in", "-port_data", type=int, required=True, help="the server's port for requests"
    )
    parser.add_argument("-ip", "--ip", default="localhost", help="address of the server (default: localhost)")
    parser.add_argument(
        "-timeout",
        "--timeout",
        type=int,
        default=15_000,
        help="milliseconds to wait until the server has stopped (default: 15000)",
    )
    return parser


def terminate_server(ip: str, port: int, *, timeout_s: float) -> None:
    """Send TERMINATION and wait until the port is closed. Raises TerminateError."""
    deadline = time.monotonic() + timeout_s
    if not _accepts(ip, port):
        raise TerminateError(f"no server listens at {ip}:{port}")
    with zmq.Context() as context, context.socket(zmq.PUSH) as pusher:
        pusher.linger = 0
        monitor = pusher.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        pusher.ipv6 = ":" in ip
        pusher.connect(f"tcp://[{ip}]:{port}" if ":" in ip else f"tcp://{ip}:{port}")
        try:
            if _next_event(monitor, min(_HANDSHAKE_S, timeout_s)) != zmq.EVENT_HANDSHAKE_SUCCEEDED:
                raise TerminateError(
                    f"the process at {ip}:{port} is not an embedding server: it does not use the ZeroMQ protocol"
                )
            pusher.send_multipart(request_to_frames(CommandRequest(b"0", b"0", Command.TERMINATION)))
            while _accepts(ip, port):
                if time.monotonic() > deadline:
                    raise TerminateError(
                        f"the server at {ip}:{port} still runs after {timeout_s:g} s; it can be stopped from "
                        "another machine only if it was started with -allow_remote_termination"
                    )
                time.sleep(_POLL_S)
        finally:
            pusher.disable_monitor()


def _accepts(ip: str, port: int) -> bool:
    try:
        with socket.create_connection((ip, port), timeout=_HANDSHAKE_S):
            return True
    except OSError:
        return False


def _next_event(monitor: zmq.Socket[bytes], timeout_s: float) -> int | None:
    if not monitor.poll(round(timeout_s * 1000)):
        return None
    return int(recv_monitor_message(monitor)["event"])
