"""What is measured: each system is one small adapter with the same verbs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np

from . import measure
from .datasets import Dataset, Truth, Vectors

NAME = "bench"


class System(Protocol):
    """One system with one collection in it. Times are taken by the caller."""

    name: str

    def insert(self, dataset: Dataset, start: int, stop: int) -> None:
        """Rows start to stop, durable when it returns (raw FAISS: in memory)."""

    def ready(self) -> None:
        """Returns when all rows are indexed."""

    def query(
        self, vectors: Vectors, k: int, where: Any = None, include: Sequence[str] = ()
    ) -> list[list[str]]:
        """Ids of the k nearest of each vector."""

    def close(self) -> None: ...


class _Collection:
    """What the embedded engine and the client have in common: everything but how they are opened."""

    name: str
    collection: Any

    def insert(self, dataset: Dataset, start: int, stop: int) -> None:
        self.collection.insert(
            dataset.ids[start:stop],
            dataset.vectors[start:stop],
            metadata=dataset.metadata[start:stop],
            documents=dataset.documents[start:stop],
        )

    def ready(self) -> None:
        self.collection.build_index(wait=True, timeout_s=86_400)

    def query(
        self, vectors: Vectors, k: int, where: Any = None, include: Sequence[str] = ()
    ) -> list[list[str]]:
        found: list[list[str]] = self.collection.query(
            vectors, k=k, filter=where, include=include
        ).ids
        return found

    def stats(self) -> Any:
        return self.collection.stats()


class Embedded(_Collection):
    name = "vecdb embedded"

    def __init__(self, folder: Path, dimension: int) -> None:
        import vecdb

        self.folder = folder
        self.database = vecdb.open(folder)
        self.collection = self.database.create_collection(NAME, dimension=dimension, exist_ok=True)

    def close(self) -> None:
        self.database.close()


class Served(_Collection):
    """A server in a process of its own; queries go through the client and the loopback device."""

    name = "vecdb over gRPC"

    def __init__(self, folder: Path, dimension: int) -> None:
        from vecdb_client import connect

        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vecdb_server", "serve", "--data", str(folder), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server did not start: exit code {self.process.wait()}")
        self.client = connect(line.split()[-1], timeout_s=600)
        self.collection = self.client.create_collection(NAME, dimension=dimension, exist_ok=True)

    def memory_bytes(self) -> int:
        """Memory of the server alone: it holds nothing but the database."""
        return measure.resident_bytes(self.process.pid)

    def close(self) -> None:
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60)


class RawFaiss:
    """FAISS alone: no store, no ids, no filter; the bound that a database can come near to."""

    def __init__(self, name: str, index: Any, ids: list[str]) -> None:
        self.name = name
        self.index = index
        self._ids = ids

    def insert(self, dataset: Dataset, start: int, stop: int) -> None:
        self.index.add(dataset.vectors[start:stop])

    def ready(self) -> None:
        """FAISS indexes while it adds."""

    def query(
        self, vectors: Vectors, k: int, where: Any = None, include: Sequence[str] = ()
    ) -> list[list[str]]:
        if where is not None or include:
            raise ValueError("raw FAISS has no metadata")
        # One query has no work for two threads. The setting holds for the calling thread only.
        faiss.omp_set_num_threads(1 if len(vectors) == 1 else os.cpu_count() or 1)
        rows = self.index.search(np.ascontiguousarray(vectors), k)[1]
        return [[self._ids[row] for row in line if row >= 0] for line in rows.tolist()]

    def close(self) -> None:
        self.index.reset()


def faiss_flat(dataset: Dataset) -> RawFaiss:
    return RawFaiss("FAISS flat", faiss.IndexFlatIP(dataset.vectors.shape[1]), dataset.ids)


def faiss_hnsw(dataset: Dataset) -> RawFaiss:
    index = faiss.IndexHNSWFlat(dataset.vectors.shape[1], 16, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 100
    return RawFaiss("FAISS HNSW M=16 efC=100", index, dataset.ids)


def tune_hnsw(system: RawFaiss, dataset: Dataset, truth: Truth, k: int, target: float) -> int:
    """The smallest efSearch of a list that reaches `target`, as vecdb chooses for itself."""
    for ef in (16, 24, 32, 48, 64, 96, 128, 192, 256, 512):
        system.index.hnsw.efSearch = ef
        if measure.recall(dataset, system.query(dataset.queries, k), truth) >= target:
            break
    return ef


def reopened_in_s(folder: Path, dataset: Dataset, k: int) -> tuple[float, float]:
    """Seconds to open a database, and until its first query is answered."""
    started_s = time.perf_counter()
    system = Embedded(folder, dataset.vectors.shape[1])
    opened_s = time.perf_counter() - started_s
    system.query(dataset.queries[:1], k)
    answered_s = time.perf_counter() - started_s
    system.close()
    return opened_s, answered_s
