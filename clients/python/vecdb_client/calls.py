"""What each verb sends and how its answer is read: all that sync and asyncio clients share. Reads
of records are in `reads.py`.

A `Call` is one request with the function that reads its answer. A write that may take several
messages is a generator that yields calls and is sent their results; `client.py` and `aio.py` only
drive these.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

from . import arguments, batches, json_text, messages, wire
from .errors import Internal, InvalidArgument, InvalidSetting, VecdbError
from .progress import Progress
from .types import (
    MAX_DIMENSION,
    CheckReport,
    CollectionInfo,
    CollectionStats,
    CompactResult,
    IndexStats,
    VectorSettings,
    WriteResult,
)
from .v1 import vecdb_pb2 as pb

T = TypeVar("T")
INGEST_WINDOW = 4
"""Messages of an ingest that may be under way without acknowledgement."""


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request. `may_repeat` says that repeating it does no harm: it only reads, or has a request id;
    `streams` that it is a query that may travel with others on a stream; `request_id` goes with the metadata of a
    change of names."""

    rpc: str
    request: Any
    read: Callable[[Any], T]
    may_repeat: bool
    streams: bool = False
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server says about itself."""

    version: str
    max_message_bytes: int
    collections: int


def _nothing(_: Any) -> None:
    return None


def _change(
    rpc: str, request: Any, request_id: str | None, read: Callable[[Any], Any] = _nothing
) -> Call[Any]:
    """A change of names. It goes by an id, so that the server knows a repetition; a random one for None."""
    return Call(rpc, request, read, True, request_id=arguments.change_id(request_id))


def _written(answer: Any) -> WriteResult:
    return WriteResult(answer.sequence, answer.count)


# --- collections and aliases ----------------------------------------------------------------------


def server_info() -> Call[ServerInfo]:
    return Call(
        "GetServerInfo",
        pb.GetServerInfoRequest(),
        lambda a: ServerInfo(a.version, a.max_message_bytes, a.collections),
        True,
    )


def metrics() -> Call[str]:
    return Call("GetMetrics", pb.GetMetricsRequest(), lambda a: str(a.text), True)


def create_collection(
    name: str,
    dimension: int,
    metric: Any,
    storage: Any,
    index: Any,
    target_recall: float,
    schema: Mapping[str, str] | None,
    description: str,
    quantization: Any,
    vectors: Mapping[str, Any] | None,
    exist_ok: bool,
    device: str,
    request_id: str | None = None,
) -> Call[CollectionInfo]:
    pairs = {} if schema is None else schema
    if not isinstance(pairs, Mapping):
        raise InvalidSetting(f"schema must be a mapping, given {type(schema).__name__}")
    texts = [description, *pairs.keys(), *pairs.values()]
    if not all(isinstance(text, str) for text in texts):
        raise InvalidSetting("schema and description take texts only")
    info = CollectionInfo(
        name=arguments.text("name", name),
        dimension=arguments.whole("dimension", dimension, 1, MAX_DIMENSION, InvalidSetting),
        metric=metric,
        storage=storage,
        index=index,
        target_recall=arguments.recall(target_recall, InvalidSetting),
        schema=pairs,
        description=description,
        quantization=quantization,
        vectors=_vector_fields(vectors),
        device=arguments.text("device", device, InvalidSetting),
    )
    try:
        message = messages.encode_info(info)
    except UnicodeEncodeError as error:
        raise InvalidSetting(f"schema and description must be UTF-8: {error}") from None
    request = pb.CreateCollectionRequest(
        collection=message, exist_ok=arguments.flag("exist_ok", exist_ok, InvalidSetting)
    )
    return _change(
        "CreateCollection", request, request_id, lambda a: messages.decode_info(a.collection)
    )


_SEARCH_SETTINGS = {field.name: field.default for field in fields(VectorSettings)}


def _vector_fields(given: Any) -> dict[str, VectorSettings]:
    """Named vector fields, each from VectorSettings or a mapping of them; InvalidSetting otherwise."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InvalidSetting(
            f"vectors must map names to VectorSettings, given {type(given).__name__}"
        )
    found = {}
    for name, settings in given.items():
        where = f"vector field {arguments.text('the name of a vector field', name)!r}"
        if not isinstance(settings, Mapping):
            # The engine's VectorSettings serve as well as the client's.
            settings = {one: getattr(settings, one, None) for one in _SEARCH_SETTINGS}
        unknown = sorted(map(str, set(settings) - set(_SEARCH_SETTINGS)))
        if unknown:
            raise InvalidSetting(
                f"{where}: no setting {unknown[0]!r}; there are {', '.join(_SEARCH_SETTINGS)}"
            )
        chosen = {**_SEARCH_SETTINGS, **settings}
        chosen["dimension"] = arguments.whole(
            f"{where}: dimension", settings.get("dimension"), 1, MAX_DIMENSION, InvalidSetting
        )
        chosen["target_recall"] = arguments.recall(chosen["target_recall"], InvalidSetting)
        found[name] = VectorSettings(**chosen)
    return found


