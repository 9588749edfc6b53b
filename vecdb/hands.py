"""A thread that works for one that Ctrl-C may strike at any moment."""

from __future__ import annotations

import _thread
from collections.abc import Callable
from queue import SimpleQueue

_LOOK_S = 0.5
"""How often one that waits looks whether nobody is there any more to do its work."""


class _Given:
    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work
        self.taken = _thread.allocate_lock()
        self.done = _thread.allocate_lock()
        self.done.acquire()


class Hands:
    """Runs what it is given, one after the other, by a thread of its own that is started for the first.

    A KeyboardInterrupt may leave a lock taken that Python code is just taking, so that an executor of the standard
    library, which takes several for each call, may answer no further one. Here each step is one call of C.
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[_Given | None] = SimpleQueue()
        self._closed = False
        self._started = False
        self._ends: list[_thread.LockType] = []

    def run(self, work: Callable[[], None]) -> None:
        """Returns when `work`, which raises nothing, is done. Interrupted, it is done all the same. RuntimeError
        when no thread is to be had; then it is not. Once these are closed it is done by the caller's thread."""
        if not self._started:
            # Interrupted before the next line, another call starts a second thread: there is no harm in that.
            _thread.start_new_thread(self._work, ())
            self._started = True
        given = _Given(work)
        self._queue.put(given)
        while not given.done.acquire(timeout=_LOOK_S):
            if self._closed and given.taken.acquire(blocking=False):
                work()
                return

    def close(self) -> None:
        """Ends the thread when all is done that it was given so far."""
        self._closed = True
        self._queue.put(None)
        for end in self._ends:
            end.acquire()

    def _work(self) -> None:
        end = _thread.allocate_lock()
        end.acquire()
        self._ends.append(end)
        try:
            while (given := self._queue.get()) is not None:
                if given.taken.acquire(blocking=False):
                    try:
                        given.work()
                    finally:
                        given.done.release()
        finally:
            self._queue.put(None)
            end.release()
