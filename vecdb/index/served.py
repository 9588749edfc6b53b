"""Rows whose vectors lie on a device, and searches that are answered there.

A device knows no rows and no filters. A filter that allows less than half goes there as a mask (`masks_there.py`), where
the card has kernels that obey one. Else a search asks
for more than it wants, drops what is dead or not allowed, and is content when enough is left: among the
k' nearest, k allowed ones are the k nearest allowed, whatever the filter has to do with the vectors. A search
that finds fewer asks wider, up to what the card gives; behind that, and where few rows are allowed and there are no
masks, the host compares the allowed rows.

Vectors on a device are float32 or, where these do not fit, float16. Float16 answers are ranked again by
the stored vectors, and are only given when no row outside the candidates can belong to them; so answers are
those of the CPU, but for the rounding of float32. Of rows at equal distance the lower ones answer, whatever order a card has them in; where
products of float32 decide (ip, and cosine that is not ranked again), of those for which the card computes one product.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..device import Placements
from ..device.card import SCAN_DIMENSIONS
from ..errors import DeviceFull, DeviceLost
from ..selection import Selection
from .blocks import FloatBlock
from .codes import to_space
from .distance import Floats, Merger, Rows, padded
from .live import Bits, is_set
from .masks_there import Masks
from .plan import wanted_with
from .source import READ_ROWS, VectorSource, true_keys
from .tail import Piece, trim
from .there import There
from .trace import FEW, Trace

EXTRA = 8
"""Candidates beyond those wanted, so that a few equal ones at the end do not cost a second search."""
WIDER = 4
_HALF, _LEAST_HALF = 2.0**-11, 2.0**-25
"""What rounding to float16 moves a number by at most: that share of it, or so much where it is below 2^-14."""
LARGEST_HALF = 65_504.0
"""What is larger becomes infinite in float16."""
_EXPANDED = 2.0**-24
"""Of the squared lengths that the card's squared distance is expanded from: see `FloatBlock`, where the bound is explained."""
_ROUND = 4e-6
"""Of the squared lengths that a squared distance is the difference of, computed in float32."""
LEAST_SHARE = 1 / 64
"""A filter that allows a smaller share of the rows is answered by the host, which compares these rows, where the card
has no masks."""
MASKED_BELOW = 0.5
"""A filter that allows more is met by asking for twice as much, which costs less than making a mask for it."""


class Seen(Protocol):
    """What a search here needs of the view that is searched, which knows it too."""

    n_rows: int
    n_live: int
    live: Bits
    source: VectorSource
    pieces: tuple[Piece, ...]

    def search_tail(
        self,
        x: Any,
        k: int,
        allowed: Selection | None,
        merger: Merger,
        trace: Trace | None,
        pieces: tuple[Piece, ...],
    ) -> None:
        """Adds the nearest of these pieces to `merger`."""


