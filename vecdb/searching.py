"""A query: filter to selection, search of the view in the lane, rows to ids and fields."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .core import Core
from .errors import LimitExceeded
from .explaining import explained
from .fetching import fetch, must_show, while_there
from .field import Field
from .filters import Filter
from .grouping import Groups, search_groups
from .index import View
from .parsed_filters import parsed
from .query_spec import Query
from .query_vectors import Targets, find_targets
from .ranking import most_relevant
from .recall_audit import Audit
from .search_lane import LANE, MAX_TOGETHER
from .search_note import Note
from .selection import Selection
from .steps import HERE
from .stopping import deadline
from .types import MAX_K, QueryResult

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

MAX_ANSWERS = 5_000_000
"""Queries times answers of one call; their ids, distances and rows take some 100 bytes each."""
_FIRST_RANGE = 256
"""Answers that a search by distance alone begins with; four times as many while these are too few."""
_PLAIN_SQUARES = (1e-30, 1e30)
"""Squared lengths between these need no closer look at a vector."""


def query_plain(
    core: Core,
    audit: Audit | None,
    vectors: NDArray[np.float32],
    k: int,
    expression: Filter | None,
    exact: bool,
    target_recall: float | None,
    timeout_s: float | None,
) -> QueryResult | None:
    """The commonest queries: float32 vectors, ids and distances. Nothing that can be spared.

    None where there is more to it, or the vectors need a closer look, or a refusal: that is `query`'s business.
    """
    one = vectors
    if vectors.ndim == 2:
        if len(vectors) != 1:
            several = expression is None and not exact and 1 < len(vectors) <= MAX_TOGETHER
            return _several(core, audit, vectors, k, target_recall, timeout_s) if several else None
        one = vectors[0]
    view = core.view
    if one.shape != (view.dimension,) or core.info.storage == "binary":
        return None
    # NaN and infinity carry over into the squared length; vdot overflows without a warning.
    square = float(one.dot(one))
    if not _PLAIN_SQUARES[0] < square < _PLAIN_SQUARES[1]:
        return None
    end, allowed, noted = None, None, HERE.now
    if timeout_s is not None:
        end = time.monotonic() + timeout_s
    if noted is not None:
        noted.view, noted.target_recall = view, 1.0 if exact else target_recall
    if expression is not None:
        begun_s = time.perf_counter() if noted is not None else 0.0
        allowed = core.matched(expression, view.n_rows)
        few = None if allowed is None else view.few(allowed)
        if few is not None and few.is_small:
            among = few.nearest(one, square, k)
            if among is not None:
                if few.names is None:
                    few.names = core.ids.take(few.rows)
                names = few.names
                if noted is not None:
                    noted.plan, noted.allowed = "exact", allowed
                return QueryResult([[names[i] for i in among[1]]], among[0], sequence=view.sequence)
        if allowed is None:
            try:
                allowed = core.matching(expression, core.moment(view), deadline(timeout_s))
            finally:
                if noted is not None:
                    noted.filter_s = time.perf_counter() - begun_s
    live = view.n_live
    width = k if k <= live else max(1, live)
    queries = one.reshape(1, -1)
    found = LANE.search(view, queries, width, allowed, exact, target_recall, end, square=square)
    near, rows = found.distances, found.rows[0]
    if noted is not None:
        noted.plan, noted.allowed = found.plan, allowed
    if audit is not None and target_recall is None and not found.exact:
        audit.offer("", view, queries, width, allowed, near)
    if rows[-1] < 0:
        rows = rows[rows >= 0]
    return QueryResult([core.ids.take(rows)], _wide(near, k), sequence=view.sequence)


def _several(
    core: Core,
    audit: Audit | None,
    vectors: NDArray[np.float32],
    k: int,
    target_recall: float | None,
    timeout_s: float | None,
) -> QueryResult | None:
    view = core.view
    if vectors.shape[1] != view.dimension or core.info.storage == "binary":
        return None
    squares = np.einsum("ij,ij->i", vectors, vectors)
    if not (_PLAIN_SQUARES[0] < squares.min() and squares.max() < _PLAIN_SQUARES[1]):
        return None
    end = None if timeout_s is None else time.monotonic() + timeout_s
    width = min(k, max(1, view.n_live))
    noted = HERE.now
    if noted is not None:
        noted.view, noted.target_recall = view, target_recall
    found = LANE.search(view, vectors, width, None, False, target_recall, end)
    near, rows = found.distances, found.rows
    if noted is not None:
        noted.plan = found.plan
    if rows.min() < 0:
        return None
    if audit is not None and target_recall is None and not found.exact:
        audit.offer("", view, vectors, width, None, near)
    return QueryResult(core.ids.take_each(rows), _wide(near, k), sequence=view.sequence)


def query(core: Core, audit: Audit | None, asked: Query) -> QueryResult:
    """See `Collection.query`."""
    return while_there(lambda: _query(core, audit, asked))


def _query(core: Core, audit: Audit | None, asked: Query) -> QueryResult:
    begun = time.perf_counter()
    search = Search(core, audit, asked)
    targets = find_targets(core, search.field, search.view, asked)
    count = len(targets.vectors)
    each = max(asked.limit, asked.mmr_candidates)
    if count * each > MAX_ANSWERS:
        raise LimitExceeded(
            f"{count} queries of {each} answers (or candidates) are {count * each} answers, at most "
            f"{MAX_ANSWERS} are given at once; send fewer queries a call",
            given=count * each,
            limit=MAX_ANSWERS,
        )
    groups: list[list[Any]] | None = None
    if asked.group_by is not None:
        near, rows, groups = search.grouped(targets)
    elif asked.mmr_lambda is not None:
        near, rows = search.diverse(targets)
    else:
        near, rows = search.ranked(targets)
    fetching = time.perf_counter()
    if HERE.now is not None and asked.include:
        HERE.now.fetch_at_s = fetching
    result = _answer(core, search.view, near, rows, groups, asked)
    if search.note is not None:
        ended = time.perf_counter()
        result = explained(
            search.view, search.note, result,
            records=search.records, target_recall=search.target_recall,
            filter_s=search.filter_s, fetch_s=ended - fetching, total_s=ended - begun,
            device_note=core.assigned.note,
        )  # fmt: skip
    return result


class Search:
    """One query at one view: the ways to search it."""

    def __init__(self, core: Core, audit: Audit | None, asked: Query) -> None:
        self.core = core
        self.asked = asked
        self._end = None if asked.timeout_s is None else time.monotonic() + asked.timeout_s
        self.check = deadline(asked.timeout_s)
        self.note = Note() if asked.explain else None
        self._noted = HERE.now
        view = self._moment()
        self.field: Field = core.field(asked.vector_name)
        self.records = view.n_live
        self.view: View = view if asked.vector_name is None else self.field.index.view
        if self.view.sequence > view.sequence:
            # Named vectors are published first. What a thread has seen here it must see everywhere.
            core.wait_for(self.view.sequence, asked.timeout_s)
        # Without a k a distance bound asks for all that lie within: the index cannot know how many.
        self.exact = asked.exact or asked.k is None
        if self._noted is not None:
            self._noted.view, self._noted.target_recall = self.view, self.target_recall
        self.filter_s = 0.0
        self.allowed: Selection | None = None
        if asked.filter is not None:
            begun = time.perf_counter()
            moment = core.moment(self.view)
            try:
                self.allowed = core.matching(asked.filter, moment, self.check)
            finally:
                self.filter_s = time.perf_counter() - begun
                if self._noted is not None:
                    self._noted.filter_s = self.filter_s
        plain = asked.group_by is None and asked.mmr_lambda is None and asked.target_recall is None
        self._audit = audit if plain else None

    def _moment(self) -> View:
        """The view to read, which has the commit that is waited for: time that is no search."""
        asked = self.asked
        if asked.min_sequence is None:
            return self.core.wait_for(None, asked.timeout_s)
        begun = time.perf_counter()
        try:
            return self.core.wait_for(asked.min_sequence, asked.timeout_s)
        finally:
            for notes in (self.note, self._noted):
                if notes is not None:
                    notes.wait_s += time.perf_counter() - begun

    @property
    def target_recall(self) -> float:
        """What this query asks of the index."""
        if self.exact:
            return 1.0
        asked = self.asked.target_recall
        return self.field.settings.target_recall if asked is None else asked

    def nearest(
        self, queries: NDArray[Any], width: int, allowed: Selection | None
    ) -> tuple[Floats, Rows]:
        """Distances and rows (q, w), nearest first, NaN and -1 behind them; w is `width`, or less
        where there are fewer records: a k of 10,000 on a small collection must not cost 10,000.
        """
        view, recall = self.view, self.asked.target_recall
        width = max(1, min(width, view.n_live))
        parts = []
        if len(queries) <= MAX_TOGETHER:
            self.check()
            found = LANE.search(
                view, queries, width, allowed, self.exact, recall, self._end, self.note
            )
            parts.append(found)
        else:
            parts = list(
                LANE.slices(view, queries, width, allowed, self.exact, recall, self._end, self.note)
            )
        near, rows = parts[0].distances, parts[0].rows
        if self._noted is not None:
            self._noted.plan = self._noted.plan or parts[0].plan
            self._noted.allowed = allowed
        if len(parts) > 1:
            near = np.concatenate([part.distances for part in parts])
            rows = np.concatenate([part.rows for part in parts])
        if self._audit is not None and not all(part.exact for part in parts):
            self._audit.offer(self.field.name, view, queries, width, allowed, near)
        return near, rows

    def ranked(self, targets: Targets) -> tuple[Floats, Rows]:
        """The k nearest, or all within the distance."""
        asked = self.asked
        spare = 0 if targets.left_out is None else targets.left_out.shape[1]
        if asked.k is not None:
            near, rows = self.nearest(targets.vectors, asked.k + spare, self.allowed)
            return _cut(near, rows, targets.left_out, asked.max_distance, asked.k)
        assert asked.max_distance is not None
        near, rows = self._within(targets.vectors, asked.max_distance, MAX_K + spare)
        return _cut(near, rows, targets.left_out, asked.max_distance, MAX_K)

    def _within(self, queries: NDArray[Any], max_distance: float, most: int) -> tuple[Floats, Rows]:
        """All rows within a distance, at most `most` a query; wider and wider until they end."""
        width = min(_FIRST_RANGE, most)
        near, rows = self.nearest(queries, width, self.allowed)
        while width < most:
            more = np.flatnonzero(
                (rows[:, -1] >= 0) & (near[:, -1].astype(np.float64) <= max_distance)
            )
            if not len(more) or rows.shape[1] < width:
                break
            width = min(4 * width, most)
            wider = self.nearest(np.ascontiguousarray(queries[more]), width, self.allowed)
            near, rows = _wide(near, wider[0].shape[1]), _wide_rows(rows, wider[1].shape[1])
            near[more], rows[more] = wider
        return near, rows

    def diverse(self, targets: Targets) -> tuple[Floats, Rows]:
        """Of the nearest candidates those picked by maximal marginal relevance, in this order."""
        asked = self.asked
        k = MAX_K if asked.k is None else asked.k
        share = asked.mmr_lambda
        assert share is not None
        spare = 0 if targets.left_out is None else targets.left_out.shape[1]
        many = asked.mmr_candidates
        near, rows = self.nearest(targets.vectors, many + spare, self.allowed)
        near, rows = _cut(near, rows, targets.left_out, asked.max_distance, many)
        width = min(k, rows.shape[1])
        out_near = np.full((len(rows), width), np.nan, np.float32)
        out_rows = np.full((len(rows), width), -1, np.int64)
        for i, own in enumerate(rows):
            self.check()
            own = own[own >= 0]
            with self.core.read() as reader:
                vectors = reader.vectors(own, self.field.number)
            picks = most_relevant(
                near[i, : len(own)], vectors, self.field.settings.metric, k, share, self.check
            )
            out_near[i, : len(picks)] = near[i, picks]
            out_rows[i, : len(picks)] = own[picks]
        return out_near, out_rows

    def grouped(self, targets: Targets) -> tuple[Floats, Rows, list[list[Any]]]:
        """The best hits of the best groups."""
        asked = self.asked
        assert asked.group_by is not None
        core, path = self.core, asked.group_by
        groups = Groups(core.ready_columns(), path, self.view.n_rows, self.check)
        allowed = self.allowed
        if not groups.everywhere:
            # Rows without the field would only be in the way.
            if allowed is None:
                has_it = parsed({path: {"$exists": True}})
                assert has_it is not None
                allowed = core.matching(has_it, core.moment(self.view), self.check)
            else:
                mask = allowed.mask() & groups.rows_beyond(())
                allowed = Selection(groups.n_rows, mask=mask)
        return search_groups(
            self.nearest, groups, targets.vectors, MAX_K if asked.k is None else asked.k,
            asked.group_size, allowed, targets.left_out, asked.max_distance, self.check,
        )  # fmt: skip


def _cut(
    near: Floats, rows: Rows, left_out: Rows | None, max_distance: float | None, limit: int
) -> tuple[Floats, Rows]:
    """Without what is to be left out and what lies too far; at most `limit` wide."""
    if left_out is None and max_distance is None:
        return near[:, :limit], rows[:, :limit]
    keep = rows >= 0
    if left_out is not None and left_out.shape[1] == 1:
        keep &= rows != left_out
    elif left_out is not None:
        keep &= ~np.isin(rows, left_out)  # several examples make one query
    if max_distance is not None:
        keep &= near.astype(np.float64) <= max_distance
    order = np.argsort(~keep, axis=1, kind="stable")[:, :limit]
    near = np.where(keep, near, np.float32(np.nan))
    return (
        np.take_along_axis(near, order, 1),
        np.take_along_axis(np.where(keep, rows, -1), order, 1),
    )


def _wide(near: Floats, width: int) -> Floats:
    """Distances (q, w) padded with NaN to `width` columns."""
    if near.shape[1] >= width:
        return near
    out = np.full((len(near), width), np.nan, np.float32)
    out[:, : near.shape[1]] = near
    return out


def _wide_rows(rows: Rows, width: int) -> Rows:
    return np.pad(rows, ((0, 0), (0, max(0, width - rows.shape[1]))), constant_values=-1)


def _answer(
    core: Core,
    view: View,
    near: Floats,
    rows: Rows,
    groups: list[list[Any]] | None,
    asked: Query,
) -> QueryResult:
    """Rows to columns. Ids come from memory; the store is read only for what is included, and for whether another process
    has taken rows meanwhile. MomentGone then."""
    there = rows >= 0
    if core.read_only and not asked.include:
        with core.read() as reader:
            must_show(reader, view.sequence)
    if not asked.include and there.all():
        near = near if asked.k is None else _wide(near, asked.limit)
        return QueryResult(core.ids.take_each(rows), near, sequence=view.sequence, groups=groups)
    counts = there.sum(axis=1)
    flat = rows[there]
    ids = core.ids.take(flat)
    ends = np.cumsum(counts).tolist()
    spans = list(zip([0, *ends[:-1]], ends, strict=True))

    def nested(column: Sequence[Any] | NDArray[Any] | None) -> Any:
        return None if column is None else [column[a:b] for a, b in spans]

    if asked.k is None:
        near = near[:, : int(counts.max(initial=0))]
    else:
        near = _wide(near, asked.limit)
    if not asked.include:
        return QueryResult(nested(ids), near, sequence=view.sequence, groups=groups)
    with core.read() as reader:
        if core.read_only:
            must_show(reader, view.sequence)
        got = fetch(
            reader, flat, ids, asked.include, raw_metadata=asked.raw_metadata,
            max_bytes=asked.max_bytes,
        )  # fmt: skip
    return QueryResult(
        nested(ids),
        near,
        nested(got.vectors),
        nested(got.metadata),
        nested(got.documents),
        nested(got.contents),
        nested(got.uris),
        view.sequence,
        _nested_by_name(got.named_vectors, nested),
        _nested_by_name(got.named_present, nested),
        groups,
    )


def _nested_by_name(columns: Any, nested: Any) -> Any:
    return None if columns is None else {name: nested(held) for name, held in columns.items()}
