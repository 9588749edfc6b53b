"""Data sets that lie in a folder: read by slices, with exact answers computed once and kept.

The arrays of a set stay on the disk and are read with plain reads, so that a process whose memory is
measured holds one slice at a time and maps nothing of ours.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..clusters import Vectors
from . import exact
from .exact import Condition, State, Truth

_WIDTH = 4
"""Bytes of a float32."""
_READ_ROWS = 50_000


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive rows; vectors (n, dimension) float32 of unit length."""

    ids: list[str]
    vectors: Vectors
    metadata: list[dict[str, Any]]
    documents: list[str]


class Source:
    """Rows 0 to `rows` - 1 and held-out queries. Small to pickle: what is read stays behind.

    `whole` is how many rows lie in the folder; a source may be cut to the first of them.
    """

    name: str
    metric = "cosine"
    """Distance 1 - cos, over vectors of unit length."""

    def __init__(self, folder: Path, rows: int, whole: int | None = None) -> None:
        self.folder = folder
        self.rows = rows
        self.whole = rows if whole is None else whole
        self._flags: dict[Condition, NDArray[np.bool_]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self.rows, self.whole)

    def first(self, rows: int) -> Self:
        """The same set cut to its first rows, with the same queries; its truth is its own."""
        if not 0 < rows <= self.rows:
            raise ValueError(f"{rows} of {self.rows} rows were asked for")
        return type(self)(self.folder, rows, self.whole)

    @cached_property
    def key(self) -> str:
        """Stands for the content: vectors, queries and records."""
        name = (self.folder / "key").read_text()
        return name if self.rows == self.whole else f"{name}-first-{self.rows}"

    @property
    def structure(self) -> str:
        """Where the rows come from, or how they were made, in words."""
        raise AssertionError("each kind of source says it")

    def described(self) -> dict[str, Any]:
        """What a reader needs to judge and repeat, as JSON takes it."""
        return {
            "name": self.name,
            "rows": self.rows,
            "dimension": self.dimension,
            "queries": len(self.queries),
            "metric": self.metric,
            "seed": self.seed,
            "structure": self.structure,
            "filters": {self.case(one): str(one) for one in self.conditions()},
            "key": self.key,
        }

    @cached_property
    def seed(self) -> int:
        return int(json.loads((self.folder / "seed.json").read_text()))

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
        """One metadata field of all rows; None where a row has no such field."""
        values: list[Any] = []
        for start in range(0, self.rows, _READ_ROWS):
            stop = min(start + _READ_ROWS, self.rows)
            values.extend(record.get(field) for record in self.records(start, stop)[1])
        return np.array(values)

    def conditions(self) -> tuple[Condition, ...]:
        """The five filters that are measured, from few rows allowed to many."""
        raise AssertionError("each kind of source says it")

    def rows_of(self, ids: Sequence[str]) -> list[int]:
        raise AssertionError("each kind of source says it")

    def flags(self, condition: Condition) -> NDArray[np.bool_]:
        """Which rows the condition allows; read only."""
        if condition not in self._flags:
            name = exact.digest(self.key, str(condition))
            packed = exact.kept(
                self._beside(f"flags-{name}.npy"),
                lambda: np.packbits(_allows(self.column(condition.field), condition)),
                (-(-self.rows // 8),),
            )
            self._flags[condition] = np.unpackbits(packed, count=self.rows).astype(np.bool_)
        return self._flags[condition]

    def share(self, condition: Condition) -> float:
        """Of all rows, how many the condition allows: 0 to 1."""
        return float(self.flags(condition).mean())

    def case(self, condition: Condition) -> str:
        """The share in percent with two digits that count, such as "0.07 %"; by it results name a filter."""
        cases = [_percent(self.share(one)) for one in self.conditions()]
        mine = _percent(self.share(condition))
        return mine if cases.count(mine) < 2 else f"{mine} {condition}"

    @cached_property
    def encoded_bytes(self) -> int:
        """Metadata as compact JSON and documents as UTF-8, of all rows."""
        kept = self._beside(f"encoded-{self.key}.json")
        if not kept.exists():
            total = 0
            for start in range(0, self.rows, _READ_ROWS):
                _, metadata, documents = self.records(start, min(start + _READ_ROWS, self.rows))
                total += sum(len(encode(one)) for one in metadata)
                total += sum(len(text.encode()) for text in documents)
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(total))
        return int(json.loads(kept.read_text()))

    def truth(
        self, k: int, condition: Condition | None = None, state: State | None = None
    ) -> Truth:
        """Exact answers to all queries, by numpy; computed once and kept beside the folders of sets."""
        state = state or State.nothing()
        flags = None if condition is None else self.flags(condition)
        if state.live is not None:
            flags = state.live if flags is None else flags & state.live
        allowed = self.rows if flags is None else int(flags.sum())
        name = exact.digest(self.key, k, str(condition), state.digest)
        bounds = exact.kept(
            self._beside(f"{k}-{name}.npy"),
            lambda: exact.bounds(self.queries, self.rows, self.vectors, k, flags, state),
            (len(self.queries),),
        )
        return Truth(k, bounds, min(k, allowed), condition, state)

    def recall(self, found: NDArray[np.int64], truth: Truth) -> float:
        """recall@k of the first len(found) queries; `found` is (q, k) rows, -1 where there is none.

        Ties are right. Distances are computed here from the rows that are named, so that no system
        can flatter itself; a row named twice, or one that is not allowed or not live, does not count.
        """
        count = len(found)
        there = found >= 0
        if truth.condition is not None:
            there &= self.flags(truth.condition)[found]
        if truth.state.live is not None:
            there &= truth.state.live[found]
        order = np.argsort(found, axis=1)
        ordered = np.take_along_axis(found, order, 1)
        twice = np.zeros_like(there)
        twice[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
        np.put_along_axis(there, order, np.take_along_axis(there, order, 1) & ~twice, 1)
        shape = (self.rows, self.dimension)
        mapped = np.memmap(self.folder / "vectors.f32", np.float32, "r", shape=shape)
        named = np.array(mapped[found])
        truth.state.put(found, named)
        near = 1 - np.einsum("qkd,qd->qk", named, self.queries[:count])
        right = there & (near <= truth.bounds[:count, np.newaxis] + exact.TIE)
        return float(np.minimum(right.sum(axis=1), truth.wanted).sum()) / max(
            count * truth.wanted, 1
        )

    def _beside(self, name: str) -> Path:
        """What was computed from sets, so that the same content in another folder need not be again."""
        return self.folder.parent / "truth" / name


def _allows(column: NDArray[Any], condition: Condition) -> NDArray[np.bool_]:
    if condition.op == "=":
        equal: NDArray[np.bool_] = column == condition.value
        return np.broadcast_to(equal, column.shape)
    if column.dtype == object:  # some rows have no such field
        return np.array([one is not None and one >= condition.value for one in column], np.bool_)
    enough: NDArray[np.bool_] = column >= condition.value
    return enough


def _percent(share: float) -> str:
    return f"{float(f'{share * 100:.2g}'):g} %"


def encode(metadata: dict[str, Any]) -> bytes:
    """Metadata as the compact JSON that a store would keep."""
    return json.dumps(metadata, separators=(",", ":"), ensure_ascii=False).encode()
