"""A collection of vecdb, opened by the engine or by the client: both have the same verbs."""

from __future__ import annotations

import copy
import time
import tomllib
from abc import abstractmethod
from collections.abc import Sequence
from importlib import metadata
from typing import Any, ClassVar, Self

from ..datasets import ROOT, Vectors
from ..sources import Condition, Part, Source
from .base import Adapter

_LOOK_S = 0.02
TARGETS = (
    0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.975, 0.98, 0.985, 0.9875, 0.99,
    0.9925, 0.995, 0.999,
)  # fmt: skip


class System(Adapter):
    """The knob is `target_recall`."""

    settings: Sequence[float] = TARGETS
    durability: ClassVar = "every call: fdatasync before it returns"
    durable: ClassVar = {"durability": "commit"}
    chosen: ClassVar = {"index": "auto", "quantization": "auto", "audit_share": 0}
    collection: Any

    def __init__(self, source: Source) -> None:
        self._source = source

    @classmethod
    def version(cls) -> str:
        """Of the engine, which server and client are released with; of this checkout where it is not installed."""
        try:
            return metadata.version("vecdb")
        except metadata.PackageNotFoundError:
            text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
            return f"{tomllib.loads(text)['project']['version']}, a checkout"

    def insert(self, start: int, part: Part) -> None:
        self.collection.insert(
            part.ids, part.vectors, metadata=part.metadata, documents=part.documents
        )

    def upsert(self, numbers: Sequence[int], part: Part) -> None:
        self.collection.upsert(
            part.ids, part.vectors, metadata=part.metadata, documents=part.documents
        )

    def delete(self, numbers: Sequence[int], ids: Sequence[str]) -> None:
        self.collection.delete(list(ids))

    def count(self) -> int:
        return int(self.collection.count())

    def ready(self) -> None:
        self.collection.build_index(wait=False)
        while not self._at_target() and self.stats().index.building:
            time.sleep(_LOOK_S)
        if not self._at_target():
            self.finish()  # compared one by one, or the build has failed, which is raised here

    def _at_target(self) -> bool:
        stats = self.stats()
        index = stats.index
        return bool(
            index.indexed_rows - index.dead_rows >= stats.count
            and index.measured_recall >= index.target_recall
        )

    def finish(self) -> None:
        """Returns when nothing is left to be built: lists may serve while a graph is made."""
        self.collection.build_index(wait=True, timeout_s=86_400)

    def prepare(self, queries: Vectors) -> Sequence[Any]:
        return [queries[i : i + 1] for i in range(len(queries))]

    def where(self, condition: Condition) -> Any:
        if condition.op == "=":
            return {condition.field: condition.value}
        return {condition.field: {"$gte": condition.value}}

    def query(self, vector: Any, k: int, where: Any, setting: float) -> tuple[Any, Any]:
        found = self.collection.query(vector, k=k, filter=where, target_recall=setting)
        return found.ids[0], found.distances[0]

    def batch(self, queries: Vectors, k: int, setting: float) -> Sequence[Any]:
        found: Sequence[Any] = self.collection.query(queries, k=k, target_recall=setting).ids
        return found

    def rows(self, ids: Any) -> Sequence[int]:
        return self._source.rows_of(ids)

    def stats(self) -> Any:
        return self.collection.stats()

    def in_force(self) -> dict[str, str]:
        return {"durability": self.stats().durability}

    def another(self, name: str) -> Self:
        made = copy.copy(self)
        made.collection = self._made(name)
        return made

    @abstractmethod
    def _made(self, name: str) -> Any:
        """A new collection of this name."""
