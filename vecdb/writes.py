"""The verbs that write, as prepared writes for the lane."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import metadata as meta
from .batch import CheckedBatch, where
from .columns import ColumnBatch, Columns
from .errors import InvalidBatch, LimitExceeded, RecordExists, RecordNotFound
from .lane import Applied
from .store import BY_ROW, EncodedRows, Views, Writer, checksums, must_be_whole
from .types import CollectionInfo
from .vectors import NamedColumn

_SHOWN_IDS = 100
MOST_KEPT_BYTES = 1 << 28
"""Bytes of values that an update keeps of the rows it writes anew, at most: all of them are in memory at once."""
_DAMAGED = (
    "Nothing of the batch was written, since what an update keeps would count as whole from then on. Write the whole "
    "record with upsert or delete it, or restore a backup"
)


class Put:
    """insert (`replace=False`) or upsert (`replace=True`) of whole records."""

    frees = False
    looks = False

    def __init__(self, batch: CheckedBatch, columns: Columns, *, replace: bool) -> None:
        assert batch.vectors is not None
        self._ids = batch.ids
        self._rows = EncodedRows(
            # A view: an array of this write's own.
            batch.ids, batch.vectors.view(), batch.metadata, batch.documents, batch.contents,
            batch.uris, named=batch.named,
        )  # fmt: skip
        self._checksums = checksums(self._rows)
        self._column_batch = ColumnBatch.from_metadata(
            batch.metadata_values or [{}] * len(batch), batch.metadata_columns
        )
        self._columns = columns
        self._replace = replace
        self.adds = len(batch)
        self.vectors = self._rows.vectors
        self.fingerprint = zlib.crc32(np.array(self._checksums, "<u4").tobytes(), int(replace))

    def apply(self, writer: Writer, sequence: int, before: Sequence[ColumnBatch]) -> Applied:
        held = writer.rows_of_ids(self._ids)
        stored = held >= 0
        if stored.any() and not self._replace:
            raise _exists(self._ids, stored)
        self._columns.check(*before, self._column_batch)
        killed = held[stored]
        writer.kill(killed, sequence)
        writer.append(self._rows, self._checksums)
        rows = self._rows
        return Applied(len(rows), killed, rows.ids, rows.vectors, self._column_batch, rows.named)


@dataclass(frozen=True, slots=True)
class Update:
    """Partial change of stored records: each is read, compared with its checksum, merged and written as a new row.

    To compare takes about a fifth of the time of an update of rows of 384 float32.
    """

    batch: CheckedBatch
    info: CollectionInfo
    columns: Columns
    clear: frozenset[str]
    frees: bool = False
    looks: bool = False
    vectors: None = None
    """They are known once stored ones have been read."""

    @property
    def adds(self) -> int:
        return len(self.batch)

    @property
    def fingerprint(self) -> int:
        """Tells it from other writes by the ids and the sizes of what is given; not by every byte."""
        sizes = [len(m) for m in (self.batch.metadata_values or ())]
        return zlib.crc32(
            repr((sizes, sorted(self.clear))).encode(), _crc_of_ids(self.batch.ids, 2)
        )

    def apply(self, writer: Writer, sequence: int, before: Sequence[ColumnBatch]) -> Applied:
        batch = self.batch
        held = writer.rows_of_ids(batch.ids)
        if (held < 0).any():
            raise _missing(batch.ids, held < 0)
        # Looks into the map, good until the first change.
        parts = {table: writer.views(table, held) for table in BY_ROW}
        vectors = writer.vectors(held)
        self._must_fit(parts)
        # The new row has a checksum over all that is taken from the old one.
        must_be_whole(writer, held, batch.ids, parts, vectors, _DAMAGED)
        if batch.vectors is not None:
            vectors = batch.vectors.view()
        texts, values = self._merged(parts)
        rows = EncodedRows(
            batch.ids,
            vectors,
            texts,
            self._patched(parts, "documents", "document", batch.documents),
            self._patched(parts, "contents", "content", batch.contents),
            self._patched(parts, "uris", "uri", batch.uris),
            named=self._named(writer, held),
        )
        column_batch = ColumnBatch.from_metadata(values)
        self.columns.check(*before, column_batch)
        writer.kill(held, sequence)
        writer.append(rows, checksums(rows))
        return Applied(len(batch), held, batch.ids, vectors, column_batch, rows.named)

    def _must_fit(self, parts: Views) -> None:
        """LimitExceeded for more than may be read into memory at once, before anything is."""
        kept = sum(
            len(one)
            for table, values in parts.items()
            for one in values
            if one is not None and table.removesuffix("s") not in self.clear
        )
        if kept > MOST_KEPT_BYTES:
            raise LimitExceeded(
                f"the records of this update keep {kept:,} bytes of documents, contents, URIs and metadata, at most "
                f"{MOST_KEPT_BYTES:,} are taken over at once; update fewer records at once. Nothing of the batch was written",
                limit=MOST_KEPT_BYTES,
                given=kept,
            )

    def _named(self, writer: Writer, held: NDArray[np.int64]) -> dict[int, NamedColumn]:
        """Vectors of the named fields: what is given, and what the records had where nothing is."""
        named = {}
        for number in range(1, len(self.info.vectors) + 1):
            there = writer.present(held, number)
            vectors = writer.vectors(held, number)
            if number in self.batch.named:
                given, replaced = self.batch.named[number]
                vectors[replaced] = given[replaced]
                there = there | replaced
            if there.any():
                named[number] = (vectors, there)
        return named

    def _merged(self, parts: Views) -> tuple[list[bytes | None], list[dict[str, Any]]]:
        batch, schema = self.batch, dict(self.info.schema)
        cleared = "metadata" in self.clear
        texts: list[bytes | None] = []
        values: list[dict[str, Any]] = []
        for i, raw in enumerate(parts["metadata"]):
            text: bytes = b"" if cleared or raw is None else bytes(raw)
            value = meta.decode(text) if text else {}
            patch = batch.metadata_values[i] if batch.metadata_values is not None else {}
            if patch:
                text, value = meta.encode(meta.merge(value, patch), where(batch.ids, i))
                if schema:
                    meta.conform(value, schema, where(batch.ids, i))
            texts.append(text or None)
            values.append(value)
        return texts, values

    def _patched(
        self, parts: Views, table: str, part: str, given: Sequence[bytes | None] | None
    ) -> list[bytes | None]:
        new = given or [None] * len(parts[table])
        kept = [None] * len(new) if part in self.clear else parts[table]
        # What is replaced is not copied.
        return [
            (None if k is None else bytes(k)) if g is None else g
            for k, g in zip(kept, new, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete by ids, or of the rows that `matching(writer, named)` gives when the lane reaches it, or of both.

    `matching` gives rows, and their ids where `named`. It is asked inside the lane, in the transaction that earlier writes of the
    commit have written into: what matches at that moment is deleted, no more and no less. It keeps other writers
    waiting, so it has looked at what was there before (`deleting.py`).
    """

    ids: Sequence[bytes] | None
    matching: Callable[[Writer, bool], tuple[NDArray[np.int64], Sequence[bytes]]] | None
    filter_text: str = ""
    adds: int = 0
    vectors: None = None

    @property
    def looks(self) -> bool:
        return self.matching is not None

    @property
    def fingerprint(self) -> int:
        """Tells it from other writes by its ids and its filter."""
        return zlib.crc32(self.filter_text.encode(), _crc_of_ids(self.ids or (), 3))

    @property
    def frees(self) -> bool:
        return True

    def apply(self, writer: Writer, sequence: int, before: Sequence[ColumnBatch]) -> Applied:
        if self.ids is not None:
            held = writer.rows_of_ids(self.ids)
            gone = held >= 0
            if self.matching is not None:
                gone &= np.isin(held, self.matching(writer, False)[0])
            rows = held[gone]
            names: Sequence[bytes] = [
                i for i, dies in zip(self.ids, gone.tolist(), strict=True) if dies
            ]
        else:
            assert self.matching is not None
            rows, names = self.matching(writer, True)
        writer.forget(names)
        writer.kill(rows, sequence)
        return Applied(len(rows), rows)


