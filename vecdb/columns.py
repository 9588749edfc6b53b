"""Metadata as typed columns in memory, one per dotted path: what filters are evaluated on.

Derived data: built from the stored metadata at open, extended by each commit. A value is a tag (its
type, one byte) and 64 bits (the int, the float's bits, microseconds since 1970, or the code of a
string), so a field costs 9 bytes a row plus its distinct strings, each about 150 bytes and its text.
Null and missing are the same and take nothing. A list marks its row; its elements lie in arrays of
their own, 17 bytes each. A column whose filters find few rows gets postings (`postings.py`): 4 bytes
more a value, and a rare value is found without a look at every row.

Threads: one writer extends, any number of readers evaluate rows below an `n_rows` they read, without
a lock. It holds because nothing a reader may look at ever changes: values are written behind
`n_rows`, which is published last; a full array is replaced by a longer copy; strings are only added;
postings are replaced whole.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import Internal, LimitExceeded
from .memory import Growing, words
from .pivot import AT_ONCE, LIST, MISSING, N_TAGS, STRING, ColumnBatch, Values
from .postings import Order, Postings, Sorted

__all__ = ["FEWEST_SORTED", "Cells", "Column", "ColumnBatch", "Columns"]

log = logging.getLogger("vecdb")

FEWEST_SORTED = 16_384
"""Fewer rows than this are looked through in 10 us, which no order could better."""

_SMALLEST = 1_024
_STALE_SHARE = 8
"""Postings are renewed when an eighth of the rows has come since. A look through an eighth of a
million takes 40 us; renewing by then costs 0.2 us for each row that has come."""


@dataclass(frozen=True, slots=True)
class Cells:
    """A run of values of one column, as a predicate sees them; views that must not be written.

    Values whose tag is not the wanted one hold any bits, so every test must ask the tag too.
    """

    tags: NDArray[np.uint8]
    """Shape (n,)."""
    data: NDArray[np.int64]
    """Shape (n,)."""
    counts: NDArray[np.int64]
    """Values by tag, shape (N_TAGS,), of the whole column; 0 means that the tag does not occur."""
    strings: list[str]
    """The column's distinct strings by code; longer than needed when the writer is at work."""
    codes: Mapping[str, int]
    wanted: Callable[[], NDArray[np.bool_]]
    """Makes a mask, shape (n,): where the answer matters; elsewhere it may be anything."""
    interrupt: Callable[[], None]
    """Called now and then in long loops; raises to give up, as at a deadline."""


class _Store:
    """Tags and data that grow; `counts` by tag, of all that was written."""

    def __init__(self) -> None:
        self.tags = np.zeros(0, np.uint8)
        self.data = np.zeros(0, np.int64)
        self.counts = np.zeros(N_TAGS, np.int64)
        self._more_tags, self._more_data = Growing(_bytes), Growing(words)

    def reserve(self, used: int, n: int) -> None:
        """Room for `n` values, of which the first `used` are there."""
        self.tags = self._more_tags.reserve(self.tags, used, n, _more(self.tags, n))
        self.data = self._more_data.reserve(self.data, used, n, _more(self.data, n))

    @property
    def nbytes(self) -> int:
        return self.tags.nbytes + self.data.nbytes + self._more_tags.room + 8 * self._more_data.room

    def write(
        self, at: slice | NDArray[np.int64], values: Values, codes: NDArray[np.int64]
    ) -> None:
        data = values.data
        if len(codes):
            strings = values.tags == STRING
            data = np.where(strings, codes.take(data, mode="clip"), data)
        self.counts += np.bincount(values.tags, minlength=N_TAGS)
        self.tags[at] = values.tags
        self.data[at] = data


