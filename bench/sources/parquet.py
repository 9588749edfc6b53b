"""Parquet files: one column of lists is the vector, the others are id, text and metadata.

The vector is the only column of lists of numbers, or the one that is called vector, vectors, embedding or
emb. A column called id or _id gives the ids, text or document the texts; other columns of strings, numbers
and truth values are metadata, and what is of another type is left out. Layouts that VectorDBBench reads fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..clusters import Vectors
from .errors import BadDataset
from .readers import BLOCK_ROWS, Block, module

_VECTORS = ("vector", "vectors", "embedding", "emb")
_IDS = ("id", "_id")
_TEXTS = ("text", "document")


class Parquet:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._arrow = module("pyarrow", "pyarrow", path)
        self._parquet = module("pyarrow.parquet", "pyarrow", path)
        self.queries: Vectors | None = None
        try:
            with self._parquet.ParquetFile(path) as file:
                self.count = int(file.metadata.num_rows)
                schema = file.schema_arrow
        except (self._arrow.ArrowInvalid, OSError) as error:
            raise BadDataset(f"{path.name} is no Parquet file: {error}") from None
        self._vector = self._vector_of(schema)
        names = [name for name in schema.names if name != self._vector]
        self._id = next((name for name in _IDS if name in names), None)
        self._text = next((name for name in _TEXTS if name in names), None)
        types = self._arrow.types
        words = (types.is_string, types.is_large_string, types.is_boolean)
        plain = (*words, types.is_integer, types.is_floating)
        self._fields = [
            name
            for name in names
            if name not in (self._id, self._text)
            and any(check(schema.field(name).type) for check in plain)
        ]
        first = next(self.blocks(1), None)
        self.dimension = 0 if first is None else first.vectors.shape[1]

    def _vector_of(self, schema: Any) -> str:
        types = self._arrow.types
        lists = [
            name
            for name in schema.names
            if (
                types.is_list(kind := schema.field(name).type)
                or types.is_large_list(kind)
                or types.is_fixed_size_list(kind)
            )
            and (types.is_floating(kind.value_type) or types.is_integer(kind.value_type))
        ]
        named = [name for name in lists if name in _VECTORS]
        for found in (lists, named):
            if len(found) == 1:
                return str(found[0])
        raise BadDataset(
            f"{self._path.name} has {len(lists)} columns of lists of numbers among"
            f" {', '.join(schema.names)}; one has to hold the vectors, or be called one of"
            f" {', '.join(_VECTORS)}"
        )

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[Block]:
        columns = [self._vector, *(one for one in (self._id, self._text) if one), *self._fields]
        start = 0
        with self._parquet.ParquetFile(self._path) as file:
            for held in file.iter_batches(rows, columns=columns):
                vectors = self._vectors(held.column(self._vector), start)
                start += len(vectors)
                ids = self._words(held, self._id, start)
                texts = self._words(held, self._text, start)
                metadata = None
                if self._fields:
                    lists = [held.column(name).to_pylist() for name in self._fields]
                    metadata = [
                        {
                            name: value
                            for name, value in zip(self._fields, line, strict=True)
                            if value is not None and value == value  # not NaN
                        }
                        for line in zip(*lists, strict=True)
                    ]
                yield Block(vectors, ids, metadata, texts)

    def _words(self, held: Any, name: str | None, stop: int) -> list[str] | None:
        if name is None:
            return None
        values = held.column(name).to_pylist()
        if name == self._id and None in values:
            row = stop - len(values) + values.index(None)
            raise BadDataset(f"row {row} of {self._path.name} has no {name}; every row needs one")
        return ["" if value is None else str(value) for value in values]

    def _vectors(self, column: Any, start: int) -> Vectors:
        """(n, dimension) float32 of a column whose lists all have the same length."""
        lengths = np.asarray(column.value_lengths().fill_null(0))
        width = getattr(self, "dimension", 0) or (int(lengths[0]) if len(lengths) else 0)
        wrong = np.flatnonzero(lengths != width)
        if wrong.size:
            raise BadDataset(
                f"row {start + int(wrong[0])} of {self._path.name} has {int(lengths[wrong[0]])} numbers"
                f" in {self._vector}, the first row {width}; all rows need the same"
            )
        flat = column.flatten()
        if flat.null_count:
            raise BadDataset(f"{self._path.name} has a null among the numbers of {self._vector}")
        return np.asarray(flat.to_numpy(zero_copy_only=False), np.float32).reshape(-1, width)
