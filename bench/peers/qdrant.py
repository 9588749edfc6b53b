"""Qdrant Edge: Qdrant's shard as a library, without a server.

One segment, where its default is one a core, whose answers have to be merged; search threads are its default.
Fields that are filtered by have payload indexes.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from ..datasets import Vectors
from ..sources import Condition, Part, Source
from . import EF_CONSTRUCTION, EF_SEARCH, M
from .base import Adapter
from .fields import ID, TEXT, Fields


class System(Adapter):
    """The knob is hnsw_ef. Ids are row numbers, since Qdrant takes integers and UUIDs only.

    `flushed`: flush() after every batch, which writes and syncs what log and segments hold, in more calls of the system
    than one commit of LMDB takes; without it a batch lies in a log that is not synced.
    """

    settings: Sequence[float] = EF_SEARCH
    packages: ClassVar = ("qdrant_edge",)
    distribution: ClassVar = "qdrant-edge-py"
    transport: ClassVar = "embedded"
    durability: ClassVar = "flush() after every call, which syncs its log and segments (fsync and msync, seen by strace)"
    durable: ClassVar = {"flush": "after every call"}
    many_in_one: ClassVar = False
    names_rows: ClassVar = False
    chosen: ClassVar = {
        "index": "HNSW, float32",
        "m": M,
        "ef_construct": EF_CONSTRUCTION,
        "segments": 1,
        "payload_indexes": "the fields of filters",
        "flush": "after every call",
    }

    def __init__(
        self,
        source: Source,
        folder: Path,
        *,
        create: bool,
        flushed: bool = False,
        **options: Any,
    ) -> None:
        edge: Any = importlib.import_module("qdrant_edge")
        self._edge = edge
        self._source, self._folder, self._flushed = source, folder, flushed
        self._parameters: dict[float, Any] = {}
        self._fields = Fields.of(source)
        self._shard = self._create(folder) if create else edge.EdgeShard.load(str(folder))

    def _create(self, folder: Path) -> Any:
        edge = self._edge
        folder.mkdir(parents=True)
        config = edge.EdgeConfig(
            vectors=edge.EdgeVectorParams(self._source.dimension, edge.Distance.Cosine),
            hnsw_config=edge.HnswIndexConfig(
                m=M, ef_construct=EF_CONSTRUCTION, full_scan_threshold=10_000
            ),
            optimizers=edge.EdgeOptimizersConfig(default_segment_number=1),
        )
        shard = edge.EdgeShard.create(str(folder), config)
        kinds = edge.PayloadSchemaType
        of = {str: kinds.Keyword, int: kinds.Integer, float: kinds.Float, bool: kinds.Bool}
        for field in self._fields.indexed:
            kind = of[self._fields.kinds[field]]
            shard.update(edge.UpdateOperation.create_field_index(field, kind))
        return shard

    def insert(self, start: int, part: Part) -> None:
        self.upsert(range(start, start + len(part.ids)), part)

    def upsert(self, numbers: Sequence[int], part: Part) -> None:
        point = self._edge.Point
        points = [
            point(numbers[i], part.vectors[i], {ID: part.ids[i], TEXT: part.documents[i], **one})
            for i, one in enumerate(part.metadata)
        ]
        self._update(self._edge.UpdateOperation.upsert_points(points))

    def delete(self, numbers: Sequence[int], ids: Sequence[str]) -> None:
        self._update(self._edge.UpdateOperation.delete_points(list(numbers)))

    def _update(self, operation: Any) -> None:
        self._shard.update(operation)
        if self._flushed:
            self._shard.flush()

    def count(self) -> int:
        return int(self._shard.count(self._edge.CountRequest(exact=True)))

    def in_force(self) -> dict[str, str]:
        return {"flush": "after every call" if self._flushed else "when asked"}

    def another(self, name: str) -> Self:
        made = copy.copy(self)
        made._shard = self._create(self._folder.parent / name)
        return made

    def ready(self) -> None:
        self._shard.flush()
        while self._shard.optimize():
            continue

    def prepare(self, queries: Vectors) -> Sequence[Any]:
        lists: list[list[float]] = queries.tolist()
        return lists

    def where(self, condition: Condition) -> Any:
        edge = self._edge
        if condition.op == "=":
            field = edge.FieldCondition(condition.field, match=edge.MatchValue(condition.value))
        else:
            bound = edge.RangeFloat(gte=float(condition.value))
            field = edge.FieldCondition(condition.field, range=bound)
        return edge.Filter(must=[field])

    def query(self, vector: Any, k: int, where: Any, setting: float) -> tuple[Any, Any]:
        found = self._shard.search(self._request(vector, k, where, setting))
        return [point.id for point in found], [point.score for point in found]

    def batch(self, queries: Vectors, k: int, setting: float) -> Sequence[Any]:
        edge, asked = self._edge, self._asked(setting)
        requests = [
            edge.QueryRequest(k, query=edge.Query.Nearest(vector), params=asked)
            for vector in queries
        ]
        found = self._shard.query_batch(edge.QueryBatchRequest(requests))
        return [[point.id for point in points] for points in found]

    def rows(self, ids: Any) -> Sequence[int]:
        found: list[int] = ids
        return found

    def close(self) -> None:
        self._shard.close()

    def _request(self, vector: Any, k: int, where: Any, setting: float) -> Any:
        edge = self._edge
        return edge.SearchRequest(
            edge.Query.Nearest(vector), k, filter=where, params=self._asked(setting)
        )

    def _asked(self, setting: float) -> Any:
        held = self._parameters.get(setting)
        if held is None:
            held = self._edge.SearchParams(hnsw_ef=int(setting))
            self._parameters[setting] = held
        return held