@dataclass(frozen=True, slots=True)
class Once:
    """A write with an id of its caller: done the first time, and answered alike every further time.

    So a caller that lost an answer may send the write again. Ids are remembered as long as
    `store.requests` says. InvalidBatch when the id came with another write.
    """

    write: Put | Update | Delete
    request_id: bytes

    @property
    def frees(self) -> bool:
        return self.write.frees

    @property
    def adds(self) -> int:
        return self.write.adds

    @property
    def looks(self) -> bool:
        return self.write.looks

    @property
    def vectors(self) -> NDArray[Any] | None:
        return self.write.vectors

    def apply(self, writer: Writer, sequence: int, before: Sequence[ColumnBatch]) -> Applied:
        fingerprint = self.write.fingerprint
        known = writer.remembered(self.request_id)
        if known is not None:
            if known.fingerprint != fingerprint:
                raise InvalidBatch(
                    f"request id {self.request_id.decode()!r} came with another write before; give each "
                    "write an id of its own",
                    sequence=known.sequence,
                )
            return Applied(known.records, sequence=known.sequence)
        applied = self.write.apply(writer, sequence, before)
        # What changes no row takes no sequence number, unless others of its commit do.
        changed = len(applied.killed) > 0 or len(applied.ids) > 0
        number = sequence if changed else sequence - 1
        now_us = time.time_ns() // 1000
        writer.remember(self.request_id, number, applied.count, now_us, fingerprint)
        return applied


def _crc_of_ids(ids: Sequence[bytes], kind: int) -> int:
    return zlib.crc32(b"\0".join(ids), kind)


def _exists(ids: Sequence[bytes], stored: NDArray[np.bool_]) -> RecordExists:
    names = [ids[i].decode() for i in np.flatnonzero(stored).tolist()]
    who = f"record {names[0]!r} exists"
    if len(names) > 1:
        who = f"records {names[0]!r} and {len(names) - 1} more exist"
    return RecordExists(
        f"{who} already; nothing of the batch was written. Use upsert to replace them",
        ids=names[:_SHOWN_IDS],
        count=len(names),
    )


def _missing(ids: Sequence[bytes], absent: NDArray[np.bool_]) -> RecordNotFound:
    names = [ids[i].decode() for i in np.flatnonzero(absent).tolist()]
    return not_stored(names, "nothing of the batch was written. Use upsert to add them")


def not_stored(names: Sequence[str], advice: str) -> RecordNotFound:
    more = f" and {len(names) - 1} more ids" if len(names) > 1 else ""
    return RecordNotFound(
        f"record {names[0]!r}{more} not found; {advice}",
        ids=list(names[:_SHOWN_IDS]),
        count=len(names),
    )
