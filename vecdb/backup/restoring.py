"""Making collections from a backup, as `planning` has found them.

Everything that comes from a backup goes through the checks of an insert, so that one of a stranger can
bring nothing that a client could not have written.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..backup_types import BackupProgress, Progress
from ..batch import CheckedBatch, check_columns
from ..collection_info import shape_of
from ..columns import ColumnBatch
from ..errors import BackupDamaged, LimitExceeded, VecdbError
from ..layout import id_keys, unpack_content
from ..store import (
    CollectionStore,
    Column,
    EncodedRows,
    Restorer,
    Shape,
    StoredRows,
    checksums,
)
from ..types import CollectionInfo, Content
from .planning import Wanted
from .reading import History, rows_of
from .target import Target

_COMMIT_BYTES = 32 << 20
_KEYED_ROWS = 1 << 20
"""Ids that are put in order together: some 100 MB."""
_KEYS_A_COMMIT = 65_536

Mask = NDArray[np.bool_]


def fill(
    target: Target, wanted: Wanted, store: CollectionStore, max_fields: int, progress: Progress
) -> tuple[int, int]:
    """Puts what is wanted into an empty store; (the sequence it is at, its live records).

    Reads everything twice where a verification came before, once else. Raises BackupDamaged, and what an
    insert raises, LimitExceeded among them when there are more than `max_fields` metadata paths.
    """
    history = History(target, wanted.steps)
    last = wanted.steps[-1].part
    sequence = last.sequence if wanted.sequence is None else wanted.sequence
    if wanted.time_us is not None:
        sequence = history.sequence_at(wanted.time_us)
    live = history.live_at(sequence)
    shape, paths = shape_of(last.settings.encode()), set[str]()
    waiting: list[tuple[Mask, CheckedRows]] = []
    size = row = read = 0
    with closing(_pieces(target, wanted, shape, len(live))) as pieces:
        for piece, read in pieces:
            mask = live[piece.first : piece.end]
            checked = check_rows(wanted.info, only_live(piece, mask, wanted.source))
            paths |= checked.paths
            if len(paths) > max_fields:
                raise LimitExceeded(
                    f"collection {wanted.source!r} has more than {max_fields:,} distinct metadata paths in "
                    "the backup; raise the setting max_fields",
                    limit=max_fields,
                )
            waiting.append((mask, checked))
            size += checked.bytes
            row = piece.first + len(mask)
            if size >= _COMMIT_BYTES:
                _write(store, waiting, sequence)
                waiting, size = [], 0
                progress(BackupProgress("restore", wanted.info.name, row, len(live), read))
    if row < len(live):
        raise BackupDamaged(
            f"backup {wanted.steps[-1].backup} holds rows up to {row} of collection {wanted.source!r}, the "
            f"moment has {len(live)}"
        )
    _write(store, waiting, sequence)
    _key(store, wanted)
    count = int(live.sum())
    if sequence == last.sequence and count != last.live:
        raise BackupDamaged(
            f"backup {wanted.steps[-1].backup} counts {last.live} records in collection "
            f"{wanted.source!r}, its rows {count}"
        )
    progress(BackupProgress("restore", wanted.info.name, row, len(live), read))
    return sequence, count


def _pieces(
    target: Target, wanted: Wanted, shape: Shape, n_rows: int
) -> Generator[tuple[StoredRows, int]]:
    before = 0
    for step in wanted.steps:
        read = 0
        with closing(rows_of(target, step, shape, n_rows)) as pieces:
            for piece, read in pieces:
                yield piece, before + read
        before += read


def only_live(piece: StoredRows, live: Mask, name: str) -> StoredRows:
    """The live ones of a group, whose end may be cut off; all of them must be held."""
    held = piece.held[: len(live)]
    missing = np.flatnonzero(live & ~held)
    if len(missing):
        raise BackupDamaged(
            f"row {piece.first + missing[0]} of collection {name!r} is live at that moment, "
            "but no backup of the chain holds it"
        )
    keep = np.zeros(int(piece.held.sum()), np.bool_)
    keep[: int(held.sum())] = live[held]
    if keep.all():
        return piece
    at = np.flatnonzero(keep).tolist()
    rows = piece.rows

    def some(column: Column) -> Column:
        return None if column is None else [column[n] for n in at]

    named = {n: (vectors[keep], there[keep]) for n, (vectors, there) in rows.named.items()}
    return StoredRows(
        piece.first, piece.first + len(live), live,
        EncodedRows(
            [rows.ids[n] for n in at], rows.vectors[keep], some(rows.metadata),
            some(rows.documents), some(rows.contents), some(rows.uris), named=named,
        ),
        piece.sums[keep],
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class CheckedRows:
    """Rows that an insert would take, encoded, with the checksums to store and their metadata paths."""

    rows: EncodedRows
    sums: NDArray[np.uint32]
    paths: set[str]
    bytes: int


def check_rows(info: CollectionInfo, piece: StoredRows, *, compared: bool = False) -> CheckedRows:
    """Rows of a backup through the checks of an insert; about 7 us a row. BackupDamaged.

    `compared`: the caller has asked `piece.damaged()` already.
    """
    rows = piece.rows
    if not len(rows):
        return CheckedRows(rows, piece.sums, set(), 0)
    damaged = np.empty(0, np.int64) if compared else piece.damaged()
    if len(damaged):
        raise BackupDamaged(
            f"row {damaged[0]} of collection {info.name!r} fails its checksum in the backup"
        )
    try:
        batch = _as_inserted(info, rows)
    except (VecdbError, UnicodeDecodeError, IndexError) as error:
        text = error.message if isinstance(error, VecdbError) else str(error)
        raise BackupDamaged(f"the backup holds what no insert takes: {text}") from error
    checked = EncodedRows(
        batch.ids, rows.vectors, batch.metadata, batch.documents, batch.contents, batch.uris,
        named=rows.named,
    )  # fmt: skip
    same = batch.metadata == rows.metadata and batch.contents == rows.contents
    sums = piece.sums if same else np.array(checksums(checked), np.uint32)
    paths = set(
        ColumnBatch.from_metadata(batch.metadata_values or [], batch.metadata_columns).fields
    )
    vectors = rows.vectors.nbytes + sum(held.nbytes for held, _ in rows.named.values())
    texts = (rows.ids, rows.metadata, rows.documents, rows.contents, rows.uris)
    size = vectors + sum(
        len(v) for column in texts if column is not None for v in column if v is not None
    )
    return CheckedRows(checked, sums, paths, size)


def _as_inserted(info: CollectionInfo, rows: EncodedRows) -> CheckedBatch:
    named = {
        name: [v if has else None for v, has in zip(*rows.named[number], strict=True)]
        if not rows.named[number][1].all()
        else rows.named[number][0]
        for number, name in enumerate(info.vectors, 1)
        if number in rows.named
    }
    contents = None
    if rows.contents is not None:
        contents = [None if value is None else _content(value) for value in rows.contents]
    return check_columns(
        info,
        [i.decode() for i in rows.ids],
        rows.vectors,
        rows.metadata,
        rows.documents and [None if v is None else v.decode() for v in rows.documents],
        contents,
        rows.uris and [None if v is None else v.decode() for v in rows.uris],
        named or None,
    )


def _content(value: bytes) -> Content:
    media_type, data = unpack_content(value)
    return Content(data, media_type)


def _write(store: CollectionStore, waiting: list[tuple[Mask, CheckedRows]], sequence: int) -> None:
    def work(restorer: Restorer) -> None:
        for live, checked in waiting:
            restorer.append_restored(live, checked.rows, checked.sums)
        if sequence:
            restorer.state_at(sequence)

    store.restore(work)


def _key(store: CollectionStore, wanted: Wanted) -> None:
    """Fills the table of ids, in their order as far as memory goes. BackupDamaged for an id of two rows."""
    with store.read() as reader:
        n_rows = reader.n_rows
    for start in range(0, n_rows, _KEYED_ROWS):
        with store.read() as reader:
            ids = reader.id_range(start, min(start + _KEYED_ROWS, n_rows))
        live = [n for n, record_id in enumerate(ids) if record_id]
        keys = id_keys(ids)
        live.sort(key=keys.__getitem__)
        for at in range(0, len(live), _KEYS_A_COMMIT):
            some = live[at : at + _KEYS_A_COMMIT]
            names, rows = [ids[n] for n in some], start + np.array(some, np.int64)
            added = store.restore(partial(Restorer.key_ids, ids=names, rows=rows))
            if added != len(some):
                raise BackupDamaged(
                    f"the backup holds an id of collection {wanted.source!r} in two live rows"
                )
    store.restore(Restorer.all_keyed)
