"""FAISS alone, inverted lists of 8-bit codes whose candidates are ranked again by float32.

As many lists as vecdb makes, and k-means of as many rounds over as many rows: FAISS's own defaults, 25
rounds over up to 256 rows a list, take some fifteen times as long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..sources import Part
from . import REFINED, raw_sq8

faiss = raw_sq8.faiss

_ROWS_A_LIST, _ROUNDS = 40, 10


class System(raw_sq8.System):
    """The knob is nprobe."""

    settings: Sequence[float] = tuple(1 << i for i in range(13))

    def _new(self) -> Any:
        rows, dimension = self._source.rows, self._source.dimension
        self._count = max(1, min(int(4 * math.sqrt(rows)), rows // _ROWS_A_LIST))
        self._quantizer = faiss.IndexFlatIP(dimension)
        self._lists = faiss.IndexIVFScalarQuantizer(
            self._quantizer, dimension, self._count, faiss.ScalarQuantizer.QT_8bit,
            faiss.METRIC_INNER_PRODUCT, False,
        )  # fmt: skip
        self._lists.cp.niter = _ROUNDS
        self._lists.cp.max_points_per_centroid = _ROWS_A_LIST
        return faiss.IndexRefineFlat(self._lists)

    def _sample_rows(self) -> int:
        return self._count * _ROWS_A_LIST

    def _parameters_at(self, setting: float) -> Any:
        return faiss.IndexRefineSearchParameters(
            k_factor=float(REFINED),
            base_index_params=faiss.SearchParametersIVF(nprobe=int(setting)),
        )

    def insert(self, start: int, part: Part) -> None:
        faiss.omp_set_num_threads(self._threads)
        super().insert(start, part)
