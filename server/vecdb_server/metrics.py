"""Every metric that a server shows, and how it is read from the server when someone asks.

Names follow Prometheus: base units, `_total` for what only grows. Nothing is computed between two requests
for them but counts of calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import grpc
from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

import vecdb
from vecdb.errors import Closed
from vecdb.tally import SECONDS, SIZES, Counted, Tally
from vecdb.types import DeviceStats, IndexStats
from vecdb.watching import CollectionFigures, search_figures

from .admission import Admission
from .call_figures import CallFigures, PoolFigures, key, method_and_code, total
from .fair_pool import FairPool
from .headroom import OF_PROCESS
from .readers.keeper import Keeper

DEVICE_STATES = ("idle", "starting", "up", "down", "closed")


class Row(NamedTuple):
    """One metric: its name without prefix, kind, labels and what it tells."""

    name: str
    kind: str
    labels: tuple[str, ...]
    doc: str
    value: Callable[[Any], float] | None = None
    """Of what its labels name: `CollectionFigures`, `IndexStats` or `DeviceStats`. None: put together below."""


METRICS = (
    Row("info", "gauge", ("version",), "1, with the version of the server."),
    Row("start_time_seconds", "gauge", (), "When the server began to serve, seconds since 1970."),
    Row("calls_seconds", "histogram", ("method", "code"), "Time of calls by RPC and status, from the moment they came, before they waited for a thread, up to the answer; streams until their end; of QueryStream each query, from the moment its message was read."),
    Row("calls_running", "gauge", ("pool",), "Calls that a thread works on: pool read, write, long (what may last), stream (open streams of queries), reflection or health."),
    Row("calls_waiting", "gauge", ("pool",), "Calls that wait for a thread."),
    Row("calls_wait_seconds", "histogram", ("pool",), "Time that calls have waited for a thread."),
    Row("calls_clients", "gauge", ("pool",), "Clients with calls that run or wait, or had some moments ago."),
    Row("calls_refused_total", "counter", ("reason",), "Calls refused because of load: concurrent (max_concurrent), wait (max_wait_s, or all places of health), share (places of others), deadline (could not be kept), threads (stream_threads, query_streams, those of reflection), memory (a limit of the address space)."),
    Row("calls_unsent_total", "counter", ("reason",), "Calls ended because their request had not come: room (request_wait_s, other calls lacked a thread), limit (max_request_s)."),
    Row("slow_queries_total", "counter", (), "Queries that took longer than slow_query_s."),
    Row("search_batch_queries", "histogram", (), "Queries that were searched in one call."),
    Row("search_waiting", "gauge", (), "Searches that wait for a core."),
    Row("read_processes", "gauge", (), "Reading processes that listen beside the writer (read_processes). What calls are counted above are those of all processes together."),
    Row("read_process_restarts_total", "counter", (), "Times that one of them was started again."),
    Row("read_process_cpu_seconds_total", "counter", ("process",), "CPU time of a reading process, those included that it replaced."),
    Row("read_process_resident_bytes", "gauge", ("process",), "Memory of a reading process; pages of files that it shares with others included."),
    Row("commit_seconds", "histogram", ("collection",), "Time of commits, until they are durable and visible."),
    Row("commit_writes", "histogram", ("collection",), "Writes that shared a commit."),
    Row("sequence", "gauge", ("collection",), "Newest commit.", lambda c: c.sequence),
    Row("rows_live", "gauge", ("collection",), "Records that are stored.", lambda c: c.live_rows),
    Row("rows_dead", "gauge", ("collection",), "Replaced and deleted rows that still take space in the store.", lambda c: c.rows - c.live_rows - c.purged_rows),
    Row("disk_bytes", "gauge", ("collection",), "Files of the collection.", lambda c: c.disk_bytes),
    Row("map_used_bytes", "gauge", ("collection",), "LMDB map in use.", lambda c: c.map_used_bytes),
    Row("map_size_bytes", "gauge", ("collection",), "LMDB map as it is now; it grows by itself.", lambda c: c.map_size_bytes),
    Row("map_limit_bytes", "gauge", ("collection",), "LMDB map that writes may not grow beyond (map_limit_bytes).", lambda c: c.map_limit_bytes),
    Row("map_readers", "gauge", ("collection",), "Slots of LMDB readers that are taken, one a thread that has read, of all processes.", lambda c: c.readers),
    Row("map_max_readers", "gauge", ("collection",), "Slots of LMDB readers there are.", lambda c: c.max_readers),
    Row("index_info", "gauge", ("collection", "vector", "kind", "quantization", "device"), "1, with what serves the indexed rows."),
    Row("index_rows", "gauge", ("collection", "vector"), "Rows in the main index.", lambda i: i.indexed_rows),
    Row("index_tail_rows", "gauge", ("collection", "vector"), "Rows that came since, compared exactly.", lambda i: i.tail_rows),
    Row("index_dead_rows", "gauge", ("collection", "vector"), "Dead rows that still take space in the index.", lambda i: i.dead_rows),
    Row("index_memory_bytes", "gauge", ("collection", "vector"), "Memory of the index.", lambda i: i.memory_bytes),
    Row("index_device_bytes", "gauge", ("collection", "vector"), "Memory of GPUs that it takes.", lambda i: i.device_bytes),
    Row("index_building", "gauge", ("collection", "vector"), "1 while a build is queued or runs.", lambda i: int(i.building)),
    Row("index_build_progress", "gauge", ("collection", "vector"), "Share of the running build that is done; 1 when none runs.", lambda i: i.build_progress),
    Row("index_failed", "gauge", ("collection", "vector"), "1 when the last build failed.", lambda i: int(bool(i.last_error))),
    Row("index_age_seconds", "gauge", ("collection", "vector"), "Time since the last build; 0 where there is none.", lambda i: i.age_s),
    Row("index_target_recall", "gauge", ("collection", "vector"), "Recall that is asked for.", lambda i: i.target_recall),
    Row("index_calibrated_recall", "gauge", ("collection", "vector"), "Recall at 10 by the last calibration; 1 where search is exact.", lambda i: i.measured_recall),
    Row("index_audited_recall", "gauge", ("collection", "vector"), "Recall of live queries that were answered again exactly; only where there were some."),
    Row("index_audited_recall_low", "gauge", ("collection", "vector"), "Lower end of its 95 % interval."),
    Row("index_audited_queries_total", "counter", ("collection", "vector"), "Live queries that were answered again exactly.", lambda i: i.audit.queries),
    Row("device_state", "gauge", ("device", "state"), "1 for the state that the GPU is in: idle, starting, up, down, closed."),
    Row("device_total_bytes", "gauge", ("device",), "Memory of the GPU.", lambda d: d.total_bytes),
    Row("device_budget_bytes", "gauge", ("device",), "Memory that placements may take.", lambda d: d.budget_bytes),
    Row("device_used_bytes", "gauge", ("device",), "Memory that placements take.", lambda d: d.used_bytes),
    Row("device_placements", "gauge", ("device",), "Indexes and parts of them on the GPU.", lambda d: d.placements),
    Row("device_evictions_total", "counter", ("device",), "Indexes and parts of them that had to go from the GPU to make room for others.", lambda d: d.evictions),
    Row("device_queued", "gauge", ("device",), "Searches that wait for the GPU.", lambda d: d.queued),
    Row("device_batches_total", "counter", ("device",), "Calls that searched on the GPU.", lambda d: d.batches),
    Row("device_queries_total", "counter", ("device",), "Queries in them.", lambda d: d.queries),
    Row("device_taken_over_queries_total", "counter", (), "Queries that the CPU answered because a GPU failed, had lost what lay there, or was busy for long. 0 where there is no GPU."),
    Row("device_restarts_total", "counter", ("device",), "Times that the GPU's process was started again.", lambda d: d.restarts),
)  # fmt: skip
"""All but those of the process, which are prometheus_client's: process_..., python_gc_..."""

