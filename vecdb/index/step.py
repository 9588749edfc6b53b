"""What one build makes of a field's live rows: a graph or lists, anew or grown, and which of two is kept.

A collection of index `auto` that has grown by many rows at once goes through lists, which are made in a
tenth of the time a graph takes (1,000,000 x 384: 45 s to 300). They serve meanwhile; then the graph is
made too, and what answers single queries in less time stays.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..errors import LimitExceeded
from . import choice
from .build import Build, Cancelled, can_extend
from .calibrate import SMALL_K
from .codes import own_code
from .distance import Floats, Rows
from .door import give_memory_back
from .handover import HandOver
from .main import Main
from .makers import Job, Outgrown

log = logging.getLogger("vecdb")

_ANEW_SHARE = 0.25
"""Fresh rows, as a share of those in a graph, from which on one that a device joins is made anew. The CPU makes its
upper levels, which join one row in sixteen, and the vectors have to be read again. A guess."""


_GROWN_FIRST = 0.25
"""Fresh rows, as a share of those in lists that serve until a graph is made, from which on the lists grow before: a graph takes
minutes, in which each query compares what is fresh. (1,000,000 rows that came at once were all indexed after 248 s without.)"""


@dataclass(frozen=True, slots=True)
class Missed:
    """A graph of kind `auto` that was made and does not reach the target. In memory only: a process makes it once."""

    code: str
    joined: bool
    """By a device."""
    rows: int

    def again(self, code: str, joined: bool, rows: int, share: float) -> bool:
        """Whether a graph would be this one again: neither its code nor who joins it is another, and its rows have not grown or
        become fewer by more than this share."""
        moved = abs(rows - self.rows)
        return (code, joined) == (self.code, self.joined) and moved <= share * self.rows


class Indexed(Job, Protocol):
    """What a step needs to know about the index that it is for."""

    quantization: str
    settings: Mapping[str, Any]
    missed: Missed | None
    """The last graph that missed the target, where lists were to be made instead."""


class Step:
    """One build of `rows`, the live rows (ascending) of a moment: the commit `sequence` with `n_rows` rows.

    `kind` is hnsw, ivf, flat or auto; `main` is what serves. One thread; `made` once.
    """

    def __init__(
        self,
        index: Indexed,
        kind: str,
        main: Main | None,
        rows: Rows,
        n_rows: int,
        sequence: int,
        cancel: threading.Event,
        progress: Callable[[float], None],
        hand_over: HandOver,
    ) -> None:
        self.index = index
        self.kind = kind
        self.main = main
        self.rows = rows
        self.first = 0 if main is None else int(np.searchsorted(rows, main.high_water))
        """Where the rows begin that `main` lacks."""
        self.n_rows, self.sequence = n_rows, sequence
        self.cancel, self.progress, self.hand_over = cancel, progress, hand_over

    def made(self, *, anew: bool, spent: bool) -> Main | None:
        """The new main index; None when cancelled, and when `main` has exactly these rows.

        `anew` grows nothing; `spent` says that too many rows of `main` are dead to grow it.
        LimitExceeded when it would need more than `build_memory_bytes`.
        """
        try:
            return self._made(anew=anew, spent=spent)
        except Cancelled:  # while it looked at a sample
            return None

    def _made(self, *, anew: bool, spent: bool) -> Main | None:
        main, kind = self.main, self.kind
        grows = not anew and not spent
        same = main is not None and (main.kind == kind or (kind == "auto" and main.kind != "flat"))
        fresh = self.rows.size - self.first
        serves = main if kind == "auto" and grows else None
        if serves is not None and serves.provisional and fresh <= _GROWN_FIRST * serves.n:
            return self._compared(serves)
        if same and main is not None and self.first == self.rows.size == main.n and not anew:
            return None
        if kind != "auto":
            return self._good_enough(kind, self._code(kind), grows)
        if main is not None and main.kind == "ivf":
            # A graph would not do, or not fit, or is still to be made: see `_auto`.
            lists = self._one("ivf", main.code, grows)
            return lists if lists is None else lists.as_provisional(main.provisional)
        return self._auto(grows)

    def _auto(self, grows: bool) -> Main | None:
        """A graph, or lists where it would not fit or not do, or for the time that it takes."""
        index, target = self.index, self.index.target_recall
        kind, code = self._kind_and_code()
        joined = self._joined()  # then it takes no longer than lists
        missed, share = index.missed, float(index.settings["index_tail_share"])
        if kind == "hnsw" and missed and missed.again(code, joined, self.rows.size, share):
            return self._instead(code)
        if (
            kind == "hnsw"
            and not joined
            and choice.goes_through_lists(code, self.first, self.rows.size, target)
        ):
            lists, fit = None, True
            try:
                lists = self._lists(code)
            except LimitExceeded:
                fit = False  # to train them may take more for a while than a graph does: it is made at once
            if lists is None and fit:
                return None
            if lists is not None and lists.setting(target, SMALL_K) is not None:
                return lists.as_provisional(not choice.keep_up(lists, self.main, index))
            del lists  # before there is a graph as well
            give_memory_back()
        made = self._one(kind, code, grows)
        before = self.main if made is not None and self._extends(kind, code, grows) else None
        if kind != "hnsw" or made is None or not choice.needs_lists(made, target, before):
            return made
        # Cancelled, lists are None: the next build begins with the graph again.
        if made.setting(target, SMALL_K) is None:
            # However slow lists are, it would not be kept.
            index.missed = Missed(code, joined, made.n)
            del made
            give_memory_back()
            return self._instead(code)
        replaced = self.first if before is None else 0
        try:
            lists = self._lists(code, choice.kept_bytes(made, index.dimension, replaced))
        except LimitExceeded:
            return made  # It reaches the target, and is what the memory allows.
        return lists if lists is None or choice.cheaper(lists, made, index) else made

    def _compared(self, lists: Main) -> Main | None:
        """The graph, or the lists that serve already where they are as good, not provisional any more."""
        kind, code = self._kind_and_code()
        if kind == "hnsw":
            try:
                graph = self._one(kind, code, False)
            except LimitExceeded:
                # The lists reach the target, and are what the memory allows.
                return lists.as_provisional(False)
            if graph is None or not choice.cheaper(lists, graph, self.index):
                return graph
        return lists.as_provisional(False)

    def _instead(self, graph_code: str) -> Main | None:
        """Lists in place of a graph that misses the target; where they do not fit, LimitExceeded says that as well."""
        index = self.index
        assert index.missed is not None
        try:
            return self._lists(graph_code)
        except LimitExceeded as error:
            raise LimitExceeded(
                f"a graph of {index.missed.rows:,} rows does not reach a recall of {index.target_recall:g}, and is not built again "
                f"before the rows are {index.settings['index_tail_share']:.0%} more or fewer; lists would be, but {error.message}",
                **error.details,
            ) from error

    def _lists(self, graph_code: str, beside: int = 0) -> Main | None:
        """Lists made anew while so many bytes are held of a graph that this step has made."""
        return self._one("ivf", choice.lists_code(self.index.storage, graph_code), False, beside)

    def _extends(self, kind: str, code: str, grows: bool) -> bool:
        main, fresh = self.main, self.rows.size - self.first
        return (
            grows
            and main is not None
            and (main.kind, main.code) == (kind, code)
            and fresh > 0
            and can_extend(main, fresh)
            and not self._better_anew(kind, code, fresh)
        )

    def _joined(self) -> bool:
        """Whether a graph made anew is joined by a device."""
        device = self.index.on_device
        joiner = None if device is None else device.joiner
        return joiner is not None and joiner.takes(self.rows.size)

    def _better_anew(self, kind: str, code: str, fresh: int) -> bool:
        """Whether a device joins all rows sooner than the CPU adds the fresh ones, and there is memory for it."""
        assert self.main is not None
        if kind != "hnsw" or fresh < _ANEW_SHARE * self.main.n or not self._joined():
            return False
        try:
            self._check_budget(kind, code, 0, self.rows.size, self.first)
        except LimitExceeded:
            return False
        return True

    def _one(self, kind: str, code: str, grows: bool, beside: int = 0) -> Main | None:
        """One index, grown from `main` where that can be. `beside`: bytes that this step holds already."""
        rows, first = self.rows, self.first
        build = self._build(kind, code)
        if self._extends(kind, code, grows):
            assert self.main is not None
            self._check_budget(kind, code, self.main.n, rows.size - first, 0)
            try:
                return build.extend(self.main, rows[first:], self.n_rows, self.sequence)
            except Outgrown:
                pass
        self._check_budget(kind, code, 0, rows.size, first, beside)
        return self._fine_enough(build.anew(rows, self.n_rows, self.sequence), beside)

    def _good_enough(self, kind: str, code: str, grows: bool) -> Main | None:
        """One index; where it is a graph that a device has joined and that misses the target, the CPU's instead, and devices join no
        other for this index. (Where lists may serve they do, see `_auto`.)"""
        device, target = self.index.on_device, self.index.target_recall
        joiner = None if device is None else device.joiner
        before = 0 if joiner is None else joiner.joined
        made = self._one(kind, code, grows)
        if made is None or joiner is None or joiner.joined == before:
            return made
        if made.setting(target, SMALL_K) is not None:
            return made
        joiner.missed = True
        log.warning(
            "a graph of %d rows that a device joined does not reach a recall of %g: it is built by the CPU",
            made.n, target,
        )  # fmt: skip
        del made  # both would be in memory
        return self._one(kind, code, False)

    def _fine_enough(self, made: Main | None, beside: int) -> Main | None:
        """`made`, or lists of a finer code where it misses the target and they do not."""
        index, rows = self.index, self.rows
        code = made and choice.finer_code(made, index, index.quantization, index.settings)
        if not made or not code:
            return made
        beside += choice.kept_bytes(made, index.dimension, self.first)
        try:
            self._check_budget("ivf", code, 0, rows.size, 0, beside)
        except LimitExceeded:
            return made
        finer = self._build("ivf", code).anew(rows, self.n_rows, self.sequence)
        missed = finer is not None and finer.setting(index.target_recall, SMALL_K) is None
        return made if missed else finer

    def _build(self, kind: str, code: str) -> Build:
        threads = int(self.index.settings["build_threads"])
        return Build(self.index, kind, code, threads, self.cancel, self.progress, self.hand_over)

    def _check_budget(
        self, kind: str, code: str, held: int, fresh: int, replaced: int, beside: int = 0
    ) -> None:
        index = self.index
        choice.check_budget(
            kind, code, index.dimension, held, fresh, replaced, index.settings, beside
        )

    def _sample(self) -> Floats:
        return self._build("hnsw", own_code(self.index.storage)).sample(self.rows)

    def _code(self, kind: str) -> str:
        index = self.index
        room = 0 if index.on_device is None else index.on_device.room
        if kind == "ivf" and index.quantization == "auto" and room:
            code = choice.code_for_device(
                index.storage, index.metric, index.dimension, self.rows.size, index.settings,
                room,
            )  # fmt: skip
            if code is not None:
                return code
        main = self.main
        if kind == "ivf" and index.quantization == "auto" and main and main.code == "pq8":
            return main.code  # pq4 missed the target, see `_fine_enough`
        return choice.code_for(
            index.quantization, kind, index.storage, index.metric, index.dimension, self.rows.size,
            index.settings, self._sample,
        )  # fmt: skip

    def _kind_and_code(self) -> tuple[str, str]:
        index = self.index
        return choice.kind_and_code(
            index.quantization, index.storage, index.metric, index.dimension, self.rows.size,
            index.target_recall, index.settings, self._sample,
        )  # fmt: skip
