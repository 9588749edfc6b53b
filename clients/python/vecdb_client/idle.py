"""Streams from which nothing comes: each is ended once its reader has waited for `idle_s`, however long the whole may last."""

from __future__ import annotations

import math
import threading
import time
from typing import Any

import grpc

from .errors import DeadlineExceeded, InvalidSetting

DEFAULT_IDLE_S = 120.0
"""A server that works says something of a stream within some 50 seconds: a filter takes 10 of a core at most unless its
operator says otherwise, and rests for four times as long where queries wait; a backup tells how far it is every 15."""
UPLOAD_TIMES = 5
"""So many times as long an acknowledgement may take, since what it is for has to be sent before: by default as long as a
server waits for a message (its max_request_s), so that the largest comes in time over a link of 1 Mbit/s."""
_LOOK_S = 1.0


def checked_idle(idle_s: float) -> float | None:
    """The time that a stream may be silent; None, from infinity, for no limit. InvalidSetting."""
    if isinstance(idle_s, bool) or not isinstance(idle_s, int | float) or not idle_s > 0:
        raise InvalidSetting(f"idle_s must be a number of seconds above 0, given {idle_s!r}")
    return None if math.isinf(idle_s) else float(idle_s)


def silent(idle_s: float, times: int = 1) -> DeadlineExceeded:
    """The error of a stream from which nothing has come for `times` the limit."""
    return DeadlineExceeded(
        f"nothing came from the server for {times * idle_s:g} s, so the stream was ended; what was acknowledged before is done. "
        "Give a larger idle_s to connect if the server may need longer",
        idle_s=idle_s,
    )


class _Wait:
    """Somebody waits for a stream, until `end_s` at the latest."""

    __slots__ = ("end_s", "over", "stream")

    def __init__(self, stream: Any, end_s: float) -> None:
        self.stream = stream
        self.end_s = end_s
        self.over = False


class Idle:
    """Waits for streams of the synchronous client. Any thread may call; one more looks while somebody waits."""

    def __init__(self, idle_s: float | None) -> None:
        """`idle_s` None: no limit."""
        self._idle_s = idle_s
        self._guard = threading.Lock()
        self._waits: set[_Wait] = set()
        self._looks = False

    def next(self, stream: Any, times: int = 1) -> Any:
        """The next message of a stream; None behind the last. DeadlineExceeded when none comes within `times` the limit,
        else what gRPC raises."""
        if self._idle_s is None:
            return next(stream, None)
        idle_s = self._idle_s
        mine = _Wait(stream, time.monotonic() + times * idle_s)
        with self._guard:
            self._waits.add(mine)
            starts, self._looks = not self._looks, True
        if starts:
            self._start()
        try:
            found = next(stream, None)
        except grpc.RpcError:
            if mine.over:
                raise silent(idle_s, times) from None
            raise
        finally:
            with self._guard:
                self._waits.discard(mine)
        if mine.over:
            # It came at the last moment: the stream has been ended all the same.
            raise silent(idle_s, times)
        return found

    def _start(self) -> None:
        try:
            threading.Thread(target=self._look, name="vecdb-idle", daemon=True).start()
        except RuntimeError:
            # The system gives no more of them; the next message tries again.
            with self._guard:
                self._looks = False

    def _look(self) -> None:
        assert self._idle_s is not None
        while True:
            time.sleep(min(_LOOK_S, self._idle_s / 4))
            now_s = time.monotonic()
            with self._guard:
                late = [one for one in self._waits if one.end_s <= now_s and not one.over]
                for one in late:
                    one.over = True
                if not self._waits:
                    self._looks = False
                    return
            for one in late:
                one.stream.cancel()
