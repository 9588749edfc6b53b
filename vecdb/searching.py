"""A query: filter to mask, search of the view, rows to ids and fields."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .batch import check_ids, check_matrix, to_matrix
from .core import Core, deadline
from .errors import InvalidQuery, LimitExceeded
from .fetching import check_include, fetch
from .filters import Filter
from .index import View, distances
from .masks import StoredTexts
from .store import Reader
from .types import DEFAULT_K, MAX_K, QueryResult
from .writes import not_stored

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

MAX_ANSWERS = 5_000_000
"""Queries times k of one call; their ids, distances and rows take some 100 bytes each."""
_LARGEST_BOUND = sys.float_info.max
_SLICE_QUERIES = 256
"""Queries searched at once: enough for the best rate, few enough to keep deadlines and memory."""


def query(
    core: Core,
    vectors: Any,
    ids: Iterable[str] | None,
    k: int | None,
    expression: Filter | None,
    exact: bool,
    max_distance: float | None,
    target_recall: float | None,
    include: Iterable[str],
    min_sequence: int | None,
    timeout_s: float | None,
    *,
    raw_metadata: bool = False,
    max_bytes: int | None = None,
) -> QueryResult:
    """See `Collection.query`."""
    if (vectors is None) == (ids is None):
        raise InvalidQuery("give either vectors or ids to query by, not both and not neither")
    wanted = check_include(include)
    limit = check_k(k, max_distance)
    check_bound(max_distance)
    check_recall(target_recall)
    # Without a k a distance bound asks for all that lie within: the index cannot know how many.
    exact = exact or (max_distance is not None and k is None)
    interrupt = deadline(timeout_s)
    view = core.wait_for(min_sequence, timeout_s)
    if ids is None:
        queries, own = _given(core, vectors), None
    else:
        queries, own = _stored(core, view, ids)
    if len(queries) * limit > MAX_ANSWERS:
        raise LimitExceeded(
            f"{len(queries)} queries of {limit} answers are {len(queries) * limit} answers, at most "
            f"{MAX_ANSWERS} are given at once; send fewer queries a call",
            given=len(queries) * limit,
            limit=MAX_ANSWERS,
        )
    allowed = None
    if expression is not None:
        allowed = core.matching(expression, core.moment(view), interrupt)
    # No wider than there are records: a k of 10,000 on a small collection must not cost 10,000.
    width = min(limit, view.n_live)
    parts: list[tuple[Floats, Rows]] = []
    for start in range(0, len(queries), _SLICE_QUERIES):
        interrupt()
        some = queries[start : start + _SLICE_QUERIES]
        mine = None if own is None else own[start : start + _SLICE_QUERIES]
        found = view.search(
            some,
            max(1, width + (own is not None)),
            allowed=allowed,
            exact=exact,
            target_recall=None if target_recall is None else float(target_recall),
        )
        near, rows = found.distances, found.rows
        if view.lossy:
            with core.read() as reader:
                near, rows = _rescored(core, reader, some, rows)
        parts.append(_cut(near, rows, mine, max_distance, width))
    near = parts[0][0] if len(parts) == 1 else np.concatenate([part[0] for part in parts])
    rows = parts[0][1] if len(parts) == 1 else np.concatenate([part[1] for part in parts])
    asked = None if k is None and max_distance is not None else limit
    return _answer(core, view, near, rows, wanted, asked, raw_metadata, max_bytes)


def _given(core: Core, vectors: Any) -> Floats:
    matrix = to_matrix(vectors, "query vectors")
    if not len(matrix):
        raise InvalidQuery("no query vectors were given; give at least one")
    return check_matrix(core.info, matrix, lambda i: f"query vector {i}", np.dtype(np.float32))


def _stored(core: Core, view: View, ids: Iterable[str]) -> tuple[Floats, Rows]:
    """Vectors of stored records, and the row of each that the view shows (-1 where it shows none)."""
    names = check_ids(ids)
    with core.read() as reader:
        rows = reader.rows_of_ids(names)
        absent = [n.decode() for n, row in zip(names, rows.tolist(), strict=True) if row < 0]
        if absent:
            raise not_stored(absent, "query by ids takes stored records")
        vectors = reader.vectors(rows).astype(np.float32, copy=False)
    for n in np.flatnonzero(rows >= view.n_rows).tolist():
        # Replaced since the view was taken: what it shows of the record is an older row.
        texts = StoredTexts(core.store, core.ids, core.moment(view))
        shown = texts.rows_of_ids([names[n].decode()])
        rows[n] = shown[0] if len(shown) else -1
    return vectors, rows


def check_k(k: int | None, max_distance: float | None) -> int:
    if k is None:
        return DEFAULT_K if max_distance is None else MAX_K
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= MAX_K:
        raise InvalidQuery(f"k must be an integer from 1 to {MAX_K}, given {k!r}", limit=MAX_K)
    return int(k)


def check_bound(max_distance: float | None) -> None:
    if max_distance is None:
        return
    fine = isinstance(max_distance, Real) and not isinstance(max_distance, bool)
    if not fine or abs(max_distance) > _LARGEST_BOUND or math.isnan(max_distance):
        raise InvalidQuery(
            f"max_distance must be a number within float64, given {max_distance!r:.80}"
        )


def check_recall(target_recall: float | None) -> None:
    if target_recall is None:
        return
    fine = isinstance(target_recall, Real) and not isinstance(target_recall, bool)
    if not fine or not 0.5 <= target_recall <= 1.0:
        raise InvalidQuery(f"target_recall must be from 0.5 to 1.0, given {target_recall!r}")


def _rescored(core: Core, reader: Reader, queries: Floats, rows: Rows) -> tuple[Floats, Rows]:
    """Distances from the stored vectors, where the index holds rounded ones; sorted again."""
    near = np.full(rows.shape, np.nan, np.float32)
    for i, candidates in enumerate(rows):
        n = int((candidates >= 0).sum())
        if n:
            vectors = reader.vectors(candidates[:n]).astype(np.float32, copy=False)
            near[i, :n] = distances(queries[i : i + 1], vectors, core.info.metric)[0]
    order = np.lexsort((rows, near), axis=1)
    return np.take_along_axis(near, order, 1), np.take_along_axis(rows, order, 1)


def _cut(
    near: Floats, rows: Rows, own: Rows | None, max_distance: float | None, limit: int
) -> tuple[Floats, Rows]:
    """Without the queried record itself and what lies too far; at most `limit` wide."""
    keep = rows >= 0
    if own is not None:
        keep &= rows != own[:, np.newaxis]
    if max_distance is not None:
        keep &= near.astype(np.float64) <= float(max_distance)
    if not keep[:, :limit].all():
        order = np.argsort(~keep, axis=1, kind="stable")
        near = np.take_along_axis(np.where(keep, near, np.float32(np.nan)), order, 1)
        rows = np.take_along_axis(np.where(keep, rows, -1), order, 1)
    return near[:, :limit], rows[:, :limit]


def _answer(
    core: Core,
    view: View,
    near: Floats,
    rows: Rows,
    include: frozenset[str],
    width: int | None,
    raw_metadata: bool,
    max_bytes: int | None,
) -> QueryResult:
    """Rows to columns. Ids come from memory; the store is read only for what is included."""
    there = rows >= 0
    counts = there.sum(axis=1)
    flat = rows[there]
    ids = core.ids.take(flat)
    ends = np.cumsum(counts).tolist()
    spans = list(zip([0, *ends[:-1]], ends, strict=True))

    def nested(column: Sequence[Any] | None) -> Any:
        return None if column is None else [column[a:b] for a, b in spans]

    if width is None:
        width = int(counts.max(initial=0))
    out = near
    if near.shape[1] != width:
        out = np.full((len(rows), width), np.nan, np.float32)
        out[:, : near.shape[1]] = near[:, :width]
    if not include:
        return QueryResult(nested(ids), out, sequence=view.sequence)
    with core.read() as reader:
        got = fetch(reader, flat, ids, include, raw_metadata=raw_metadata, max_bytes=max_bytes)
    return QueryResult(
        nested(ids),
        out,
        nested(got.vectors),  # type: ignore[arg-type]
        nested(got.metadata),
        nested(got.documents),
        nested(got.contents),
        nested(got.uris),
        view.sequence,
    )
