"""Chroma, embedded. What its collection has in common with the server's is in `Collection`."""

from __future__ import annotations

import copy
import importlib
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from ..datasets import Vectors
from ..sources import Condition, Part, Source
from . import EF_CONSTRUCTION, M
from .base import NAME, Adapter


class Collection(Adapter):
    """The knob is ef_search. It belongs to the collection and is read when that is opened, so that a change of it
    opens the database anew (`_reopen`)."""

    settings: Sequence[float] = (
        10,
        12,
        16,
        20,
        24,
        32,
        40,
        48,
        64,
        80,
        100,
        128,
        160,
        200,
        256,
        320,
        400,
        512,
    )
    packages: ClassVar = ("chromadb",)
    distribution: ClassVar = "chromadb"
    durability: ClassVar = (
        "a transaction of SQLite for every call, which syncs (fsync, seen by strace)"
    )
    chosen: ClassVar[dict[str, Any]] = {
        "index": "HNSW, float32",
        "max_neighbors": M,
        "ef_construction": EF_CONSTRUCTION,
        "metadata_indexes": "SQLite's own, of every field",
    }
    client: Any
    collection: Any

    def __init__(self, source: Source) -> None:
        self._source = source
        self._tuned: float | None = None

    def _create(self, name: str) -> Any:
        return self.client.create_collection(
            name,
            configuration={
                "hnsw": {
                    "space": "cosine",
                    "max_neighbors": M,
                    "ef_construction": EF_CONSTRUCTION,
                }
            },
            embedding_function=None,
        )

    def _get(self) -> Any:
        return self.client.get_collection(NAME, embedding_function=None)

    @abstractmethod
    def _reopen(self) -> None:
        """Connects anew to what is in the folder."""

    def tune(self, setting: float) -> None:
        if setting != self._tuned:
            self.collection.modify(configuration={"hnsw": {"ef_search": int(setting)}})
            self._reopen()
            self._tuned = setting

    def insert(self, start: int, part: Part) -> None:
        self.collection.add(**_arguments(part))

    def upsert(self, numbers: Sequence[int], part: Part) -> None:
        self.collection.upsert(**_arguments(part))

    def delete(self, numbers: Sequence[int], ids: Sequence[str]) -> None:
        self.collection.delete(ids=list(ids))

    def count(self) -> int:
        return int(self.collection.count())

    def ready(self) -> None:
        """Chroma indexes while it inserts; the first query has the rest to do."""
        self.collection.query(
            query_embeddings=self._source.queries[:1], n_results=1, include=["distances"]
        )

    def where(self, condition: Condition) -> Any:
        if condition.op == "=":
            return {condition.field: condition.value}
        return {condition.field: {"$gte": condition.value}}

    def query(self, vector: Any, k: int, where: Any, setting: float) -> tuple[Any, Any]:
        found = self.collection.query(
            query_embeddings=[vector], n_results=k, where=where, include=["distances"]
        )
        return found["ids"][0], found["distances"][0]

    def batch(self, queries: Vectors, k: int, setting: float) -> Sequence[Any]:
        found: Sequence[Any] = self.collection.query(
            query_embeddings=queries, n_results=k, include=["distances"]
        )["ids"]
        return found

    def rows(self, ids: Any) -> Sequence[int]:
        return self._source.rows_of(ids)

    def another(self, name: str) -> Self:
        made = copy.copy(self)
        made.collection = self._create(name)
        return made


def _arguments(part: Part) -> dict[str, Any]:
    return {
        "ids": part.ids,
        "embeddings": np.ascontiguousarray(part.vectors),
        "metadatas": part.metadata,
        "documents": part.documents,
    }


def quiet() -> Any:
    """Settings of a client that reports to nobody."""
    return importlib.import_module("chromadb.config").Settings(anonymized_telemetry=False)


class System(Collection):
    """A `PersistentClient`."""

    transport: ClassVar = "embedded"

    def __init__(self, source: Source, folder: Path, *, create: bool, **options: Any) -> None:
        super().__init__(source)
        self._chroma: Any = importlib.import_module("chromadb")
        self._folder = folder
        self._open()
        self.collection = self._create(NAME) if create else self._get()

    def _open(self) -> None:
        self.client = self._chroma.PersistentClient(str(self._folder), settings=quiet())

    def _reopen(self) -> None:
        self.client.close()
        self._open()
        self.collection = self._get()

    def close(self) -> None:
        self.client.close()