def get_collection(name: str) -> Call[CollectionInfo]:
    request = pb.GetCollectionRequest(name=arguments.text("name", name))
    return Call("GetCollection", request, lambda a: messages.decode_info(a.collection), True)


def list_collections() -> Call[list[CollectionInfo]]:
    return Call(
        "ListCollections",
        pb.ListCollectionsRequest(),
        lambda a: [messages.decode_info(message) for message in a.collections],
        True,
    )


def drop_collection(name: str, request_id: str | None) -> Call[None]:
    request = pb.DropCollectionRequest(name=arguments.text("name", name))
    return _change("DropCollection", request, request_id)


def rename_collection(name: str, new_name: str, request_id: str | None) -> Call[None]:
    request = pb.RenameCollectionRequest(
        name=arguments.text("name", name), new_name=arguments.text("new_name", new_name)
    )
    return _change("RenameCollection", request, request_id)


def set_alias(alias: str, collection: str, request_id: str | None) -> Call[None]:
    request = pb.SetAliasRequest(
        alias=arguments.text("alias", alias), collection=arguments.text("collection", collection)
    )
    return _change("SetAlias", request, request_id)


def drop_alias(alias: str, request_id: str | None) -> Call[None]:
    request = pb.DropAliasRequest(alias=arguments.text("alias", alias))
    return _change("DropAlias", request, request_id)


def list_aliases() -> Call[dict[str, str]]:
    return Call("ListAliases", pb.ListAliasesRequest(), lambda a: dict(a.aliases), True)


# --- writes ---------------------------------------------------------------------------------------

_WRITES = {"Insert": pb.InsertRequest, "Upsert": pb.UpsertRequest}


def write(
    rpc: str,
    collection: str,
    columns: wire.Columns,
    batch_size: int | None,
    max_message_bytes: int,
    progress: bool,
    request_id: str | None,
) -> Generator[Call[WriteResult], WriteResult, WriteResult]:
    """An insert or upsert in as many messages as it takes. Returns last sequence and total count.

    Each message carries a request id, `request_id` with its number where there are several, else a random
    one. When a message fails, those before it stay; the details of its error then say how many records
    were `acknowledged` and the last `acknowledged_sequence`, and its `position` counts from the first record given.
    """
    if batch_size is not None:
        batch_size = arguments.whole(
            "batch_size", batch_size, 1, batches.MESSAGE_ROWS * 50, InvalidArgument
        )
    parts = batches.cut(columns, batch_size, max_message_bytes)
    if len(parts) > 1:
        batches.refuse_twice(columns.ids)
    bar = Progress(rpc.lower(), len(columns.ids)) if progress else None
    total = WriteResult(0, 0)
    try:
        for number, (start, stop) in enumerate(parts):
            own = arguments.request_id(request_id, number if len(parts) > 1 else None)
            request: Any = _WRITES[rpc](collection=collection, request_id=own)
            wire.encode_columns(columns, start, stop, request.records)
            try:
                result = yield Call(rpc, request, _written, True)
            except VecdbError as error:
                raise acknowledged(error, total) if len(parts) > 1 else error from None
            total = WriteResult(result.sequence, total.count + result.count)
            if bar is not None:
                bar.show(stop)
    finally:
        if bar is not None:
            bar.close()
    return total