class Column:
    """One path. Only `Columns` writes it."""

    def __init__(self) -> None:
        self._rows = _Store()
        self._elements = _Store()
        self._element_rows = np.zeros(0, np.int64)
        self._more_element_rows = Growing(words)
        self._n_elements = 0
        self._strings: list[str] = []
        self._codes: dict[str, int] = {}
        self._postings: Postings | None = None
        self._sorting = threading.Lock()

    @property
    def n_present(self) -> int:
        """Rows that have the field, null excluded."""
        return int(self._rows.counts[MISSING + 1 :].sum())

    @property
    def has_lists(self) -> bool:
        return bool(self._rows.counts[LIST])

    @property
    def has_strings(self) -> bool:
        """Whether any row has a text as its value, lists of texts not counted."""
        return bool(self._rows.counts[STRING])

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, spare room and postings included; strings are not counted."""
        stores = (self._rows, self._elements)
        postings = 0 if self._postings is None else self._postings.nbytes
        arrays = sum(s.nbytes for s in stores) + 8 * self._more_element_rows.room
        return self._element_rows.nbytes + arrays + postings

    def cells(
        self, start: int, stop: int, wanted: NDArray[np.bool_], interrupt: Callable[[], None]
    ) -> Cells:
        """Values of rows [start, stop), or of fewer: the field is missing in the rest.

        `wanted` has shape (stop - start,). Takes no time worth mention.
        """
        # The writer may replace either array between the two reads. Both hold all published rows
        # that have the field, so what one of them lacks is missing.
        tags = self._rows.tags[start:stop]
        data = self._rows.data[start:stop]
        n = min(len(tags), len(data))
        return Cells(tags[:n], data[:n], self._rows.counts, self._strings, self._codes,
                     lambda: wanted[:n], interrupt)  # fmt: skip

    def cells_at(
        self, rows: NDArray[np.int64], wanted: NDArray[np.bool_], interrupt: Callable[[], None]
    ) -> Cells:
        """Values of these rows, ascending, or of fewer: the field is missing in the rest.

        `wanted` has the shape of `rows`. 3 ns a row.
        """
        tags, data = self._rows.tags, self._rows.data
        n = int(np.searchsorted(rows, min(len(tags), len(data))))
        return Cells(tags[rows[:n]], data[rows[:n]], self._rows.counts, self._strings,
                     self._codes, lambda: wanted[:n], interrupt)  # fmt: skip

    def elements(
        self, start: int, stop: int, wanted: NDArray[np.bool_], interrupt: Callable[[], None]
    ) -> tuple[NDArray[np.int64], Cells]:
        """Elements of the lists in rows [start, stop), and where the row of each stands: row - start."""
        n = self._n_elements  # Read first: every array seen after it is at least this long.
        rows = self._element_rows[:n]
        low, high = np.searchsorted(rows, [start, stop])
        owners = rows[low:high] - start
        return owners, self._element_cells(slice(low, high), owners, wanted, interrupt)

    def elements_at(
        self, rows: NDArray[np.int64], wanted: NDArray[np.bool_], interrupt: Callable[[], None]
    ) -> tuple[NDArray[np.int64], Cells]:
        """Elements of the lists in these rows, ascending, and the place in `rows` of each's row."""
        n = self._n_elements
        held = self._element_rows[:n]
        low = np.searchsorted(held, rows)
        lengths = np.searchsorted(held, rows, side="right") - low
        owners = np.repeat(np.arange(len(rows)), lengths)
        # Counts on from the first element of each row.
        first = np.cumsum(lengths) - lengths
        at = np.arange(len(owners)) - first[owners] + low[owners]
        return owners, self._element_cells(at, owners, wanted, interrupt)

    def _element_cells(
        self,
        at: slice | NDArray[np.int64],
        owners: NDArray[np.int64],
        wanted: NDArray[np.bool_],
        interrupt: Callable[[], None],
    ) -> Cells:
        elements = self._elements
        return Cells(elements.tags[at], elements.data[at], elements.counts, self._strings,
                     self._codes, lambda: wanted[owners], interrupt)  # fmt: skip

    # -- postings

    def postings(self, n_rows: int) -> Postings | None:
        """The sorted order of most of the rows; None as long as nothing asked for one.

        Renewed in the background when rows [0, n_rows) have outgrown it.
        """
        held = self._postings
        if held is not None:
            behind = n_rows - held.n_rows
            if behind > max(FEWEST_SORTED, held.n_rows // _STALE_SHARE):
                self._sort_soon(n_rows)
        return held

    @property
    def has_postings(self) -> bool:
        return self._postings is not None

    def want_postings(self, n_rows: int) -> None:
        """Has the first `n_rows` rows sorted in the background, if that was never done."""
        if self._postings is None:
            self._sort_soon(n_rows)

    def wait_sorted(self) -> None:
        """Returns when no sorting is under way any more."""
        with self._sorting:
            pass

    def in_order(self, postings: Postings) -> tuple[Sorted, Sorted]:
        """The values of rows and the elements of lists, each with its order."""
        # All that the orders cover is in whatever arrays are held now.
        return (
            Sorted(postings.rows, self._rows.data, self._codes),
            Sorted(postings.elements, self._elements.data, self._codes),
        )

    def rows_of_elements(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row of each of these elements, which postings cover."""
        return self._element_rows[positions]

    def _sort_soon(self, n_rows: int) -> None:
        if not self._sorting.acquire(blocking=False):
            return
        try:
            threading.Thread(
                target=self._sort, args=(n_rows,), name="vecdb-postings", daemon=True
            ).start()
        except (RuntimeError, MemoryError):  # No thread to be had; filters do without.
            self._sorting.release()

    def _sort(self, n_rows: int) -> None:
        try:
            held = self._postings or Postings(0, Order(), Order())
            if n_rows <= held.n_rows:
                return  # asked for an older moment, or before another thread was done with it
            n = self._n_elements  # Read first, as in `elements`.
            n_elements = int(np.searchsorted(self._element_rows[:n], n_rows))
            rows, elements = self._rows, self._elements
            self._postings = Postings(
                n_rows,
                held.rows.extended(rows.tags, rows.data, n_rows),
                held.elements.extended(elements.tags, elements.data, n_elements),
            )
        except MemoryError:
            log.warning("no memory to sort a column of %d rows; filters look through it", n_rows)
        finally:
            self._sorting.release()

    # -- writing

    def moment(self) -> ColumnMoment:
        """What counts and orders are now; the writer only, or who keeps it out."""
        counts, elements = self._rows.counts.copy(), self._elements.counts.copy()
        return ColumnMoment(self, counts, elements, self._postings)

    def reserve(self, first_row: int, n_rows: int, values: Values) -> None:
        """Makes room behind `first_row`, so that `extend` cannot fail half-way for want of memory."""
        self._rows.reserve(first_row, n_rows)
        if values.elements is not None:
            used, held = self._n_elements, self._element_rows
            n = used + len(values.elements.tags)
            self._elements.reserve(used, n)
            self._element_rows = self._more_element_rows.reserve(held, used, n, _more(held, n))

    def extend(self, values: Values, codes: NDArray[np.int64], first_row: int, n_rows: int) -> None:
        """`codes` are those of the strings, see `coded`."""
        if values.elements is not None:
            elements = values.elements
            n = self._n_elements
            at = slice(n, n + len(elements.tags))
            self._element_rows[at] = elements.offsets + first_row
            self._elements.write(at, elements, codes)
            self._n_elements = at.stop
        if len(values.offsets) == n_rows:
            self._rows.write(slice(first_row, first_row + n_rows), values, codes)
        else:
            self._rows.write(values.offsets + first_row, values, codes)

    def coded(self, strings: list[str]) -> NDArray[np.int64]:
        """The column's code of each of these strings, which are distinct; new ones are added, and do no
        harm where no row has them. 0.1 us each, new ones 0.4, both more where there are millions; other threads are let in between."""
        known, codes = self._strings, self._codes
        coded = np.empty(len(strings), np.int64)
        # All are looked up before any is added: what is not there is found out sooner while fewer are.
        found: list[int | None] = []
        for at in range(0, len(strings), AT_ONCE):
            found += map(codes.get, strings[at : at + AT_ONCE])
        for at in range(0, len(strings), AT_ONCE):
            some = found[at : at + AT_ONCE]
            if None in some:
                texts = strings[at : at + AT_ONCE]
                new = [text for text, code in zip(texts, some, strict=True) if code is None]
                # The strings first: a reader that finds a code looks it up in the list.
                known.extend(new)
                numbers = range(len(known) - len(new), len(known))
                deque(map(codes.__setitem__, new, numbers), maxlen=0)
                fresh = iter(numbers)
                some = [next(fresh) if code is None else code for code in some]
            coded[at : at + AT_ONCE] = np.array(some, np.int64)
        return coded


@dataclass(frozen=True, slots=True)
class ColumnMoment:
    """What of a column changes while it is extended, as it was at one moment."""

    column: Column
    counts: NDArray[np.int64]
    """Values by tag."""
    element_counts: NDArray[np.int64]
    postings: Postings | None


class Columns:
    """All columns of a collection, at most `max_fields` distinct paths."""

    def __init__(self, max_fields: int) -> None:
        self.n_rows = 0
        """Rows that readers may evaluate. Read it once, before anything else."""
        self.broken = False
        """Whether `extend` ended half-way: some paths have values that others lack, and none may be added."""
        self._max_fields = max_fields
        self._columns: dict[str, Column] = {}
        self._prepared: tuple[ColumnBatch, dict[str, NDArray[np.int64]]] | None = None
        """A batch that may be the next, and the codes of its strings by path."""

    def would_exceed(self, *batches: ColumnBatch) -> bool:
        """Whether these batches together would bring more distinct paths than allowed."""
        new = self._new_paths(batches)
        return bool(new) and len(self._columns) + len(new) > self._max_fields

    def check(self, *batches: ColumnBatch) -> None:
        """LimitExceeded where `would_exceed`; to be called before anything is written."""
        if self.would_exceed(*batches):
            new = self._new_paths(batches)
            raise LimitExceeded(
                f"the collection would have {len(self._columns) + len(new):,} distinct metadata paths, "
                f"{new[0]!r:.60} among them; at most {self._max_fields:,} are allowed: keep values out "
                "of keys, put varying names into a list, or raise the setting max_fields",
                path=new[0],
                limit=self._max_fields,
            )

    def prepare(self, batch: ColumnBatch) -> None:
        """What `extend` of the same object will need first, and most of its time; nothing changes if it
        does not come. The writer only, or a thread that it waits for."""
        columns = self._columns
        codes = {
            path: columns[path].coded(values.strings)
            for path, values in batch.fields.items()
            if path in columns
        }
        self._prepared = batch, codes

    def extend(self, batch: ColumnBatch, first_row: int) -> None:
        """Adds the batch as rows [first_row, first_row + batch.n_rows) and publishes them.

        The writer only. Rows come in order; rows left out have no metadata. Refuses nothing that is
        stored, whatever the limit is by now: `check` is for what is not. Whatever it raises, readers see
        what they saw; all is to be made anew where it is `broken` then. About 50 ns a value, and 300 ns a new string.
        """
        if first_row < self.n_rows:
            raise Internal(f"columns hold {self.n_rows:,} rows, given row {first_row:,} again")
        n_rows = first_row + batch.n_rows
        prepared, self._prepared = self._prepared, None
        coded = prepared[1] if prepared is not None and prepared[0] is batch else {}
        columns = dict(self._columns)
        for path, values in batch.fields.items():
            columns.setdefault(path, Column()).reserve(first_row, n_rows, values)
        self.broken = True
        for path, values in batch.fields.items():
            codes = coded[path] if path in coded else columns[path].coded(values.strings)
            columns[path].extend(values, codes, first_row, batch.n_rows)
        # A new dict each time, so that no reader walks one that changes.
        self._columns = columns
        self.n_rows = n_rows
        self.broken = False

    def moment(self) -> dict[str, ColumnMoment]:
        """All columns by path as they are now; the writer only, or who keeps it out. 1 us a path."""
        return {path: column.moment() for path, column in self._columns.items()}

    def column(self, path: str) -> Column | None:
        """The column of a dotted path; None if no row ever had it."""
        return self._columns.get(path)

    def wait_sorted(self) -> None:
        """Returns when no column is being sorted in the background; for tests and measurements."""
        for column in self._columns.values():
            column.wait_sorted()

    def fields(self) -> dict[str, int]:
        """Path to the number of rows that have it, null excluded and dead rows included."""
        return {path: column.n_present for path, column in self._columns.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, spare room and postings included; strings are not counted."""
        return sum(column.nbytes for column in self._columns.values())

    def _new_paths(self, batches: tuple[ColumnBatch, ...]) -> list[str]:
        known = self._columns
        return list({path: None for batch in batches for path in batch.fields if path not in known})


def _more(held: NDArray[Any], n: int) -> int:
    """Room to make when `held` is or becomes too short for `n` values: the next power of two."""
    return max(_SMALLEST, 1 << (max(n, len(held) + 1) - 1).bit_length())


# Zeroed memory that nobody has touched takes no space, so spare room is nearly free.
def _bytes(n: int) -> NDArray[np.uint8]:
    return np.zeros(n, np.uint8)
