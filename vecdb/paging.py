"""Reading records: by ids, in pages by filter and order, and as a stream of everything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .batch import check_ids
from .core import Core
from .cursor import Cursor, purpose
from .errors import InvalidCursor, InvalidQuery
from .fetching import (
    Fetched,
    check_include,
    fetch,
    must_be_readable,
    must_show,
    while_there,
)
from .filters import Filter
from .given_rows import matching_among
from .index import View
from .masks import Moment
from .ordering import order_of, sort_ranks
from .scalars import shown
from .selection import Selection
from .stopping import Interrupt, deadline
from .types import MAX_PAGE, Records

SCAN_STRIPE_ROWS = 64
"""Rows are dealt to the slices of a scan in stripes of this many, so that a slice is the same rows
whenever it is read, however much the collection has grown in between."""
MAX_SLICES = 65_536
_FETCH_BYTES = 32 * 1024 * 1024
_PAGE_STEP = 16_384
"""Rows looked at first for a page, beside its own."""

Rows = NDArray[np.int64]


def get_by_ids(
    core: Core,
    ids: Iterable[str],
    expression: Filter | None,
    include: Iterable[str],
    min_sequence: int | None,
    timeout_s: float | None,
    *,
    raw_metadata: bool = False,
    max_bytes: int | None = None,
) -> Records:
    """The stored ones of these ids, in their order; one moment, about 1 us an id and column."""
    names = check_ids(ids)
    wanted = check_include(include)
    interrupt = deadline(timeout_s)

    def read() -> Records:
        view = core.wait_for(min_sequence, timeout_s)
        return _by_ids(core, view, names, expression, wanted, interrupt, raw_metadata, max_bytes)

    return while_there(read)


def _by_ids(
    core: Core,
    view: View,
    names: Sequence[bytes],
    expression: Filter | None,
    wanted: frozenset[str],
    interrupt: Interrupt,
    raw_metadata: bool,
    max_bytes: int | None,
) -> Records:
    with core.read() as reader:
        if core.read_only:
            must_show(reader, view.sequence)
        rows = core.rows_shown(reader, view, names)
        stored = rows >= 0
        if expression is not None:
            held = [n.decode() for n, row in zip(names, rows.tolist(), strict=True) if row >= 0]
            stored[stored] = matching_among(
                expression, core.columns, reader, rows[stored], held, interrupt
            )
        held = [n.decode() for n, keep in zip(names, stored.tolist(), strict=True) if keep]
        got = fetch(
            reader, rows[stored], held, wanted, raw_metadata=raw_metadata, max_bytes=max_bytes
        )
    return _records(got, None, view.sequence)


def get_page(
    core: Core,
    expression: Filter | None,
    order_by: str | None,
    limit: int,
    cursor: str | None,
    include: Iterable[str],
    min_sequence: int | None,
    timeout_s: float | None,
    *,
    raw_metadata: bool = False,
) -> Records:
    """One page. All pages of a walk show the moment of the first one."""
    wanted = check_include(include)
    _check_count("limit", limit, MAX_PAGE)
    if order_by is not None and not isinstance(order_by, str):
        raise InvalidQuery(f"order_by takes a text, given {shown(order_by)}")
    interrupt = deadline(timeout_s)
    view = core.wait_for(min_sequence, timeout_s)
    text = "" if expression is None else expression.text
    call = purpose("get", core.store.folder.name, text, order_by)
    at = Cursor.decode(cursor, call) if cursor else Cursor(call, view.sequence, view.n_rows, 0)
    moment = _moment(core, at)
    selection = None if expression is None else core.matching(expression, moment, interrupt)
    if order_by:
        rows = _ordered(core, moment.rows(selection), order_by, interrupt)[at.position :]
    else:
        rows = _following(moment, selection, at.position, limit + 1)
    got, n = _fetch_some(core, rows[:limit], wanted, raw_metadata, at.sequence)
    following = None
    if n < len(rows):
        position = at.position + n if order_by else int(rows[n - 1]) + 1
        following = Cursor(call, at.sequence, at.n_rows, position).encode()
    return _records(got, following, at.sequence)


def scan(
    core: Core,
    expression: Filter | None,
    include: Iterable[str],
    batch_size: int,
    cursor: str | None,
    slice_index: int,
    slices: int,
    min_sequence: int | None,
    timeout_s: float | None,
    *,
    raw_metadata: bool = False,
) -> Iterator[Records]:
    """Everything in row order, as of the moment the scan began; see `Collection.scan`.

    Checks its arguments at once; no transaction is open between two batches. A scan that finds
    nothing gives one empty batch.
    """
    wanted = check_include(include)
    _check_count("batch_size", batch_size, MAX_PAGE)
    _check_count("slices", slices, MAX_SLICES)
    if isinstance(slice_index, bool) or not isinstance(slice_index, int):
        raise InvalidQuery(f"slice_index must be an integer, given {shown(slice_index)}")
    if not 0 <= slice_index < slices:
        raise InvalidQuery(
            f"slice_index must be from 0 to {slices - 1}, given {shown(slice_index)}"
        )
    interrupt = deadline(timeout_s)
    view = core.wait_for(min_sequence, timeout_s)
    text = "" if expression is None else expression.text
    call = purpose("scan", core.store.folder.name, text, slice_index, slices)
    at = Cursor.decode(cursor, call) if cursor else Cursor(call, view.sequence, view.n_rows, 0)
    moment = _moment(core, at)
    selection = None if expression is None else core.matching(expression, moment, interrupt)
    rows = moment.rows(selection)
    rows = rows[np.searchsorted(rows, at.position) :]
    if slices > 1:
        rows = rows[rows // SCAN_STRIPE_ROWS % slices == slice_index]
    # Again, now that the rows are found; from here on each batch sees to its own.
    with core.read() as reader:
        must_be_readable(reader, at.sequence)
    return _batches(core, at, rows, wanted, batch_size, raw_metadata)


def _batches(
    core: Core, at: Cursor, rows: Rows, wanted: frozenset[str], batch_size: int, raw_metadata: bool
) -> Iterator[Records]:
    done = 0
    while True:
        got, n = _fetch_some(core, rows[done : done + batch_size], wanted, raw_metadata)
        done += n
        following = None
        if done < len(rows):
            position = int(rows[done - 1]) + 1
            following = Cursor(at.purpose, at.sequence, at.n_rows, position).encode()
        yield _records(got, following, at.sequence)
        if following is None:
            return


def _fetch_some(
    core: Core,
    rows: Rows,
    include: frozenset[str],
    raw_metadata: bool,
    sequence: int | None = None,
) -> tuple[Fetched, int]:
    """The first rows, as many as fit in memory for one message; (columns, rows taken, at least 1).

    InvalidCursor when one of them is gone. With `sequence` also when anything of the moment after that
    commit may be: a filter that read texts of purged rows has left these out.
    """
    ids = core.ids.take(rows)
    with core.read() as reader:
        if sequence is not None:
            must_be_readable(reader, sequence)
        got = fetch(
            reader, rows, ids, include, raw_metadata=raw_metadata, max_bytes=_FETCH_BYTES, cut=True
        )
    return got, len(got.ids)


def _moment(core: Core, at: Cursor) -> Moment:
    view = core.view
    if at.sequence > view.sequence or at.n_rows > view.n_rows or at.position > at.n_rows:
        raise InvalidCursor(
            "the cursor is of a later state than this database; start again without it"
        )
    if at.sequence == view.sequence:
        return core.moment(view)
    return core.as_of(at.sequence, at.n_rows)


def _following(moment: Moment, selection: Selection | None, start: int, n: int) -> Rows:
    """The first `n` live and selected rows from `start` on; looks no further than they need."""
    if selection is not None and selection.is_list:
        rows = moment.rows(selection)
        return rows[np.searchsorted(rows, start) :][:n]
    found: list[Rows] = []
    step = _PAGE_STEP + n
    while n > 0 and start < moment.n_rows:
        stop = min(start + step, moment.n_rows)
        mask = moment.live_range(start, stop)
        if selection is not None:
            mask &= selection.mask()[start:stop]
        found.append(np.flatnonzero(mask)[:n] + start)
        n -= len(found[-1])
        start, step = stop, 2 * step
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _ordered(core: Core, rows: Rows, order_by: str, interrupt: Interrupt) -> Rows:
    """Rows by a field, those without it last, equal ones by row; n log n in the rows that match, some 1.5 us each where
    texts are compared. `interrupt` is called every few milliseconds of that."""
    field = order_by.removeprefix("-")
    descending = order_by.startswith("-")
    if not field or field.startswith("$"):
        raise InvalidQuery(
            f"order_by takes a metadata path or id, with - before it to descend; given {shown(order_by)}"
        )
    if field == "id":
        order = order_of(core.ids.take(rows), interrupt)
        return rows[order[::-1] if descending else order]
    ranks, present = sort_ranks(core.ready_columns(), field, rows, interrupt)
    if descending:
        ranks = -ranks
    return rows[np.lexsort((rows, ranks, ~present))]


def _check_count(name: str, value: Any, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 1 <= value <= high:
        raise InvalidQuery(f"{name} must be an integer from 1 to {high}, given {shown(value)}")


def _records(got: Fetched, cursor: str | None, sequence: int) -> Records:
    return Records(
        got.ids, got.vectors, got.metadata, got.documents, got.contents, got.uris, cursor, sequence,
        got.named_vectors, got.named_present,
    )  # fmt: skip
