"""FAISS alone, an HNSW graph over 8-bit codes whose candidates are ranked again by float32.

That is the kind of index that vecdb serves, with the vectors in memory too (none) or in the store (sq8).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..sources import Part
from . import EF_CONSTRUCTION, EF_SEARCH, REFINED, M, raw

faiss = raw.faiss

_SAMPLE_ROWS = 50_000
_SLICE_ROWS = 1_000


class System(raw.System):
    """The knob is efSearch; FAISS walks for all candidates at least."""

    settings: Sequence[float] = tuple(ef for ef in EF_SEARCH if ef >= 10 * REFINED)

    def _new(self) -> Any:
        # The outer index does not own the inner one.
        self._graph = faiss.IndexHNSWSQ(
            self._source.dimension,
            faiss.ScalarQuantizer.QT_8bit,
            M,
            faiss.METRIC_INNER_PRODUCT,
        )
        self._graph.hnsw.efConstruction = EF_CONSTRUCTION
        return faiss.IndexRefineFlat(self._graph)

    def _parameters_at(self, setting: float) -> Any:
        return faiss.IndexRefineSearchParameters(
            k_factor=float(REFINED), base_index_params=super()._parameters_at(setting)
        )

    def insert(self, start: int, part: Part) -> None:
        if not self._index.is_trained:
            self._index.train(self._sample())
        super().insert(start, part)

    def _sample_rows(self) -> int:
        return _SAMPLE_ROWS

    def _sample(self) -> Any:
        """Slices spread over all rows: their order may mean something."""
        rows = self._source.rows
        count = max(1, min(rows, self._sample_rows()) // _SLICE_ROWS)
        starts = np.linspace(0, max(rows - _SLICE_ROWS, 0), count).astype(np.int64).tolist()
        return np.concatenate(
            [self._source.vectors(start, min(start + _SLICE_ROWS, rows)) for start in starts]
        )
