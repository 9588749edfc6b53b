"""The threads that lanes borrow: those of a database serve all of its collections.

Two threads for each collection that was written to would be thousands with as many tenants, each with a
stack, and with freed memory that glibc keeps apart for it.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait

from .hands import Hands

_AHEAD = 4
"""At most. Copies ahead of a commit that find no thread are made after it."""


class LaneThreads:
    """Threads start as they are needed. Any thread may call."""

    def __init__(self) -> None:
        self.for_main = Hands()
        """Commits what the main thread writes: that has one write under way, and those it was interrupted in."""
        self.ahead = ThreadPoolExecutor(_AHEAD, thread_name_prefix="vecdb-ahead")
        """Prepares what publishing needs, beside a commit."""

    def close(self) -> None:
        """Waits for what runs. Nothing may be submitted afterwards."""
        self.for_main.close()
        self.ahead.shutdown()


def settle(tasks: list[Future[None]]) -> None:
    """Returns when none of the tasks runs or will run: those that have not begun never do."""
    wait([task for task in tasks if not task.cancel()])
