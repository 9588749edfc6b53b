"""Giving back the space of dead rows: which of them are ripe, and the steps that purge them.

A row is ripe when no moment that shows it can be read any more: it died so long ago that no cursor
is kept good for it (setting `history_s`), before every view that a running read holds and every moment that
a backup still copies, and no saved index has it among its rows, since a graph is walked over its dead rows too.
"""

from __future__ import annotations

import threading
import time

import numpy as np
from numpy.typing import NDArray

from .core import Core

Rows = NDArray[np.int64]

_LEAST_WAIT_S, _MOST_WAIT_S = 1.0, 60.0
"""When a collection is looked at again whose dead rows are many but not ripe."""


def is_due(core: Core) -> bool:
    """Whether many of the rows that take space are dead; a few comparisons."""
    view = core.index.view
    held = view.n_rows - core.purged_rows
    return bool(held - view.n_live > core.options["compact_dead_share"] * held)


def due_in_s(core: Core, *, rebuilds: bool) -> float:
    """Seconds until it is worth while to look again; 0 when enough dead rows are ripe.

    With `rebuilds` the rows that an index holds count too: it will be built anew.
    """
    view, until = core.index.view, horizon(core)
    dead = view.n_rows - view.n_live - core.purged_rows
    ripe = dead - len(core.deaths.after(until, view.n_rows))
    least = core.options["compact_dead_share"] * (view.n_rows - core.purged_rows)
    if ripe > least and not rebuilds:
        _, sequences, held = _dying(core)
        ripe = int(np.count_nonzero(sequences <= _before(until, sequences, held)))
    if ripe > least:
        return 0.0
    return float(np.clip(core.options["history_s"] / 4, _LEAST_WAIT_S, _MOST_WAIT_S))


def horizon(core: Core) -> int:
    """The newest commit such that nobody needs a moment before it."""
    history_s = float(core.options["history_s"])
    with core.read() as reader:
        low, high = reader.horizon(), reader.state().sequence
        if not history_s:
            low = high
        low = min(high, max(low, core.ages.old(high)))
        limit_us = core.ages.now_us() - int(history_s * 1e6)
        while low < high:
            middle = (low + high + 1) // 2
            if next(reader.log(middle - 1)).time_us <= limit_us:
                low = middle
            else:
                high = middle - 1
    in_use = (field.oldest_in_use() for field in core.all_fields)
    return min(low, core.pins.oldest(low), *in_use)


def fields_in_the_way(core: Core) -> list[int]:
    """Numbers of the fields whose index holds rows that would be ripe without it."""
    with core.read() as reader:
        rows, sequences = reader.dying()
    rows = rows[sequences <= horizon(core)]
    return [n for n in range(len(core.all_fields)) if _in_index(core, n, rows).any()]


def purge(core: Core, cancel: threading.Event, *, hurried: bool) -> int:
    """Purges what is ripe; how many rows. Writers wait for one step at most, of some milliseconds.

    Unless `hurried`, half the time is left to others.
    """
    steps = core.store.purge(_before(*_dying(core)))
    done = 0
    while not cancel.is_set():
        began = time.monotonic()
        with core.exclusive():
            core.check_open()
            count = next(steps, None)
            if count is None:
                break
            done += count
            core.count_purged(count)
        if not hurried:
            cancel.wait(time.monotonic() - began)
    return done


def vacuum(core: Core) -> None:
    """Writes the store into a file without free pages; writers wait until it is done."""
    with core.exclusive():
        core.check_open()
        core.store.vacuum()


def _dying(core: Core) -> tuple[int, Rows, NDArray[np.bool_]]:
    """(horizon, commits in which dead rows that take space died, whether an index holds them)."""
    until = horizon(core)
    with core.read() as reader:
        rows, sequences = reader.dying()
    held = np.zeros(len(rows), np.bool_)
    for number in range(len(core.all_fields)):
        held |= _in_index(core, number, rows)
    return until, sequences, held


def _before(until: int, sequences: Rows, held: NDArray[np.bool_]) -> int:
    """The horizon, brought back to before the first death of a row that an index holds."""
    return min(until, int(sequences[held].min(initial=until + 1)) - 1)


def _in_index(core: Core, number: int, rows: Rows) -> NDArray[np.bool_]:
    main = core.numbered(number).index.view.main
    return np.zeros(len(rows), np.bool_) if main is None else np.isin(rows, main.rows)
