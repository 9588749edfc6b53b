"""A scan in messages of a few MiB, whatever batch size was asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import vecdb
from vecdb.stopping import resting
from vecdb_client import messages
from vecdb_client.v1 import vecdb_pb2 as pb

from .admission import Rests, give_way
from .status import remaining_s

MESSAGE_BYTES = 4 * 1024 * 1024
"""What a message of a scan aims at: large enough to be quick, small enough to hold many at once."""
DEFAULT_BATCH = 1_000


def scan_messages(
    collection: vecdb.Collection,
    request: Any,
    context: Any,
    max_message_bytes: int,
    queries_wait: Callable[[], bool],
) -> Iterator[Any]:
    """The messages of one scan. Ends when the client has gone. Between two of them, and while its filter is
    evaluated, queries go first.

    How large a batch is shows only once it is read. One that is more than twice too large is read
    again in smaller batches, from the cursor before it, and these stay small.
    """
    include = messages.decode_includes(request.include)
    aim_bytes = min(MESSAGE_BYTES, max_message_bytes // 4)
    size = request.batch_size or DEFAULT_BATCH
    if numbers := _numbers(collection.info, include):
        size = min(size, max(1, aim_bytes // (4 * numbers)))
    cursor = request.cursor or None
    again = True
    begun_s = time.monotonic()
    while again:
        again = False
        # Here the filter is evaluated, so around this alone: between two messages others use the thread.
        with resting(Rests(queries_wait, context.is_active)):
            batches = collection.scan(
                filter=request.filter or None,
                include=include,
                batch_size=size,
                cursor=cursor,
                slice_index=request.slice,
                slices=request.slices or 1,
                min_sequence=request.min_sequence or None,
                timeout_s=remaining_s(context),
                raw_metadata=True,
            )
        for records in batches:
            batch = messages.encode_records(records)
            batch_bytes = batch.ByteSize()
            if batch_bytes > 2 * aim_bytes and len(records) > 1:
                size = max(1, len(records) * aim_bytes // batch_bytes)
                again = True
                break
            cursor = records.cursor
            if not context.is_active():
                return
            took_s = time.monotonic() - begun_s
            yield pb.ScanResponse(records=batch, cursor=cursor or "", sequence=records.sequence)
            give_way(took_s, queries_wait, context.is_active)
            begun_s = time.monotonic()


def _numbers(info: vecdb.CollectionInfo, include: tuple[str, ...]) -> int:
    """Numbers of the vectors of a record that are sent with it."""
    own = info.dimension if "vector" in include else 0
    if "named_vectors" not in include:
        return own
    return own + sum(field.dimension for field in info.vectors.values())
