"""Traces for OpenTelemetry, when `trace_endpoint` is set; the one door to `opentelemetry`.

A span for each call, child of the caller's where its metadata carry a `traceparent`, with spans for its
steps below: waiting for a thread, then for a query filter, search, rerank and fetch as `explain` has measured them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vecdb.errors import InvalidSetting, MissingDependency

from .fair_pool import queued_s

_SERVICE = "vecdb.v1.VecdbService"
_STEPS = ("wait", "filter", "search", "rerank", "fetch")


class _Here(threading.local):
    span: Any = None


_here = _Here()


class Tracing:
    """Makes spans and sends them from a thread of its own. Any thread may call."""

    def __init__(self, endpoint: str, share: float, exporter: Any = None) -> None:
        """`endpoint` as http://host:4317, OTLP over gRPC; `exporter` takes its place in tests.
        MissingDependency where the packages are not installed, InvalidSetting for an endpoint that is none."""
        if exporter is None and not endpoint.startswith(("http://", "https://")):
            raise InvalidSetting(
                f"trace_endpoint is a URL such as http://127.0.0.1:4317, given {endpoint!r}",
                setting="trace_endpoint",
            )
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider, sampling
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise MissingDependency(
                "trace_endpoint needs packages that are not installed: pip install 'vecdb-server[trace]' "
                f"({error})"
            ) from None
        self._api = trace
        self._sampling = sampling
        self._read = TraceContextTextMapPropagator().extract
        self._sampler = _Shared(share, sampling)
        self._provider = TracerProvider(
            sampler=self._sampler.as_sampler(),
            resource=Resource.create({"service.name": "vecdb"}),
            shutdown_on_exit=False,
        )
        sent_to = exporter or OTLPSpanExporter(endpoint=endpoint)
        self._provider.add_span_processor(BatchSpanProcessor(sent_to))
        self._tracer = self._provider.get_tracer("vecdb.server")

    def set_share(self, share: float) -> None:
        """Share of calls that are traced where the caller has not decided, from now on."""
        self._sampler.set(share)

    @contextmanager
    def call(self, method: str, context: Any) -> Iterator[None]:
        """Around a call: its span, and a span of how long it waited for a thread."""
        carried = {
            name: value
            for name, value in context.invocation_metadata()
            if name in ("traceparent", "tracestate") and isinstance(value, str)
        }
        now_ns = time.time_ns()
        came_ns = now_ns - int(1e9 * queued_s())
        span = self._tracer.start_span(
            f"{_SERVICE}/{method}",
            context=self._read(carried),
            kind=self._api.SpanKind.SERVER,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": _SERVICE,
                "rpc.method": method,
                "network.peer.address": context.peer(),
            },
            start_time=came_ns,
        )
        if not span.is_recording():
            yield
            return
        self._part(span, "queue", came_ns, now_ns)
        before, _here.span = _here.span, span
        try:
            yield
        except Exception as error:
            span.set_attribute("error.type", str(getattr(error, "reason", type(error).__name__)))
            span.set_status(self._api.Status(self._api.StatusCode.ERROR))
            raise
        finally:
            _here.span = before
            span.end()

    def is_traced(self) -> bool:
        """Whether the call that this thread works on has a span."""
        return _here.span is not None

    def query(self, collection: str, began_ns: int, times_us: Mapping[str, float]) -> None:
        """Tells the span of this thread's call which steps a query took, one after the other."""
        span = _here.span
        if span is None:
            return
        span.set_attribute("db.collection.name", collection)
        at_ns = began_ns
        for step in _STEPS:
            end_ns = at_ns + int(1_000 * times_us.get(step, 0.0))
            self._part(span, step, at_ns, end_ns)
            at_ns = end_ns

    def _part(self, span: Any, name: str, began_ns: int, ended_ns: int) -> None:
        below = self._api.set_span_in_context(span)
        self._tracer.start_span(name, context=below, start_time=began_ns).end(ended_ns)

    def close(self) -> None:
        """Sends what is left and ends the thread."""
        self._provider.shutdown()


class _Shared:
    """A sampler whose share can change: the caller's decision where it made one, else a share of calls."""

    def __init__(self, share: float, sampling: Any) -> None:
        self._sampling = sampling
        self.set(share)

    def set(self, share: float) -> None:
        self._now = self._sampling.ParentBased(self._sampling.TraceIdRatioBased(share))

    def as_sampler(self) -> Any:
        asked = self

        class Sampler(self._sampling.Sampler):  # type: ignore[name-defined]
            def should_sample(self, *given: Any, **named: Any) -> Any:
                return asked._now.should_sample(*given, **named)

            def get_description(self) -> str:
                return str(asked._now.get_description())

        return Sampler()
