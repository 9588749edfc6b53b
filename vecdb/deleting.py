"""What a delete by filter deletes: found while others write, and brought up to date when its commit begins.

A row never changes, so whether it matches is right for ever. In the lane, where every other writer waits, only the
rows are asked that came since the last look, and those are left out that have died. Some of both may be of writes that
share its commit: these are read in its transaction, and published nowhere yet.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .core import Core
from .filters import Filter
from .given_rows import matching_among
from .masks import Moment
from .stopping import caller, deadline, on_behalf_of
from .store import Writer

Rows = NDArray[np.int64]

_FEW_ROWS = 1_024
"""So many new rows are left for the lane, and asked at once: a few milliseconds."""
_LOOKS = 8
"""Where rows come as quickly as they are looked at, the lane has to take what has come during the last look."""


class Matching:
    """The rows of a collection that match a filter, as of the moment in which `now` is asked."""

    def __init__(self, core: Core, expression: Filter, timeout_s: float | None) -> None:
        """Looks at all rows there are, in the thread of the caller; what others write meanwhile is looked at after that.

        DeadlineExceeded when that is not done within `timeout_s` (None: never), Cancelled once nobody waits for it.
        """
        self._core = core
        self._expression = expression
        self._interrupt = deadline(timeout_s)
        self._caller = caller()
        self._rows: Rows = np.empty(0, np.int64)
        self._n_rows = 0
        if core.read_only:
            return  # The write is refused, and in better words.
        moment = core.moment(core.view)
        self._rows = moment.rows(core.matching(expression, moment, self._interrupt))
        self._n_rows = moment.n_rows
        for _ in range(_LOOKS):
            if core.view.n_rows - self._n_rows <= _FEW_ROWS:
                break
            self._look(core.moment(core.view))

    def now(self, writer: Writer, named: bool) -> tuple[Rows, list[bytes]]:
        """In the lane, with every earlier commit published: the live rows that match, ascending, those of earlier writes
        of this commit among them, and their ids if these are wanted. May be asked again."""
        core = self._core
        with on_behalf_of(self._caller):
            self._interrupt()
            moment = core.moment(core.view)
            self._look(moment)
            rows = self._rows[moment.is_live(self._rows)]
            if writer.died:
                rows = rows[~np.isin(rows, np.concatenate(writer.died))]
            names = [i.encode() for i in core.ids.take(rows)] if named else []
            beside, their_names = self._of_this_commit(writer, moment.n_rows)
        return np.concatenate([rows, beside]), names + their_names

    def _of_this_commit(self, writer: Writer, first: int) -> tuple[Rows, list[bytes]]:
        """The live rows that match among those that earlier writes of the commit have added, from row `first` on."""
        core = self._core
        found: list[Rows] = [np.empty(0, np.int64)]
        names: list[bytes] = []
        died = np.concatenate([*writer.died, found[0]])
        for start in range(first, writer.n_rows, _FEW_ROWS):
            self._interrupt()
            rows = np.arange(start, min(start + _FEW_ROWS, writer.n_rows))
            ids = np.array(writer.id_range(start, start + len(rows)), object)
            live = ~np.isin(rows, died)
            rows, ids = rows[live], ids[live]
            if len(rows):
                texts = [i.decode() for i in ids]
                matches = matching_among(
                    self._expression, core.columns, writer, rows, texts, self._interrupt
                )
                found.append(rows[matches])
                names += ids[matches].tolist()
        return np.concatenate(found), names

    def _look(self, moment: Moment) -> None:
        """Looks at the rows that have come until a moment."""
        core = self._core
        found = [self._rows]
        for start in range(self._n_rows, moment.n_rows, _FEW_ROWS):
            self._interrupt()
            rows = np.arange(start, min(start + _FEW_ROWS, moment.n_rows))
            # Of the dead nothing is asked, and of a record only its newest row is left.
            rows = rows[moment.is_live(rows)]
            if len(rows):
                ids = core.ids.take(rows)
                with core.read() as reader:
                    found.append(
                        rows[
                            matching_among(
                                self._expression, core.columns, reader, rows, ids, self._interrupt
                            )
                        ]
                    )
        self._rows, self._n_rows = np.concatenate(found), moment.n_rows
