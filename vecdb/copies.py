"""Whether the copies that an open collection holds in memory agree with its store.

No checksum guards them: a flipped bit, or a fault of the program, answers wrongly from then on and is in no file.
Both sides are of one moment, which is taken in the lane and compared outside of it: rows never change, and what a
moment shows of a copy is never written again. Blocks of rows are read from the store one after the other, so that
only marks of a byte a row are held beside the copies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .column_copies import ColumnFaults, faults_of_postings
from .columns import ColumnMoment, Columns
from .core import Core
from .errors import Corrupted
from .ids import Ids
from .index import View
from .stopping import Interrupt
from .store import Reader
from .stored_columns import StoredColumns

Mask = NDArray[np.bool_]
Rows = NDArray[np.int64]

_BLOCK_ROWS = 4_096
"""Rows that are compared at once: some ten milliseconds where records have a few paths."""


@dataclass(frozen=True, slots=True)
class Copies:
    """What is held in memory at one moment."""

    views: tuple[tuple[str, int, View], ...]
    """(name of the field, its number, what searches it), that of the records' own vectors last."""
    ids: Ids
    died: tuple[Rows, Rows]
    """Dead rows and the commits they died in, in the order in which they are held."""
    columns: tuple[Columns, Mapping[str, ColumnMoment]] | None
    """None where they are not built yet, or being built."""

    @classmethod
    def of(cls, core: Core) -> Copies:
        """Those of a collection; called in its lane. Takes some microseconds a metadata path."""
        return cls(
            tuple((field.name, field.number, field.index.view) for field in core.all_fields),
            core.ids,
            core.deaths.all(),
            core.columns_if_ready(),
        )

    @property
    def view(self) -> View:
        """That of the records' own vectors."""
        return self.views[-1][2]


def copy_faults(copies: Copies, reader: Reader, interrupt: Interrupt) -> Iterator[str]:
    """One sentence for each thing in memory that is not as `reader` has it; about 5 us a record.

    `reader` shows the moment of the copies, of a store that is sound. `interrupt` is called between blocks and may
    raise.
    """
    n_rows = reader.n_rows
    purged = np.zeros(n_rows, np.bool_)
    purged[reader.purged()] = True
    dead = purged.copy()
    dying, sequences = reader.dying()
    dead[dying] = True
    interrupt()
    yield from _deaths(copies.died, dying, sequences, purged, reader.horizon())
    for name, number, view in copies.views:
        where = f"vector field {name!r}: " if name else ""
        for sentence in _live_rows(view, number, reader, dead, interrupt):
            yield where + sentence
    yield from _ids(copies.ids, reader, purged, interrupt)
    yield from reader.memory_faults(interrupt)
    if copies.columns is not None:
        yield from _columns(*copies.columns, reader, purged, interrupt)


class Different:
    """Counts rows that differ, for one sentence about all of them."""

    def __init__(self) -> None:
        self.count, self.first = 0, -1

    def add(self, rows: Rows) -> None:
        if len(rows):
            self.first = int(rows[0]) if self.first < 0 else self.first
            self.count += len(rows)

    def __str__(self) -> str:
        return f"row {self.first}" + (f" and {self.count - 1} more" if self.count > 1 else "")


def _deaths(
    held: tuple[Rows, Rows], dying: Rows, sequences: Rows, purged: Mask, horizon: int
) -> Iterator[str]:
    rows, when = held
    if (when[1:] < when[:-1]).any():
        yield "dead rows are not in the order of the commits they died in"
    order = np.argsort(rows, kind="stable")
    rows, when = rows[order], when[order]
    known = (rows >= 0) & (rows < len(purged))
    if not known.all():
        yield f"row {rows[~known][0]} is held as dead, which was never given out"
        rows, when = rows[known], when[known]
    twice = rows[1:][rows[1:] == rows[:-1]]
    if len(twice):
        yield f"row {twice[0]} is held as dead twice"
    # Of a purged row the store says no more than that it had died by the horizon.
    gone = purged[rows]
    if (when[gone] > horizon).any():
        row = rows[gone][when[gone] > horizon][0]
        yield f"row {row} is purged, but held as dead since a commit behind the horizon, {horizon}"
    missing = np.setdiff1d(np.flatnonzero(purged), rows[gone])
    rows, when = rows[~gone], when[~gone]
    missing = np.concatenate([missing, np.setdiff1d(dying, rows)])
    if len(missing):
        yield f"row {missing.min()} is dead and not held as dead, {len(missing)} such rows"
    more = np.setdiff1d(rows, dying)
    if len(more):
        yield f"row {more[0]} is held as dead and is not, {len(more)} such rows"
    at = np.searchsorted(dying, rows)
    there = np.isin(rows, dying)
    wrong = rows[there][sequences[at[there]] != when[there]]
    if len(wrong):
        yield f"row {wrong[0]} is held as dead since another commit than it died in, {len(wrong)} such rows"


