"""Answers that their clients do not take.

An answer lies in gRPC's memory until its client has read it, and a client that reads nothing can ask again and again: the thread
that made an answer is free long before. So answers that are under way are counted, and where they are more than a bound all
together, calls are ended, first those whose answers have waited longest. A client that reads takes its answers
within moments, so these are none of its.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

log = logging.getLogger("vecdb.server")

_SMALL_BYTES = 4_096
"""What takes no more is not counted: to count costs some us."""


class Untaken:
    """Any thread."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._bytes = 0
        self._sizes: dict[Any, int] = {}
        """By call, longest under way first."""

    @property
    def n_bytes(self) -> int:
        """Bytes of answers under way that are counted."""
        return self._bytes

    @property
    def count(self) -> int:
        """Calls whose answers, or parts of them, are under way and counted."""
        with self._lock:
            return sum(map(bool, self._sizes.values()))

    def sending(self, context: Any, size: int) -> None:
        """`context` is that of a call that is answered with so many bytes now."""
        if size <= _SMALL_BYTES and context not in self._sizes:
            return
        with self._lock:
            known = context in self._sizes
            self._bytes += size - self._sizes.pop(context, 0)
            self._sizes[context] = size
            stuck = []
            if self._bytes > self._limit_bytes:
                stuck = self._longest(context)
        if not known and not context.add_callback(lambda: self._gone(context)):
            self._gone(context)
        for one in stuck:
            one.cancel()
        if stuck:
            log.warning(
                "calls ended whose clients did not take their answers", extra={"count": len(stuck)}
            )

    def taken(self, context: Any) -> None:
        """What a stream has sent so far has gone: gRPC asks for the next message only then. It may be silent now for
        as long as it likes."""
        if context in self._sizes:
            with self._lock:
                if context in self._sizes:
                    self._bytes -= self._sizes[context]
                    self._sizes[context] = 0

    def _longest(self, newest: Any) -> list[Any]:
        """Those to be ended, which are forgotten; the newest is none of them."""
        stuck = []
        for one in self._sizes:
            if self._bytes <= self._limit_bytes or one is newest:
                break
            if self._sizes[one]:
                stuck.append(one)
                self._bytes -= self._sizes[one]
        for one in stuck:
            del self._sizes[one]
        return stuck

    def _gone(self, context: Any) -> None:
        with self._lock:
            self._bytes -= self._sizes.pop(context, 0)
