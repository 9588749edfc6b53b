"""A planted system that is exact and takes upserts and deletes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import bench_planted
import numpy as np


class System(bench_planted.System):
    def upsert(self, numbers: Sequence[int], part: Any) -> None:
        self.delete(numbers, part.ids)
        self._vectors = np.concatenate([self._vectors, part.vectors])
        self._numbers = np.concatenate([self._numbers, np.array(numbers, np.int64)])

    def delete(self, numbers: Sequence[int], ids: Sequence[str]) -> None:
        kept = ~np.isin(self._numbers, numbers)
        self._vectors, self._numbers = self._vectors[kept], self._numbers[kept]
