# ruff: noqa: N802  (gRPC calls handlers by the names of the contract)
"""Handlers of collections, aliases and numbers: check, call, answer. Errors go up to the border."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import vecdb
from vecdb.stopping import resting
from vecdb_client import messages
from vecdb_client.transport import REQUEST_ID_KEY
from vecdb_client.v1 import vecdb_pb2 as pb
from vecdb_client.v1 import vecdb_pb2_grpc as pb_grpc

from .access import GuardedDatabase, require_everything
from .admission import Rests
from .metrics import Metrics
from .status import remaining_s


def _once(context: Any) -> dict[str, Any]:
    """Keyword arguments of a change that its caller has given an id, in the metadata of its call."""
    for name, value in context.invocation_metadata():
        if name == REQUEST_ID_KEY:
            return {"request_id": value}
    return {}


class CollectionHandlers(pb_grpc.VecdbServiceServicer):  # type: ignore[misc,unused-ignore]
    """The part of the service that works on collections as a whole."""

    def __init__(
        self,
        database: vecdb.Database | GuardedDatabase,
        max_message_bytes: int,
        metrics: Metrics,
        queries_wait: Callable[[], bool],
    ) -> None:
        """`queries_wait` says whether there are queries that long calls should let go first."""
        self._queries_wait = queries_wait
        self._database = database
        self._max_message_bytes = max_message_bytes
        self._metrics = metrics

    def GetServerInfo(self, request: Any, context: Any) -> Any:
        return pb.GetServerInfoResponse(
            version=vecdb.__version__,
            max_message_bytes=self._max_message_bytes,
            collections=len(self._database.collection_names()),
        )

    def GetMetrics(self, request: Any, context: Any) -> Any:
        # They name all collections.
        require_everything()
        return pb.GetMetricsResponse(text=self._metrics.text())

    def CreateCollection(self, request: Any, context: Any) -> Any:
        # Ours to say; and a stranger's may be a moment that no calendar has.
        request.collection.ClearField("created_at_us")
        request.collection.ClearField("error")
        info = messages.decode_info(request.collection)
        collection = self._database.create_collection(
            info.name,
            dimension=info.dimension,
            metric=info.metric,
            storage=info.storage,
            index=info.index,
            target_recall=info.target_recall,
            schema=info.schema or None,
            description=info.description,
            quantization=info.quantization,
            vectors={name: asdict(field) for name, field in info.vectors.items()} or None,
            exist_ok=request.exist_ok,
            device=info.device,
            **_once(context),
        )
        return pb.CreateCollectionResponse(collection=messages.encode_info(collection.info))

    def GetCollection(self, request: Any, context: Any) -> Any:
        collection = self._database.get_collection(request.name)
        return pb.GetCollectionResponse(collection=messages.encode_info(collection.info))

    def ListCollections(self, request: Any, context: Any) -> Any:
        infos = self._database.list_collections()
        return pb.ListCollectionsResponse(collections=map(messages.encode_info, infos))

    def DropCollection(self, request: Any, context: Any) -> Any:
        self._database.drop_collection(request.name, **_once(context))
        return pb.DropCollectionResponse()

    def RenameCollection(self, request: Any, context: Any) -> Any:
        self._database.rename_collection(request.name, request.new_name, **_once(context))
        return pb.RenameCollectionResponse()

    def SetAlias(self, request: Any, context: Any) -> Any:
        self._database.set_alias(request.alias, request.collection, **_once(context))
        return pb.SetAliasResponse()

    def DropAlias(self, request: Any, context: Any) -> Any:
        self._database.drop_alias(request.alias, **_once(context))
        return pb.DropAliasResponse()

    def ListAliases(self, request: Any, context: Any) -> Any:
        return pb.ListAliasesResponse(aliases=self._database.list_aliases())

    def GetStats(self, request: Any, context: Any) -> Any:
        return messages.encode_stats(self._database.get_collection(request.collection).stats())

    def Check(self, request: Any, context: Any) -> Any:
        collection = self._database.get_collection(request.collection)
        with resting(Rests(self._queries_wait, context.is_active)):
            report = collection.check(timeout_s=remaining_s(context))
        return messages.encode_check(report)

    def BuildIndex(self, request: Any, context: Any) -> Any:
        collection = self._database.get_collection(request.collection)
        stats = collection.build_index(wait=request.wait, timeout_s=remaining_s(context))
        return pb.BuildIndexResponse(index=messages.encode_index_stats(stats))

    def CancelBuild(self, request: Any, context: Any) -> Any:
        collection = self._database.get_collection(request.collection)
        return pb.CancelBuildResponse(cancelled=collection.cancel_build())

    def Flush(self, request: Any, context: Any) -> Any:
        collection = self._database.get_collection(request.collection)
        return pb.FlushResponse(sequence=collection.flush())

    def Compact(self, request: Any, context: Any) -> Any:
        collection = self._database.get_collection(request.collection)
        result = collection.compact(wait=request.wait, timeout_s=remaining_s(context))
        return messages.encode_compaction(result)
