"""Vectors and records of `bench.clusters`; records are made again from row and cluster."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import clusters
from .base import Source
from .exact import Condition


class Clusters(Source):
    name = "clusters"

    @property
    def structure(self) -> str:
        count = clusters.count(self.whole)
        return (
            f"Gaussian mixture on the sphere: {count:,} clusters whose sizes fall with 1 / (r + 10) ** 0.9,"
            f" {clusters.DIRECTIONS} directions of its own in each, noise of length {clusters.NOISE};"
            " category follows the cluster, the other fields the row number; held-out queries of the"
            " same mixture"
        )

    def records(self, start: int, stop: int) -> tuple[list[str], list[dict[str, Any]], list[str]]:
        return clusters.records(start, stop, self.whole, self._members[start:stop])

    def column(self, field: str) -> NDArray[Any]:
        return clusters.column(field, self.whole, self._members)[: self.rows]

    def conditions(self) -> tuple[Condition, ...]:
        return (
            Condition("lemma", "=", clusters.lemma(0, self.whole)),
            Condition("category", "=", clusters.category(3)),
            Condition("n_lemmas", ">=", 3),
            Condition("n_lemmas", ">=", 2),
            Condition("pos", "=", "noun"),
        )

    def rows_of(self, ids: Sequence[str]) -> list[int]:
        return [int(one.removeprefix(clusters.ID_PREFIX)) for one in ids]

    @cached_property
    def _members(self) -> NDArray[np.int32]:
        held: NDArray[np.int32] = np.load(self.folder / "members.npy")
        return held

    @staticmethod
    def write(folder: Path, rows: int, queries: int, seed: int, dimension: int) -> None:
        members, asked = clusters.write(folder / "vectors.f32", rows, queries, seed, dimension)
        np.save(folder / "members.npy", members)
        np.save(folder / "queries.npy", asked)
