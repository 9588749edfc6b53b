"""Where an index reads stored vectors from, and exact search straight over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .blocks import Allowed, BitBlock, FloatBlock
from .distance import Floats, Merger, Rows, lengths, squares, unit
from .door import faiss_metric

READ_ROWS = 8_192
_SLICE_SCALARS = 4 << 20
"""Scalars of vectors that are gathered at once to be compared."""


class VectorSource(Protocol):
    """Stored vectors in stored dtype. Any thread may read."""

    def range(self, start: int, stop: int) -> NDArray[Any]:
        """Vectors (stop - start, width) of rows [start, stop), dead ones with any finite content."""

    def rows(self, rows: Rows) -> NDArray[Any]:
        """Vectors (len(rows), width) of these rows, in their order."""


def exact_space(vectors: NDArray[Any], metric: str) -> Any:
    """Stored vectors as float32 (hamming: uint8), of unit length for cosine; nothing is rounded."""
    if metric == "hamming":
        return np.ascontiguousarray(vectors, np.uint8)
    return unit(vectors) if metric == "cosine" else np.ascontiguousarray(vectors, np.float32)


def true_keys(queries: Any, source: VectorSource, rows: Rows, metric: str) -> Floats:
    """Keys (q, w) of `rows` (q, w) by their stored vectors; inf for -1. 45 us for 16 rows of 384.

    `queries` are in the index's space. Computed pair by pair.
    """
    if rows.size and metric != "hamming" and rows.min() >= 0:
        # All found what they asked for: nothing is missing. Repeated rows are read again, which is less
        # than finding out.
        step = max(1, _SLICE_SCALARS // (rows.shape[1] * queries.shape[1]))
        parts = [
            _all_keys(queries[i : i + step], source, rows[i : i + step], metric)
            for i in range(0, len(rows), step)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
    keys = np.full(rows.shape, np.inf, np.float32)
    there = rows >= 0
    if not there.any():
        return keys
    wanted, back = np.unique(rows[there], return_inverse=True)
    vectors, norms = _to_compare(source.rows(wanted), metric)
    at = np.zeros(rows.shape, np.int64)
    at[there] = back
    for i, query in enumerate(queries):
        mine = at[i][there[i]]
        own = None if norms is None else norms[mine]
        keys[i][there[i]] = _keys(query, vectors[mine], own, metric)
    return keys


def _all_keys(queries: Any, source: VectorSource, rows: Rows, metric: str) -> Floats:
    """`true_keys` where no row is missing; the same bits, in one pass over all pairs."""
    vectors, norms = _to_compare(source.rows(rows.ravel()), metric)
    pairs = vectors.reshape(*rows.shape, -1)
    keys: Floats
    if metric == "l2":
        difference = pairs - queries[:, None, :]
        return np.asarray(np.einsum("qwd,qwd->qw", difference, difference))
    keys = -np.einsum("qwd,qd->qw", pairs, queries)
    if norms is not None:
        keys /= norms.reshape(rows.shape)
    return keys


def _to_compare(vectors: NDArray[Any], metric: str) -> tuple[Any, Floats | None]:
    """Stored vectors for `_keys`. Under cosine they are not copied to unit length where dividing the
    products by their lengths does as well."""
    if metric == "cosine" and vectors.dtype == np.float32:
        norms = lengths(vectors)
        if norms is not None:
            return vectors, norms
    return exact_space(vectors, metric), None


def _keys(query: Any, vectors: Any, norms: Floats | None, metric: str) -> Floats:
    """Keys (n,) of vectors (n, width) for one query; each is the same whatever stands beside it.

    `norms` (n,) are their lengths under cosine, None where these are 1.
    """
    keys: Floats
    if metric == "l2":
        keys = squares(query[None], vectors)[0]
    elif metric == "hamming":
        keys = np.bitwise_count(vectors ^ query).sum(axis=1).astype(np.float32)
    else:
        keys = -np.einsum("nd,d->n", vectors, query)
        if norms is not None:
            keys /= norms
    return keys


def scan(
    queries: Any,
    k: int,
    metric: str,
    source: VectorSource,
    stop: int,
    allowed: Callable[[int, int], NDArray[np.bool_]],
    check: Callable[[], None] = lambda: None,
) -> tuple[Floats, Rows]:
    """Keys and rows (q, <= k), not sorted, among all allowed rows below `stop`, read from the source.

    `allowed(start, stop)` is a bool mask of these rows. Reads every vector: about 0.6 s a million
    rows of 384 float32. `check` is called between slices and may raise.
    """
    merger = Merger(k)
    for start in range(0, stop, READ_ROWS):
        check()
        end = min(stop, start + READ_ROWS)
        mask = allowed(start, end)
        if not mask.any():
            continue
        vectors = exact_space(source.range(start, end), metric)
        block = (
            BitBlock(vectors) if metric == "hamming" else FloatBlock(vectors, faiss_metric(metric))
        )
        keys, positions = block.search(queries, k, Allowed(len(mask), mask=mask))
        merger.add(keys, np.where(positions < 0, -1, positions + start))
    return merger.best(len(queries))
