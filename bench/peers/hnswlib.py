"""hnswlib alone: the graph that Chroma is built on, no store, no ids of text, no filters."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..datasets import Vectors
from ..sources import Part, Source
from . import EF_CONSTRUCTION, EF_SEARCH, M
from .base import Adapter, rows_in


class System(Adapter):
    """The knob is ef, which belongs to the index."""

    settings: Sequence[float] = EF_SEARCH
    packages: ClassVar = ("hnswlib",)
    distribution: ClassVar = "hnswlib"
    role: ClassVar = "limit"
    durability: ClassVar = "none: in memory, written once at the end"
    chosen: ClassVar = {"index": "HNSW, float32", "M": M, "ef_construction": EF_CONSTRUCTION}

    def __init__(self, source: Source, folder: Path, *, create: bool, **options: Any) -> None:
        library: Any = importlib.import_module("hnswlib")
        self._source = source
        self._file = folder / "raw.hnswlib"
        self._threads = len(os.sched_getaffinity(0))
        self._index = library.Index("cosine", source.dimension)
        if create:
            self._index.init_index(
                max_elements=source.rows, M=M, ef_construction=EF_CONSTRUCTION, random_seed=1
            )
        else:
            self._index.load_index(str(self._file))
        self._ef = 0

    def insert(self, start: int, part: Part) -> None:
        numbers = np.arange(start, start + len(part.ids))
        self._index.add_items(part.vectors, numbers, num_threads=self._threads)

    def ready(self) -> None:
        """It indexes while it adds."""

    def save(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._index.save_index(str(self._file))

    def count(self) -> int:
        return int(self._index.element_count)

    def prepare(self, queries: Vectors) -> Sequence[Any]:
        return [queries[i : i + 1] for i in range(len(queries))]

    def tune(self, setting: float) -> None:
        self._index.set_ef(int(setting))

    def query(self, vector: Any, k: int, where: Any, setting: float) -> tuple[Any, Any]:
        rows, distances = self._index.knn_query(vector, k=k, num_threads=1)
        return rows[0], distances[0]

    def batch(self, queries: Vectors, k: int, setting: float) -> Sequence[Any]:
        return list(self._index.knn_query(queries, k=k, num_threads=self._threads)[0])

    def rows(self, ids: Any) -> Sequence[int]:
        return rows_in(np.asarray(ids).astype(np.int64))

    def close(self) -> None:
        del self._index
