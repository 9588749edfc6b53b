"""Milvus Lite: Milvus as a library, whose client asks a server of Python in the same process, over gRPC."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from ..datasets import Vectors
from ..sources import Condition, Part, Source
from . import EF_CONSTRUCTION, EF_SEARCH, M
from .base import NAME, Adapter
from .fields import ID, TEXT, VECTOR, Fields, literal

_TEXT_BYTES = 65_535


class System(Adapter):
    """The knob is ef."""

    settings: Sequence[float] = EF_SEARCH
    packages: ClassVar = ("pymilvus", "milvus_lite")
    distribution: ClassVar = "milvus-lite"
    transport: ClassVar = "embedded"
    durability: ClassVar = "a log written by each call; it was not seen to call fsync"
    chosen: ClassVar = {
        "index": "HNSW, float32",
        "M": M,
        "efConstruction": EF_CONSTRUCTION,
        "scalar_indexes": "inverted, of the fields of filters",
        "after a load": "flush()",
    }

    def __init__(self, source: Source, folder: Path, *, create: bool, **options: Any) -> None:
        self._source, self._fields = source, Fields.of(source)
        self._milvus: Any = importlib.import_module("pymilvus")
        folder.mkdir(parents=True, exist_ok=True)
        self._client = self._milvus.MilvusClient(str(folder / "milvus.db"))
        self._name = NAME
        if create:
            self._create()
        self._client.load_collection(NAME)

    def _create(self) -> None:
        kinds = self._milvus.DataType
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field(ID, kinds.VARCHAR, is_primary=True, max_length=512)
        schema.add_field(VECTOR, kinds.FLOAT_VECTOR, dim=self._source.dimension)
        of = {str: kinds.VARCHAR, int: kinds.INT64, float: kinds.DOUBLE, bool: kinds.BOOL}
        for name, kind in {**self._fields.kinds, TEXT: str}.items():
            length = {"max_length": _TEXT_BYTES} if kind is str else {}
            schema.add_field(name, of[kind], nullable=True, **length)
        indexes = self._client.prepare_index_params()
        indexes.add_index(
            field_name=VECTOR,
            index_type="HNSW",
            metric_type="COSINE",
            params={"M": M, "efConstruction": EF_CONSTRUCTION},
        )
        for name in self._fields.indexed:
            indexes.add_index(field_name=name, index_type="INVERTED")
        self._client.create_collection(self._name, schema=schema, index_params=indexes)

    def _records(self, part: Part) -> list[dict[str, Any]]:
        return [
            {
                ID: part.ids[i],
                VECTOR: part.vectors[i],
                TEXT: part.documents[i],
                **self._fields.values(one),
            }
            for i, one in enumerate(part.metadata)
        ]

    def insert(self, start: int, part: Part) -> None:
        self._client.insert(self._name, self._records(part))

    def upsert(self, numbers: Sequence[int], part: Part) -> None:
        self._client.upsert(self._name, self._records(part))

    def delete(self, numbers: Sequence[int], ids: Sequence[str]) -> None:
        self._client.delete(self._name, ids=list(ids))

    def count(self) -> int:
        found = self._client.query(self._name, filter="", output_fields=["count(*)"])
        return int(found[0]["count(*)"])

    def ready(self) -> None:
        self._client.flush(self._name)
        self._client.load_collection(self._name)

    def where(self, condition: Condition) -> Any:
        operator = "==" if condition.op == "=" else condition.op
        return f"{condition.field} {operator} {literal(condition, chr(34))}"

    def query(self, vector: Any, k: int, where: Any, setting: float) -> tuple[Any, Any]:
        found = self._found([vector], k, where, setting)[0]
        return [one[ID] for one in found], [one["distance"] for one in found]

    def batch(self, queries: Vectors, k: int, setting: float) -> Sequence[Any]:
        return [
            [one[ID] for one in found] for found in self._found(list(queries), k, None, setting)
        ]

    def _found(self, vectors: list[Any], k: int, where: Any, setting: float) -> Any:
        return self._client.search(
            self._name,
            data=vectors,
            limit=k,
            filter=where or "",
            search_params={"params": {"ef": int(setting)}},
            output_fields=[ID],
        )

    def rows(self, ids: Any) -> Sequence[int]:
        return self._source.rows_of(ids)

    def another(self, name: str) -> Self:
        made = copy.copy(self)
        made._name = name.replace("-", "_")
        made._create()
        return made

    def close(self) -> None:
        self._client.close()
