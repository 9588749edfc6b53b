"""Whether what a file says of its past agrees with itself: the log, rows that are dead or purged, and their numbers."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..layout import LOG, SEQUENCE
from ..stopping import Interrupt, asking
from . import meta_sums
from .reader import Reader
from .tables import Rows

Mask = NDArray[np.bool_]


def past_faults(reader: Reader, interrupt: Interrupt) -> Iterator[str]:
    """One sentence for each fault in the commits of the log, in their checksums, and in which rows are dead. About 2 us a
    commit, 0.2 us a dead row, and some bytes a row. `interrupt` is called every few milliseconds, and may raise."""
    try:
        yield from _faults(reader, interrupt)
    except (struct.error, ValueError, IndexError) as error:
        # The rows can be looked at all the same.
        yield f"the log or the dead rows have a value of another size than it must have: {error}"


def _faults(reader: Reader, interrupt: Interrupt) -> Iterator[str]:
    yield from meta_sums.log_faults(reader, interrupt)
    state, horizon = reader.state(), reader.horizon()
    n_rows = state.next_row
    dying, sequences = reader.dying()
    if len(dying) and dying[-1] >= n_rows:
        yield f"row {dying[-1]} is marked dead, but only {n_rows} rows were ever given out"
        sequences, dying = sequences[dying < n_rows], dying[dying < n_rows]
    if (sequences > state.sequence).any():
        yield f"a row died in commit {sequences.max()}, the newest is {state.sequence}"
    if horizon > state.sequence:
        yield f"the horizon is commit {horizon}, the newest is {state.sequence}"
    purged, dead = mask_of(reader.purged(), n_rows), mask_of(dying, n_rows)
    if (purged & dead).any():
        yield f"row {np.flatnonzero(purged & dead)[0]} is purged, but still marked dead"
    live = int(n_rows - (dead | purged).sum())
    if live != state.live:
        yield f"the state counts {state.live} live records, the rows {live}"
    yield from _log(reader, dying, sequences, purged, interrupt)


def mask_of(rows: Rows, n_rows: int) -> Mask:
    mask = np.zeros(n_rows, np.bool_)
    mask[rows] = True
    return mask


def _log(
    reader: Reader,
    dying: Rows,
    sequences: Rows,
    purged: Mask,
    interrupt: Interrupt,
) -> Iterator[str]:
    state, horizon = reader.state(), reader.horizon()
    row, expected, first = -1, 0, 0
    died: list[Rows] = []
    died_in: list[int] = []
    for key, value in asking(reader.items("log"), interrupt):
        sequence = SEQUENCE.unpack(key)[0]
        _, first_row, end_row = LOG.unpack_from(value)
        if row < 0:
            if sequence > horizon + 1:
                yield f"the log begins at commit {sequence}, the horizon is {horizon}"
            row, expected = 0 if sequence == 1 else first_row, sequence
            first = sequence
        if sequence != expected:
            yield f"the log jumps from commit {expected - 1} to {sequence}"
        if first_row != row:
            yield f"commit {sequence} starts at row {first_row}, the one before it ended at {row}"
        row, expected = end_row, sequence + 1
        if len(value) > LOG.size:
            died.append(np.frombuffer(value[LOG.size :], "<u8").astype(np.int64))
            died_in += [sequence] * len(died[-1])
    if row < 0:
        row, expected = state.next_row, horizon + 1
        first = expected
    if expected - 1 != state.sequence:
        yield f"the log ends at commit {expected - 1}, the state is at {state.sequence}"
    if row != state.next_row:
        yield f"the log ends at row {row}, the state at {state.next_row}"
    told = np.concatenate([np.empty(0, np.int64), *died])
    told_in = np.array(died_in, np.int64)
    known = sequences >= first
    gone = ~np.isin(told, dying[known]) & (told >= 0) & (told < len(purged))
    gone[gone] = purged[told[gone]]
    if (told_in[gone] > horizon).any():
        yield f"a row that died behind the horizon, commit {horizon}, is purged"
    order = np.argsort(told[~gone], kind="stable")
    same = np.array_equal(told[~gone][order], dying[known])
    if not same or not np.array_equal(told_in[~gone][order], sequences[known]):
        yield "the dead rows of the log and of the table differ"
