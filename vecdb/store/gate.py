"""Who is inside an LMDB environment, and moments in which nobody is."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from ..errors import Closed

Result = TypeVar("Result")

_PATIENCE_S = 0.05


class Gate:
    """Counts transactions, and those who hold the map. Any thread may call.

    A thread that is inside enters again at once: it must not wait for those who wait for it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pid = os.getpid()
        self._state = threading.Condition()
        self._inside = 0
        self._mine = threading.local()
        self._keep_out = False
        self.closed = False
        """Nobody enters any more."""
        self.awaited = 0
        """Threads that wait for a moment without transactions."""

    @property
    def is_inside(self) -> bool:
        """Whether the calling thread is."""
        return bool(getattr(self._mine, "depth", 0))

    def enter(self, first: Callable[[], Result]) -> Result:
        """What `first` gives, which is called before, while nobody else comes or goes. `leave` must follow."""
        depth = getattr(self._mine, "depth", 0)
        with self._state:
            if self._keep_out and not depth:
                self._state.wait_for(lambda: not self._keep_out)
            if self.closed:
                raise Closed(f"{self._folder} is closed; open the database again")
            if os.getpid() != self._pid:
                raise Closed("the database was opened before a fork; open it again in this process")
            given = first()
            self._inside += 1
        self._mine.depth = depth + 1
        return given

    def leave(self) -> None:
        self._mine.depth -= 1
        with self._state:
            self._inside -= 1
            if self._keep_out or self.closed:
                self._state.notify_all()

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Keeps others out for the body, which begins when they have left, or after a short wait."""
        with self._state:
            self._keep_out = True
            self._state.wait_for(lambda: self._inside <= 1, _PATIENCE_S)
        try:
            yield
        finally:
            with self._state:
                self._keep_out = False
                self._state.notify_all()

    def alone(self, work: Callable[[], None]) -> None:
        """Runs `work` in a moment without transactions; not at all once it is closed.

        While one lasts long, others go on in between.
        """
        with self._state:
            self.awaited += 1
        try:
            while not self._once_alone(work):
                time.sleep(_PATIENCE_S)
        finally:
            with self._state:
                self.awaited -= 1

    def _once_alone(self, work: Callable[[], None]) -> bool:
        """Whether all have left in time for `work` to run, or nothing is to run any more."""
        with self._state:
            self._keep_out = True
            try:
                alone = self._state.wait_for(lambda: not self._inside, _PATIENCE_S)
                if alone and not self.closed:
                    work()
                return alone
            finally:
                self._keep_out = False
                self._state.notify_all()

    def if_empty(self, work: Callable[[], bool]) -> bool:
        """What `work` gives, which runs while nobody is inside; False, and not at all, where somebody is, or
        it is closed, or others wait for such a moment. Waits for nobody who is inside."""
        with self._state:
            return not (self._inside or self._keep_out or self.closed) and work()

    def close(self) -> bool:
        """Lets nobody in any more, and waits until all have left; False where it was closed before."""
        with self._state:
            if self.closed:
                return False
            self.closed = True
            self._state.wait_for(lambda: self._inside == 0)
            return True
