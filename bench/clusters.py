"""A seeded set of clustered vectors of any size, made by slices of rows on all cores.

A Gaussian mixture on the sphere. There is one cluster a 1,000 rows, at least 16 and at most 1,000; the
share of the r-th largest goes with 1 / (r + 10) ** 0.9 (Zipf). A cluster has a centre of about unit
length in a random direction, and a linear space of its own with 20 random directions. A row is centre +
a standard normal point of that space, scaled to about unit length + isotropic noise of length
0.7, scaled to unit length. So neighbours come from the same cluster, and telling them apart takes all of
a local dimension of some 20 and more: recall of an approximate index is neither given nor hopeless.

Each slice has a random state of its own, from the seed and its number, so slices can be made in any order.
Queries are rows of the same mixture that are in no slice.

A row has an id, a document of about 60 bytes and four fields: `pos`, one of four, of which one has 70 %;
`category`, one of 45, following the cluster; `lemma`, 100 rows each; and `n_lemmas`, of which 17 % are 3 and
more.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Members = NDArray[np.int32]

DIMENSION = 384
SLICE_ROWS = 20_000
ID_PREFIX = "row-"
ROWS_A_LEMMA = 100

DIRECTIONS = 20
NOISE = 0.7
_ROWS_A_CLUSTER = 1_000
_CATEGORIES = 45
_POS = np.array(["noun", "verb", "adjective", "adverb"])
_POS_ENDS = np.array([0.7, 0.82, 0.97])
_ANOTHER_LEMMA = 0.412
"""Chance of each further lemma; 0.412 ** 2 = 17 % have three and more."""


def unit(vectors: Vectors) -> Vectors:
    """The same rows scaled to unit length, in place."""
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def count(rows: int) -> int:
    """How many clusters a set of so many rows has."""
    return int(np.clip(rows // _ROWS_A_CLUSTER, 16, 1_000))


class Mixture:
    """The clusters of one seed; draws rows from them."""

    def __init__(self, rows: int, seed: int, dimension: int = DIMENSION) -> None:
        self.seed = seed
        self.dimension = dimension
        self.count = count(rows)
        rng = np.random.default_rng([seed, 0])
        scale = np.float32(1 / np.sqrt(dimension))
        shape = (self.count, DIRECTIONS, dimension)
        self._centres = rng.standard_normal((self.count, dimension), np.float32) * scale
        self._spaces = rng.standard_normal(shape, np.float32) * (scale / np.sqrt(DIRECTIONS))
        shares = 1 / (np.arange(self.count) + 10.0) ** 0.9
        self._shares = shares / shares.sum()

    def draw(self, count: int, number: int) -> tuple[Vectors, Members]:
        """Rows of slice `number`, and the cluster of each."""
        rng = np.random.default_rng([self.seed, 1, number])
        members = rng.choice(self.count, count, p=self._shares).astype(np.int32)
        noise = np.float32(NOISE / np.sqrt(self.dimension))
        vectors = rng.standard_normal((count, self.dimension), np.float32) * noise
        points = rng.standard_normal((count, DIRECTIONS), np.float32)
        order = np.argsort(members, kind="stable")
        ends = np.searchsorted(members[order], np.arange(self.count + 1))
        for cluster in range(self.count):
            rows = order[ends[cluster] : ends[cluster + 1]]
            if rows.size:
                vectors[rows] += self._centres[cluster] + points[rows] @ self._spaces[cluster]
        return unit(vectors), members


def write(
    path: Path, rows: int, queries: int, seed: int, dimension: int = DIMENSION
) -> tuple[Members, Vectors]:
    """Writes the vectors of all rows to `path` as plain float32; their clusters, and the queries."""
    mixture = Mixture(rows, seed, dimension)
    members = np.empty(rows, np.int32)
    slices = -(-rows // SLICE_ROWS)
    row_bytes = dimension * 4
    with path.open("wb") as file:
        os.ftruncate(file.fileno(), rows * row_bytes)

        def make(number: int) -> None:
            start = number * SLICE_ROWS
            stop = min(start + SLICE_ROWS, rows)
            vectors, members[start:stop] = mixture.draw(stop - start, number)
            data, offset = vectors.reshape(-1).view(np.uint8).data, start * row_bytes
            while len(data):
                written = os.pwrite(file.fileno(), data, offset)
                data, offset = data[written:], offset + written

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for done in [pool.submit(make, number) for number in range(slices)]:
                done.result()
    return members, mixture.draw(queries, slices)[0]


def hashed(rows: NDArray[np.int64], salt: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) that follow from the row alone, and look like chance."""
    mixed = (rows.astype(np.uint64) + np.uint64(salt)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    return (mixed >> np.uint64(11)).astype(np.float64) / 2**53


def lemma(row: int, rows: int) -> str:
    return f"lemma {row * 7919 % max(rows // ROWS_A_LEMMA, 1)}"


def category(cluster: int) -> str:
    return f"category.{cluster % _CATEGORIES:02}"


def _pos(rows: NDArray[np.int64]) -> NDArray[Any]:
    return _POS[np.searchsorted(_POS_ENDS, hashed(rows, 1), side="right")]


def _n_lemmas(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    chance = np.maximum(hashed(rows, 2), 1e-12)
    more: NDArray[np.int64] = np.floor(np.log(chance) / np.log(_ANOTHER_LEMMA)).astype(np.int64)
    return 1 + more


def records(
    start: int, stop: int, rows: int, members: Members
) -> tuple[list[str], list[dict[str, Any]], list[str]]:
    """Ids, metadata and documents of rows `start` to `stop` - 1, whose clusters are `members`."""
    numbers = range(start, stop)
    which = np.arange(start, stop)
    clusters = members.tolist()
    metadata = [
        {"pos": pos, "category": category(cluster), "lemma": lemma(row, rows), "n_lemmas": count}
        for row, cluster, pos, count in zip(
            numbers, clusters, _pos(which).tolist(), _n_lemmas(which).tolist(), strict=True
        )
    ]
    documents = [
        f"entry {row:08}: a member of cluster {cluster:03}, made to be measured"
        for row, cluster in zip(numbers, clusters, strict=True)
    ]
    return [f"{ID_PREFIX}{row:08}" for row in numbers], metadata, documents


def column(field: str, rows: int, members: Members) -> NDArray[Any]:
    """One metadata field of all rows."""
    which = np.arange(rows)
    make: dict[str, Callable[[], NDArray[Any]]] = {
        "pos": lambda: _pos(which),
        "n_lemmas": lambda: _n_lemmas(which),
        "category": lambda: np.array([category(i) for i in range(_CATEGORIES)])[
            members % _CATEGORIES
        ],
        "lemma": lambda: np.array([lemma(row, rows) for row in range(rows)]),
    }
    return make[field]()
