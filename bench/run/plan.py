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
    "vecdb": Entry("bench.peers.engine", (("audit_share", None),)),
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
    "load", "load_query", "single", "batch", "filter", "open", "update", "rag", "many", "growth",
)  # fmt: skip
USUAL = ("load", "load_query", "single", "batch", "filter", "open", "update", "rag")
"""Without the two that take long."""
LOADED = {"load", "single", "batch", "filter", "open", "update", "rag"}
"""Workloads over the whole set, which is loaded once for all of them."""
PATIENCE = (120.0, 900.0)
"""Seconds after which a call that asks, and one that loads or indexes, are given up, with their process."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes in rows, budgets in seconds."""

    systems: tuple[str, ...]
    workloads: frozenset[str]
    folder: Path
    rounds: int = 2
    loads: int = 1
    callers: tuple[int, ...] = CALLERS
    seconds: float = 1.5
    """Of one pass of queries."""
    load_seconds: float = 600.0
    """Of one load. What is not loaded by then is a failure."""
    write_seconds: float = 30.0
    """Of upserts, and of deletes."""
    mix_seconds: float = 4.0
    patience: tuple[float, float] = PATIENCE
    load_query_rows: int = 20_000
    many: tuple[int, int] = (1_000, 1_000)
    many_seconds: float = 300.0
    growth: tuple[int, ...] = (10_000, 30_000, 100_000, 300_000, 1_000_000)