def update(
    collection: str, columns: wire.Columns, clear: Iterable[str], request_id: str | None
) -> Call[WriteResult]:
    request = pb.UpdateRequest(
        collection=collection,
        records=wire.encode_columns(columns),
        clear=messages.encode_includes(clear, "clear"),
        request_id=arguments.request_id(request_id),
    )
    return Call("Update", request, _written, True)


def delete(collection: str, ids: Any, where: Any, request_id: str | None) -> Call[WriteResult]:
    request = pb.DeleteRequest(
        collection=collection,
        ids=[] if ids is None else batches.id_list(ids),
        filter=json_text.encode_filter(where),
        request_id=arguments.request_id(request_id),
    )
    return Call("Delete", request, _written, True)


class IngestMessages:
    """Makes the messages of one ingest; a batch that is too large for one becomes several.

    Each carries a request id: `request_id` with its number in the whole ingest, else a random one.
    """

    def __init__(
        self, collection: str, upsert: bool, max_message_bytes: int, request_id: str | None
    ) -> None:
        """InvalidArgument, InvalidBatch."""
        self._collection = collection
        self._replaces = arguments.flag("upsert", upsert, InvalidArgument)
        self._limit = max_message_bytes
        arguments.request_id(request_id)
        self._request_id = request_id
        self._made = 0

    def of_batch(self, columns: wire.Columns) -> Iterator[Any]:
        """The messages of one batch."""
        for start, stop in batches.cut(columns, None, self._limit):
            own = arguments.request_id(self._request_id, self._made)
            request = pb.IngestRequest(
                collection=self._collection, upsert=self._replaces, request_id=own
            )
            self._made += 1
            wire.encode_columns(columns, start, stop, request.records)
            yield request

    def of(self, batch_stream: Iterable[Any]) -> Iterator[Any]:
        """The messages of all batches."""
        for batch in batches.stream_of(batch_stream):
            yield from self.of_batch(batches.of_any(batch))


def present(acknowledgement: Any) -> Any:
    """The acknowledgement; Internal when a stream ended without giving the one that was due."""
    if acknowledgement is None:
        raise Internal("the server ended the ingest without acknowledging all messages")
    return acknowledgement


ErrorT = TypeVar("ErrorT", bound=Exception)


def acknowledged(error: ErrorT, done: WriteResult) -> ErrorT:
    """`error` with what was acknowledged before it, if it is one of ours; a `position` in its message becomes that among
    all records that were given."""
    if isinstance(error, VecdbError):
        position = error.details.get("position")
        of_all = {}
        if done.count and isinstance(position, int):
            of_all["position"] = position + done.count
            error.message += (
                f". The {done.count} records before that part were acknowledged: it is position "
                f"{position + done.count} of all that were given"
            )
            error.args = (error.message,)
        error.details = {
            **error.details,
            **of_all,
            "acknowledged": done.count,
            "acknowledged_sequence": done.sequence,
        }
    return error


# --- numbers and care -----------------------------------------------------------------------------


def stats(collection: str) -> Call[CollectionStats]:
    return Call("GetStats", pb.GetStatsRequest(collection=collection), messages.decode_stats, True)


def check(collection: str) -> Call[CheckReport]:
    return Call("Check", pb.CheckRequest(collection=collection), messages.decode_check, True)


def build_index(collection: str, wait: bool) -> Call[IndexStats]:
    request = pb.BuildIndexRequest(
        collection=collection, wait=arguments.flag("wait", wait, InvalidArgument)
    )
    return Call("BuildIndex", request, lambda a: messages.decode_index_stats(a.index), True)


def cancel_build(collection: str) -> Call[bool]:
    request = pb.CancelBuildRequest(collection=collection)
    return Call("CancelBuild", request, lambda a: bool(a.cancelled), False)


def flush(collection: str) -> Call[int]:
    return Call("Flush", pb.FlushRequest(collection=collection), lambda a: int(a.sequence), True)


def compact(collection: str, wait: bool) -> Call[CompactResult]:
    request = pb.CompactRequest(
        collection=collection, wait=arguments.flag("wait", wait, InvalidArgument)
    )
    return Call("Compact", request, messages.decode_compaction, True)
