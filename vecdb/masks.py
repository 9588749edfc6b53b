"""Small derived structures over rows: when each died, and which matched recent filters."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .ids import Ids
from .selection import MOST_LISTED, Selection
from .store import CollectionStore, Reader

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Deaths:
    """Which rows died, ordered by the commit they died in; 16 bytes a dead row.

    One thread extends (the lane); any thread asks.
    """

    def __init__(self, rows: Rows, sequences: Rows) -> None:
        order = np.argsort(sequences, kind="stable")
        self._rows = rows[order]
        self._sequences = sequences[order]
        self._n = len(rows)

    def extend(self, rows: Rows, sequence: int) -> None:
        n = self._n + len(rows)
        if n > len(self._rows):
            spare = np.zeros(max(1_024, n), np.int64)
            self._rows = np.concatenate([self._rows[: self._n], spare])
            self._sequences = np.concatenate([self._sequences[: self._n], spare])
        self._rows[self._n : n] = rows
        self._sequences[self._n : n] = sequence
        self._n = n

    def all(self) -> tuple[Rows, Rows]:
        """(all dead rows, the commits they died in) as they are held; never written again."""
        n = self._n
        return self._rows[:n], self._sequences[:n]

    def after(self, sequence: int, n_rows: int) -> Rows:
        """Rows below `n_rows` that died in a commit later than `sequence`."""
        n = self._n
        first = int(np.searchsorted(self._sequences[:n], sequence, side="right"))
        rows = self._rows[first:n]
        return rows[rows < n_rows]


class FilterMasks:
    """Results of recent filters, least recently used out first. Any thread may call.

    A result for n rows stays right for those rows for ever, and is extended for new ones. Takes a byte
    a row and filter, for filters that few rows match 8 bytes a match.
    """

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._lock = threading.Lock()
        self._held: OrderedDict[str, _Held] = OrderedDict()

    def get(
        self,
        text: str,
        n_rows: int,
        whole: Callable[[], Selection],
        rest: Callable[[int], Mask],
    ) -> Selection:
        """The rows below `n_rows` that match; 1 us where they are known.

        `whole` finds all of them, `rest(start)` is a mask of rows [start, n_rows). As long as a result
        is held, the same text and number of rows give the same object, so that what is made from it may
        be kept beside it; of each filter the newest two are held. Its key is `text`.
        """
        with self._lock:
            held = self._held.get(text)
            if held is not None:
                self._held.move_to_end(text)
                newest = held.newest
                if newest.n_rows == n_rows:
                    return newest
                if held.older is not None and held.older.n_rows == n_rows:
                    return held.older
        if held is None:
            found = whole().named(text)
        elif n_rows < newest.n_rows:
            found = newest.below(n_rows)
        else:
            found = held.extended(newest, rest(newest.n_rows))
        return self._keep(text, found)

    def _keep(self, text: str, found: Selection) -> Selection:
        with self._lock:
            held = self._held.get(text)
            if held is None:
                if self._entries:
                    self._held[text] = _Held(found)
                    while len(self._held) > self._entries:
                        self._held.popitem(last=False)
                return found
            # Another thread may have been quicker; whoever asks from now on gets what is held.
            for one in (held.newest, held.older):
                if one is not None and one.n_rows == found.n_rows:
                    return one
            if found.n_rows > held.newest.n_rows:
                held.newest, held.older = found, held.newest
            else:
                held.older = found
            return found

    def clear(self) -> None:
        with self._lock:
            self._held.clear()


class _Held:
    """What is known of one filter."""

    def __init__(self, newest: Selection) -> None:
        self.newest = newest
        self.older: Selection | None = None
        self._room: Mask = np.zeros(0, np.bool_)

    def extended(self, known: Selection, rest: Mask) -> Selection:
        """`known` and the rows that come behind it."""
        start, stop = known.n_rows, known.n_rows + len(rest)
        if known.is_list:
            rows = np.concatenate([known.rows(), np.flatnonzero(rest) + start])
            if len(rows) <= stop // MOST_LISTED:
                return Selection(stop, rows=rows, key=known.key)
        # Masks grow in place: nobody looks behind the rows of a mask that is given out, and threads that
        # extend the same one at once write the same bytes. A copy would take 0.1 ms a million rows.
        room, mask = self._room, known.mask()
        if len(room) < stop or mask.base is not room:
            room = self._room = np.zeros(stop + stop // 8, np.bool_)
            room[:start] = mask
        room[start:stop] = rest
        return Selection(stop, mask=room[:stop], key=known.key)


class LiveRows(Protocol):
    """What a moment needs of a view of the index."""

    @property
    def n_live(self) -> int: ...

    @property
    def n_rows(self) -> int: ...

    def live_mask(self, start: int = 0, stop: int | None = None) -> Mask: ...

    def is_live(self, rows: Rows) -> Mask: ...


class Moment:
    """What a read sees: the rows below `n_rows` that were live right after commit `sequence`.

    Made in no time; what is live is looked up when asked. Any thread may use it.
    """

    def __init__(self, sequence: int, n_rows: int, view: LiveRows, deaths: Deaths | None) -> None:
        """`view` is of this moment, or of a later one: then `deaths` says which rows died between."""
        self.sequence = sequence
        self.n_rows = n_rows
        self._view = view
        self._deaths = deaths
        self._died_since: Rows | None = None
        self._live: Mask | None = None

    @property
    def live(self) -> Mask:
        """One bool a row, shape (n_rows,), made at the first call (0.1 ms a million rows); read only."""
        if self._live is None:
            self._live = self.live_range(0, self.n_rows)
        return self._live

    def live_range(self, start: int, stop: int) -> Mask:
        """Whether rows [start, stop) are live: a new array."""
        live = self._view.live_mask(start, stop)
        died = self._died()
        low, high = np.searchsorted(died, [start, stop])
        live[died[low:high] - start] = True
        return live

    def is_live(self, rows: Rows) -> Mask:
        """Whether each of these rows, all below `n_rows`, is live; about 20 ns a row."""
        live = self._view.is_live(rows)
        died = self._died()
        if len(died):
            live |= died.take(np.searchsorted(died, rows), mode="clip") == rows
        return live

    def rows(self, selection: Selection | None) -> Rows:
        """The live ones of the selected rows (None: of all rows), ascending."""
        if selection is None:
            return np.flatnonzero(self.live)
        if self._all_live:
            return selection.rows()
        if selection.is_list:
            rows = selection.rows()
            return rows[self.is_live(rows)]
        return np.flatnonzero(selection.mask() & self.live)

    def count(self, selection: Selection) -> int:
        """How many of the selected rows are live."""
        if self._all_live:
            return selection.count()
        if selection.is_list:
            return int(np.count_nonzero(self.is_live(selection.rows())))
        return int(np.count_nonzero(selection.mask() & self.live))

    @property
    def _all_live(self) -> bool:
        return self._deaths is None and self._view.n_live == self._view.n_rows

    def _died(self) -> Rows:
        if self._died_since is None:
            if self._deaths is None:
                self._died_since = np.empty(0, np.int64)
            else:
                self._died_since = np.sort(self._deaths.after(self.sequence, self.n_rows))
        return self._died_since


def rows_at(reader: Reader, ids: Ids, names: Sequence[bytes], sequence: int, n_rows: int) -> Rows:
    """The row that bore each id right after commit `sequence`, when `n_rows` rows existed; -1 where none did.

    About 1 us an id. The store points an id to its newest row only. What was replaced or deleted since
    the moment is found among the rows that have died since, so the log must reach back to it.
    """
    rows = reader.rows_of_ids(names)
    rows[rows >= n_rows] = -1
    missing = np.flatnonzero(rows < 0).tolist()
    if not missing or reader.state().sequence == sequence:
        return rows
    since = [commit.died for commit in reader.log(sequence)]
    died = np.concatenate([*since, np.empty(0, np.int64)])
    died = died[died < n_rows]
    wanted = {names[n].decode() for n in missing}
    older = {i: row for i, row in zip(ids.take(died), died.tolist(), strict=True) if i in wanted}
    for n in missing:
        rows[n] = older.get(names[n].decode(), -1)
    return rows


class StoredTexts:
    """Ids and documents of rows for a filter; documents in read transactions of their own."""

    def __init__(self, store: CollectionStore, ids: Ids, moment: Moment) -> None:
        self._store = store
        self._ids = ids
        self._moment = moment

    def rows_of_ids(self, ids: Sequence[str]) -> Rows:
        """The rows that bore these ids at the moment; about 1 us an id."""
        names = [i.encode() for i in ids]
        with self._store.read() as reader:
            rows = rows_at(reader, self._ids, names, self._moment.sequence, self._moment.n_rows)
        return rows[rows >= 0]

    def ids(self, rows: Rows) -> list[str]:
        return self._ids.take(rows)

    def documents(self, rows: Rows) -> list[str | None]:
        with self._store.read() as reader:
            return reader.documents(rows)
