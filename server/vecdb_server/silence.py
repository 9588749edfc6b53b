"""Calls that wait for a word of their client: which of them may be ended for the sake of others.

Whoever opens a call and says nothing takes a thread all the same. So each kind of call that a client may
leave open has its `Silences`, and a newcomer that finds all threads taken ends the one that was silent longest.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .arrivals import only

IDLE_S = 1.0
"""A call that was silent for so long may be ended for the sake of another."""
_LOOK_S = 0.25


class Silences:
    """Calls, by their contexts, whose clients are silent. Any thread may call."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._since: dict[Any, float] = {}

    def begin(self, context: Any) -> None:
        """The client of a call is silent from now on."""
        with self._guard:
            self._since[context] = time.monotonic()

    def over(self, context: Any) -> None:
        """It has spoken, or the call has ended."""
        with self._guard:
            self._since.pop(context, None)

    def make_room(self) -> bool:
        """Ends the call that was silent longest; False if none was for `IDLE_S`. Its thread is free a moment later."""
        with self._guard:
            context = min(self._since, key=self._since.__getitem__, default=None)
            if context is None or time.monotonic() - self._since[context] < IDLE_S:
                return False
            del self._since[context]
        context.cancel()
        return True

    def followed(self, behavior: Any) -> Any:
        """A handler of streams in both directions whose calls are silent since their client's last message,
        also while that client leaves the answers unread: to answer takes no time worth counting."""

        def serve(requests: Iterator[Any], context: Any) -> Iterator[Any]:
            def heard() -> Iterator[Any]:
                for request in requests:
                    self.begin(context)
                    yield request

            self.begin(context)
            try:
                yield from behavior(heard(), context)
            finally:
                self.over(context)

        return serve


class Brief(Silences):
    """Calls that wait for what takes a client no time. Whoever takes longer than `IDLE_S` is ended, also where
    nobody else comes: another may be waiting for the thread already."""

    def __init__(self) -> None:
        super().__init__()
        self._looks = False

    @contextmanager
    def brief(self, context: Any) -> Iterator[None]:
        """The call waits for its client while this lasts."""
        self.begin(context)
        self._look_from_now_on()
        try:
            yield
        finally:
            self.over(context)

    def only(self, requests: Iterator[Any], context: Any) -> Any:
        """The request of a call of one request; InvalidArgument where there is none."""
        with self.brief(context):
            return only(requests)

    def _look_from_now_on(self) -> None:
        with self._guard:
            if self._looks:
                return
            self._looks = True
        try:
            threading.Thread(target=self._look, name="vecdb-silence", daemon=True).start()
        except RuntimeError:
            # The system gives no more of them; the next call tries again.
            with self._guard:
                self._looks = False

    def _look(self) -> None:
        while True:
            time.sleep(_LOOK_S)
            while self.make_room():
                pass
            with self._guard:
                if not self._since:
                    self._looks = False
                    return


Refuse = Callable[[int, int], "Exception | None"]
"""Why there is no room for one more of a host, given how many it has and how many there are; None: there is."""


class Watches:
    """Calls that stay open and take no thread, by the host they come from. Any thread may call."""

    def __init__(self, refuse: Refuse) -> None:
        self._refuse = refuse
        self._guard = threading.Lock()
        self._hosts: dict[str, int] = {}
        self._open = 0

    def __len__(self) -> int:
        """How many are open."""
        return self._open

    def enter(self, context: Any) -> None:
        """Counts a call until it ends; raises what `refuse` says for one too many."""
        host = context.peer().rpartition(":")[0]
        with self._guard:
            mine = self._hosts.get(host, 0)
            refused = self._refuse(mine, self._open)
            if refused is not None:
                raise refused
            self._hosts[host] = mine + 1
            self._open += 1

        def leave() -> None:
            with self._guard:
                self._open -= 1
                self._hosts[host] -= 1
                if not self._hosts[host]:
                    del self._hosts[host]

        # It may have ended already; nobody is told then.
        if not context.add_callback(leave):
            leave()
