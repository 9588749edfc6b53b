"""A view: one published moment of an index, that any number of threads may search."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import InvalidQuery, InvalidVector
from ..layout import vector_width
from ..selection import Selection
from ..turns import Wait
from . import chosen, main_part, one, plan, proof
from .blocks import Allowed, Mask
from .chosen import Few, MainMask
from .device_main import DeviceMain
from .distance import Floats, Merger, Rows, at_a_line, unit
from .fews import Fews, Lasting
from .found import Found
from .live import Bits, is_set, unpack
from .main import Main, copied
from .reasons import NO_QUERY, Reasons
from .served import Served
from .side import Sides
from .source import VectorSource, true_keys
from .straight import Straight
from .tail import Piece
from .tiled import LEAST_QUERIES, PLAN, Tiled
from .trace import FEW, Trace

_KEPT_STRAIGHTS = 64
_UNKNOWN: Any = object()
_ON_DEVICE = 1_024
"""Queries of a large batch that go to a device together."""


class View:
    """Rows 0..n_rows as they were at commit `sequence`. Immutable; search from any thread."""

    def __init__(
        self,
        *,
        dimension: int,
        metric: str,
        storage: str,
        source: VectorSource,
        lossy_tail: bool,
        target_recall: float,
        sequence: int,
        n_rows: int,
        n_live: int,
        live: Bits,
        main: Main | None,
        main_live: int,
        main_mask: MainMask,
        sides: Sides,
        lasting: Lasting,
        pieces: tuple[Piece, ...],
        served: Served | None = None,
        device_main: DeviceMain | None = None,
        reasons: Reasons | None = None,
        tiled: Tiled | None = None,
    ) -> None:
        self.dimension = dimension
        self.metric = metric
        self.storage = storage
        self.source = source
        self.lossy_tail = lossy_tail
        """Codes of the tail differ from the vectors they stand for: ranked again by the stored ones."""
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
        self.main_mask = main_mask
        self.sides = sides
        self.served = served if copied(main) is None else None
        """Vectors on a device that answer for all that `main` has."""
        if (
            self.served is not None
            and main is not None
            and self.served.high_water < main.high_water
        ):
            self.served = None  # rows between lie in the codes alone
        self.device_main = device_main
        """The copy of `main` that lies on a device."""
        self.reasons = reasons
        """Says why the CPU answers; None where no device was asked for."""
        self.tiled = tiled
        self.asks_devices_from = math.inf if tiled is None else LEAST_QUERIES
        """A search of at least so many queries may wait for a device."""
        if self.served is not None or device_main is not None:
            self.asks_devices_from = 0
        self.lasting = lasting
        self._fews = Fews(lasting)
        self.is_simple = device_main is None and one.is_simple(main, pieces, lossy_tail)
        self._whole_tail = n_live - main_live == self.tail_rows
        self._straights: dict[tuple[int, float | None], Straight | None] = {}

    @property
    def tail_rows(self) -> int:
        """Rows that are compared one by one, dead ones among them."""
        return sum(piece.block.n for piece in self.pieces)

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
        queries: Any,
        k: int,
        *,
        allowed: Selection | None = None,
        exact: bool = False,
        target_recall: float | None = None,
        trace: Trace | None = None,
        check: Callable[[], None] = lambda: None,
        square: float | None = None,
    ) -> Found:
        """The k nearest live and allowed rows for each query.

        `queries` (q, width) are the user's vectors as they came, finite, and not zero under cosine;
        uint8 for binary storage, else float32. `allowed` is a selection of `n_rows` rows; dead rows
        never answer. `exact` compares every allowed row. `target_recall` replaces the collection's;
        1.0 is exact. `trace` is filled. `check` is called between the steps of a long search and may
        raise. `square` is the squared length of a single query, where it is known.

        Every query gets k answers when k rows are allowed. InvalidVector, InvalidQuery: what is wrong.
        """
        if square is not None and allowed is None and trace is None and not exact:
            way: Straight | None = self._straights.get((k, target_recall), _UNKNOWN)
            if way is _UNKNOWN:
                way = self._straight(k, target_recall)
            found = None if way is None else way.nearest(queries, square)
            if found is not None:
                return found
        x = self._queries(queries, square)
        if k < 1:
            raise InvalidQuery(f"k must be at least 1, given {k}", k=k)
        target: float | None = self.target_recall if target_recall is None else target_recall
        if exact or (target is not None and target >= 1.0):
            target = None
        main = self.main
        simple = target if self.is_simple and trace is None and len(x) else None
        if simple and allowed is None and (found := self._one(x, k, simple, None)):
            return found
        if allowed is not None and allowed.n_rows != self.n_rows:
            raise InvalidQuery(f"allowed is of {allowed.n_rows} rows, the view has {self.n_rows}")
        if not len(x):
            self._say_why_cpu(trace, NO_QUERY)
            return Found(np.empty((0, k), np.float32), np.empty((0, k), np.int64), True, "exact")
        if allowed is not None and chosen.is_few(allowed, self.dimension):
            near, rows = self._fews.of(self, allowed, trace).search(x, k)
            self._say_why_cpu(trace, FEW)
            return Found(near, rows, True, "exact")
        if simple and allowed is not None and (found := self._one(x, k, simple, allowed)):
            return found
        # Whether these queries are among those that the host has taken over already.
        counted = False
        if self.served is not None:
            answered = self.served.answer(self, x, k, allowed, trace, check)
            if not isinstance(answered, str):
                if trace is not None:
                    trace.allowed_rows = self.count(allowed)
                return Found(answered[0], answered[1], True, answered[2])
            counted = bool(answered)
        compared = target is None or main is None
        if target is not None and main is not None and main.by_codes:
            # No setting reaches the target: then the codes themselves cannot tell the vectors apart.
            compared = not main.tells or main.setting(target, k) is None
        copy = self.device_main
        if copy is not None and copy.beneath is not None:
            share = 1.0 if allowed is None or main is None else allowed.count() / main.n
            if compared or not copy.goes_as_far(k, min(1.0, max(share, 1e-9))):
                answered = copy.beneath.answer(self, x, k, allowed, trace, check)
                if not isinstance(answered, str):
                    if trace is not None:
                        trace.allowed_rows = self.count(allowed)
                    return Found(answered[0], answered[1], True, answered[2])
                counted = counted or bool(answered)
        if compared and self.tiled is not None:
            near_rows = self.tiled.answer(self, x, k, allowed, trace, check, counted)
            if near_rows is not None:
                return Found(*near_rows, True, PLAN)
        if trace is not None and compared and copy is not None and (names := copy.names):
            trace.why_cpu = trace.why_cpu or f"all rows are compared, and {names} holds an index"
        if compared and (self.lossy_tail or (main is not None and main.by_codes)):
            self._say_why_cpu(trace)
            return proof.nearest(self, x, k, allowed, trace, check)
        merger = Merger(k)
        all_exact, name = self._search_main(x, k, allowed, target, merger, trace, check)
        self.search_tail(x, k, allowed, merger, trace, self.pieces)
        self._say_why_cpu(trace)
        if trace is not None:
            trace.allowed_rows = self.count(allowed)
        return Found(*merger.result(len(x), self.metric), all_exact and not self.lossy_tail, name)

    def _say_why_cpu(self, trace: Trace | None, why: str = "") -> None:
        """Puts a note into the trace of a search that the CPU answered although a device was asked for."""
        if trace is None or self.reasons is None or trace.device != "cpu" or trace.device_note:
            return
        why = why or trace.why_cpu or self.reasons.of_answer(self)
        trace.device_note = f"{why}; answered by the CPU"

    def together(
        self, count: int, k: int, allowed: Selection | None, exact: bool, wait: Wait
    ) -> int:
        """How many of a large batch of `count` queries belong into one call; 0: as many as one likes. A device may be measured for
        that, for no longer than the `wait` says."""
        placed = self.served is not None and self.served.there
        copy = self.device_main
        if placed or (copy is not None and not (exact and copy.beneath is None)):
            return _ON_DEVICE  # its own queue lets others in between
        if self.tiled is None or not (exact or self.main is None):
            return 0
        return self.tiled.together(self, count, k, allowed, wait)

    def _one(self, x: Floats, k: int, target: float, allowed: Selection | None) -> Found | None:
        """Queries to a graph or lists, of one also to the tail; None where it is not as simple as that."""
        main = self.main
        assert main is not None
        if len(x) > 1 and (self.pieces or allowed is not None):
            return None
        inside = self.allowed_in_main(allowed)
        if inside is None or inside.count == main.n:
            found = one.nearest(main, x, k, target, self.source, self.metric)
        elif main.lossy or main.kind != "hnsw" or len(x) > 1:
            return None
        else:
            asked = self.sides.asked(allowed, k)
            found = one.nearest_allowed(main, x, k, target, inside, asked, self.metric)
        if found is not None and self.pieces:
            whole = allowed is None and self._whole_tail
            tail = [(p, None if whole else self.allowed_in_piece(p, allowed)) for p in self.pieces]
            found = one.with_tail(found, tail, x, k, self.metric)
        return None if found is None else Found(found[0], found[1], False, found[2])

    def _straight(self, k: int, target_recall: float | None) -> Straight | None:
        """How single queries without a filter are answered, where that is as simple as can be; worked out once."""
        main, target = self.main, self.target_recall if target_recall is None else target_recall
        made = None
        if self.is_simple and main is not None and main.walked is not None and not self.pieces:
            if main.is_late:
                return None  # for now
            if self.main_live == main.n and 0.0 < target < 1.0 and 0 < k <= main.n:
                setting = plan.plain_walk(main, target, k)
                if setting is not None:
                    made = Straight(main, main.walked, k, setting, self.metric)
        if len(self._straights) >= _KEPT_STRAIGHTS:
            self._straights = {}
        self._straights[k, target_recall] = made
        return made

    def _queries(self, queries: Any, square: float | None = None) -> Any:
        width = vector_width(self.dimension, self.storage)
        if queries.ndim != 2 or queries.shape[1] != width:
            raise InvalidVector(f"queries have shape {queries.shape}, expected (q, {width})")
        if self.storage == "binary":
            return np.ascontiguousarray(queries, np.uint8)
        if self.metric == "cosine":
            return unit(queries, square)
        return at_a_line(queries)

    def let_go(self) -> None:
        """Of what is only kept for the next query."""
        self._fews.let_go()

    def few(self, allowed: Selection) -> Few | None:
        """The vectors of a selection, side by side, where they were put so for an earlier query."""
        return self._fews.kept(allowed)

    def count(self, allowed: Selection | None) -> int:
        """Live rows among those allowed."""
        if allowed is None:
            return self.n_live
        if allowed.is_list:
            return int(np.count_nonzero(is_set(self.live, allowed.rows())))
        return int(np.count_nonzero(allowed.mask() & self.live_mask()))

    def allowed_in_main(self, allowed: Selection | None) -> Allowed | None:
        """Positions of the main index that may answer; None for all."""
        main = self.main
        assert main is not None
        if allowed is not None:
            return self.main_mask.chosen(main, self.live, self.main_live, allowed)
        if self.main_live < main.n:
            return self.main_mask.live(main, self.live)
        return None

    def _search_main(
        self,
        x: Any,
        k: int,
        allowed: Selection | None,
        target: float | None,
        merger: Merger,
        trace: Trace | None,
        check: Callable[[], None],
    ) -> tuple[bool, str]:
        main = self.main
        if main is None or not self.main_live:
            return True, "exact"
        inside = self.allowed_in_main(allowed)
        if inside is not None and not inside.count:
            return True, "exact"
        if inside is not None and inside.count == main.n:
            inside = None
        return main_part.search(
            main, self.device_main, x, k, inside, target, self.sides.asked(allowed, k),
            self.ranked_again, merger, trace, check,
        )  # fmt: skip

    def ranked_again(self, x: Any, rows: Rows, trace: Trace | None) -> Floats:
        """Keys of rows by the stored vectors."""
        started = time.perf_counter()
        keys = true_keys(x, self.source, rows, self.metric)
        if trace is not None:
            trace.rerank_us += 1e6 * (time.perf_counter() - started)
            trace.main_rows_compared += rows.shape[1]
        return keys

    def search_tail(
        self,
        x: Any,
        k: int,
        allowed: Selection | None,
        merger: Merger,
        trace: Trace | None,
        pieces: tuple[Piece, ...],
    ) -> None:
        """Adds the nearest live and allowed rows of these pieces of the tail, all compared, to `merger`."""
        if not pieces:
            return
        lossy = self.lossy_tail
        own = Merger(k + max(8, k // 2)) if lossy else merger
        for piece in pieces:
            if piece.start == piece.stop:
                continue
            inside = self.allowed_in_piece(piece, allowed)
            if inside is not None and not inside.count:
                continue
            keys, positions = piece.block.search(x, own.k, inside)
            own.add(keys, piece.row_numbers(positions))
            if trace is not None:
                trace.tail_rows_compared += piece.block.n if inside is None else inside.count
        if lossy:
            rows = own.best(len(x))[1]
            merger.add(self.ranked_again(x, rows, trace), rows)

    def allowed_in_piece(self, piece: Piece, allowed: Selection | None) -> Allowed | None:
        """Positions of a piece that are live and allowed; None for all."""
        n, rows = piece.block.n, piece.rows
        if allowed is not None and allowed.is_list:
            chosen = allowed.rows()
            low, high = np.searchsorted(chosen, [piece.start, piece.stop])
            chosen = chosen[low:high]
            chosen = chosen[is_set(self.live, chosen)]
            if rows is None:
                return Allowed(n, picked=chosen - piece.start)
            at = np.searchsorted(rows, chosen)
            inside = at < n
            at, chosen = at[inside], chosen[inside]
            return Allowed(n, picked=at[rows[at] == chosen])
        mask = None
        if self.n_live < self.n_rows:
            mask = (
                unpack(self.live, piece.start, piece.stop)
                if rows is None
                else is_set(self.live, rows)
            )
        if allowed is not None:
            chosen_mask = allowed.mask()
            part = chosen_mask[piece.start : piece.stop] if rows is None else chosen_mask[rows]
            mask = part if mask is None else mask & part
        return None if mask is None else Allowed(n, mask=mask)
