"""A view: one published moment of an index, that any number of threads may search."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InvalidQuery, InvalidVector
from . import plan
from .blocks import Mask
from .distance import Floats, Merger, Rows, unit
from .live import Bits, is_set, unpack
from .main import Main
from .tail import Piece

_HALF_ERROR = 2.0**-11 + 1e-5
"""Largest distance of a unit vector from its float16 code, with room for float32 rounding."""


@dataclass(frozen=True, slots=True)
class Found:
    """Answers to q queries, nearest first; ties in distance by row number.

    `distances` float32 (q, w) is padded with NaN, `rows` int64 (q, w) with -1. w is k, and more
    where codes are lossy: the caller computes those again from its own vectors and keeps k. Exact
    answers are widened until the k nearest are surely among them, up to 4 k + 1,000 columns.
    `exact` means that every row that was allowed has been compared. `plan` is one word for how.
    """

    distances: Floats
    rows: Rows
    exact: bool
    plan: str


class MainMask:
    """Live positions of the main index, computed when first needed.

    Views share it as long as no kill touches the main index, so that steady writing does not cost
    one look at every row a commit.
    """

    def __init__(self) -> None:
        self._mask: Mask | None = None

    def get(self, main: Main, bits: Bits) -> Mask:
        # Two threads may both compute it; either result is right.
        if self._mask is None:
            self._mask = unpack(bits, 0, main.high_water)[main.rows]
        return self._mask


class View:
    """Rows 0..n_rows as they were at commit `sequence`. Immutable; search from any thread."""

    def __init__(
        self,
        *,
        dimension: int,
        metric: str,
        lossy: bool,
        target_recall: float,
        sequence: int,
        n_rows: int,
        n_live: int,
        live: Bits,
        main: Main | None,
        main_live: int,
        main_mask: MainMask,
        pieces: tuple[Piece, ...],
    ) -> None:
        self.dimension = dimension
        self.metric = metric
        self.lossy = lossy
        """Codes differ from the vectors they stand for; re-rank with the stored ones."""
        self.target_recall = target_recall
        self.sequence = sequence
        self.n_rows = n_rows
        self.n_live = n_live
        self.live = live
        """uint8, little-endian packed: bit r is 1 when row r is live; meaningless beyond n_rows."""
        self.main = main
        self.main_live = main_live
        """Live rows in the main index."""
        self.pieces = pieces
        self._main_mask = main_mask

    def live_mask(self, start: int = 0, stop: int | None = None) -> Mask:
        """Whether rows start..stop are live: a new bool array. Costs about 0.1 ms a million."""
        stop = self.n_rows if stop is None else stop
        if not 0 <= start <= stop <= self.n_rows:
            raise ValueError(f"rows {start} to {stop} are not within 0 to {self.n_rows}")
        return unpack(self.live, start, stop)

    def is_live(self, rows: Rows) -> Mask:
        """Whether each of these rows (int64, any order) is live; False for unknown rows."""
        rows = np.asarray(rows, np.int64)
        known = (rows >= 0) & (rows < self.n_rows)
        out = np.zeros(rows.shape, np.bool_)
        out[known] = is_set(self.live, rows[known])
        return out

    def search(
        self,
        queries: Floats,
        k: int,
        *,
        allowed: Mask | None = None,
        exact: bool = False,
        target_recall: float | None = None,
    ) -> Found:
        """The k nearest live and allowed rows for each query.

        `queries` (q, d) are the user's vectors as they came, finite, and not zero under cosine.
        `allowed` is bool of shape (n_rows,), True for rows that may answer; dead rows never do.
        `exact` compares every allowed row. `target_recall` replaces the collection's; 1.0 is exact.

        Every query gets k answers when k rows are allowed. InvalidVector and InvalidQuery say what
        is wrong with the call.
        """
        x = self._queries(queries)
        if k < 1:
            raise InvalidQuery(f"k must be at least 1, given {k}", k=k)
        if allowed is not None and (allowed.shape != (self.n_rows,) or allowed.dtype != np.bool_):
            raise InvalidQuery(
                f"allowed must be bool of shape ({self.n_rows},), given {allowed.dtype} of shape "
                f"{allowed.shape}"
            )
        target: float | None = self.target_recall if target_recall is None else target_recall
        if exact or (target is not None and target >= 1.0):
            target = None
        if allowed is not None and self.n_live < self.n_rows:
            allowed = allowed & self.live_mask()
        width = k + max(8, k // 2) if self.lossy else k
        widest = 4 * k + 1_000
        while True:
            found = self._search(x, width, allowed, target)
            if not self.lossy or not found.exact or width >= widest or _certain(found, k):
                return found
            width = min(2 * width, widest)

    def _search(self, x: Floats, k: int, allowed: Mask | None, target: float | None) -> Found:
        merger = Merger(k)
        exact, name = self._search_main(x, k, allowed, target, merger)
        self._search_tail(x, k, allowed, merger)
        return Found(*merger.result(len(x), self.metric), exact, name)

    def _queries(self, queries: Floats) -> Floats:
        if queries.ndim != 2 or queries.shape[1] != self.dimension:
            raise InvalidVector(
                f"queries have shape {queries.shape}, expected (q, {self.dimension})"
            )
        if self.metric == "cosine":
            return unit(queries)
        return np.ascontiguousarray(queries, np.float32)

    def _search_main(
        self, x: Floats, k: int, allowed: Mask | None, target: float | None, merger: Merger
    ) -> tuple[bool, str]:
        if self.main is None or not len(x):
            return True, "exact"
        mask: Mask | None = None
        count = self.main_live
        if allowed is not None:
            chosen = allowed[self.main.rows]
            mask, count = chosen, int(np.count_nonzero(chosen))
        elif count < self.main.n:
            mask = self._main_mask.get(self.main, self.live)
        if not count:
            return True, "exact"
        if count == self.main.n:
            mask = None
        keys, rows, exact, name = plan.search_main(self.main, x, k, mask, count, target)
        merger.add(keys, rows)
        return exact, name

    def _search_tail(self, x: Floats, k: int, allowed: Mask | None, merger: Merger) -> None:
        if not len(x):
            return
        for piece in self.pieces:
            if piece.start == piece.stop:
                continue
            mask = None
            if allowed is not None:
                mask = (
                    allowed[piece.start : piece.stop] if piece.rows is None else allowed[piece.rows]
                )
            elif self.n_live < self.n_rows:
                mask = (
                    unpack(self.live, piece.start, piece.stop)
                    if piece.rows is None
                    else is_set(self.live, piece.rows)
                )
            keys, positions = piece.block.search(x, k, mask)
            merger.add(keys, piece.row_numbers(positions))


def _certain(found: Found, k: int) -> bool:
    """Whether the k nearest by stored vectors must be among lossy answers that are exact by codes.

    A float16 code c of a unit vector x has |c - x| <= 2^-11, so by Cauchy-Schwarz each distance is
    off by at most that, and a row beyond the last column by at most that in the other direction.
    """
    last = found.distances[:, -1]
    gap = last - found.distances[:, k - 1]
    return bool(np.all(np.isnan(last) | (gap > 2 * _HALF_ERROR)))
