"""Traces as a collector gets them: over a real connection, by OpenTelemetry's own protocol."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from conftest import StartServer, wait_until
from test_observing import fill

from vecdb_client import connect

trace_service = pytest.importorskip(
    "opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc",
    reason="OpenTelemetry's exporter is not installed",
)


class Collector:
    """Keeps the spans that it is sent, with the resource that they are of."""

    def __init__(self) -> None:
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages

        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []

        def export(request: Any, context: Any) -> Any:
            for of_resource in request.resource_spans:
                found = {a.key: a.value.string_value for a in of_resource.resource.attributes}
                self.resources.append(found)
                for scope in of_resource.scope_spans:
                    self.spans += scope.spans
            return messages.ExportTraceServiceResponse()

        servicer = trace_service.TraceServiceServicer()
        servicer.Export = export
        self._server = grpc.server(ThreadPoolExecutor(1))
        trace_service.add_TraceServiceServicer_to_server(servicer, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name.rpartition("/")[2] == name]

    def close(self) -> None:
        self._server.stop(0).wait(5)


@pytest.fixture
def collector() -> Iterator[Collector]:
    one = Collector()
    yield one
    one.close()


def test_a_collector_gets_the_spans_of_calls(start: StartServer, collector: Collector) -> None:
    """Calls, their failures and the steps of a query arrive, parents named, at the latest when the server stops."""
    server = start(trace_endpoint=f"http://127.0.0.1:{collector.port}", trace_share=1.0)
    with connect(server.address) as client:
        docs = fill(client)
        docs.query([1, 1, 1, 1], k=3)
        with pytest.raises(LookupError):
            client.get_collection("none")
    assert server.stop()
    server.stop = lambda: True
    wait_until(lambda: bool(collector.named("Query")), "the collector has the query")
    (query,) = collector.named("Query")
    steps = {span.name for span in collector.spans if span.parent_span_id == query.span_id}
    assert {"wait", "search"} <= steps, steps
    (missing,) = collector.named("GetCollection")
    assert missing.status.code == missing.status.STATUS_CODE_ERROR
    assert len(collector.named("Insert")) == 1
    assert query.end_time_unix_nano > query.start_time_unix_nano > 0
    assert {one["service.name"] for one in collector.resources} == {"vecdb"}


def test_without_a_collector_calls_are_answered(start: StartServer, collector: Collector) -> None:
    """A collector that has gone costs its spans, and neither an answer nor the stop of the server."""
    collector.close()
    server = start(trace_endpoint=f"http://127.0.0.1:{collector.port}", trace_share=1.0)
    with connect(server.address) as client:
        assert len(fill(client).query([1, 1, 1, 1], k=3).ids[0]) == 3
    assert not collector.spans
