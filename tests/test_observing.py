"""Metrics, traces, slow queries and health of a server that runs."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import AddKey, StartServer, wait_until
from some_devices import SomeDevices
from test_server_life import lines_of

import vecdb
from vecdb.errors import InvalidSetting
from vecdb_client import connect, errors
from vecdb_client.v1 import vecdb_pb2 as pb
from vecdb_server import metrics, observing, tracing
from vecdb_server.admission import Admission
from vecdb_server.metrics import METRICS, PREFIX
from vecdb_server.samples import Sample


def fill(client: Any, rows: int = 50) -> Any:
    docs = client.create_collection("docs", dimension=4)
    docs.insert([f"r{i}" for i in range(rows)], np.eye(rows, 4) + 1)
    docs.delete(["r0"])
    return docs


def of_devices(name: str) -> bool:
    """Whether each GPU has one of that name. What the CPU took over is counted for all together, 0 without any."""
    return name.startswith("device_") and name != "device_taken_over_queries_total"


def test_the_port_shows_every_metric_of_the_table(start: StartServer) -> None:
    """Over HTTP, and by GetMetrics, come the metrics that the table names, and no others; their values are those of
    the server."""
    server = start(metrics_address="127.0.0.1:0")
    with connect(server.address, retry_s=0) as client:
        docs = fill(client)
        for _ in range(7):
            docs.query([1, 1, 1, 1], k=3)
        with pytest.raises(errors.CollectionNotFound):
            client.get_collection("none")
        url = f"http://127.0.0.1:{server.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        other = client.metrics()
    types = {
        line.split()[2]: line.split()[3] for line in text.splitlines() if line.startswith("# TYPE")
    }
    ours = {name: kind for name, kind in types.items() if name.startswith(PREFIX)}
    assert ours == {PREFIX + row.name: row.kind for row in METRICS}
    assert {
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
        "process_open_fds",
    } <= set(types)
    assert {line for line in other.splitlines() if line.startswith("# TYPE")} >= {
        f"# TYPE {name} {kind}" for name, kind in ours.items()
    }
    found = Sample.read(text)
    # What has no instance here: GPUs, reading processes, and a recall that was not audited.
    absent = {row.name for row in METRICS if not found.values.get(_sample(row))}
    assert absent == {row.name for row in METRICS if of_devices(row.name)} | {
        "index_audited_recall", "index_audited_recall_low",
        "read_process_cpu_seconds_total", "read_process_resident_bytes",
    }  # fmt: skip
    own = {"collection": "docs"}
    assert found.one("vecdb_rows_live", **own) == 49
    assert found.one("vecdb_rows_dead", **own) == 1
    assert found.one("vecdb_commit_seconds_count", **own) == 2
    assert found.one("vecdb_index_tail_rows", **own) == 50
    queries = found.one("vecdb_calls_seconds_count", method="Query", code="OK") + found.one(
        "vecdb_calls_seconds_count", method="QueryStream", code="OK"
    )
    assert queries == 7
    assert found.one("vecdb_calls_seconds_count", method="GetCollection", code="NOT_FOUND") == 1
    assert found.one("vecdb_map_readers", **own) >= 1
    for name, samples in found.values.items():
        assert all(not labels or name for labels in samples)


def _sample(row: Any) -> str:
    return PREFIX + row.name + "_count" * (row.kind == "histogram")


def test_metrics_of_devices_are_those_of_the_devices() -> None:
    """Each value that is known of a GPU comes under the metric that is named for it, of each GPU."""
    database = SimpleNamespace(figures=lambda: (), devices=SomeDevices())
    shown = Sample.read(metrics.Metrics(database, {}, Admission({})).text())  # type: ignore[arg-type]
    found = {
        (name.removeprefix("vecdb_device_"), of["device"], of.get("state", "")): value
        for name in shown.values
        if name.startswith("vecdb_device_")
        for of, value in shown.of(name)
        if of  # of each
    }
    wanted = {
        "total_bytes": (150 << 30, 150 << 30),
        "budget_bytes": (135 << 30, 135 << 30),
        "used_bytes": (7 << 30, 0),
        "placements": (3, 0),
        "queued": (5, 0),
        "batches_total": (100, 0),
        "queries_total": (3_000, 0),
        "restarts_total": (1, 0),
        "evictions_total": (17, 0),
    }
    states = {
        ("state", f"gpu:{n}", state): float(state == is_state)
        for n, is_state in enumerate(("up", "starting"))
        for state in ("idle", "starting", "up", "down", "closed")
    }
    assert found == states | {
        (name, f"gpu:{n}", ""): float(value)
        for name, values in wanted.items()
        for n, value in enumerate(values)
    }


def test_what_a_call_has_waited_for_a_thread_is_time_of_the_call(
    start: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that found its thread taken for 0.3 s lasted 0.3 s at least, by the metric that percentiles are of."""
    server = start(worker_threads=1)
    entered, release = threading.Event(), threading.Event()
    count_at = vecdb.Collection.count_at

    def held(self: Any, *args: Any, **keywords: Any) -> Any:
        entered.set()
        assert release.wait(60)
        return count_at(self, *args, **keywords)

    with connect(server.address) as client, ThreadPoolExecutor(2) as callers:
        docs = fill(client)
        monkeypatch.setattr(vecdb.Collection, "count_at", held)
        first = callers.submit(docs.count)
        assert entered.wait(60)
        second = callers.submit(docs.get, ["r1"])
        wait_until(lambda: server._pools.reads.waiting == 1, "the call waits")
        time.sleep(0.3)
        release.set()
        assert first.result() == 49
        assert second.result().ids == ["r1"]
        shown = Sample.read(client.metrics())
    assert shown.one("vecdb_calls_seconds_sum", method="Get") >= 0.3


