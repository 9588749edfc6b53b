"""A source as the files that VectorDBBench reads as a custom data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet

from ..sources import Source, exact

_PART_ROWS = 20_000
TRAIN, TEST, NEIGHBORS = "train.parquet", "test.parquet", "neighbors.parquet"


def write(source: Source, folder: Path, k: int) -> None:
    """Writes train.parquet (id, emb), test.parquet (id, emb) and neighbors.parquet (id, neighbors_id): the
    `k` nearest of each query, nearest first. Ids are row numbers; `k` is at most the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    vectors = arrow.list_(arrow.float32())
    schema = arrow.schema([("id", arrow.int64()), ("emb", vectors)])
    with parquet.ParquetWriter(folder / TRAIN, schema) as file:
        for start in range(0, source.rows, _PART_ROWS):
            stop = min(start + _PART_ROWS, source.rows)
            numbers = np.arange(start, stop)
            file.write_table(_table(schema, numbers, source.vectors(start, stop)))
    numbers = np.arange(len(source.queries))
    parquet.write_table(_table(schema, numbers, source.queries), folder / TEST)
    found = exact.nearest(source.queries, source.rows, source.vectors, k)
    schema = arrow.schema([("id", arrow.int64()), ("neighbors_id", arrow.list_(arrow.int64()))])
    parquet.write_table(_table(schema, numbers, found), folder / NEIGHBORS)


def _table(schema: Any, numbers: Any, lines: Any) -> Any:
    """Numbers beside lists of the same length."""
    offsets = np.arange(len(lines) + 1, dtype=np.int32) * lines.shape[1]
    lists = arrow.ListArray.from_arrays(arrow.array(offsets), arrow.array(lines.reshape(-1)))
    return arrow.Table.from_arrays([arrow.array(numbers), lists], schema=schema)
