"""The standard health service: whether the server lives, serves, and has a collection ready.

| name | SERVING means |
|---|---|
| empty | the process answers (liveness) |
| vecdb.v1.VecdbService | it takes calls; NOT_SERVING once it drains (readiness) |
| collection/NAME | the collection is in memory, so that its calls are answered at once |

Asking for a collection that is not in memory has it loaded. Where keys are asked for, a collection is
unknown to those whose key may not read it: its name is not told.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

import vecdb
from vecdb.errors import CollectionNotFound, VecdbError

log = logging.getLogger("vecdb.server")

COLLECTION = "collection/"
_LOOK_S = 1.0
"""How often watched collections are looked at."""

_Status = health_pb2.HealthCheckResponse
MayRead = Callable[[Any, str], bool]


class _Leaving:
    """The context of a watcher, who may have left before anybody asked to be told of it.

    gRPC then drops the callback, and the base class would keep the watcher for ever.
    """

    def __init__(self, context: Any) -> None:
        self.invocation_metadata = context.invocation_metadata
        self._add_callback = context.add_callback

    def add_callback(self, callback: Callable[[], None]) -> bool:
        if not self._add_callback(callback):
            callback()
        return True


class Health(health.HealthServicer):  # type: ignore[misc,unused-ignore]
    """See the head of this file. `close` ends its thread."""

    def __init__(self, database: vecdb.Database, may_read: MayRead) -> None:
        """`may_read(metadata, name)` says whether a caller may know of a collection."""
        super().__init__(experimental_non_blocking=True)
        self._database = database
        self._may_read = may_read
        self._loading: set[str] = set()
        self._guard = threading.Lock()
        self._closed = threading.Event()
        self._looks: threading.Thread | None = None

    def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        name: str = request.service
        if name.startswith(COLLECTION):
            status = self._state(name, context)
            if status == _Status.SERVICE_UNKNOWN:
                context.set_code(grpc.StatusCode.NOT_FOUND)
                return _Status()
            return _Status(status=status)
        return super().Check(request, context)

    def Watch(  # noqa: N802
        self, request: Any, context: Any, send_response_callback: Any = None
    ) -> Any:
        name: str = request.service
        context = _Leaving(context)
        ours = name.startswith(COLLECTION)
        if ours and self._may_read(context.invocation_metadata(), name.removeprefix(COLLECTION)):
            status = self._state(name)
            # At once, or what is kept for the name could go in between.
            with self._lock:
                self.set(name, status)
                watching = super().Watch(request, context, send_response_callback)
            self._look_from_now_on()
            return watching
        if ours or name not in self._server_status:
            # As it answers for what it does not know. Such a watcher never hears of a change, and the name
            # that a stranger has chosen is not kept.
            request.service = "unknown"
        return super().Watch(request, context, send_response_callback)

    def _state(self, service: str, context: Any = None) -> int:
        name = service.removeprefix(COLLECTION)
        if context is not None and not self._may_read(context.invocation_metadata(), name):
            return int(_Status.SERVICE_UNKNOWN)
        if self._closed.is_set():
            return int(_Status.NOT_SERVING)
        try:
            if self._database.is_loaded(name):
                return int(_Status.SERVING)
        except CollectionNotFound:
            return int(_Status.SERVICE_UNKNOWN)
        except VecdbError:
            return int(_Status.NOT_SERVING)
        self._load(name)
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

        threading.Thread(target=load, name="vecdb-load", daemon=True).start()

    def _look_from_now_on(self) -> None:
        with self._guard:
            if self._looks is None and not self._closed.is_set():
                self._looks = threading.Thread(target=self._look, name="vecdb-health", daemon=True)
                self._looks.start()

    def _look(self) -> None:
        told: dict[str, int] = {}
        while not self._closed.wait(_LOOK_S):
            watched = self._watched()
            told = {name: status for name, status in told.items() if name in watched}
            for name in watched:
                status = self._state(name)
                if told.get(name) != status:
                    told[name] = status
                    self.set(name, status)

    def _watched(self) -> list[str]:
        """Names of collections that somebody watches. What was kept for others goes: strangers choose names."""
        with self._lock:
            for name, watchers in list(self._send_response_callbacks.items()):
                if name.startswith(COLLECTION) and not watchers:
                    del self._send_response_callbacks[name]
                    self._server_status.pop(name, None)
            return [name for name in self._send_response_callbacks if name.startswith(COLLECTION)]

    def close(self) -> None:
        """Tells all watchers that nothing is served any more; later changes are told to nobody."""
        self._closed.set()
        self.enter_graceful_shutdown()
