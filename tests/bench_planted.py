"""Systems for `bench run` that are exact, lose rows, answer wrongly, or raise; run in children."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bench.peers.base import Adapter, rows_in


class System(Adapter):
    """Exact over all rows. `fault` is "none", "loses", "wrong", "raises", "ends" or "hangs"; or, in batches alone,
    "says", which raises in words of ours, or "stops"."""

    settings = (1.0, 2.0)
    distribution: ClassVar = "numpy"
    chosen: ClassVar = {"index": "none"}

    def __init__(self, source: Any, folder: Path, *, create: bool, fault: str = "none") -> None:
        self._file = folder / "rows.npz"
        folder.mkdir(exist_ok=True)
        self._fault = fault
        self._vectors = np.empty((0, source.dimension), np.float32)
        self._numbers = np.empty(0, np.int64)
        if not create:
            held = np.load(self._file)
            self._vectors, self._numbers = held["vectors"], held["numbers"]

    def insert(self, start: int, part: Any) -> None:
        numbers = np.arange(start, start + len(part.ids))
        kept = numbers % 5 != 0 if self._fault == "loses" else numbers >= 0
        self._vectors = np.concatenate([self._vectors, part.vectors[kept]])
        self._numbers = np.concatenate([self._numbers, numbers[kept]])

    def ready(self) -> None:
        pass

    def save(self) -> None:
        np.savez(self._file, vectors=self._vectors, numbers=self._numbers)

    def count(self) -> int:
        return len(self._numbers)

    def query(self, vector: Any, k: int, where: Any, setting: float) -> tuple[Any, Any]:
        if self._fault == "raises":
            raise RuntimeError("no answer today")
        if self._fault == "hangs":
            time.sleep(3600)
        if self._fault == "ends":
            os._exit(3)
        near = self._vectors @ vector
        order = np.argsort(near if self._fault == "wrong" else -near)[:k]
        return self._numbers[order], near[order]

    def batch(self, queries: Any, k: int, setting: float) -> Any:
        if self._fault == "says":
            raise RuntimeError("Unsupported: no answer, the child ended")
        if self._fault == "stops":
            os._exit(3)
        return [self.query(one, k, None, setting)[0] for one in queries]

    def rows(self, ids: Any) -> list[int]:
        return rows_in(ids)

    def close(self) -> None:
        pass
