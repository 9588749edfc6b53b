"""vecdb as VectorDBBench asks a database: over gRPC, a collection a run.

Ids are their numbers as decimal strings. Each record has its number as the field `number`, by which their number
filters ask (`id` is the record's own), and in cases with labels the field `labels`. Vectors go as they come: cosine needs no scaling.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from pydantic import BaseModel
from vectordb_bench.backend.clients.api import (
    DBCaseConfig,
    DBConfig,
    MetricType,
    NonRetryableInsertError,
    VectorDB,
)
from vectordb_bench.backend.filter import Filter, FilterOp

import vecdb_client
from vecdb_client.errors import InvalidArgument, VecdbError

NAME = "VectorDBBench"
TIMEOUT_S = 3_600.0
"""Also of one call that waits for an index."""
_BUILD_S = 86_400.0
NUMBER = "number"
_METRICS = {MetricType.COSINE: "cosine", MetricType.L2: "l2", MetricType.IP: "ip"}


class VecdbConfig(DBConfig):  # type: ignore[misc]
    """Where the server is."""

    target: str = "127.0.0.1:7700"

    def to_dict(self) -> dict[str, Any]:
        return {"target": self.target}


class VecdbCaseConfig(BaseModel, DBCaseConfig):  # type: ignore[misc]
    """What a collection is made and asked with. The one knob of a query is the recall that is asked for."""

    metric_type: MetricType = MetricType.COSINE
    index: str = "auto"
    quantization: str = "auto"
    target_recall: float = 0.95

    def parse_metric(self) -> str:
        """Raises ValueError for a metric that vecdb has not."""
        if self.metric_type not in _METRICS:
            known = ", ".join(_METRICS)
            raise ValueError(f"vecdb has no metric {self.metric_type}; it has {known}")
        return _METRICS[self.metric_type]

    def index_param(self) -> dict[str, Any]:
        """Keywords of `create_collection`."""
        return {
            "metric": self.parse_metric(),
            "index": self.index,
            "quantization": self.quantization,
            "target_recall": self.target_recall,
        }

    def search_param(self) -> dict[str, Any]:
        """Keywords of `query`."""
        return {"target_recall": self.target_recall}


class Vecdb(VectorDB):  # type: ignore[misc]
    """Goes into processes by pickle while no connection is open; threads share one connection."""

    name = "vecdb"
    thread_safe = True
    supported_filter_types = [FilterOp.NonFilter, FilterOp.NumGE, FilterOp.StrEqual]  # noqa: RUF012

    def __init__(
        self,
        dim: int,
        db_config: dict[str, Any],
        db_case_config: VecdbCaseConfig | None,
        collection_name: str = NAME,
        drop_old: bool = False,
        with_scalar_labels: bool = False,
        **_: Any,
    ) -> None:
        self._target = str(db_config["target"])
        self._case = db_case_config or VecdbCaseConfig()
        self._collection_name = collection_name
        self._with_labels = with_scalar_labels
        self._filter: dict[str, Any] | None = None
        self._client: Any = None
        self._collection: Any = None
        with vecdb_client.connect(self._target, timeout_s=TIMEOUT_S) as client:
            names = {one.name for one in client.list_collections()}
            if drop_old and collection_name in names:
                client.drop_collection(collection_name)
            client.create_collection(
                collection_name, dimension=dim, exist_ok=not drop_old, **self._case.index_param()
            )

    @contextmanager
    def init(self) -> Iterator[None]:
        """A connection, in whichever process this is."""
        self._client = vecdb_client.connect(self._target, timeout_s=TIMEOUT_S)
        try:
            self._collection = self._client.get_collection(self._collection_name)
            yield
        finally:
            self._client.close()
            self._client = self._collection = None

    def prepare_filter(self, filters: Filter) -> None:
        """The filter of all searches from here on. Raises ValueError for a kind that is not supported."""
        if filters.type == FilterOp.NonFilter:
            self._filter = None
        elif filters.type == FilterOp.NumGE:
            self._filter = {NUMBER: {"$gte": filters.int_value}}
        elif filters.type == FilterOp.StrEqual:
            self._filter = {filters.label_field: filters.label_value}
        else:
            raise ValueError(f"vecdb's client has no filter of type {filters.type}")

    def insert_embeddings(
        self,
        embeddings: Sequence[Sequence[float]],
        metadata: Sequence[int],
        labels_data: Sequence[str] | None = None,
        **_: Any,
    ) -> tuple[int, Exception | None]:
        """How many were acknowledged as durable, and what went wrong. A batch is there whole or not at all.
        Their runner is told not to repeat what can only fail again.

        It is sent as an upsert: their runner sends a batch again after an error, whose first try may have
        arrived.
        """
        records: list[dict[str, Any]] = [{NUMBER: int(number)} for number in metadata]
        if self._with_labels and labels_data is not None:
            for record, label in zip(records, labels_data, strict=True):
                record["labels"] = label
        try:
            self._opened().upsert(
                [str(number) for number in metadata],
                np.asarray(embeddings, np.float32),
                metadata=records,
            )
        except InvalidArgument as error:
            return 0, NonRetryableInsertError(str(error))
        except VecdbError as error:
            return 0, error
        return len(records), None

    def search_embedding(self, query: Sequence[float], k: int = 100, **_: Any) -> list[int]:
        """Numbers of the nearest, nearest first."""
        found = self._opened().query(
            np.asarray(query, np.float32),
            k=k,
            filter=self._filter,
            **self._case.search_param(),
        )
        return [int(one) for one in found.ids[0]]

    def optimize(self, data_size: int | None = None) -> None:
        """Returns when all rows are indexed. Raises RuntimeError if there are not `data_size` of them."""
        collection = self._opened()
        collection.build_index(wait=True, timeout_s=_BUILD_S)
        count = collection.count()
        if data_size is not None and count != data_size:
            raise RuntimeError(f"{count} records are there, {data_size} were to be loaded")

    def _opened(self) -> Any:
        if self._collection is None:
            raise RuntimeError("there is no connection: call this within `with db.init():`")
        return self._collection
