"""What the verbs that read records send, and how their answers are read; as `calls.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from . import answers, arguments, batches, json_text, messages, wire
from .calls import Call
from .errors import InvalidQuery
from .types import (
    MAX_GROUP_SIZE,
    MAX_K,
    MAX_MMR_CANDIDATES,
    MAX_PAGE,
    QueryResult,
    Records,
)
from .v1 import vecdb_pb2 as pb

MAX_SLICES = 65_536


def get(
    collection: str,
    ids: Any,
    where: Any,
    order_by: str | None,
    limit: int | None,
    cursor: str | None,
    include: Iterable[str],
    min_sequence: int | None,
) -> Call[Records]:
    wanted = arguments.names(include)
    request = pb.GetRequest(
        collection=collection,
        ids=[] if ids is None else batches.id_list(ids),
        filter=json_text.encode_filter(where),
        order_by=arguments.plain_text("order_by", order_by),
        limit=arguments.optional_whole("limit", limit, 1, MAX_PAGE),
        cursor=arguments.plain_text("cursor", cursor),
        include=messages.encode_includes(wanted),
        min_sequence=arguments.sequence(min_sequence),
    )
    return Call(
        "Get",
        request,
        lambda a: messages.decode_records(a.records, wanted, a.cursor, a.sequence),
        True,
    )


def query(
    collection: str,
    vectors: Any,
    *,
    ids: Any,
    positive: Any,
    negative: Any,
    vector_name: str | None,
    k: int | None,
    where: Any,
    exact: bool,
    max_distance: float | None,
    target_recall: float | None,
    group_by: str | None,
    group_size: int | None,
    mmr_lambda: float | None,
    mmr_candidates: int | None,
    explain: bool,
    include: Iterable[str],
    min_sequence: int | None,
) -> Call[QueryResult]:
    wanted = arguments.names(include)
    width = arguments.optional_whole("k", k, 1, MAX_K)
    request = pb.QueryRequest(
        collection=collection,
        ids=[] if ids is None else batches.id_list(ids),
        k=width,
        filter=json_text.encode_filter(where),
        exact=arguments.flag("exact", exact),
        target_recall=0 if target_recall is None else arguments.recall(target_recall, InvalidQuery),
        include=messages.encode_includes(wanted),
        min_sequence=arguments.sequence(min_sequence),
    )
    if vectors is not None:
        wire.encode_vectors(wire.as_matrix(vectors), request.vectors)
    if max_distance is not None:
        request.max_distance = arguments.number("max_distance", max_distance)
    if vector_name is not None:
        request.vector_name = arguments.plain_text("vector_name", vector_name)
    if positive is not None:
        request.positive.CopyFrom(_examples("positive", positive))
    if negative is not None:
        request.negative.CopyFrom(_examples("negative", negative))
    if group_by is not None:
        request.group_by = arguments.plain_text("group_by", group_by)
    if group_size is not None:
        request.group_size = arguments.whole("group_size", group_size, 1, MAX_GROUP_SIZE)
        width *= request.group_size
    if mmr_lambda is not None:
        request.mmr_lambda = arguments.number("mmr_lambda", mmr_lambda)
    if mmr_candidates is not None:
        request.mmr_candidates = arguments.whole(
            "mmr_candidates", mmr_candidates, 1, MAX_MMR_CANDIDATES
        )
    if explain is not False:
        request.explain = arguments.flag("explain", explain)
    grouped = group_by is not None
    # What may take long, or waits for a commit, must not keep others on the stream waiting.
    quick = request.vectors.count == 1 and not (
        exact or explain or grouped or ids is not None or positive is not None
        or negative is not None or max_distance is not None or mmr_lambda is not None
        or vector_name is not None or min_sequence is not None
    )  # fmt: skip
    return Call(
        "Query",
        request,
        lambda a: answers.decode_query_result(a, wanted, width or None, grouped=grouped),
        True,
        quick,
    )


def _examples(what: str, given: Any) -> pb.Examples:
    """Ids and vectors of a list of both. Their order means nothing."""
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise InvalidQuery(
            f"{what} takes a list of record ids and vectors, given {type(given).__name__}"
        )
    entries = list(given)
    ids = [entry for entry in entries if isinstance(entry, str)]
    rows = [entry for entry in entries if not isinstance(entry, str)]
    examples = pb.Examples(ids=batches.id_list(ids) if ids else [])
    if rows:
        wire.encode_vectors(wire.as_matrix(rows), examples.vectors)
    return examples


def count(collection: str, where: Any, min_sequence: int | None) -> Call[int]:
    request = pb.CountRequest(
        collection=collection,
        filter=json_text.encode_filter(where),
        min_sequence=arguments.sequence(min_sequence),
    )
    return Call("Count", request, lambda a: int(a.count), True)


def scan(
    collection: str,
    where: Any,
    include: Iterable[str],
    batch_size: int,
    cursor: str | None,
    slice_index: int,
    slices: int,
    min_sequence: int | None,
) -> Call[Records]:
    wanted = arguments.names(include)
    of = arguments.whole("slices", slices, 1, MAX_SLICES)
    request = pb.ScanRequest(
        collection=collection,
        filter=json_text.encode_filter(where),
        include=messages.encode_includes(wanted),
        batch_size=arguments.whole("batch_size", batch_size, 1, MAX_PAGE),
        cursor=arguments.plain_text("cursor", cursor),
        slice=arguments.whole("slice_index", slice_index, 0, of - 1),
        slices=of,
        min_sequence=arguments.sequence(min_sequence),
    )
    return Call(
        "Scan",
        request,
        lambda a: messages.decode_records(a.records, wanted, a.cursor, a.sequence),
        True,
    )


def behind(call: Call[Records], records: Records) -> Call[Records] | None:
    """The scan that goes on behind `records`; None when that was all. It shows the same moment."""
    if records.cursor is None:
        return None
    request = pb.ScanRequest()
    request.CopyFrom(call.request)
    request.cursor = records.cursor
    return replace(call, request=request)
