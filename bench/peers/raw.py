"""FAISS alone: an HNSW graph over float32, no store, no ids, no filters. The bound of what is possible.

The graph is built over float32 as well; vecdb builds its graphs over 8-bit codes where these are fine enough.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from ..datasets import Vectors
from ..sources import Part, Source
from . import EF_CONSTRUCTION, EF_SEARCH, M
from .base import Adapter, rows_in

faiss: Any = importlib.import_module("faiss")


class System(Adapter):
    """The knob is efSearch. One query takes one thread, a batch those that OpenMP has."""

    settings: Sequence[float] = EF_SEARCH
    packages: ClassVar = ("faiss",)
    distribution: ClassVar = "faiss-cpu"
    role: ClassVar = "limit"
    durability: ClassVar = "none: in memory, written once at the end"
    chosen: ClassVar = {"index": "HNSW, float32", "M": M, "efConstruction": EF_CONSTRUCTION}

    def __init__(self, source: Source, folder: Path, *, create: bool, **options: Any) -> None:
        self._source = source
        self._file = folder / "raw.faiss"
        self._threads = len(os.sched_getaffinity(0))
        self._parameters: dict[float, Any] = {}
        self._index = self._new() if create else faiss.read_index(str(self._file))

    def _new(self) -> Any:
        """An empty index."""
        index = faiss.IndexHNSWFlat(self._source.dimension, M, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = EF_CONSTRUCTION
        return index

    def _parameters_at(self, setting: float) -> Any:
        return faiss.SearchParametersHNSW(efSearch=int(setting))

    def insert(self, start: int, part: Part) -> None:
        faiss.omp_set_num_threads(self._threads)
        self._index.add(part.vectors)

    def ready(self) -> None:
        """FAISS indexes while it adds."""

    def save(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        faiss.write_index(self._index, str(self._file))

    def prepare(self, queries: Vectors) -> Sequence[Any]:
        return [queries[i : i + 1] for i in range(len(queries))]

    def query(self, vector: Any, k: int, where: Any, setting: float) -> tuple[Any, Any]:
        faiss.omp_set_num_threads(1)
        distances, rows = self._index.search(vector, k, params=self._asked(setting))
        return rows[0], distances[0]

    def batch(self, queries: Vectors, k: int, setting: float) -> Sequence[Any]:
        faiss.omp_set_num_threads(self._threads)
        rows: Any = self._index.search(queries, k, params=self._asked(setting))[1]
        return list(rows)

    def rows(self, ids: Any) -> Sequence[int]:
        return rows_in(ids)

    def count(self) -> int:
        return int(self._index.ntotal)

    def close(self) -> None:
        self._index.reset()

    def _asked(self, setting: float) -> Any:
        held = self._parameters.get(setting)
        if held is None:
            held = self._parameters[setting] = self._parameters_at(setting)
        return held
