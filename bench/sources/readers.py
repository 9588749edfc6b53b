"""Files of vectors that users have: `.npy`, `.fvecs`, `.bvecs`, HDF5 as ann-benchmarks lays it out, Parquet.

A reader gives blocks of rows from first to last and never holds all of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..clusters import Vectors
from .errors import BadDataset

BLOCK_ROWS = 20_000


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows; vectors (n, dimension) float32 as they stand in the file."""

    vectors: Vectors
    ids: list[str] | None = None
    metadata: list[dict[str, Any]] | None = None
    documents: list[str] | None = None


class Reader(Protocol):
    """An open file. `queries` are what the file, or one beside it, holds out; None where nothing does."""

    count: int
    dimension: int
    queries: Vectors | None

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[Block]: ...


_BESIDE = {"base": "query", "learn": "query", "train": "test"}
"""Names of files of rows and of the queries to them, as the usual sets have them."""


def opened(path: Path) -> Reader:
    """A reader by the name's ending. Raises BadDataset if there is none, or the file is not what it says."""
    readers: dict[str, type[Reader]] = {
        ".npy": _Npy,
        ".fvecs": _Vecs,
        ".bvecs": _Vecs,
        ".hdf5": _Hdf5,
        ".h5": _Hdf5,
    }
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        from .parquet import Parquet

        readers[suffix] = Parquet
    if suffix not in readers:
        endings = ", ".join([*readers, ".parquet"])
        raise BadDataset(
            f"{path.name} ends in none of {endings}; write the vectors as one of these"
        )
    reader = readers[suffix](path)  # type: ignore[call-arg]
    if reader.count < 1 or reader.dimension < 1:
        raise BadDataset(f"{path.name} holds {reader.count} rows of {reader.dimension} numbers")
    beside = query_file(path)
    if reader.queries is None and beside is not None:
        asked = readers[suffix](beside)  # type: ignore[call-arg]
        reader.queries = np.concatenate([block.vectors for block in asked.blocks()])
    if reader.queries is not None and reader.queries.shape[1:] != (reader.dimension,):
        raise BadDataset(
            f"{path.name} has rows of {reader.dimension} numbers and queries of shape"
            f" {reader.queries.shape}; both need the same dimension"
        )
    return reader


def query_file(path: Path) -> Path | None:
    """The file of queries that usually lies beside this one, such as sift_query.fvecs; None without one."""
    for rows, queries in _BESIDE.items():
        head, found, tail = path.stem.rpartition(rows)
        beside = path.with_name(f"{head}{queries}{tail}{path.suffix}")
        if found and beside.is_file():
            return beside
    return None


def module(name: str, package: str, path: Path) -> Any:
    """A module that only some kinds of file need."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise BadDataset(
            f"reading {path.name} needs {package}, which is not installed: pip install {package}"
        ) from None


def numbers(array: NDArray[Any], path: Path, what: str) -> Vectors:
    """The same numbers as float32. Raises BadDataset for what is not a table of real numbers."""
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise BadDataset(
            f"{what} of {path.name} has shape {array.shape} and type {array.dtype};"
            " expected (rows, dimension) of floats or integers"
        )
    return np.asarray(array, np.float32)


class _Npy:
    def __init__(self, path: Path) -> None:
        self._path = path
        self.queries: Vectors | None = None
        try:
            self._held = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise BadDataset(f"{path.name} is no .npy file of plain numbers: {error}") from None
        numbers(self._held[:0], path, "the array")
        self.count, self.dimension = self._held.shape

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[Block]:
        for start in range(0, self.count, rows):
            yield Block(numbers(self._held[start : start + rows], self._path, "the array"))


class _Vecs:
    """Each row is its dimension as int32, then the numbers: float32 in .fvecs, bytes in .bvecs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.queries: Vectors | None = None
        kind = np.dtype("<f4" if path.suffix.lower() == ".fvecs" else "u1")
        size = path.stat().st_size
        head = np.fromfile(path, "<i4", count=1)
        self.dimension = int(head[0]) if len(head) else 0
        width = 4 + self.dimension * kind.itemsize
        if self.dimension < 1 or size % width:
            raise BadDataset(
                f"{path.name} has {size} bytes and says {self.dimension} dimensions, which is {width}"
                " bytes a row; the size has to be a multiple of it: the file is cut off or of another kind"
            )
        self.count = size // width
        self._row = np.dtype([("dimension", "<i4"), ("vector", kind, (self.dimension,))])

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[Block]:
        for start in range(0, self.count, rows):
            held = np.fromfile(self._path, self._row, rows, offset=start * self._row.itemsize)
            other = np.flatnonzero(held["dimension"] != self.dimension)
            if other.size:
                raise BadDataset(
                    f"row {start + int(other[0])} of {self._path.name} says"
                    f" {int(held['dimension'][other[0]])} dimensions, the first row"
                    f" {self.dimension}; all rows need the same"
                )
            yield Block(held["vector"].astype(np.float32))


class _Hdf5:
    """`train` are the rows and `test` the queries. Neighbours in the file are not used: rows are scaled to
    unit length here, and may be held out or cut, so the exact answers are computed anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._h5py = module("h5py", "h5py", path)
        self.queries: Vectors | None = None
        try:
            with self._h5py.File(path, "r") as file:
                if not isinstance(file.get("train"), self._h5py.Dataset):
                    raise BadDataset(
                        f"{path.name} has no dataset named train; it has"
                        f" {', '.join(file) or 'nothing'}; name the rows train and the queries test"
                    )
                numbers(file["train"][:0], path, "train")
                self.count, self.dimension = file["train"].shape
                if "test" in file:
                    self.queries = numbers(file["test"][:], path, "test")
        except OSError as error:
            raise BadDataset(f"{path.name} is no HDF5 file: {error}") from None

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[Block]:
        with self._h5py.File(self._path, "r") as file:
            for start in range(0, self.count, rows):
                yield Block(numbers(file["train"][start : start + rows], self._path, "train"))