class Served(There):
    """Copies of rows on a device (or in shards on several); any thread may search.

    `rows` (n,) int64 are the row numbers of positions; all rows that were live below `high_water`
    when they were placed are among them. Immutable but for `note`.
    """

    _by_l2 = False
    """Cosine, and the device compares by l2."""

    def __init__(
        self,
        placements: Placements,
        key: Hashable,
        rows: Rows,
        high_water: int,
        metric: str,
        code: str,
        longest: float,
        gone: Callable[[], None],
        busy: Callable[[float, int, int], None] = lambda *_: None,
        *,
        lies_as: str = "",
    ) -> None:
        """`lies_as` says how the device compares, l2 or ip, where `metric` does not: cosine by l2 of unit vectors."""
        super().__init__(placements, key)
        self.rows = rows
        self.high_water = high_water
        self.metric = metric
        self.code = code
        self._lies_as = lies_as or ("l2" if metric == "l2" else "ip")
        self._by_l2 = self._lies_as == "l2" and metric != "l2"
        self.longest = longest
        """Length of the longest vector, for the bound of what rounding can do."""
        self._gone = gone
        self._busy = busy
        self._masks = Masks(placements, key, rows)
        self._cut: dict[int, tuple[Piece, tuple[Piece, ...]]] = {}

    def answer(
        self,
        view: Seen,
        x: Floats,
        k: int,
        allowed: Selection | None,
        trace: Trace | None,
        check: Callable[[], None],
    ) -> tuple[Floats, Rows, str] | str:
        """Distances and rows (q, k), nearest first, exact, and the plan's name. Else the host has to answer all of it: why this
        search failed here, for which its queries are counted, or "" where the host had better answer. What
        came after the placing is compared by the host, beside."""
        found = self.search(view, x, k, allowed, trace, check)
        if isinstance(found, str):
            if found:
                if trace is not None:
                    trace.device_note = f"{found}; answered by the CPU"
                if not self.there:
                    self._gone()
            return found
        merger, plan, names = found
        held = self.placements.get(self.key)
        if held is not None:
            self._busy(*max(s.device.spent(s.placed.handle) for s in held.shards))
        view.search_tail(x, k, allowed, merger, trace, self.behind(view.pieces))
        if trace is not None:
            trace.device, trace.plan = names, plan
        return *merger.result(len(x), self.metric), plan

    def search(
        self,
        view: Seen,
        x: Floats,
        k: int,
        allowed: Selection | None,
        trace: Trace | None,
        check: Callable[[], None],
    ) -> tuple[Merger, str, str] | str:
        """The nearest live and allowed placed rows of `view` for (q, d) queries, the plan, and the devices; why it failed where the host
        must answer, "" where it had better.

        LimitExceeded when the queue of the device is full.
        """
        held = self.placements.get(self.key)
        if held is None:
            return self.failed("what lay on the device had to go, or its worker died", len(x))
        if self.code == "float16" and np.abs(x).max(initial=0.0) > LARGEST_HALF:
            # Infinite there: its products are no numbers, and nothing may be given as if it were all.
            if trace is not None:
                trace.why_cpu = f"numbers beyond {LARGEST_HALF:,.0f} do not lie in float16"
            return ""
        count = view.n_live if allowed is None else allowed.count()
        # Of what lies there: row numbers only grow, and rows that never had this vector have them too.
        share = min(1.0, count / max(1, len(self.rows)))
        masks = x.shape[1] <= SCAN_DIMENSIONS and all(s.device.info.masks for s in held.shards)
        limits = [s.device.info.limits for s in held.shards]
        limit = min(one.scan_k if masks else one.k for one in limits)
        spare = EXTRA + (k if self.code == "float16" else 0)
        masked = masks and allowed is not None and share < MASKED_BELOW
        if share < LEAST_SHARE and not masked:
            if trace is not None:
                trace.why_cpu = FEW
            return ""
        width = spare + (k if masked else wanted_with(k, share))
        if width > limit:
            if trace is not None:
                trace.why_cpu = _too_many(width, held.names, limit)
            return ""
        names = held.names  # they may have gone when the answer is there
        try:
            if not masked or allowed is None:
                merger = self._nearest(names, view, x, k, width, limit, allowed, 0, trace, check)
                plan = "exact" if allowed is None else "overfetch"
                return merger if isinstance(merger, str) else (merger, plan, names)
            with self._masks.using(allowed, view.live) as (mask, inside):
                if not mask:
                    return self.failed("what lay on the device had to go", len(x))
                if trace is not None:
                    trace.main_rows_compared = inside
                if not inside:
                    self.note = ""
                    return Merger(k), "exact", names
                merger = self._nearest(names, view, x, k, width, limit, allowed, mask, trace, check)
                return merger if isinstance(merger, str) else (merger, "exact", names)
        except (DeviceLost, DeviceFull) as error:
            return self.failed(error.message, len(x))

    def _nearest(
        self,
        names: str,
        view: Seen,
        x: Floats,
        k: int,
        width: int,
        limit: int,
        allowed: Selection | None,
        mask: int,
        trace: Trace | None,
        check: Callable[[], None],
    ) -> Merger | str:
        """Asks for `width` candidates, and for more where these do not do; what `search` gives where that is no answer. `names`
        are the devices."""
        merger = Merger(k)
        best_keys = np.full((len(x), k), np.inf, np.float32)
        best_rows = np.full((len(x), k), -1, np.int64)
        open_ = np.arange(len(x))
        while open_.size:
            check()
            some = x if open_.size == len(x) else np.ascontiguousarray(x[open_])
            width = min(width, limit, len(self.rows))
            answer = self.ask(some, width, 0, self._lies_as, mask)
            if answer is None:
                return self.failed("what lay on the device had to go", len(x))
            keys, rows, sure = self._allowed_first(view, some, answer[0], answer[1], k, allowed)
            if trace is not None:
                trace.candidates = max(trace.candidates, width)
                if not mask:
                    trace.main_rows_compared = len(self.rows)
            # Where it gave fewer than it was asked for, these are all.
            sure |= (answer[1][:, -1] < 0) | (width >= len(self.rows))
            best_keys[open_[sure]], best_rows[open_[sure]] = keys[sure], rows[sure]
            open_ = open_[~sure]
            if open_.size and width >= limit:
                if trace is not None:
                    trace.why_cpu = _too_many(WIDER * width, names, limit)
                return ""
            width *= WIDER
        self.note = ""
        merger.add(best_keys, best_rows)
        return merger

    def _allowed_first(
        self,
        view: Seen,
        x: Floats,
        scores: Floats,
        positions: Rows,
        k: int,
        allowed: Selection | None,
    ) -> tuple[Floats, Rows, np.ndarray]:
        """Keys and rows (q, k), and which queries need no second look."""
        keys = scores if self._lies_as == "l2" else -scores
        if self._by_l2:
            # |x - y|^2 = 2 - 2 xy where both are of unit length.
            keys = 0.5 * keys - np.float32(1.0)
        rows = np.where(positions < 0, -1, self.rows[positions])
        good = positions >= 0
        good[good] = is_set(view.live, rows[good])
        if allowed is not None:
            good[good] = allowed.mask()[rows[good]]
        last = keys[:, -1]
        rows = np.where(good, rows, -1)
        if self.code == "float16" or self._lies_as == "l2":
            # Of l2 by differences: the card's expansion loses digits where vectors are long and close.
            keys = true_keys(x, view.source, rows, self.metric)
        else:
            keys = np.where(good, keys, np.float32(np.inf))
        order = np.lexsort((rows, keys), axis=1)[:, :k]
        keys = np.take_along_axis(keys, order, axis=1)
        rows = np.take_along_axis(rows, order, axis=1)
        if keys.shape[1] < k:
            keys, rows = padded(keys, k, np.inf), padded(rows, k, -1)
        sure = rows[:, k - 1] >= 0
        if self.code == "float16":
            sure &= keys[:, k - 1] <= self._at_least(x, last)
        elif self._lies_as == "l2" and not self._by_l2:
            sure &= keys[:, k - 1] < self._not_nearer(x, last, keys[:, k - 1])
        elif self._by_l2:
            # |x - y|^2 = 2 + 2 key
            kth = keys[:, k - 1]
            least = 0.5 * self._not_nearer(x, 2.0 * (last + 1.0), 2.0 * (kth + 1.0))
            sure &= kth < least - 1.0 - _ROUND
        else:
            # Of many queries FAISS's products give equal ones in an order of their own: all of them must be here, to go by row.
            sure &= keys[:, k - 1] < last
        return keys, rows, sure

    def _not_nearer(self, x: Floats, last: Floats, kth: Floats) -> Floats:
        """What a row's squared distance is at least, whose expanded one is `last` (q,) or more, if it were one of the k nearest,
        of which the last has `kth` (q,): so far it cannot be from the origin then."""
        squares = np.einsum("qd,qd->q", x, x, dtype=np.float64)
        reach = np.sqrt(squares) + np.sqrt(np.maximum(kth, 0.0))
        scale = _EXPANDED * (16.0 + 2.0 * np.sqrt(x.shape[1]))
        with np.errstate(invalid="ignore"):  # infinite where there are fewer than k
            return np.asarray(last - scale * (squares + reach * reach), np.float64)

    def _at_least(self, x: Floats, last: Floats) -> Floats:
        """The smallest true key that a row with a coded key of `last` (q,) or more may have.

        Queries and vectors are rounded to float16 on the card, which moves each by 2^-11 of its length, and by what
        its smallest numbers lose. Of a query whose numbers float16 cannot hold nothing is known.
        """
        lengths = np.sqrt(np.einsum("qd,qd->q", x, x, dtype=np.float64))
        least = _LEAST_HALF * np.sqrt(x.shape[1])
        query_moved, row_moved = _HALF * lengths + least, _HALF * self.longest + least
        if self.metric == "l2" or self._by_l2:
            apart = 2.0 * (last + 1.0) if self._by_l2 else last
            rounding = _ROUND * (lengths + self.longest) ** 2
            reach = np.sqrt(np.maximum(apart - rounding, 0.0)) - query_moved - row_moved
            found = np.where(reach > 0, reach, 0.0) ** 2
            if self._by_l2:
                found = 0.5 * found - 1.0 - _ROUND
        else:
            error = query_moved * self.longest + (lengths + query_moved) * row_moved
            found = last - error - _ROUND * lengths * self.longest
        held = np.abs(x).max(axis=1, initial=0.0) <= LARGEST_HALF
        return np.asarray(np.where(held, found, -np.inf), np.float32)

    def behind(self, pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
        """The pieces of a tail without rows below the high-water mark."""
        kept = []
        for piece in pieces:
            if piece.stop <= self.high_water:
                continue
            if piece.start >= self.high_water:
                kept.append(piece)
            elif piece.rows is None and isinstance(piece.block, FloatBlock):
                first = self.high_water - piece.start
                look = FloatBlock(piece.block.vectors[first:], piece.block.metric)
                kept.append(Piece(look, self.high_water, piece.stop))
            else:
                # A sealed or thinned piece: copied once, and kept with the piece so that its id stays its own.
                if id(piece) not in self._cut:
                    self._cut = {id(piece): (piece, trim((piece,), self.high_water, {}))}
                found = self._cut.get(id(piece))
                kept += found[1] if found is not None else trim((piece,), self.high_water, {})
        return tuple(kept)


@dataclass(slots=True)
class Extent:
    """How far vectors reach: the length of the longest, and the largest number in any."""

    longest: float = 0.0
    largest: float = 0.0


def slices(
    source: VectorSource, rows: Rows, metric: str, storage: str, extent: Extent
) -> Iterator[Floats]:
    """Vectors of ascending `rows` in the index's space, in parts; `extent` becomes that of those given so far."""
    done = 0
    while done < rows.size:
        start = int(rows[done])
        end = int(np.searchsorted(rows, start + READ_ROWS))
        stored = source.range(start, int(rows[end - 1]) + 1)
        vectors = to_space(stored[rows[done:end] - start], metric, storage)
        squares = np.einsum("nd,nd->n", vectors, vectors)
        extent.longest = max(extent.longest, float(np.sqrt(squares.max(initial=0.0))))
        if extent.longest > LARGEST_HALF:  # no number of a vector is larger than its length
            extent.largest = max(extent.largest, float(np.abs(vectors).max(initial=0.0)))
        yield vectors
        done = end


def _too_many(candidates: int, names: str, limit: int) -> str:
    return f"{candidates:,} candidates are more than {names} gives ({limit:,})"