def test_metrics_load_no_collection(start: StartServer, tmp_path: Any) -> None:
    """A collection that nobody has asked for is not loaded because of metrics."""
    with vecdb.open(tmp_path / "db") as database:
        database.create_collection("docs", dimension=2).insert(["a"], [[1, 2]])
    server = start()
    with connect(server.address) as client:
        assert "collection=" not in client.metrics()
        assert client.get_collection("docs").count() == 1
        assert 'vecdb_rows_live{collection="docs"} 1.0' in client.metrics()


@pytest.mark.parametrize("given", ["7701", "127.0.0.1:many", "127.0.0.1:70000", "0.0.0.0:0"])
def test_a_metrics_address_that_is_refused(start: StartServer, given: str) -> None:
    """What is no address, or can be reached from the network without a word that says so, does not start."""
    with pytest.raises(InvalidSetting, match="metrics"):
        start(metrics_address=given)


def test_metrics_on_the_network_if_that_is_said(start: StartServer) -> None:
    """With `metrics_on_the_network` they may be."""
    assert start(metrics_address="0.0.0.0:0", metrics_on_the_network=True).metrics_port


def test_a_metrics_port_that_is_taken(start: StartServer, tmp_path: Any) -> None:
    """The server does not start, and leaves its folder free."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidSetting, match=str(port)):
            start(metrics_address=f"127.0.0.1:{port}")
    vecdb.open(tmp_path / "db").close()


# --- slow queries


def test_slow_queries_are_logged_with_their_explanation(start: StartServer) -> None:
    """The first slow query of a collection is told with its plan, those after it with all of `explain`; answers have none."""
    server = start(slow_query_s=1e-6)

    def use(_: logging.Logger) -> None:
        with connect(server.address) as client:
            docs = fill(client)
            for _n in range(2):
                result = docs.query([1, 1, 1, 1], k=3, filter={"id": {"$ne": "r1"}})
                assert result.explain is None
            assert docs.query([1, 1, 1, 1], k=3, explain=True).explain is not None
            assert Sample.read(client.metrics()).one("vecdb_slow_queries_total") == 3

    lines = [json.loads(line) for line in lines_of("json", use).splitlines()]
    first, second, third = [line for line in lines if line["message"] == "slow query"]
    assert first["explain"]["allowed_rows"] == 48
    assert "candidates" not in first["explain"]
    assert "candidates" in second["explain"]
    for line in (first, second, third):
        assert line["explain"]["plan"] == "exact"
        assert line["explain"]["times_us"]["total"] > 0
    assert second["collection"] == "docs"
    assert second["filter"] == '{"id":{"$ne":"r1"}}'
    assert (second["k"], second["queries"]) == (3, 1)
    assert second["ms"] >= 0


def test_slow_queries_that_fail_are_logged(start: StartServer) -> None:
    """A query that took long and then failed is told as well: those that are not done in time are the slowest."""
    server = start(slow_query_s=1e-6)

    def use(_: logging.Logger) -> None:
        with connect(server.address) as client:
            docs = fill(client)
            with pytest.raises(errors.InvalidVector):
                docs.query([1, 1, 1], k=3)
            assert Sample.read(client.metrics()).one("vecdb_slow_queries_total") == 1

    lines = [json.loads(line) for line in lines_of("json", use).splitlines()]
    (told,) = [line for line in lines if line["message"] == "slow query"]
    assert (told["collection"], told["k"], told["queries"]) == ("docs", 3, None)


def test_quick_queries_are_not_logged(start: StartServer, tmp_path: Any) -> None:
    """Below the threshold nothing is logged, and with 0 nothing ever."""
    for slow_s in (10.0, 0.0):
        server = start(slow_query_s=slow_s, data=str(tmp_path / str(slow_s)))

        def use(_: logging.Logger, server: Any = server) -> None:
            with connect(server.address) as client:
                fill(client).query([1, 1, 1, 1], k=3)

        assert "slow query" not in lines_of("text", use)


# --- traces


class Kept:
    """Takes spans as an exporter does."""

    def __init__(self) -> None:
        self.spans: list[Any] = []

    def export(self, spans: Any) -> Any:
        from opentelemetry.sdk.trace.export import SpanExportResult

        self.spans += spans
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing is held."""

    def force_flush(self, timeout_millis: int = 0) -> bool:
        return True


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    """Servers of the test send their spans here."""
    exporter = Kept()
    monkeypatch.setattr(
        observing, "Tracing", lambda url, share: tracing.Tracing(url, share, exporter)
    )
    return exporter


