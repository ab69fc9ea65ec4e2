"""Stops a server from another process and waits until it has stopped."""

from __future__ import annotations

import argparse
import socket
import time

import zmq
from bert_serving.client.address import curve_keys
from bert_serving.client.connection import HANDSHAKE_FAILED, key_trouble
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
    parser.add_argument(
        "-curve_dir", "--curve_dir", help="folder with server.key and client.key_secret, if the server uses CURVE"
    )
    return parser


def terminate_server(ip: str, port: int, *, timeout_s: float, curve_dir: str | None = None) -> None:
    """Send TERMINATION and wait until the port is closed. Raises TerminateError.

    curve_dir: folder with the keys of a client that may connect, if the server uses CURVE.
    """
    deadline = time.monotonic() + timeout_s
    try:
        keys = curve_keys(curve_dir)
    except (OSError, ValueError, RuntimeError) as exc:
        raise TerminateError(str(exc)) from exc
    if not _accepts(ip, port):
        raise TerminateError(f"no server listens at {ip}:{port}")
    with zmq.Context() as context, context.socket(zmq.PUSH) as pusher:
        pusher.linger = 0
        monitor = pusher.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | HANDSHAKE_FAILED
        )
        pusher.ipv6 = ":" in ip
        if keys is not None:
            keys.apply_to(pusher)
        pusher.connect(f"tcp://[{ip}]:{port}" if ":" in ip else f"tcp://{ip}:{port}")
        try:
            if (trouble := _handshake_trouble(monitor, timeout_s, has_key=keys is not None)) is not None:
                raise TerminateError(f"the process at {ip}:{port} does not accept this command: {trouble}")
            pusher.send_multipart(request_to_frames(CommandRequest(b"0", b"0", Command.TERMINATION)))
            while _accepts(ip, port):
                if time.monotonic() > deadline:
                    raise TerminateError(
                        f"the server at {ip}:{port} still runs after {timeout_s:g} s. It is busy, or it runs on "
                        "another machine and was not started with -allow_remote_termination"
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


def _handshake_trouble(monitor: zmq.Socket[bytes], timeout_s: float, *, has_key: bool) -> str | None:
    """Wait for the end of the handshake; return why it failed, or None."""
    if monitor.poll(round(min(_HANDSHAKE_S, timeout_s) * 1000)):
        message = recv_monitor_message(monitor)
        event, value = message["event"], message["value"]
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            return None
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH or value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
            return key_trouble(event, value, has_key=has_key)
    return "it does not use the ZeroMQ protocol, or it requires another key (-curve_dir)"