def _live_rows(
    view: View, number: int, reader: Reader, dead: Mask, interrupt: Interrupt
) -> Iterator[str]:
    state, n_rows = reader.state(), reader.n_rows
    if (view.sequence, view.n_rows) != (state.sequence, n_rows):
        yield (
            f"the index is at commit {view.sequence} with {view.n_rows} rows, the store at commit "
            f"{state.sequence} with {n_rows}"
        )
        return
    live = ~dead
    if number:
        live[reader.absent(number)] = False
    wrong = Different()
    for start in range(0, n_rows, 1 << 20):
        interrupt()
        stop = min(start + (1 << 20), n_rows)
        wrong.add(np.flatnonzero(view.live_mask(start, stop) != live[start:stop]) + start)
    if wrong.count:
        yield f"{wrong} is held as dead and is live, or the other way round"
    if view.n_live != live.sum():
        yield f"the index counts {view.n_live} live rows, the store has {live.sum()}"
    seen = np.zeros(n_rows, np.bool_)
    held = 0
    if view.main is not None:
        rows = view.main.rows
        seen[rows] = True
        held = len(rows)
        in_main = int(live[rows].sum())
        if in_main != view.main_live:
            yield f"the main index counts {view.main_live} live rows, it has {in_main}"
    for piece in view.pieces:
        rows = np.arange(piece.start, piece.stop) if piece.rows is None else piece.rows
        seen[rows] = True
        held += len(rows)
        if len(rows) != piece.block.n:
            yield f"the tail holds {piece.block.n} vectors for {len(rows)} rows"
    if held != seen.sum():
        yield f"the index holds {held} vectors of {seen.sum()} rows"
    missing = np.flatnonzero(live & ~seen)
    if len(missing):
        yield f"row {missing[0]} is live, but the index lacks its vector, {len(missing)} such rows"


def _ids(ids: Ids, reader: Reader, purged: Mask, interrupt: Interrupt) -> Iterator[str]:
    n_rows = len(purged)
    if ids.n_rows < n_rows:  # Others may have come since.
        yield f"ids of {ids.n_rows} rows are held, the store has {n_rows}"
        return
    wrong, wrong_texts = Different(), Different()
    for start in range(0, n_rows, _BLOCK_ROWS):
        interrupt()
        stop = min(start + _BLOCK_ROWS, n_rows)
        stored, held = reader.id_range(start, stop), ids.raw(start, stop)
        gone = purged[start:stop]
        if stored != held:
            # What is purged has no id in the store any more; in memory it goes with the next opening.
            apart = [n for n in range(stop - start) if stored[n] != held[n] and not gone[n]]
            wrong.add(np.array(apart, np.int64) + start)
        rows, texts = ids.kept(start, stop)
        apart = [
            row
            for row, text in zip(rows.tolist(), texts, strict=True)
            if text.encode() != stored[row - start] and not purged[row]
        ]
        wrong_texts.add(np.array(apart, np.int64))
    if wrong.count:
        yield f"{wrong} is held with another id than it is stored with"
    if wrong_texts.count:
        yield f"{wrong_texts} is held with another text of its id than it is stored with"


def _columns(
    columns: Columns,
    moments: Mapping[str, ColumnMoment],
    reader: Reader,
    purged: Mask,
    interrupt: Interrupt,
) -> Iterator[str]:
    n_rows = len(purged)
    if columns.n_rows < n_rows:
        yield f"metadata of {columns.n_rows} rows are held, the store has {n_rows}"
        return
    faults = {path: ColumnFaults(path, moment) for path, moment in moments.items()}
    lacking: dict[str, Rows] = {}
    stored = StoredColumns()
    for start in range(0, n_rows, _BLOCK_ROWS):
        interrupt()
        stop = min(start + _BLOCK_ROWS, n_rows)
        offsets, texts = stored.texts(reader, start, stop)
        try:
            fields = stored.batch(stop - start, offsets, texts, start).fields
        except Corrupted as error:
            yield error.message
            return
        for path, one in faults.items():
            interrupt()
            one.compare(fields.get(path), start, purged[start:stop])
        for path in fields.keys() - faults.keys():
            lacking.setdefault(path, fields[path].offsets + start)
    for path, rows in lacking.items():
        yield f"metadata {path!r} of row {rows[0]} is not held at all"
    for one in faults.values():
        interrupt()
        yield from one.sentences()
        if not one.found:
            yield from faults_of_postings(one.path, one.moment, interrupt)
