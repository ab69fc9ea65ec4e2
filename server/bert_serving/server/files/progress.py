"""How far a run is: a bar on a terminal, and a line from time to time elsewhere."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

_LINE_S = 10.0


class Progress:
    """Shows the rows that are done, their rate, the tokens each second, and the time left. Use it with `with`.

    done: the rows that an earlier run has finished.
    """

    def __init__(self, done: int) -> None:
        self._total: int | None = None
        self._done = self._before = self._shown = done
        self._tokens = 0
        self._start = self._shown_at = time.monotonic()
        self._bar = tqdm(initial=done, unit=" rows", unit_scale=True) if sys.stderr.isatty() else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._done > self._shown:
            self._show_line()

    def show(self, done: int, num_tokens: int, *, total: int | None) -> None:
        """Note that so many rows are done now, of so many, and that the last ones had so many tokens."""
        num_rows, self._done, self._total = done - self._done, done, total
        self._tokens += num_tokens
        if self._bar is not None:
            self._bar.total = total
            self._bar.set_postfix_str(self._token_rate(), refresh=False)
            self._bar.update(num_rows)
        elif time.monotonic() - self._shown_at >= _LINE_S:
            self._show_line()

    def _token_rate(self) -> str:
        seconds = time.monotonic() - self._start
        return f"{tqdm.format_sizeof(self._tokens / max(seconds, 1e-9))} tokens/s"

    def _show_line(self) -> None:
        self._shown_at, self._shown = time.monotonic(), self._done
        line = tqdm.format_meter(
            self._done,
            self._total,
            self._shown_at - self._start,
            initial=self._before,
            unit=" rows",
            unit_scale=True,
            postfix=self._token_rate(),
            ncols=0,
        )
        sys.stderr.write(f"{line.strip()}\n")
        sys.stderr.flush()