PREFIX = "vecdb_"
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}
_FAMILIES = {
    "gauge": GaugeMetricFamily,
    "counter": CounterMetricFamily,
    "histogram": HistogramMetricFamily,
}


class Metrics:
    """The metrics of one server. Any thread may call."""

    def __init__(
        self, database: vecdb.Database, pools: Mapping[str, FairPool], admission: Admission
    ) -> None:
        self._database = database
        self._pools = pools
        self._admission = admission
        self._started_s = time.time()
        self._calls: dict[tuple[str, str], Tally] = {}
        self.slow_queries = 0
        self.keeper: Keeper | None = None
        """Whose reading processes are counted too."""
        self.registry = CollectorRegistry()
        """What Prometheus's own exposition reads."""
        # Its types name a class; what is asked for is a method `collect`.
        collector: Any = self
        self.registry.register(collector)
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def ended(self, method: str, code: str, took_s: float, count: int = 1) -> None:
        """Counts `count` calls that took equally long; 1 us."""
        tally = self._calls.get((method, code))
        if tally is None:
            tally = self._calls.setdefault((method, code), Tally(SECONDS))
        tally.add(took_s, count)

    def streamed(self, code: int, took_s: float, count: int) -> None:
        """Counts queries of a stream, whose status has this number."""
        if count:
            self.ended("QueryStream", _CODES.get(code, "UNKNOWN"), took_s, count)

    def text(self) -> str:
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry).decode()

    def describe(self) -> Iterable[Metric]:
        """Names without values, for the registry, which would ask for all values otherwise."""
        return [_family(row) for row in METRICS]

    def collect(self) -> Iterator[Metric]:
        """All values of this moment; for the registry."""
        families = {row.name: _family(row) for row in METRICS}
        self._of_calls(families)
        try:
            for figures in self._database.figures():
                _of_collection(families, figures)
        except Closed:
            pass  # the server stops; what is left is told
        devices = self._database.devices
        for device in () if devices is None else devices.stats():
            _of_device(families, device)
        placements = None if devices is None else devices.placements
        taken = 0.0 if placements is None else placements.taken_over.read().total
        families["device_taken_over_queries_total"].add_metric([], taken)
        return iter(families.values())

    def of_this_process(self) -> CallFigures:
        """What this process has counted, and what it does now."""
        searches = search_figures()
        return CallFigures(
            {key(*of): tally.read() for of, tally in sorted(self._calls.copy().items())},
            {
                name: PoolFigures(pool.running, pool.waiting, pool.clients, pool.waits.read())
                for name, pool in self._pools.items()
            },
            {**self._admission.refused(), "memory": OF_PROCESS.refused},
            self.slow_queries,
            searches.batch_queries,
            searches.waiting,
            unsent=self._admission.unsent(),
        )

    def _of_calls(self, families: Mapping[str, Any]) -> None:
        families["info"].add_metric([vecdb.__version__], 1)
        families["start_time_seconds"].add_metric([], self._started_s)
        readers = {} if self.keeper is None else self.keeper.figures()
        figures = total([self.of_this_process(), *readers.values()])
        families["slow_queries_total"].add_metric([], figures.slow_queries)
        for of, counted in figures.calls.items():
            _histogram(families["calls_seconds"], [*method_and_code(of)], SECONDS, counted)
        for name, pool in figures.pools.items():
            families["calls_running"].add_metric([name], pool.running)
            families["calls_waiting"].add_metric([name], pool.waiting)
            families["calls_clients"].add_metric([name], pool.clients)
            _histogram(families["calls_wait_seconds"], [name], SECONDS, pool.waits)
        for reason, count in figures.refused.items():
            families["calls_refused_total"].add_metric([reason], count)
        for reason, count in figures.unsent.items():
            families["calls_unsent_total"].add_metric([reason], count)
        _histogram(families["search_batch_queries"], [], SIZES, figures.batch_queries)
        families["search_waiting"].add_metric([], figures.search_waiting)
        self._of_readers(families, readers)

    def _of_readers(self, families: Mapping[str, Any], readers: Mapping[str, CallFigures]) -> None:
        keeper = self.keeper
        families["read_processes"].add_metric([], 0 if keeper is None else keeper.up)
        families["read_process_restarts_total"].add_metric(
            [], 0 if keeper is None else keeper.restarts
        )
        for name, figures in readers.items():
            families["read_process_cpu_seconds_total"].add_metric([name], figures.cpu_s)
            families["read_process_resident_bytes"].add_metric([name], figures.resident_bytes)


