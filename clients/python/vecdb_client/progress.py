"""A progress bar for long writes, on standard error and only when that is a terminal."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_WIDTH = 24
_REDRAW_S = 0.1


class Progress:
    """`show(done)` as work goes on, `close()` at the end. Draws at most ten times a second."""

    def __init__(self, label: str, total: int, stream: TextIO | None = None) -> None:
        self._label = label
        self._total = max(total, 1)
        self._stream = sys.stderr if stream is None else stream
        self._active = self._stream.isatty()
        self._started_s = time.monotonic()
        self._drawn_s = 0.0

    def show(self, done: int) -> None:
        """`done` of the total are through."""
        now_s = time.monotonic()
        if not self._active or (now_s - self._drawn_s < _REDRAW_S and done < self._total):
            return
        self._drawn_s = now_s
        share = min(done / self._total, 1.0)
        full = round(_WIDTH * share)
        rate = done / max(now_s - self._started_s, 1e-9)
        bar = "█" * full + "░" * (_WIDTH - full)
        self._stream.write(
            f"\r{bar} {share:4.0%}  {self._label} {done:,} rows  {rate:,.0f} rows/s "
        )
        self._stream.flush()

    def close(self) -> None:
        """Ends the line of the bar, if one was drawn."""
        if self._drawn_s:
            self._stream.write("\n")
            self._stream.flush()
