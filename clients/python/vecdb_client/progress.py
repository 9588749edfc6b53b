"""A progress bar for long work, on standard error and only when that is a terminal."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_WIDTH = 24
_REDRAW_S = 0.1


class Progress:
    """`show(done)` as work goes on, `close()` at the end. Draws at most ten times a second.

    `total` is the number of rows in all, None when it is not known; then `show` may be told the
    `share` (0 to 1) that is done, such as the part of a file that was read. For one thread.
    """

    def __init__(self, label: str, total: int | None = None, stream: TextIO | None = None) -> None:
        self._label = label
        self._total = total
        self._stream = sys.stderr if stream is None else stream
        self._active = self._stream.isatty()
        self._started_s = time.monotonic()
        self._drawn_s = 0.0
        self._length = 0

    def show(self, done: int, share: float | None = None) -> None:
        """`done` rows are through."""
        if not self._active:
            return
        now_s = time.monotonic()
        last = self._total is not None and done >= self._total
        if now_s - self._drawn_s < _REDRAW_S and not last:
            return
        self._drawn_s = now_s
        if self._total:
            share = done / self._total
        elapsed_s = max(now_s - self._started_s, 1e-9)
        text = f"{self._label} {done:,} rows  {done / elapsed_s:,.0f} rows/s"
        if share:
            share = min(share, 1.0)
            full = round(_WIDTH * share)
            bar = "█" * full + "░" * (_WIDTH - full)
            left_s = round(elapsed_s * (1 - share) / share)
            text = f"{bar} {share:4.0%}  {text}  {left_s // 60}:{left_s % 60:02} left"
        self._stream.write("\r" + text.ljust(self._length))
        self._stream.flush()
        self._length = len(text)

    def close(self) -> None:
        """Takes the bar away, so that what is printed next stands alone."""
        if self._length:
            self._stream.write("\r" + " " * self._length + "\r")
            self._stream.flush()
            self._length = 0
