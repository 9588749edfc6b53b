"""USearch alone: a graph in C++ with numeric keys, no store, no filters."""

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
    """The knob is expansion_search, which belongs to the index."""

    settings: Sequence[float] = EF_SEARCH
    packages: ClassVar = ("usearch",)
    distribution: ClassVar = "usearch"
    role: ClassVar = "limit"
    durability: ClassVar = "none: in memory, written once at the end"
    chosen: ClassVar = {
        "index": "HNSW, float32",
        "connectivity": M,
        "expansion_add": EF_CONSTRUCTION,
    }

    def __init__(self, source: Source, folder: Path, *, create: bool, **options: Any) -> None:
        library: Any = importlib.import_module("usearch.index")
        self._file = folder / "raw.usearch"
        self._threads = len(os.sched_getaffinity(0))
        self._index = library.Index(
            ndim=source.dimension,
            metric="cos",
            dtype="f32",
            connectivity=M,
            expansion_add=EF_CONSTRUCTION,
        )
        if not create:
            self._index.load(str(self._file))

    def insert(self, start: int, part: Part) -> None:
        numbers = np.arange(start, start + len(part.ids))
        self._index.add(numbers, part.vectors, threads=self._threads)

    def delete(self, numbers: Sequence[int], ids: Sequence[str]) -> None:
        self._index.remove(np.asarray(numbers))

    def upsert(self, numbers: Sequence[int], part: Part) -> None:
        self._index.remove(np.asarray(numbers))
        self._index.add(np.asarray(numbers), part.vectors, threads=self._threads)

    def ready(self) -> None:
        """It indexes while it adds."""

    def save(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._index.save(str(self._file))

    def count(self) -> int:
        return len(self._index)

    def tune(self, setting: float) -> None:
        self._index.expansion_search = int(setting)

    def query(self, vector: Any, k: int, where: Any, setting: float) -> tuple[Any, Any]:
        found = self._index.search(vector, k, threads=1)
        return found.keys, found.distances

    def batch(self, queries: Vectors, k: int, setting: float) -> Sequence[Any]:
        found = self._index.search(queries, k, threads=self._threads)
        return list(found.keys)

    def rows(self, ids: Any) -> Sequence[int]:
        return rows_in(np.asarray(ids).astype(np.int64))

    def close(self) -> None:
        del self._index