def _family(row: Row) -> Any:
    # The class of a counter puts the `_total` back.
    name = PREFIX + row.name.removesuffix("_total")
    return _FAMILIES[row.kind](name, row.doc, labels=row.labels)


def _histogram(family: Any, labels: list[str], bounds: Iterable[float], held: Counted) -> None:
    buckets, below = [], 0
    for bound, count in zip([*map(float, bounds), float("inf")], held.counts, strict=True):
        below += count
        buckets.append(("+Inf" if bound == float("inf") else str(bound), below))
    family.add_metric(labels, buckets, held.total)


def _values(families: Mapping[str, Any], names: Mapping[str, str], figures: Any) -> None:
    """Adds the values of all metrics with these labels that are read from one object."""
    for row in METRICS:
        if row.value is not None and row.labels == tuple(names):
            families[row.name].add_metric([*names.values()], row.value(figures))


def _of_collection(families: Mapping[str, Any], figures: CollectionFigures) -> None:
    _values(families, {"collection": figures.name}, figures)
    _histogram(families["commit_seconds"], [figures.name], SECONDS, figures.commit_s)
    _histogram(families["commit_writes"], [figures.name], SIZES, figures.commit_writes)
    for vector, index in figures.indexes.items():
        _of_index(families, figures.name, vector, index)


def _of_index(families: Mapping[str, Any], name: str, vector: str, index: IndexStats) -> None:
    kind = [name, vector, index.kind, index.quantization, index.device]
    families["index_info"].add_metric(kind, 1)
    _values(families, {"collection": name, "vector": vector}, index)
    if index.audit.queries:
        families["index_audited_recall"].add_metric([name, vector], index.audit.recall)
        families["index_audited_recall_low"].add_metric([name, vector], index.audit.low)


def _of_device(families: Mapping[str, Any], device: DeviceStats) -> None:
    for state in DEVICE_STATES:
        families["device_state"].add_metric([device.name, state], int(device.state == state))
    _values(families, {"device": device.name}, device)
