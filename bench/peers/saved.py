"""FAISS alone over the very graph or lists that vecdb has saved: the same index, without the engine around it.

Two graphs of the same kind over the same rows differ by up to 0.002 in recall, which near 0.99 is a fifth of
the speed. This one has the same links, the same codes and the same vectors behind them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..sources import Part, Source
from . import REFINED, raw_sq8

faiss = raw_sq8.faiss


class System(raw_sq8.System):
    """The knob is efSearch or nprobe. `folder` is that of a closed vecdb database with one collection, read only.

    The index and its codes are read to memory, and the vectors lie there in the order of its positions.
    """

    def __init__(self, source: Source, folder: Path, *, create: bool, **options: Any) -> None:
        found = sorted(folder.rglob("index-*.faiss"))
        if create or len(found) != 1:
            raise LookupError(f"expected one saved graph below {folder}, found {len(found)}")
        self._of = found[0]
        super().__init__(source, folder, create=True)

    def _new(self) -> Any:
        self._graph = faiss.read_index(str(self._of))
        self._rows = np.fromfile(self._of.with_suffix(".rows"), "<i8")
        vectors = faiss.IndexFlatIP(self._source.dimension)
        vectors.add(self._source.vectors(0, self._source.rows)[self._rows])
        self._lists = isinstance(self._graph, faiss.IndexIVF)
        if self._lists:
            self._vectors = vectors
            return faiss.IndexRefine(self._graph, vectors)
        codes = self._of.with_suffix(".codes")
        self._held = faiss.read_index(str(codes)) if codes.exists() else vectors
        self._graph.storage = self._held
        if not codes.exists():
            return self._graph
        both = faiss.IndexRefine(self._graph, vectors)
        self._vectors = vectors
        return both

    def _parameters_at(self, setting: float) -> Any:
        if self._lists:
            return faiss.IndexRefineSearchParameters(
                k_factor=float(REFINED),
                base_index_params=faiss.SearchParametersIVF(nprobe=int(setting)),
            )
        if not isinstance(self._index, faiss.IndexRefine):
            return faiss.SearchParametersHNSW(efSearch=int(setting))
        return super()._parameters_at(setting)

    def insert(self, start: int, part: Part) -> None:
        raise LookupError("a graph that vecdb has saved is only looked at")

    def rows(self, ids: Any) -> list[int]:
        found: list[int] = self._rows[np.asarray(ids)].tolist()
        return found

    def close(self) -> None:
        """Freed with the process."""
