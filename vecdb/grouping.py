"""Groups: the best hits of each of the best groups, where a metadata field says who is together."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .columns import Cells, Columns
from .pivot import DATETIME, FALSE, FLOAT, INT, LIST, MISSING, STRING, TRUE
from .selection import Selection

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]
Key = tuple[int, Any]
"""A group: kind of value (a tag) and the value, for texts their code. 1 and 1.0 are one number."""
Nearest = Callable[[NDArray[Any], int, Selection | None], tuple[Floats, Rows]]
"""(queries, width, allowed rows) to distances and rows (q, width), padded with NaN and -1."""

_WIDEST = 16_384
"""Hits asked for at once, beyond which rounds are cheaper than wider ones."""
_WIDENED = 2_048
"""Hits of a wider search at most: a walk through an index for more costs more than an exact search."""
_LEAST_HITS = 64
_LOOK = 4_096
"""Elements of lists between two calls of `check`: some milliseconds."""
_HITS_A_MEMBER = 4
_WIDER = 4
"""The next search is so much wider; and where a wider one would have to find more groups than that
times those it has, the rows that are in others are searched instead."""
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_INT64_LIMIT = 2.0**63


class Groups:
    """The groups of rows by one metadata field. Any thread; made for one query.

    A record is in the group of its value; with a list in that of each distinct element; without the
    field in none. Values are compared as filters compare them.
    """

    def __init__(self, columns: Columns, path: str, n_rows: int, check: Callable[[], None]) -> None:
        """`check` is called now and then and may raise."""
        self.n_rows = n_rows
        self._check = check
        self._column = columns.column(path)
        self.everywhere = self._column is not None and self._column.n_present >= columns.n_rows
        """Whether every row has the field."""
        self._nobody = np.zeros(0, np.bool_)

    def keys_of(self, rows: Rows) -> list[list[Key]]:
        """Groups of each row, in the order of its list; some us a row."""
        # As keys of dicts: in order, each once, however long a list is.
        found: list[dict[Key, None]] = [{} for _ in rows]
        if self._column is None or not len(rows):
            return [[] for _ in rows]
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        cells = self._column.cells_at(ascending, self._nobody, self._check)
        for place, tag, key in zip(order.tolist(), cells.tags.tolist(), _keys(cells), strict=False):
            if tag != LIST and key is not None:
                found[place][key] = None
        lists = np.flatnonzero(cells.tags == LIST)
        if len(lists):
            owners, elements = self._column.elements_at(ascending[lists], self._nobody, self._check)
            places = order[lists][owners].tolist()
            for n, (place, key) in enumerate(zip(places, _keys(elements), strict=True)):
                if not n % _LOOK:
                    self._check()
                if key is not None:
                    found[place][key] = None
        return [list(keys) for keys in found]

    def value(self, key: Key) -> Any:
        """The value that a group stands for, as metadata has it."""
        kind, plain = key
        if kind == STRING:
            assert self._column is not None
            return self._cells().strings[plain]
        if kind in (FALSE, TRUE):
            return kind == TRUE
        return _EPOCH + dt.timedelta(microseconds=plain) if kind == DATETIME else plain

    def rows_in(self, keys: Iterable[Key]) -> Mask:
        """Rows that are in any of these groups: a new bool array, shape (n_rows,)."""
        mask = np.zeros(self.n_rows, np.bool_)
        if self._column is None:
            return mask
        wanted = _ByKind(keys)
        cells = self._cells()
        mask[: len(cells.tags)] = wanted.holds(cells)
        if self._column.has_lists:
            owners, elements = self._column.elements(0, self.n_rows, self._nobody, self._check)
            mask[owners[wanted.holds(elements)]] = True
        return mask

    def rows_beyond(self, keys: Iterable[Key]) -> Mask:
        """Rows that are in a group other than these: a new bool array, shape (n_rows,)."""
        mask = np.zeros(self.n_rows, np.bool_)
        if self._column is None:
            return mask
        known = _ByKind(keys)
        cells = self._cells()
        own = (cells.tags != MISSING) & (cells.tags != LIST)
        mask[: len(cells.tags)] = own & ~known.holds(cells)
        if self._column.has_lists:
            owners, elements = self._column.elements(0, self.n_rows, self._nobody, self._check)
            mask[owners[~known.holds(elements)]] = True
        return mask

    def _cells(self) -> Cells:
        assert self._column is not None
        return self._column.cells(0, self.n_rows, self._nobody, self._check)


class Members:
    """The hits of one query by group."""

    def __init__(
        self,
        groups: Groups,
        k: int,
        size: int,
        max_distance: float | None,
        left_out: Rows | None,
        query: int,
    ) -> None:
        self.query = query
        """Which of the queries it is."""
        self._groups = groups
        self._k, self._size = k, size
        self._max_distance = max_distance
        self._left_out = np.empty(0, np.int64) if left_out is None else left_out[query]
        self._seen_all = False
        self._grown = True
        self.of: dict[Key, list[int]] = {}
        """The best groups in order, each with the places of its best hits in `rows`."""
        self.replace(np.empty(0, np.float32), np.empty(0, np.int64), 0)

    def replace(self, near: Floats, rows: Rows, width: int) -> None:
        """Takes these hits instead of those it has; `width` were asked for."""
        self._near, self.rows = np.empty(0, np.float32), np.empty(0, np.int64)
        self._keys: list[list[Key]] = []
        before = len(self.of)
        self.add(near, rows, width)
        self._grown = len(self.of) > before

    def add(self, near: Floats, rows: Rows, width: int) -> None:
        """Takes further hits, nearest first, padded with NaN and -1."""
        there = rows >= 0
        if self._max_distance is not None:
            there &= near.astype(np.float64) <= self._max_distance
        self._seen_all = int(there.sum()) < width
        there &= ~np.isin(rows, self._left_out)
        near = np.concatenate([self._near, near[there]])
        rows = np.concatenate([self.rows, rows[there]])
        keys = self._keys + self._groups.keys_of(rows[len(self._keys) :])
        order = np.lexsort((rows, near))
        self._near, self.rows = near[order], rows[order]
        self._keys = [keys[place] for place in order.tolist()]
        self.of = {}
        for place, own in enumerate(self._keys):
            for key in own:
                held = self.of.get(key)
                if held is None:
                    if len(self.of) < self._k:
                        self.of[key] = [place]
                elif len(held) < self._size:
                    held.append(place)

    @property
    def done(self) -> bool:
        """Whether nothing could be added any more."""
        return self._seen_all or (len(self.of) >= self._k and len(self._full) == len(self.of))

    @property
    def widening(self) -> bool:
        """Whether a wider search is likely to find the groups that are missing."""
        missing = self._k - len(self.of)
        return not self.done and self._grown and 0 < missing < _WIDER * len(self.of)

    @property
    def _full(self) -> list[Key]:
        """Groups that need no more hits."""
        return [key for key, places in self.of.items() if len(places) >= self._size]

    def open_rows(self, allowed: Selection | None) -> Selection:
        """The rows, not among the hits yet, that could tell more."""
        full = self._full
        if len(self.of) >= self._k:
            still = self._groups.rows_in(set(self.of).difference(full))
        else:
            still = self._groups.rows_beyond(full)
        if allowed is not None:
            still &= allowed.mask()
        still[self.rows] = False
        still[self._left_out[self._left_out >= 0]] = False
        return Selection(self._groups.n_rows, mask=still)

    def hits(self) -> tuple[Floats, Rows, list[Any]]:
        """Distances, rows and group values, group by group."""
        places = [place for own in self.of.values() for place in own]
        values = [self._groups.value(key) for key, own in self.of.items() for _ in own]
        return self._near[places], self.rows[places], values


def search_groups(
    nearest: Nearest,
    groups: Groups,
    queries: NDArray[Any],
    k: int,
    size: int,
    allowed: Selection | None,
    left_out: Rows | None,
    max_distance: float | None,
    check: Callable[[], None],
) -> tuple[Floats, Rows, list[list[Any]]]:
    """Hits of the best `k` groups, up to `size` each: distances and rows (q, w), and group values.

    Complete: k groups wherever the allowed rows are in so many, and `size` hits wherever a group has
    so many. First all queries are searched together, and again a little wider where that promises to
    be enough. What is still open is searched query by query, each time only among the rows that could
    tell more: those of groups that need more hits, or, while groups are missing, those that are in a
    group which is not full. What such a search returns lies behind all that was found before, so
    what is found is final; and one that finds less than it asked for has seen everything.
    """
    width = min(_WIDEST, max(_LEAST_HITS, _HITS_A_MEMBER * k * size))
    found = [Members(groups, k, size, max_distance, left_out, i) for i in range(len(queries))]
    pending = found
    while pending:
        check()
        some = np.ascontiguousarray(queries[[members.query for members in pending]])
        near, rows = nearest(some, width, allowed)
        for n, members in enumerate(pending):
            members.replace(near[n], rows[n], width)
        width *= _WIDER
        pending = [members for members in pending if members.widening and width <= _WIDENED]
    for members in found:
        one = queries[members.query : members.query + 1]
        width = max(_LEAST_HITS, len(members.rows))
        while not members.done:
            check()
            width = min(_WIDEST, 2 * width)
            near, rows = nearest(one, width, members.open_rows(allowed))
            members.add(near[0], rows[0], width)
    return _padded([members.hits() for members in found])


def _padded(answers: list[tuple[Floats, Rows, list[Any]]]) -> tuple[Floats, Rows, list[list[Any]]]:
    width = max(len(rows) for _, rows, _ in answers)
    near = np.full((len(answers), width), np.nan, np.float32)
    rows = np.full((len(answers), width), -1, np.int64)
    for i, (own_near, own_rows, _) in enumerate(answers):
        near[i, : len(own_near)] = own_near
        rows[i, : len(own_rows)] = own_rows
    return near, rows, [values for _, _, values in answers]


class _ByKind:
    """Group keys sorted by kind, for looking at whole columns."""

    def __init__(self, keys: Iterable[Key]) -> None:
        plain: dict[int, list[Any]] = {}
        for kind, value in keys:
            plain.setdefault(kind, []).append(value)
        numbers = [*plain.get(INT, ()), *plain.get(FLOAT, ())]
        self._equal = {
            kind: np.array([int(x) for x in plain[kind]], np.int64)
            for kind in (STRING, INT, DATETIME)
            if kind in plain
        }
        # An int is a float too where float64 can say it.
        self._floats = np.array([x for x in numbers if float(x) == x], np.float64)
        self._alone = [kind for kind in (FALSE, TRUE) if kind in plain]

    def holds(self, cells: Cells) -> Mask:
        found = np.zeros(len(cells.tags), np.bool_)
        for kind, values in self._equal.items():
            found |= (cells.tags == kind) & np.isin(cells.data, values)
        if len(self._floats) and cells.counts[FLOAT]:
            found |= (cells.tags == FLOAT) & np.isin(cells.data.view(np.float64), self._floats)
        for kind in self._alone:
            found |= cells.tags == kind
        return found


def _keys(cells: Cells) -> Iterable[Key | None]:
    """The group of each value; None for null and lists."""
    reals = cells.data.view(np.float64) if cells.counts[FLOAT] else None
    for place, (tag, data) in enumerate(zip(cells.tags.tolist(), cells.data.tolist(), strict=True)):
        if tag == FLOAT:
            assert reals is not None
            real = float(reals[place])
            whole = real.is_integer() and -_INT64_LIMIT <= real < _INT64_LIMIT
            # (INT, 1.0) equals (INT, 1): one group, which shows the number of its best hit.
            yield (INT if whole else FLOAT, real)
        elif tag in (FALSE, TRUE):
            yield (tag, None)
        else:
            yield None if tag in (MISSING, LIST) else (tag, data)
