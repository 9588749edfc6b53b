"""Data sets that lie in a folder: read by slices, with exact answers computed once and kept.

The arrays of a set stay on the disk and are read with plain reads, so that a process whose memory is
measured holds one slice at a time and maps nothing of ours.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import clusters
from .datasets import WORDNET, Vectors

DATASETS = ("wordnet", "clusters")
_WIDTH = 4
"""Bytes of a float32."""
_TIE = 2e-6
"""Two distances nearer to each other than this are equal: rounding of float32 dot products."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A filter in words of no system: `op` is "=" or ">="."""

    field: str
    op: str
    value: str | int

    def __str__(self) -> str:
        return f"{self.field} {self.op} {self.value}"


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive rows; vectors (n, dimension) float32 of unit length."""

    ids: list[str]
    vectors: Vectors
    metadata: list[dict[str, Any]]
    documents: list[str]


@dataclass(frozen=True, slots=True)
class Truth:
    """Distance (1 - cos) of each query's k-th nearest allowed row, and how many answers it has."""

    k: int
    bounds: Vectors
    wanted: int
    condition: Condition | None


class Source:
    """Rows 0 to `rows` - 1 and held-out queries. Small to pickle: what is read stays behind."""

    name: str

    def __init__(self, folder: Path, rows: int) -> None:
        self.folder = folder
        self.rows = rows
        self._flags: dict[Condition, NDArray[np.bool_]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self.rows)

    @cached_property
    def queries(self) -> Vectors:
        """(q, dimension) float32 of unit length."""
        held: Vectors = np.load(self.folder / "queries.npy")
        return held

    @property
    def dimension(self) -> int:
        return int(self.queries.shape[1])

    @property
    def raw_bytes(self) -> int:
        return self.rows * self.dimension * _WIDTH

    def vectors(self, start: int, stop: int) -> Vectors:
        width = self.dimension
        flat = np.fromfile(
            self.folder / "vectors.f32",
            np.float32,
            count=(stop - start) * width,
            offset=start * width * _WIDTH,
        )
        return flat.reshape(stop - start, width)

    def part(self, start: int, stop: int) -> Part:
        ids, metadata, documents = self.records(start, stop)
        return Part(ids, self.vectors(start, stop), metadata, documents)

    def records(self, start: int, stop: int) -> tuple[list[str], list[dict[str, Any]], list[str]]:
        """Ids, metadata and documents of these rows."""
        raise AssertionError("each kind of source says it")

    def column(self, field: str) -> NDArray[Any]:
        """One metadata field of all rows."""
        values: list[Any] = []
        for start in range(0, self.rows, 50_000):
            stop = min(start + 50_000, self.rows)
            values.extend(record[field] for record in self.records(start, stop)[1])
        return np.array(values)

    def conditions(self) -> tuple[Condition, ...]:
        """The filters that are measured, from few rows allowed to many."""
        raise AssertionError("each kind of source says it")

    def rows_of(self, ids: Sequence[str]) -> list[int]:
        raise AssertionError("each kind of source says it")

    def flags(self, condition: Condition) -> NDArray[np.bool_]:
        """Which rows the condition allows; read only."""
        if condition not in self._flags:
            column = self.column(condition.field)
            equal = condition.op == "="
            self._flags[condition] = (
                column == condition.value if equal else column >= condition.value
            )
        return self._flags[condition]

    @cached_property
    def encoded_bytes(self) -> int:
        """Metadata as compact JSON and documents as UTF-8, of all rows."""
        kept = self.folder / "encoded-bytes.json"
        if not kept.exists():
            total = 0
            for start in range(0, self.rows, 50_000):
                _, metadata, documents = self.records(start, min(start + 50_000, self.rows))
                total += sum(len(encode(one)) for one in metadata)
                total += sum(len(text.encode()) for text in documents)
            kept.write_text(json.dumps(total))
        return int(json.loads(kept.read_text()))

    def truth(self, k: int, condition: Condition | None = None) -> Truth:
        """Exact answers to all queries, by numpy; computed once and kept beside the vectors."""
        name = "all" if condition is None else str(condition).replace(" ", "_").replace("/", "_")
        kept = self.folder / f"truth-{k}-{name}.npy"
        flags = None if condition is None else self.flags(condition)
        allowed = self.rows if flags is None else int(flags.sum())
        if not kept.exists():
            np.save(kept, self._bounds(k, flags))
        bounds: Vectors = np.load(kept)
        return Truth(k, bounds, min(k, allowed), condition)

    def _bounds(self, k: int, flags: NDArray[np.bool_] | None) -> Vectors:
        """Distance of the k-th nearest allowed row of each query, infinite where there are fewer."""
        best = np.full((len(self.queries), k), np.inf, np.float32)
        for start in range(0, self.rows, 20_000):
            stop = min(start + 20_000, self.rows)
            vectors = self.vectors(start, stop)
            if flags is not None:
                vectors = vectors[flags[start:stop]]
            distances = np.concatenate([best, 1 - self.queries @ vectors.T], axis=1)
            best = np.partition(distances, k - 1, axis=1)[:, :k]
        farthest: Vectors = best.max(axis=1)
        return farthest

    def recall(self, found: NDArray[np.int64], truth: Truth) -> float:
        """recall@k of the first len(found) queries; `found` is (q, k) rows, -1 where there is none.

        Ties are right. Distances are computed here from the rows that are named, so that no system
        can flatter itself; a row named twice, or one that is not allowed, does not count.
        """
        count = len(found)
        there = found >= 0
        if truth.condition is not None:
            there &= self.flags(truth.condition)[found]
        order = np.argsort(found, axis=1)
        ordered = np.take_along_axis(found, order, 1)
        twice = np.zeros_like(there)
        twice[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
        np.put_along_axis(there, order, np.take_along_axis(there, order, 1) & ~twice, 1)
        width = self.dimension
        mapped = np.memmap(self.folder / "vectors.f32", np.float32, "r", shape=(self.rows, width))
        near = 1 - np.einsum("qkd,qd->qk", mapped[found], self.queries[:count])
        right = there & (near <= truth.bounds[:count, np.newaxis] + _TIE)
        return float(np.minimum(right.sum(axis=1), truth.wanted).sum()) / max(
            count * truth.wanted, 1
        )


class WordNet(Source):
    """Embeddings of WordNet's synsets, each with its text and four fields."""

    name = "wordnet"

    def records(self, start: int, stop: int) -> tuple[list[str], list[dict[str, Any]], list[str]]:
        offsets = self._offsets
        with (self.folder / "rows.jsonl").open("rb") as file:
            file.seek(int(offsets[start]))
            lines = file.read(int(offsets[stop] - offsets[start])).splitlines()
        made = [json.loads(line) for line in lines]
        return [one.pop("id") for one in made], made, [one.pop("text") for one in made]

    def conditions(self) -> tuple[Condition, ...]:
        return (
            Condition("category", "=", "verb.weather"),
            Condition("category", "=", "noun.quantity"),
            Condition("category", "=", "noun.artifact"),
            Condition("n_lemmas", ">=", 3),
            Condition("pos", "=", "noun"),
        )

    def rows_of(self, ids: Sequence[str]) -> list[int]:
        known = self._row_of
        return [known[one] for one in ids]

    @cached_property
    def _offsets(self) -> NDArray[np.int64]:
        held: NDArray[np.int64] = np.load(self.folder / "offsets.npy")
        return held

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {one: row for row, one in enumerate(self.records(0, self.rows)[0])}

    @staticmethod
    def write(folder: Path, rows: int, queries: int, seed: int, dimension: int) -> None:
        with gzip.open(WORDNET / "rows.jsonl.gz", "rb") as file:
            lines = file.read().splitlines()
        vectors = np.load(WORDNET / "vectors.f16.npy", mmap_mode="r")
        if rows < len(lines):
            chosen = np.sort(np.random.default_rng(seed).choice(len(lines), rows, replace=False))
            lines = [lines[row] for row in chosen]
            vectors = vectors[chosen]
        clusters.unit(vectors.astype(np.float32)).tofile(folder / "vectors.f32")
        asked = np.load(WORDNET / "queries.f16.npy")[:queries]
        np.save(folder / "queries.npy", clusters.unit(asked.astype(np.float32)))
        (folder / "rows.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        lengths = [0, *(len(line) + 1 for line in lines)]
        np.save(folder / "offsets.npy", np.cumsum(lengths, dtype=np.int64))

    @staticmethod
    def available() -> int:
        """How many rows there are; 0 where the set is not at hand."""
        path = WORDNET / "vectors.f16.npy"
        return len(np.load(path, mmap_mode="r")) if path.exists() else 0


class Clusters(Source):
    """Vectors and records of `clusters`; records are made again from row and cluster."""

    name = "clusters"

    def records(self, start: int, stop: int) -> tuple[list[str], list[dict[str, Any]], list[str]]:
        return clusters.records(start, stop, self.rows, self._members[start:stop])

    def column(self, field: str) -> NDArray[Any]:
        return clusters.column(field, self.rows, self._members)

    def conditions(self) -> tuple[Condition, ...]:
        return (
            Condition("lemma", "=", clusters.lemma(0, self.rows)),
            Condition("category", "=", clusters.category(3)),
            Condition("n_lemmas", ">=", 3),
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


def encode(metadata: dict[str, Any]) -> bytes:
    """Metadata as the compact JSON that a store would keep."""
    return json.dumps(metadata, separators=(",", ":"), ensure_ascii=False).encode()


def prepare(
    dataset: str,
    rows: int | None,
    queries: int,
    seed: int,
    folder: Path,
    dimension: int = clusters.DIMENSION,
) -> Source:
    """The data set in a folder of its own below `folder`, written there if it is not yet. WordNet has the
    dimension that it has."""
    available = WordNet.available()
    if dataset == "wordnet" and not available:
        raise SystemExit(f"WordNet is not at hand in {WORDNET.name}/; use --dataset clusters")
    count = min(rows or available, available) if dataset == "wordnet" else rows or 1_000_000
    made: type[WordNet | Clusters] = WordNet if dataset == "wordnet" else Clusters
    if dataset == "wordnet" and dimension != clusters.DIMENSION:
        raise SystemExit(f"WordNet has {clusters.DIMENSION} dimensions; use --dataset clusters")
    place = folder / f"{dataset}-{count}-{dimension}-{queries}-{seed}"
    if not place.exists():
        folder.mkdir(parents=True, exist_ok=True)
        aside = folder / f"{place.name}.{os.getpid()}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        made.write(aside, count, queries, seed, dimension)
        aside.rename(place)
    return made(place, count)
