"""The layers of the engine by their functions: what is timed, each without those inside it."""

from __future__ import annotations

from ..stages import Stage

ADAPTER = "the benchmark's own step to it"
LAYERS: tuple[Stage, ...] = (
    *(
        (ADAPTER, "bench.peers.collection", f"System.{verb}")
        for verb in ("query", "batch", "insert", "upsert", "delete")
    ),
    (ADAPTER, "bench.peers.engine", "System.__init__"),
    ("query: check, plan, answer", "vecdb.collection", "Collection.query"),
    ("filter: parse", "vecdb.parsed_filters", "parsed"),
    ("filter: remembered, or evaluated", "vecdb.core", "Core.matched"),
    ("filter: remembered, or evaluated", "vecdb.core", "Core.matching"),
    ("search: wait for a core", "vecdb.search_lane", "SearchLane.search"),
    ("search: wait for a core", "vecdb.search_lane", "SearchLane.slices"),
    ("search: index and rows behind it", "vecdb.index", "View.search"),
    ("search: few rows, one by one", "vecdb.index.fews", "Few.nearest"),
    ("fetch: rows to ids", "vecdb.ids", "Ids.take"),
    ("fetch: rows to ids", "vecdb.ids", "Ids.take_each"),
    ("fetch: what is included", "vecdb.fetching", "fetch"),
    ("write: the call", "vecdb.collection", "Collection.insert"),
    ("write: the call", "vecdb.collection", "Collection.upsert"),
    ("write: the call", "vecdb.collection", "Collection.delete"),
    ("write: check and encode", "vecdb.batch", "check_columns"),
    ("write: check and encode", "vecdb.batch", "check_ids"),
    ("write: check and encode", "vecdb.writes", "Put.__init__"),
    ("write: wait for the lane", "vecdb.lane", "Lane.submit"),
    ("write: rows into LMDB", "vecdb.writes", "Put.apply"),
    ("write: rows into LMDB", "vecdb.writes", "Delete.apply"),
    ("write: transaction around them", "vecdb.store", "CollectionStore.commit"),
    ("write: commit, with its sync", "vecdb.disk", "commit"),
    ("write: ids and columns", "vecdb.core", "Core._publish"),
    ("write: index", "vecdb.index", "Index.append"),
    ("write: index", "vecdb.index", "Index.kill"),
    ("write: index", "vecdb.index", "Index.publish"),
    ("open: files and names", "vecdb.database", "Database.__init__"),
    ("open: files and names", "vecdb.database", "Database.get_collection"),
    ("open: collection", "vecdb.core", "Core._load"),
    ("open: index", "vecdb.index", "Index.load"),
)
BEHIND: tuple[Stage, ...] = (
    ("behind: build", "vecdb.index", "Index.build"),
    ("behind: graph of a filter", "vecdb.index", "Index.build_side"),
    ("behind: calibrate anew", "vecdb.index", "Index.recalibrate"),
    ("behind: save", "vecdb.index", "Index.save"),
    ("behind: read vectors", "vecdb.index", "Index.fill"),
    ("behind: install", "vecdb.core", "Core.install"),
)
"""What other threads do meanwhile: no caller waits for it, but it takes a core."""
