"""The verbs that write, as prepared writes for the lane."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import metadata as meta
from .batch import CheckedBatch, where
from .columns import ColumnBatch, Columns
from .errors import RecordExists, RecordNotFound
from .lane import Applied
from .store import EncodedRows, Writer, checksums
from .types import CollectionInfo
from .vectors import NamedColumn

_SHOWN_IDS = 100


class Put:
    """insert (`replace=False`) or upsert (`replace=True`) of whole records."""

    alone = False

    def __init__(self, batch: CheckedBatch, columns: Columns, *, replace: bool) -> None:
        assert batch.vectors is not None
        self._ids = batch.ids
        self._rows = EncodedRows(
            # An array of this write's own, though not its numbers: it is known by identity.
            batch.ids, batch.vectors.view(), batch.metadata, batch.documents, batch.contents,
            batch.uris, named=batch.named,
        )  # fmt: skip
        self.ahead = self._rows.vectors
        self._checksums = checksums(self._rows)
        self._column_batch = ColumnBatch.from_metadata(
            batch.metadata_values or [{}] * len(batch), batch.metadata_columns
        )
        self._columns = columns
        self._replace = replace

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
    """Partial change of stored records: each is read, merged and written as a new row."""

    batch: CheckedBatch
    info: CollectionInfo
    columns: Columns
    clear: frozenset[str]
    alone: bool = False
    ahead: None = None

    def apply(self, writer: Writer, sequence: int, before: Sequence[ColumnBatch]) -> Applied:
        batch = self.batch
        held = writer.rows_of_ids(batch.ids)
        if (held < 0).any():
            raise _missing(batch.ids, held < 0)
        vectors = writer.vectors(held) if batch.vectors is None else batch.vectors
        texts, values = self._merged(writer, held)
        rows = EncodedRows(
            batch.ids,
            vectors,
            texts,
            self._patched(writer, "documents", "document", held, batch.documents),
            self._patched(writer, "contents", "content", held, batch.contents),
            self._patched(writer, "uris", "uri", held, batch.uris),
            named=self._named(writer, held),
        )
        column_batch = ColumnBatch.from_metadata(values)
        self.columns.check(*before, column_batch)
        writer.kill(held, sequence)
        writer.append(rows, checksums(rows))
        return Applied(len(batch), held, batch.ids, vectors, column_batch, rows.named)

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

    def _merged(
        self, writer: Writer, held: NDArray[np.int64]
    ) -> tuple[list[bytes | None], list[dict[str, Any]]]:
        batch, schema = self.batch, dict(self.info.schema)
        cleared = "metadata" in self.clear
        texts: list[bytes | None] = []
        values: list[dict[str, Any]] = []
        for i, raw in enumerate(writer.metadata(held)):
            text: bytes = b"" if cleared else raw
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
        self,
        writer: Writer,
        table: str,
        part: str,
        held: NDArray[np.int64],
        given: Sequence[bytes | None] | None,
    ) -> list[bytes | None]:
        before: Sequence[bytes | None] = (
            [None] * len(held) if part in self.clear else writer.raw(table, held)
        )
        if given is None:
            return list(before)
        return [b if g is None else g for b, g in zip(before, given, strict=True)]


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete by ids, or of the rows that `matching()` names when the lane reaches it, or of both.

    `matching` is asked inside the lane with every earlier write published: what matches at that
    moment is deleted, no more and no less.
    """

    ids: Sequence[bytes] | None
    matching: Callable[[], NDArray[np.int64]] | None
    ids_of: Callable[[NDArray[np.int64]], list[str]]
    ahead: None = None

    @property
    def alone(self) -> bool:
        return self.matching is not None

    def apply(self, writer: Writer, sequence: int, before: Sequence[ColumnBatch]) -> Applied:
        if self.ids is not None:
            held = writer.rows_of_ids(self.ids)
            gone = held >= 0
            if self.matching is not None:
                gone &= np.isin(held, self.matching())
            rows = held[gone]
            names = [i for i, dies in zip(self.ids, gone.tolist(), strict=True) if dies]
        else:
            assert self.matching is not None
            rows = self.matching()
            names = [i.encode() for i in self.ids_of(rows)]
        writer.forget(names)
        writer.kill(rows, sequence)
        return Applied(len(rows), rows)


def _exists(ids: Sequence[bytes], stored: NDArray[np.bool_]) -> RecordExists:
    names = [ids[i].decode() for i in np.flatnonzero(stored).tolist()]
    more = f" and {len(names) - 1} more ids" if len(names) > 1 else ""
    return RecordExists(
        f"record {names[0]!r}{more} exist already; nothing of the batch was written. Use upsert to "
        "replace them",
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
