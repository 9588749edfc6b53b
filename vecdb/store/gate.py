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
        self._depths: dict[int, int] = {}
        """How deep each thread is inside, by its identity."""
        self._keep_out = False
        self.closed = False
        """Nobody enters any more."""
        self.awaited = 0
        """Threads that wait for a moment without transactions."""

    @property
    def is_inside(self) -> bool:
        """Whether the calling thread is."""
        return threading.get_ident() in self._depths

    def enter(self, first: Callable[[], Result]) -> Result:
        """What `first` gives, which is called before, while nobody else comes or goes. `leave` must follow."""
        me = threading.get_ident()
        depth = self._depths.get(me, 0)
        with self._state:
            if self._keep_out and not depth:
                self._state.wait_for(lambda: not self._keep_out)
            if self.closed:
                raise Closed(f"{self._folder} is closed; open the database again")
            if os.getpid() != self._pid:
                raise Closed("the database was opened before a fork; open it again in this process")
            given = first()
            self._depths[me] = depth + 1
        return given

    def leave(self) -> None:
        with self._state:
            me = threading.get_ident()
            depth = self._depths.pop(me) - 1
            if depth:
                self._depths[me] = depth
            if self._keep_out or self.closed:
                self._state.notify_all()

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Keeps others out for the body, which begins when they have left, or after a short wait."""
        with self._state:
            self._keep_out = True
            self._state.wait_for(self._no_other_is_inside, _PATIENCE_S)
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
                alone = self._state.wait_for(lambda: not self._depths, _PATIENCE_S)
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
            return not (self._depths or self._keep_out or self.closed) and work()

    def close(self) -> bool:
        """Lets nobody in any more, and waits until all others have left; False where it was closed before.

        For itself the calling thread does not wait: Ctrl-C may have struck it between two steps, before it left.
        """
        with self._state:
            if self.closed:
                return False
            self.closed = True
            self._state.wait_for(self._no_other_is_inside)
            return True

    def _no_other_is_inside(self) -> bool:
        return self._depths.keys() <= {threading.get_ident()}
