"""Columns from stored metadata: JSON of many rows at once to typed values by path.

At opening every row of a collection goes this way, so it is made for speed: the records of a slice are
decoded in one go into objects with an attribute a key, and the columns are read off these. What does not
fit that form goes the plain way, record by record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np

from . import metadata
from .columns import Columns
from .errors import Corrupted
from .pivot import ColumnBatch, Values, pivoted
from .scalars import parse_date
from .store import CollectionStore, Reader

SLICE_ROWS = 8_192
"""Rows that are read at once."""
_MOST_KEYS = 32
"""With more distinct keys than this, most of them are missing in most records."""


class StoredColumns:
    """Pivots slices of stored metadata; remembers the keys it has met. One thread at a time."""

    def __init__(self) -> None:
        self._keys: dict[str, None] = {}
        self._decoder: msgspec.json.Decoder[list[Any]] | None = None

    def extend(self, columns: Columns, store: CollectionStore, stop: int) -> None:
        """Reads the metadata of the rows up to `stop` that columns lack, a slice at a time, and adds them."""
        while columns.n_rows < stop:
            first, end = columns.n_rows, min(columns.n_rows + SLICE_ROWS, stop)
            with store.read() as reader:
                offsets, texts = self.texts(reader, first, end)
            columns.extend(self.batch(end - first, offsets, texts, first), first)

    @staticmethod
    def texts(reader: Reader, start: int, stop: int) -> tuple[list[int], list[bytes]]:
        """(offset from `start`, metadata) of the rows of [start, stop) that have some."""
        offsets: list[int] = []
        texts: list[bytes] = []
        for row, text in reader.metadata_range(start, stop):
            offsets.append(row - start)
            # Thousands of buffers at once would keep the garbage collector busy.
            texts.append(bytes(text))
        return offsets, texts

    def batch(
        self, n_rows: int, offsets: Sequence[int], texts: Sequence[bytes], first: int = 0
    ) -> ColumnBatch:
        """What `ColumnBatch.from_metadata` gives for `n_rows` rows from row `first` on, of which those at `offsets`,
        ascending, have the metadata `texts`, and the others none.

        About 1.5 us a row of four values. Corrupted, with the row, for texts that are not stored metadata.
        """
        fields = None
        if self._learn(texts[:1]):
            joined = b"".join([b"[", b",".join(texts), b"]"])
            fields = self._pivoted(joined, offsets)
            if fields is None and self._learn(texts):
                fields = self._pivoted(joined, offsets)
        if fields is not None:
            return ColumnBatch(n_rows, fields)
        values: list[dict[str, Any]] = [{}] * n_rows
        for offset, text in zip(offsets, texts, strict=True):
            try:
                values[offset] = metadata.decode(text)
            except Corrupted as error:
                raise Corrupted(
                    f"row {first + offset}: {error.message}. Filters and writes other than deletes by id need the metadata of "
                    "all rows: run `vecdb check --repair` while no process has the database open for writing, or "
                    "restore a backup",
                    row=first + offset,
                ) from error
        return ColumnBatch.from_metadata(values)

    def _pivoted(self, joined: bytes, offsets: Sequence[int]) -> Mapping[str, Values] | None:
        """None where a key was not met before, a value is a mapping, or the text is not right."""
        assert self._decoder is not None
        # Inside a JSON string the quotes would be escaped, so only a key can look like this.
        dated = b'"$date"' in joined
        try:
            records = self._decoder.decode(joined)
            if len(records) != len(offsets):
                return None
            found = pivoted(self._columns(records, dated), np.asarray(offsets, np.int64))
            return None if found is None else dict(found)  # what is not right is found here
        except (ValueError, RecursionError):
            return None

    def _columns(self, records: list[Any], dated: bool) -> Iterator[tuple[str, list[Any]]]:
        for i, key in enumerate(self._keys):
            items = list(map(attrgetter(f"f{i}"), records))
            yield key, list(map(_dates_in, items)) if dated else items

    def _learn(self, texts: Sequence[bytes]) -> bool:
        """Makes a decoder for the keys of these records too; False where there can be none."""
        known = len(self._keys)
        for text in texts:
            if len(self._keys) <= _MOST_KEYS:
                try:
                    self._keys.update(dict.fromkeys(metadata.decode(text)))
                except Corrupted:
                    return False  # the plain way says which it is
        if len(self._keys) > _MOST_KEYS:
            return False
        if len(self._keys) == known and self._decoder is not None:
            return True
        self._decoder = None
        # Missing is None, as null is. Names are numbered, since keys need not be names in Python.
        fields = [(f"f{i}", Any, None) for i in range(len(self._keys))]
        names = {f"f{i}": key for i, key in enumerate(self._keys)}
        try:
            row = msgspec.defstruct(
                "Row", fields, rename=names, forbid_unknown_fields=True, gc=False
            )
        except ValueError:
            return False  # Keys with quotes or backslashes are not taken.
        self._decoder = msgspec.json.Decoder(list[row])  # type: ignore[valid-type]
        return True


def _dates_in(item: Any) -> Any:
    if type(item) is dict:
        return parse_date(item) or item
    return [_dates_in(one) for one in item] if type(item) is list else item
