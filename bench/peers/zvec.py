"""zvec: Alibaba's Proxima as a library. Graph in contiguous memory, which is its faster form.

Opened read-only it has a faster call, which gives internal numbers; turning them into ids is part of what is timed.
"""

from __future__ import annotations

import copy
import importlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Self

from ..datasets import Vectors
from ..sources import Condition, Part, Source
from . import EF_CONSTRUCTION, EF_SEARCH, M
from .base import Adapter
from .fields import TEXT, Fields, literal

_VECTOR = "vector"
_CORES = os.cpu_count() or 1


class System(Adapter):
    """The knob is ef. `flushed`: flush() after every batch."""

    settings: Sequence[float] = EF_SEARCH
    packages: ClassVar = ("zvec",)
    distribution: ClassVar = "zvec"
    transport: ClassVar = "embedded"
    durability: ClassVar = (
        "flush() after every call, which syncs (fsync and fdatasync, seen by strace)"
    )
    durable: ClassVar = {"flush": "after every call"}
    many_in_one: ClassVar = False
    chosen: ClassVar = {
        "index": "HNSW, float32, contiguous memory",
        "m": M,
        "ef_construction": EF_CONSTRUCTION,
        "inverted_indexes": "the fields of filters, with ranges where one asks for them",
        "flush": "after every call",
    }

    def __init__(
        self,
        source: Source,
        folder: Path,
        *,
        create: bool,
        read_only: bool = False,
        flushed: bool = False,
        **options: Any,
    ) -> None:
        zvec: Any = importlib.import_module("zvec")
        self._zvec = zvec
        self._fields = Fields.of(source)
        self._source, self._folder, self._flushed = source, folder, flushed
        self._read_only = read_only
        self._parameters: dict[float, Any] = {}
        zvec.init(log_level=zvec.LogLevel.ERROR)
        if create:
            folder.parent.mkdir(parents=True, exist_ok=True)
            self._collection = self._create(folder)
        else:
            option = zvec.CollectionOption(read_only=read_only)
            self._collection = zvec.open(str(folder), option)

    def _create(self, folder: Path) -> Any:
        return self._zvec.create_and_open(str(folder), self._schema(self._source.dimension))

    def _schema(self, dimension: int) -> Any:
        zvec = self._zvec
        field, types = zvec.FieldSchema, zvec.DataType
        kinds = {str: types.STRING, int: types.INT64, float: types.DOUBLE, bool: types.BOOL}
        indexes = {
            name: zvec.InvertIndexParam(enable_range_optimization=ranges)
            for name, ranges in self._fields.indexed.items()
        }
        graph = zvec.HnswIndexParam(
            metric_type=zvec.MetricType.COSINE,
            m=M,
            ef_construction=EF_CONSTRUCTION,
            use_contiguous_memory=True,
        )
        floats = zvec.DataType.VECTOR_FP32
        return zvec.CollectionSchema(
            "bench",
            fields=[
                *(
                    field(name, kinds[kind], nullable=True, index_param=indexes.get(name))
                    for name, kind in self._fields.kinds.items()
                ),
                field(TEXT, zvec.DataType.STRING, nullable=True),
            ],
            vectors=[zvec.VectorSchema(_VECTOR, floats, dimension, index_param=graph)],
        )

    def insert(self, start: int, part: Part) -> None:
        self._written(self._collection.insert(self._records(part)))

    def upsert(self, numbers: Sequence[int], part: Part) -> None:
        self._written(self._collection.upsert(self._records(part)))

    def delete(self, numbers: Sequence[int], ids: Sequence[str]) -> None:
        # Others take the deletion of what is not there any more as done; zvec says that it was not there.
        gone = self._zvec.StatusCode.NOT_FOUND
        statuses = self._collection.delete(list(ids))
        self._written([status for status in statuses if status.code() != gone])

    def _records(self, part: Part) -> list[Any]:
        return [
            self._zvec.Doc(
                id=part.ids[i],
                vectors={_VECTOR: part.vectors[i]},
                fields={TEXT: part.documents[i], **self._fields.values(one)},
            )
            for i, one in enumerate(part.metadata)
        ]

    def _written(self, statuses: Any) -> None:
        for status in statuses:
            if not status.ok():
                raise RuntimeError(f"zvec refused a record: {status}")
        if self._flushed:
            self._collection.flush()

    def count(self) -> int:
        return int(self._collection.stats.doc_count)

    def in_force(self) -> dict[str, str]:
        return {"flush": "after every call" if self._flushed else "when asked"}

    def another(self, name: str) -> Self:
        made = copy.copy(self)
        made._collection = self._create(self._folder.parent / name)
        return made

    def ready(self) -> None:
        self._collection.flush()
        self._collection.optimize()

    def where(self, condition: Condition) -> Any:
        return f"{condition.field} {condition.op} {literal(condition)}"

    def query(self, vector: Any, k: int, where: Any, setting: float) -> tuple[Any, Any]:
        query = self._zvec.Query(_VECTOR, vector=vector, param=self._asked(setting))
        if self._read_only:
            numbers, distances = self._collection.query_internal_ids(
                query, topk=k, filter=where, return_scores=True
            )
            return self._collection.resolve_internal_ids(numbers), distances
        found = self._collection.query(query, topk=k, filter=where, output_fields=[])
        return [one.id for one in found], [one.score for one in found]

    def batch(self, queries: Vectors, k: int, setting: float) -> Sequence[Any]:
        # It has no call for several; searches of several threads run side by side.
        with ThreadPoolExecutor(_CORES) as pool:
            return list(pool.map(lambda vector: self.query(vector, k, None, setting)[0], queries))

    def rows(self, ids: Any) -> Sequence[int]:
        return self._source.rows_of([one for one in ids if one is not None])

    def close(self) -> None:
        self._collection.close()

    def _asked(self, setting: float) -> Any:
        held = self._parameters.get(setting)
        if held is None:
            held = self._zvec.HnswQueryParam(ef=int(setting))
            self._parameters[setting] = held
        return held
