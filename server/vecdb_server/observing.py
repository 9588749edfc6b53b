"""What watches the calls of a server, put together from its settings: metrics, their port, traces, slow queries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import grpc

import vecdb

from .admission import Admission
from .metrics import Metrics
from .metrics_port import MetricsPort, host_and_port
from .pools import Pools
from .query_watch import QueryWatch
from .slow_calls import SlowCalls
from .tracing import Tracing

_NOTHING: AbstractContextManager[None] = nullcontext()
_NOBODY: AbstractContextManager[Callable[[Exception], None]] = nullcontext(lambda _: None)


class Observing:
    """Made before the port is opened, closed at the end. Any thread."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        database: vecdb.Database,
        pools: Pools,
        admission: Admission,
    ) -> None:
        """InvalidSetting for a port that cannot be listened on, MissingDependency for traces that cannot be made."""
        where = host_and_port(settings)
        self.metrics = Metrics(database, pools.by_name(), admission)
        self._tracing: Tracing | None = None
        if settings["trace_endpoint"]:
            self._tracing = Tracing(settings["trace_endpoint"], settings["trace_share"])
        self.queries = QueryWatch(settings, self.metrics, self._tracing)
        self.slow_calls = SlowCalls(settings)
        self._port = None if where is None else MetricsPort(where, self.metrics.registry)

    @property
    def metrics_port(self) -> int | None:
        """The port that metrics are served on; None where they have none."""
        return None if self._port is None else self._port.port

    def call(self, method: str, context: Any) -> AbstractContextManager[None]:
        """Around a call that is served."""
        return _NOTHING if self._tracing is None else self._tracing.call(method, context)

    def streamed(
        self, context: Any, came_s: float, count: int
    ) -> AbstractContextManager[Callable[[Exception], None]]:
        """Around queries of a stream; see `Tracing.streamed`."""
        if self._tracing is None:
            return _NOBODY
        return self._tracing.streamed(context, came_s, count)

    def ended(self, method: str, code: grpc.StatusCode, took_s: float) -> None:
        """Counts a call that is through, or was refused."""
        self.metrics.ended(method, code.name, took_s)

    def reload(self, settings: Mapping[str, Any]) -> None:
        """Takes up settings that have changed, where they are not read at each call."""
        if self._tracing is not None:
            self._tracing.set_share(settings["trace_share"])

    def close(self) -> None:
        """Ends the port, and sends the spans that are left."""
        if self._port is not None:
            self._port.close()
        if self._tracing is not None:
            self._tracing.close()
