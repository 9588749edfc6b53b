"""Exact answers by numpy, over blocks of rows: computed once and kept by the content they belong to."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..clusters import Vectors

TIE = 2e-6
"""Two distances nearer to each other than this are equal: rounding of float32 dot products."""
_BLOCK_ROWS = 20_000

Rows = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Condition:
    """A filter in words of no system: `op` is "=" or ">="."""

    field: str
    op: str
    value: str | int | float | bool

    def __str__(self) -> str:
        return f"{self.field} {self.op} {self.value}"


def _no_rows() -> Rows:
    return np.empty(0, np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """What deletes and upserts made of a set; ids and metadata stay as they are.

    `live` has a flag a row, None for all. `replaced` are rows in rising order, each once, that have another
    vector now: row `replaced[j]` has `vectors[j]`, float32 of unit length.
    """

    live: Flags | None = None
    replaced: Rows = field(default_factory=_no_rows)
    vectors: Vectors | None = None

    def __post_init__(self) -> None:
        given = 0 if self.vectors is None else len(self.vectors)
        if given != len(self.replaced):
            raise ValueError(f"{len(self.replaced)} rows are replaced by {given} vectors")
        if np.any(np.diff(self.replaced) <= 0):
            raise ValueError("replaced rows stand in rising order, each once: sort them")

    @staticmethod
    def nothing() -> State:
        """As if nothing had been changed."""
        return State()

    @property
    def digest(self) -> str:
        """Names this state; empty where nothing has changed."""
        if self.live is None and not len(self.replaced):
            return ""
        made = hashlib.blake2b(digest_size=8)
        made.update(b"" if self.live is None else np.packbits(self.live).tobytes())
        made.update(b"|" + self.replaced.tobytes())
        if self.vectors is not None:
            made.update(np.ascontiguousarray(self.vectors).tobytes())
        return made.hexdigest()

    def put(self, rows: Rows, vectors: Vectors) -> None:
        """Writes the new vectors over those of `rows` (any shape) in `vectors` (same shape, dimension)."""
        if self.vectors is None or not len(self.replaced):
            return
        at = np.minimum(np.searchsorted(self.replaced, rows), len(self.replaced) - 1)
        there = self.replaced[at] == rows
        vectors[there] = self.vectors[at[there]]


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """Distance (1 - cos) of each query's k-th nearest allowed row, and how many answers it has."""

    k: int
    bounds: Vectors
    wanted: int
    condition: Condition | None
    state: State = field(default_factory=State.nothing)


def bounds(
    queries: Vectors,
    rows: int,
    read: Callable[[int, int], Vectors],
    k: int,
    allowed: Flags | None,
    state: State,
    block_rows: int = _BLOCK_ROWS,
) -> Vectors:
    """Distance of the k-th nearest allowed row of each query, infinite where there are fewer.

    `read(start, stop)` gives the vectors of these rows; at most `block_rows` are held at once.
    """
    best = np.full((len(queries), k), np.inf, np.float32)
    for start in range(0, rows, block_rows):
        stop = min(start + block_rows, rows)
        flags = None if allowed is None else allowed[start:stop]
        if flags is not None and not flags.any():
            continue
        vectors = read(start, stop)
        state.put(np.arange(start, stop), vectors)
        if flags is not None:
            vectors = vectors[flags]
        distances = np.concatenate([best, 1 - queries @ vectors.T], axis=1)
        best = np.partition(distances, k - 1, axis=1)[:, :k]
    farthest: Vectors = best.max(axis=1)
    return farthest


def nearest(
    queries: Vectors,
    rows: int,
    read: Callable[[int, int], Vectors],
    k: int,
    block_rows: int = _BLOCK_ROWS,
) -> Rows:
    """(q, k) rows, nearest first; of rows equally far the lower numbers. `k` is at most `rows`."""
    near = np.full((len(queries), 0), np.inf, np.float32)
    best = np.empty((len(queries), 0), np.int64)
    for start in range(0, rows, block_rows):
        stop = min(start + block_rows, rows)
        distances = np.concatenate([near, 1 - queries @ read(start, stop).T], axis=1)
        numbers = np.broadcast_to(np.arange(start, stop), (len(queries), stop - start))
        numbers = np.concatenate([best, numbers], axis=1)
        order = np.argsort(distances, axis=1, kind="stable")[:, :k]
        near = np.take_along_axis(distances, order, 1)
        best = np.take_along_axis(numbers, order, 1)
    return best


def kept(path: Path, make: Callable[[], NDArray[np.generic]], shape: tuple[int, ...]) -> NDArray:  # type: ignore[type-arg]
    """The array that lies in `path`; made and put there where it is missing, torn or of another shape.

    Several processes may ask at once: each writes beside and renames.
    """
    try:
        found: NDArray[np.generic] = np.load(path, allow_pickle=False)
        if found.shape == shape:
            return found
    except (OSError, ValueError, EOFError):
        pass
    made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.npy")
    np.save(aside, made)
    aside.replace(path)
    return made


def digest(*words: object) -> str:
    """A name for a file that stands for all of `words`."""
    return hashlib.blake2b(repr(words).encode(), digest_size=8).hexdigest()


def content(folder: Path) -> str:
    """A digest of the bytes of all files in a folder, and of their names."""
    made = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.iterdir()):
        made.update(path.name.encode() + b"\0")
        made.update(of_file(path))
    return made.hexdigest()


def of_file(path: Path) -> bytes:
    """A digest of the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
