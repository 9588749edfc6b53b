"""The standard health service: whether the server lives, serves, and has a collection ready.

| name | SERVING means |
|---|---|
| empty | the process answers (liveness) |
| vecdb.v1.VecdbService | it takes calls; NOT_SERVING once it drains (readiness) |
| collection/NAME | the collection is in memory, so that its calls are answered at once |

Asking for a collection that is not in memory has it loaded. Where keys are asked for, a collection is
unknown to those whose key may not read it: its name is not told.

The servicer that comes with grpcio is not used: it sends to watchers under the lock that gRPC's own thread takes
when a watcher leaves, and to send waits for that thread. One who left at that moment stopped the whole server, and
so did one who read nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

import vecdb
from vecdb.errors import CollectionNotFound, VecdbError

from .silence import Brief

log = logging.getLogger("vecdb.server")

COLLECTION = "collection/"
_LOOK_S = 1.0
"""How often watched collections are looked at."""
_HELD_UP_S = 0.1
"""To tell one that reads takes less than a thousandth of it."""
_LAST_WORD_S = 2.0
"""How long `close` waits for watchers to be told."""

_Status = health_pb2.HealthCheckResponse
MayRead = Callable[[Any, str], bool]
Send = Callable[[Any], None]


class _Watcher:
    """One open watch. What it was told changes in one thread at a time: its own until it is kept, then the teller's."""

    def __init__(self, name: str, context: Any, send: Send) -> None:
        self.name = name
        self.context = context
        self.send = send
        self.host = context.peer().rpartition(":")[0]
        self.told: int | None = None
        self.left = False


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc,unused-ignore]
    """See the head of this file. Any thread may call; `close` ends its own thread."""

    def __init__(self, database: vecdb.Database, may_read: MayRead) -> None:
        """`may_read(metadata, name)` says whether a caller may know of a collection."""
        self._database = database
        self._may_read = may_read
        self._loading: set[str] = set()
        self._closed = threading.Event()
        self._guard = threading.Lock()
        """gRPC's own thread waits for it, so nothing is sent, and nothing of the engine is asked, under it."""
        self._statuses: dict[str, int] = {"": _Status.SERVING}
        self._watchers: dict[str, set[_Watcher]] = {}
        self._starting = threading.Lock()
        self._teller: threading.Thread | None = None
        self._news = threading.Event()
        self._unread = Brief()
        """Watches to which something is being sent."""

    @property
    def watched(self) -> dict[str, int]:
        """How many watch each name that somebody watches."""
        with self._guard:
            return {name: len(watchers) for name, watchers in self._watchers.items()}

    def set(self, name: str, status: int) -> None:
        """From now on a part of the server has that status. Its watchers hear of it a moment later."""
        with self._guard:
            self._statuses[name] = status
        self._news.set()

    def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        status = self._asked(request.service, context)
        if status == _Status.SERVICE_UNKNOWN:
            context.set_code(grpc.StatusCode.NOT_FOUND)
            return _Status()
        return _Status(status=status)

    def Watch(self, request: Any, context: Any, send: Send) -> None:  # noqa: N802
        """Tells the status of a name by `send`, and keeps the watcher to tell changes. Ends at once; the call does not.

        Of a name that the server does not know, or not to this caller, no change is ever told, and nothing is kept:
        strangers choose names.
        """
        watcher = _Watcher(request.service, context, send)
        # It may have left already; nobody is told then.
        if context.add_callback(lambda: self._leave(watcher)):
            status = self._asked(watcher.name, context)
            self._tell(watcher, status)
            if watcher.name in self._statuses or (
                watcher.name.startswith(COLLECTION) and self._may_know(watcher.name, context)
            ):
                self._keep(watcher)

    def _may_know(self, name: str, context: Any) -> bool:
        """Of an alias what counts is the collection that it stands for."""
        own = name.removeprefix(COLLECTION)
        with suppress(VecdbError):
            own = self._database.own_name(own)
        return self._may_read(context.invocation_metadata(), own)

    def _asked(self, name: str, context: Any) -> int:
        if name.startswith(COLLECTION) and not self._may_know(name, context):
            return int(_Status.SERVICE_UNKNOWN)
        return self._status(name)

    def _status(self, name: str) -> int:
        if not name.startswith(COLLECTION):
            status = self._statuses.get(name, _Status.SERVICE_UNKNOWN)
            known = status != _Status.SERVICE_UNKNOWN
            return int(_Status.NOT_SERVING if known and self._closed.is_set() else status)
        if self._closed.is_set():
            return int(_Status.NOT_SERVING)
        try:
            if self._database.is_loaded(name.removeprefix(COLLECTION)):
                return int(_Status.SERVING)
        except CollectionNotFound:
            return int(_Status.SERVICE_UNKNOWN)
        except VecdbError:
            return int(_Status.NOT_SERVING)
        self._load(name.removeprefix(COLLECTION))
        return int(_Status.NOT_SERVING)

    def _load(self, name: str) -> None:
        """Has a collection loaded, by a thread of its own, unless one is at it."""
        with self._guard:
            if name in self._loading:
                return
            self._loading.add(name)

        def load() -> None:
            try:
                self._database.get_collection(name)
            except VecdbError as error:
                log.error("collection %s cannot be loaded: %s", name, error.message)
            finally:
                with self._guard:
                    self._loading.discard(name)
                self._news.set()

        try:
            threading.Thread(target=load, name="vecdb-load", daemon=True).start()
        except RuntimeError as error:
            # The system gives no more of them; whoever asks next tries again.
            with self._guard:
                self._loading.discard(name)
            log.error("collection %s is not loaded yet: %s", name, error)

    def _keep(self, watcher: _Watcher) -> None:
        with self._guard:
            if watcher.left:
                return
            self._watchers.setdefault(watcher.name, set()).add(watcher)
        self._must_tell()
        # It may have changed since the watcher was told.
        self._news.set()

    def _must_tell(self) -> None:
        """Starts the thread that tells changes, unless there is one."""
        with self._starting:
            if self._teller is None or not self._teller.is_alive():
                thread = threading.Thread(
                    target=self._tell_changes, name="vecdb-health", daemon=True
                )
                try:
                    thread.start()
                except RuntimeError as error:
                    # The system gives no more of them; the next watcher tries again.
                    log.error("watchers of health are not told of changes yet: %s", error)
                    return
                self._teller = thread

    def _leave(self, watcher: _Watcher) -> None:
        with self._guard:
            watcher.left = True
            watchers = self._watchers.get(watcher.name, set())
            watchers.discard(watcher)
            if not watchers:
                self._watchers.pop(watcher.name, None)

    def _tell_changes(self) -> None:
        last = False
        while not last:
            self._news.wait(_LOOK_S)
            self._news.clear()
            last = self._closed.is_set()
            statuses = {name: self._status(name) for name in self.watched}
            for watcher in self._due(statuses):
                begun_s = time.monotonic()
                self._tell(watcher, statuses[watcher.name])
                if time.monotonic() - begun_s > _HELD_UP_S:
                    # By one who reads nothing. What has come meanwhile is told before others of that kind.
                    self._news.set()
                    last = False
                    break

    def _due(self, statuses: dict[str, int]) -> list[_Watcher]:
        """Who is to be told. Those of hosts with few watches first: who reads nothing costs those behind it a second."""
        with self._guard:
            watchers = [watcher for name in statuses for watcher in self._watchers.get(name, set())]
        of_host = Counter(watcher.host for watcher in watchers)
        due = [watcher for watcher in watchers if watcher.told != statuses[watcher.name]]
        return sorted(due, key=lambda watcher: of_host[watcher.host])

    def _tell(self, watcher: _Watcher, status: int) -> None:
        """Returns when gRPC has handed it on, or the watch is over: whoever reads nothing is ended after a while."""
        watcher.told = status
        try:
            with self._unread.brief(watcher.context):
                watcher.send(_Status(status=status))
        except Exception:
            # Others are to be told all the same.
            log.exception("a watcher of health was not told")

    def close(self) -> None:
        """Tells all watchers that nothing is served any more, for `_LAST_WORD_S` at most; later changes are told to
        nobody."""
        self._closed.set()
        self._news.set()
        with self._starting:
            teller = self._teller
        if teller is not None:
            teller.join(_LAST_WORD_S)
