"""Rows that change while a system is measured: which they are, what they become, what is live then."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..datasets import Vectors
from ..sources import Part, Source, State

_MOVED = 0.3
"""Length of what is added to a unit vector, before it is scaled to unit length again."""
DELETED = -1


def moved(source: Source, number: int, version: int) -> Vectors:
    """(dimension,) float32: what row `number` becomes at its `version`-th change."""
    noise = np.random.default_rng([number, version]).standard_normal(source.dimension, np.float32)
    vector = source.vectors(number, number + 1)[0] + noise * (_MOVED / np.sqrt(source.dimension))
    unit: Vectors = (vector / np.linalg.norm(vector)).astype(np.float32)
    return unit


def renewed(source: Source, numbers: list[int], versions: list[int]) -> Part:
    """The rows of these numbers with their vectors moved; metadata and documents as they were."""
    vectors = np.stack([moved(source, *one) for one in zip(numbers, versions, strict=True)])
    ids: list[str] = []
    metadata: list[dict[str, Any]] = []
    documents: list[str] = []
    for number in numbers:
        one = source.records(number, number + 1)
        ids += one[0]
        metadata += one[1]
        documents += one[2]
    return Part(ids, vectors, metadata, documents)


@dataclass(slots=True)
class Changes:
    """By row: the version it has, `DELETED` for none. Rows that are not named are as they were."""

    versions: dict[int, int] = field(default_factory=dict)

    def add(self, later: dict[int, int]) -> None:
        self.versions.update(later)

    def live(self, rows: int) -> NDArray[np.bool_]:
        flags = np.ones(rows, np.bool_)
        flags[[row for row, version in self.versions.items() if version == DELETED]] = False
        return flags

    def state(self, source: Source) -> State:
        replaced = sorted(row for row, version in self.versions.items() if version != DELETED)
        vectors = [moved(source, row, self.versions[row]) for row in replaced]
        return State(
            self.live(source.rows),
            np.array(replaced, np.int64),
            np.array(vectors, np.float32).reshape(len(replaced), source.dimension),
        )
