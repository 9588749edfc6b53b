"""LanceDB, embedded: one partition with a graph over 8-bit codes, ranked again by the stored vectors.

Its default of product-quantized lists reached no recall of 0.99 here, whatever was asked of it.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from ..datasets import Vectors
from ..sources import Condition, Part, Source
from . import EF_CONSTRUCTION, M
from .base import NAME, Adapter
from .fields import ID, TEXT, VECTOR, Fields, literal

_REFINED = 3
_COLUMNS = [ID, "_distance"]


class System(Adapter):
    """The knob is ef, of at least as many as are ranked again."""

    settings: Sequence[float] = (30, 32, 40, 48, 64, 80, 96, 128, 192, 256, 384, 512)
    packages: ClassVar = ("lancedb", "pyarrow")
    distribution: ClassVar = "lancedb"
    transport: ClassVar = "embedded"
    durability: ClassVar = "each call writes a file and a version; it was not seen to call fsync"
    chosen: ClassVar = {
        "index": "IVF_HNSW_SQ in one partition",
        "m": M,
        "ef_construction": EF_CONSTRUCTION,
        "refine_factor": _REFINED,
        "scalar_indexes": "btree of ids and where a filter asks for a range, bitmap for the others",
        "after a load": "optimize()",
    }

    def __init__(self, source: Source, folder: Path, *, create: bool, **options: Any) -> None:
        self._source = source
        self._fields = Fields.of(source)
        self._arrow: Any = importlib.import_module("pyarrow")
        self._index: Any = importlib.import_module("lancedb.index")
        self._database = importlib.import_module("lancedb").connect(str(folder))
        self._table = self._create(NAME) if create else self._database.open_table(NAME)

    def _schema(self) -> Any:
        arrow = self._arrow
        text = arrow.string()
        kinds = {str: text, int: arrow.int64(), float: arrow.float64(), bool: arrow.bool_()}
        vector = arrow.list_(arrow.float32(), self._source.dimension)
        fields = [(name, kinds[kind]) for name, kind in self._fields.kinds.items()]
        return arrow.schema([(ID, text), (VECTOR, vector), (TEXT, text), *fields])

    def _create(self, name: str) -> Any:
        return self._database.create_table(name, schema=self._schema())

    def _records(self, part: Part) -> Any:
        arrow, schema = self._arrow, self._schema()
        flat = arrow.array(np.ascontiguousarray(part.vectors).reshape(-1))
        columns: dict[str, Any] = {
            ID: part.ids,
            VECTOR: arrow.FixedSizeListArray.from_arrays(flat, self._source.dimension),
            TEXT: part.documents,
        }
        for name in self._fields.kinds:
            columns[name] = [one.get(name) for one in part.metadata]
        return arrow.table({name: columns[name] for name in schema.names}, schema=schema)

    def insert(self, start: int, part: Part) -> None:
        self._table.add(self._records(part))

    def upsert(self, numbers: Sequence[int], part: Part) -> None:
        merge = self._table.merge_insert(ID).when_matched_update_all()
        merge.when_not_matched_insert_all().execute(self._records(part))

    def delete(self, numbers: Sequence[int], ids: Sequence[str]) -> None:
        listed = ", ".join(_quoted(one) for one in ids)
        self._table.delete(f"{ID} IN ({listed})")

    def count(self) -> int:
        return int(self._table.count_rows())

    def ready(self) -> None:
        index, table = self._index, self._table
        if not table.list_indices():
            table.create_index(VECTOR, config=self._graph())
            for field, ranges in {**self._fields.indexed, ID: True}.items():
                table.create_index(field, config=index.BTree() if ranges else index.Bitmap())
        table.optimize(cleanup_older_than=timedelta(0))

    def _graph(self) -> Any:
        return self._index.HnswSq(
            distance_type="cosine", num_partitions=1, m=M, ef_construction=EF_CONSTRUCTION
        )

    def where(self, condition: Condition) -> Any:
        value = condition.value
        written = _quoted(value) if isinstance(value, str) else literal(condition)
        return f"`{condition.field}` {condition.op} {written}"

    def query(self, vector: Any, k: int, where: Any, setting: float) -> tuple[Any, Any]:
        asked = self._table.search(vector, vector_column_name=VECTOR)
        asked = asked.distance_type("cosine").ef(int(setting)).refine_factor(_REFINED)
        if where is not None:
            asked = asked.where(where, prefilter=True)
        found = asked.limit(k).select(_COLUMNS).to_arrow()
        return found[ID].to_pylist(), found["_distance"].to_pylist()

    def batch(self, queries: Vectors, k: int, setting: float) -> Sequence[Any]:
        asked = self._table.search(list(queries), vector_column_name=VECTOR)
        asked = asked.distance_type("cosine").ef(int(setting)).refine_factor(_REFINED)
        found = asked.limit(k).select(_COLUMNS).to_arrow()
        answers: list[list[str]] = [[] for _ in queries]
        numbers = found["query_index"].to_pylist()
        for number, one in zip(numbers, found[ID].to_pylist(), strict=True):
            answers[number].append(one)
        return answers

    def rows(self, ids: Any) -> Sequence[int]:
        return self._source.rows_of(ids)

    def another(self, name: str) -> Self:
        made = copy.copy(self)
        made._table = made._create(name)
        return made

    def close(self) -> None:
        """It has nothing to close."""


def _quoted(text: str) -> str:
    escaped = text.replace("'", "''")
    return f"'{escaped}'"
