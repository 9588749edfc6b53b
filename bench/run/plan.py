"""What a run is made of: systems by name, workloads, and the sizes and budgets of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

K = 10
TARGETS = (0.95, 0.99)
CALLERS = (1, 8, 32)


@dataclass(frozen=True, slots=True)
class Entry:
    """A system: the module of its adapter, and what that is opened with."""

    module: str
    options: tuple[tuple[str, Any], ...] = ()


SYSTEMS: dict[str, Entry] = {
    "vecdb": Entry("bench.peers.engine"),
    "vecdb-grpc": Entry("bench.peers.served"),
    "chroma": Entry("bench.peers.chroma"),
    "chroma-server": Entry("bench.peers.chroma_server"),
    "qdrant-edge": Entry("bench.peers.qdrant", (("flushed", True),)),
    "lancedb": Entry("bench.peers.lance"),
    "milvus-lite": Entry("bench.peers.milvus"),
    "zvec": Entry("bench.peers.zvec", (("flushed", True),)),
    "pgvector": Entry("bench.peers.pgvector"),
    "faiss-hnsw": Entry("bench.peers.raw"),
    "faiss-hnsw-sq8": Entry("bench.peers.raw_sq8"),
    "hnswlib": Entry("bench.peers.hnswlib"),
    "usearch": Entry("bench.peers.usearch"),
}
WORKLOADS = (
    "load", "single", "batch", "filter", "open", "update", "rag", "load_query", "many", "growth",
)  # fmt: skip
"""In the order in which they are taken into a run that may last only so long."""
CHANGING = {"update", "rag"}
WRITING = {"load", *CHANGING}
ASKING = {"single", "batch", "filter", "open"}
LOADED = {*WRITING, *ASKING}
"""Workloads over the whole set, which is loaded for all of them together."""
PATIENCE = (120.0, 900.0)
"""Seconds after which a call that asks, and one that loads or indexes, are given up, with their process."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes in rows, budgets in seconds."""

    systems: tuple[str, ...]
    workloads: frozenset[str]
    folder: Path
    rounds: int = 3
    """Of queries, over what the first load has left."""
    loads: int = 3
    """Rounds of what writes: each loads anew, and changes what it has loaded."""
    long_rounds: int = 1
    """Of many collections and of growth."""
    callers: tuple[int, ...] = CALLERS
    apart: bool = True
    """Several callers of a server have a process each, where the system is one."""
    seconds: float = 1.0
    """Of one pass of queries."""
    load_seconds: float = 600.0
    """Of one load. What is not loaded by then is a failure."""
    write_seconds: float = 30.0
    """Of upserts, and of deletes."""
    mix_seconds: float = 4.0
    patience: tuple[float, float] = PATIENCE
    load_query_rows: int = 50_000
    """More than any engine here compares one by one for ever, so that indexes are built meanwhile."""
    many: tuple[int, int] = (1_000, 1_000)
    many_seconds: float = 60.0
    growth: tuple[int, ...] = (10_000, 30_000, 100_000, 300_000, 1_000_000)
