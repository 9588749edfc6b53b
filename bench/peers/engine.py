"""vecdb, embedded. Knows which settings this version of the engine has, and gives it no others."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import vecdb
from vecdb.settings import ENGINE

from ..datasets import Vectors
from ..sources import Condition, Part, Source

NAME = "bench"
TARGETS = (0.7, 0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.995, 0.999)


def database(folder: Path, **settings: Any) -> vecdb.Database:
    """The database in `folder`, without audits; settings that the engine does not know are left out."""
    known = {row.name for row in ENGINE}
    wanted = {"audit_share": 0.0, **settings}
    return vecdb.open(folder, **{name: value for name, value in wanted.items() if name in known})


def offers(call: Any, argument: str) -> bool:
    """Whether a verb takes an argument."""
    return argument in inspect.signature(call).parameters


def quantization_of(stats: Any) -> str:
    """What the index holds; "none" where the engine has no choice of it."""
    return str(getattr(stats.index, "quantization", "none"))


class System:
    """The knob is `target_recall`."""

    settings: Sequence[float] = TARGETS

    def __init__(
        self,
        source: Source,
        folder: Path,
        *,
        create: bool,
        index: str = "auto",
        quantization: str = "auto",
        **settings: Any,
    ) -> None:
        self._source = source
        self.database = database(folder, **settings)
        make: Any = self.database.create_collection
        if create:
            chosen = {"quantization": quantization} if offers(make, "quantization") else {}
            if not chosen and quantization not in ("auto", "none"):
                raise ValueError(f"this version has no quantization, so no {quantization}")
            self.collection = make(NAME, dimension=source.dimension, index=index, **chosen)
        else:
            self.collection = self.database.get_collection(NAME)

    def insert(self, start: int, part: Part) -> None:
        self.collection.insert(
            part.ids, part.vectors, metadata=part.metadata, documents=part.documents
        )

    def ready(self) -> None:
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

    def explained(self, vector: Vectors, k: int, setting: float) -> dict[str, Any]:
        """Plan and setting of a query at this target; empty where the engine cannot say."""
        if not offers(self.collection.query, "explain"):
            return {}
        query: Any = self.collection.query
        explain = query(vector, k=k, target_recall=setting, explain=True).explain
        return {"plan": explain.plan, "setting": explain.setting}

    def close(self) -> None:
        self.database.close()
