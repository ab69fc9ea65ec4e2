"""Shows the dashboard of a server in a terminal until q, Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor

from bert_serving.client import BertClient
from bert_serving.protocol import Command

from .readings import History, Reading, reading
from .status_table import StatusError, ask, ask_for, connected_client

_KEYS_THAT_END = frozenset("qQ\x04")  # \x04: Ctrl-D
_REDRAW_S = 0.2  # a key or a new size of the terminal is noticed within this time


def watch(ip: str, port: int, port_out: int, *, every_s: float, curve_dir: str | None = None) -> None:
    """Show the dashboard until q is pressed. A server that is away is asked again until it replies.

    Raises StatusError if the keys in curve_dir cannot be read, KeyboardInterrupt on Ctrl-C or SIGTERM.
    """
    from rich.live import Live

    from .dashboard import screen
    from .key_presses import KeyPresses

    # By default, SIGTERM would end the process at once and leave the terminal without echo.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        ThreadPoolExecutor(1) as pool,
        connected_client(ip, port, port_out, curve_dir) as client,
        KeyPresses() as keys,
        Live(screen=True, auto_refresh=False) as live,
    ):
        polling = _Polling(pool, client, every_s)
        while not _KEYS_THAT_END & set(keys.next(_REDRAW_S)):
            now = time.monotonic()
            polling.step(now)
            live.update(screen(polling.history, polling.problem, address=f"{ip}:{port}", now=now), refresh=True)


class _Polling:
    """Asks the server again and again, in a thread, because keys must work while a server is away.

    problem: why the newest question got no reply; None if it got one.
    """

    def __init__(self, pool: ThreadPoolExecutor, client: BertClient, every_s: float) -> None:
        self.history = History()
        self.problem: str | None = None
        self._pool = pool
        self._client = client
        self._every_s = every_s
        self._asked: Future[Reading] | None = None
        self._next_at = 0.0

    def step(self, now: float) -> None:
        """Take the reply if there is one, and ask again if it is time."""
        if self._asked is not None and self._asked.done():
            self._take(self._asked)
            self._asked = None
        if self._asked is None and now >= self._next_at:
            self._asked = self._pool.submit(_read, self._client)
            self._next_at = now + self._every_s

    def _take(self, asked: Future[Reading]) -> None:
        try:
            self.history.add(asked.result())
            self.problem = None
        except StatusError as exc:
            self.problem = str(exc)


def _read(client: BertClient) -> Reading:
    snapshot, metrics = ask(client), ask_for(client, Command.SHOW_METRICS)
    try:
        return reading(snapshot.at, snapshot.info, metrics["template"] % tuple(metrics["numbers"]))
    except (KeyError, TypeError, ValueError) as exc:
        raise StatusError("the metrics cannot be read: the server is of another version") from exc
