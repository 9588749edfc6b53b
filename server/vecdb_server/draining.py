"""The end of a server: what it has begun is finished and sent, within a time.

A call is through for its thread long before its client has the answer: what a slow client has not read lies in gRPC, and
then in the buffers of its connection. gRPC closes a connection once all of it is handed to the system, and what the client
says after that, such as that it has read some, has the system throw away what is left. So gRPC is stopped only when
nothing is left there.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

LOOK_S = 0.02
_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_OPEN = ("01", "08")
"""ESTABLISHED and CLOSE_WAIT, as the system's tables write them. Others are not ours to send on any more."""
_SMALL_BYTES = 4_096
"""What has no more to send does not count: it is there within a moment, and every refused call is such."""
_STUCK_S = 3.0
"""A connection on which nothing has moved for so long is not waited for: its client may be gone."""


def unsent_bytes(port: int) -> dict[str, int]:
    """By connection to a port of this machine, what its buffers hold that the other side has not confirmed. Empty where
    the system has no such tables (not Linux)."""
    found = {}
    for table in _TABLES:
        try:
            lines = table.read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, own, other, state, queues, *_ = line.split()
            if state in _OPEN and int(own.rpartition(":")[2], 16) == port:
                found[f"{own} {other}"] = int(queues.partition(":")[0], 16)
    return found


class Leaving:
    """Which connections still send what was answered. Not for several threads at once."""

    def __init__(self) -> None:
        self._moved: dict[str, tuple[int, float]] = {}
        """What is left on each, and when that was last another number."""

    def goes_on(self, unsent: Mapping[str, int], now_s: float) -> bool:
        """Whether anything is on its way, by what connections hold now; `now_s` of `time.monotonic`."""
        before = self._moved
        self._moved = {}
        for name, count in unsent.items():
            if name in before and count:
                same = before[name][0] == count
                self._moved[name] = before[name] if same else (count, now_s)
            elif count > _SMALL_BYTES:
                self._moved[name] = (count, now_s)
        return any(now_s - moved_s < _STUCK_S for _, moved_s in self._moved.values())


def drain(port: int, running: Callable[[], int], limit_s: float) -> bool:
    """Waits until no call runs and what was answered has gone; False when that took more than `limit_s`.

    `running`: calls that are under way, those whose large answer gRPC holds among them.
    """
    end_s = time.monotonic() + limit_s
    leaving, quiet = Leaving(), 0
    while time.monotonic() < end_s:
        busy = bool(running()) or leaving.goes_on(unsent_bytes(port), time.monotonic())
        # Twice: between two places, an answer is in neither for a moment.
        quiet = 0 if busy else quiet + 1
        if quiet == 2:
            return True
        time.sleep(LOOK_S)
    return False


def cut_off(port: int) -> int:
    """Ends the connections to a port that this process still has; how many. None where the system does not say what
    this process has open (not Linux).

    To a client that takes nothing gRPC cannot say that its call is over, and keeps the thread that serves it for as
    long as the connection lasts.
    """
    ended = 0
    with suppress(OSError):
        for name in os.listdir("/proc/self/fd"):
            # Gone already, no socket, or one that listens.
            with suppress(OSError), socket.socket(fileno=os.dup(int(name))) as one:
                internet = one.family in (socket.AF_INET, socket.AF_INET6)
                if internet and one.getsockname()[1] == port and one.getpeername():
                    one.shutdown(socket.SHUT_RDWR)
                    ended += 1
    return ended