def test_a_traced_query_has_a_span_for_each_step(start: StartServer, kept: Kept) -> None:
    """A call is a span, child of the caller's, and a query has its steps below; failures say what they were."""
    server = start(trace_endpoint="http://unused", trace_share=0.0)
    trace_id, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    carried = (("traceparent", f"00-{trace_id}-{parent}-01"),)
    with connect(server.address) as client:
        docs = fill(client)
        docs.query([1, 1, 1, 1], k=3)
        connection = client._connection
        stub = connection._stub
        vectors = pb.Vectors(data=b"\0\0\x80\x3f" * 4, count=1, dimension=4)
        answer = stub.Query(
            pb.QueryRequest(collection="docs", vectors=vectors, k=3), metadata=carried
        )
        assert len(answer.hits.ids) == 3
        assert not answer.HasField("explain")
        with pytest.raises(grpc.RpcError):
            stub.GetCollection(pb.GetCollectionRequest(name="none"), metadata=carried)
    server._observing._tracing._provider.force_flush()
    spans = {span.name.rpartition("/")[2]: span for span in kept.spans}
    assert set(spans) == {
        "Query",
        "GetCollection",
        "queue",
        "wait",
        "filter",
        "search",
        "rerank",
        "fetch",
    }
    query = spans["Query"]
    assert f"{query.context.trace_id:032x}" == trace_id
    assert f"{query.parent.span_id:016x}" == parent
    assert query.attributes["db.collection.name"] == "docs"
    for step in ("wait", "filter", "search", "rerank", "fetch"):
        assert spans[step].parent.span_id == query.context.span_id
        assert query.start_time <= spans[step].start_time <= spans[step].end_time
    assert spans["GetCollection"].attributes["error.type"] == "COLLECTION_NOT_FOUND"


def test_a_client_carries_its_trace(start: StartServer, kept: Kept) -> None:
    """What `call_metadata` gives goes with each call, so that queries of a traced program are in its trace."""
    server = start(trace_endpoint="http://unused", trace_share=0.0)
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    with connect(
        server.address,
        call_metadata=lambda: [("traceparent", f"00-{trace_id}-b7ad6b7169203331-01")],
    ) as client:
        docs = fill(client)
        for _ in range(5):
            docs.query([1, 1, 1, 1], k=3)
    server._observing._tracing._provider.force_flush()
    queries = [span for span in kept.spans if span.name.endswith("/Query")]
    assert len(queries) == 5
    assert {f"{span.context.trace_id:032x}" for span in kept.spans} == {trace_id}


def test_a_share_of_calls_is_traced(start: StartServer, kept: Kept) -> None:
    """Where the caller has not decided, all calls are traced at share 1, and none at 0, from a reload on."""
    server = start(trace_endpoint="http://unused", trace_share=1.0)
    with connect(server.address) as client:
        client.list_collections()
        server.reload({**server.settings, **server._engine_settings, "trace_share": 0.0})
        client.list_aliases()
    server._observing._tracing._provider.force_flush()
    names = {span.name.rpartition("/")[2] for span in kept.spans}
    assert names == {"ListCollections", "queue"}


def test_an_endpoint_that_is_none_does_not_start(start: StartServer) -> None:
    """A trace_endpoint is a URL."""
    with pytest.raises(InvalidSetting, match="trace_endpoint"):
        start(trace_endpoint="here:4317")


def test_metrics_are_for_admins_of_everything(
    start: StartServer, add: AddKey, keys_file: Any
) -> None:
    """They name all collections, so a key of some may not read them."""
    root, some = add("admin"), add("admin:docs*", "read:*")
    server = start(keys_file=str(keys_file))
    with connect(server.address, api_key=root) as admin:
        assert "vecdb_info" in admin.metrics()
    with (
        connect(server.address, api_key=some) as other,
        pytest.raises(errors.PermissionDenied),
    ):
        other.metrics()
