"""Traces for OpenTelemetry, when `trace_endpoint` is set; the one door to `opentelemetry`.

A span for each call, and for each query of a stream, child of the caller's where its metadata carry a `traceparent`, with spans for its
steps below: waiting for a thread, then for a query filter, search, rerank and fetch as `explain` has measured them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vecdb.errors import InvalidSetting, MissingDependency

from .fair_pool import queued_s

_SERVICE = "vecdb.v1.VecdbService"
Failed = Callable[[Exception], None]
"""Is told why queries have failed."""
_STEPS = ("wait", "filter", "search", "rerank", "fetch")


class _Here(threading.local):
    spans: tuple[Any, ...] = ()
    """Of the call, or of the queries of a stream, that this thread works on."""


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
        now_ns = time.time_ns()
        came_ns = now_ns - int(1e9 * queued_s())
        span = self._span(method, context, came_ns)
        if not span.is_recording():
            yield
            return
        self._part(span, "queue", came_ns, now_ns)
        before, _here.spans = _here.spans, (span,)
        try:
            yield
        except Exception as error:
            self._fail(span, error)
            raise
        finally:
            _here.spans = before
            span.end()

    @contextmanager
    def streamed(self, context: Any, came_s: float, count: int) -> Iterator[Failed]:
        """Around `count` queries of a stream that are answered together and came at `came_s` of `time.monotonic`: a span for
        each. Whoever knows of a failure says so to what this gives; what else is raised leaves no span, since each
        of the queries is then answered by itself."""
        now_ns = time.time_ns()
        came_ns = now_ns - int(1e9 * (time.monotonic() - came_s))
        made = [self._span("QueryStream", context, came_ns) for _ in range(count)]
        spans = tuple(span for span in made if span.is_recording())
        for span in spans:
            span.set_attribute("vecdb.together", count)
            self._part(span, "queue", came_ns, now_ns)
        told = False

        def failed(error: Exception) -> None:
            nonlocal told
            told = True
            for span in spans:
                self._fail(span, error)

        before, _here.spans = _here.spans, spans
        try:
            yield failed
        except BaseException:
            if not told:
                spans = ()
            raise
        finally:
            _here.spans = before
            for span in spans:
                span.end()

    def _span(self, method: str, context: Any, came_ns: int) -> Any:
        carried = {
            name: value
            for name, value in context.invocation_metadata()
            if name in ("traceparent", "tracestate") and isinstance(value, str)
        }
        return self._tracer.start_span(
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

    def _fail(self, span: Any, error: Exception) -> None:
        span.set_attribute("error.type", str(getattr(error, "reason", type(error).__name__)))
        span.set_status(self._api.Status(self._api.StatusCode.ERROR))

    def is_traced(self) -> bool:
        """Whether the call that this thread works on, or a query of a stream, has a span."""
        return bool(_here.spans)

    def query(self, collection: str, began_ns: int, times_us: Mapping[str, float]) -> None:
        """Tells the spans of what this thread works on which steps a query took, one after the other."""
        for span in _here.spans:
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
