"""What is measured on: real text embeddings where they are at hand, seeded clusters elsewhere."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
WORDNET = ROOT.parent / "shared" / "data" / "wordnet"

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Truth:
    """The right answers to a set of queries, as far as measuring recall needs them.

    `bounds` is the distance (1 - cos) of each query's k-th nearest allowed row, infinite where fewer
    than k are allowed; `wanted` how many answers each query has; `allowed` as given to `truth`.
    """

    bounds: Vectors
    wanted: NDArray[np.int64]
    allowed: NDArray[np.bool_] | None

    def allows(self, query: int, rows: list[int]) -> NDArray[np.bool_]:
        if self.allowed is None:
            return np.ones(len(rows), np.bool_)
        flags = self.allowed if self.allowed.ndim == 1 else self.allowed[query]
        chosen: NDArray[np.bool_] = flags[rows]
        return chosen


@dataclass(frozen=True, slots=True)
class Dataset:
    """Rows and queries of unit length, float32, with four metadata fields and a text each."""

    name: str
    ids: list[str]
    vectors: Vectors
    metadata: list[dict[str, Any]]
    documents: list[str]
    queries: Vectors

    def truth(self, k: int, allowed: NDArray[np.bool_] | None = None) -> Truth:
        """The right answers to all queries, by numpy.

        `allowed` is one flag a row, or one row of flags a query; None allows all rows.
        """
        count = len(self.queries)
        bounds = np.full(count, np.inf, np.float32)
        wanted = np.empty(count, np.int64)
        for start in range(0, count, 100):
            part = slice(start, min(start + 100, count))
            distances = 1 - self.queries[part] @ self.vectors.T
            if allowed is not None:
                flags = allowed if allowed.ndim == 1 else allowed[part]
                distances[~np.broadcast_to(flags, distances.shape)] = np.inf
            wanted[part] = np.minimum(np.isfinite(distances).sum(axis=1), k)
            if k <= distances.shape[1]:
                bounds[part] = np.partition(distances, k - 1, axis=1)[:, k - 1]
        return Truth(bounds, wanted, allowed)


def load(rows: int | None, queries: int, seed: int) -> Dataset:
    """WordNet if it is there, else clusters; at most `rows` rows, chosen by `seed`, and `queries`."""
    if WORDNET.exists():
        return _wordnet(rows, queries, seed)
    return clusters(rows or 100_000, queries, seed)


def _unit(vectors: NDArray[Any]) -> Vectors:
    made: Vectors = np.ascontiguousarray(vectors, np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return made


def _wordnet(rows: int | None, queries: int, seed: int) -> Dataset:
    with gzip.open(WORDNET / "rows.jsonl.gz", "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    vectors = np.load(WORDNET / "vectors.f16.npy", mmap_mode="r")
    asked = np.load(WORDNET / "queries.f16.npy")[:queries]
    if rows is not None and rows < len(lines):
        chosen = np.sort(np.random.default_rng(seed).choice(len(lines), rows, replace=False))
        lines = [lines[i] for i in chosen]
        vectors = vectors[chosen]
    return Dataset(
        name="wordnet",
        ids=[line.pop("id") for line in lines],
        vectors=_unit(vectors),
        documents=[line.pop("text") for line in lines],
        metadata=lines,
        queries=_unit(asked),
    )


def clusters(rows: int, queries: int, seed: int, dimension: int = 384) -> Dataset:
    """Gaussian clusters on the sphere; queries come from the same clusters. As hard as its spread."""
    rng = np.random.default_rng(seed)
    centres = _unit(rng.standard_normal((max(rows // 200, 8), dimension)))
    members = rng.integers(len(centres), size=rows + queries)
    noise = rng.standard_normal((rows + queries, dimension)).astype(np.float32)
    vectors = _unit(centres[members] + noise * np.float32(0.6 / np.sqrt(dimension)))
    kinds = ("noun", "verb", "adj", "adv")
    return Dataset(
        name="clusters",
        ids=[f"row-{i:08}" for i in range(rows)],
        vectors=vectors[:rows],
        documents=[f"member {i} of cluster {members[i]}" for i in range(rows)],
        metadata=[
            {
                "pos": kinds[i * i % 7 % 4],
                "category": f"cluster.{members[i] % 45}",
                "lemma": f"lemma {i}",
                "n_lemmas": int(members[i] % 5) + 1,
            }
            for i in range(rows)
        ],
        queries=vectors[rows:],
    )
