"""Comparing backups with themselves: every file, every checksum, every link of a chain."""

from __future__ import annotations

import functools
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from ..backup_types import BackupProgress, BackupReport, BackupTarget, Progress, unwatched
from ..collection_info import shape_of
from ..errors import BackupDamaged, Unavailable, VecdbError
from ..out_of_memory import memory_told
from ..store import Shape, StoredRows
from . import manifest
from .chains import Chain, Step, complete, folders, incomplete, load, must_be_there, steps_to
from .live_ids import LiveIds
from .reading import History, Mask, rows_of
from .restoring import check_rows, only_live
from .target import StoreTarget, Target, open_target

_MOST_PROBLEMS = 100


@memory_told
def verify_backups(
    target: BackupTarget, *, backup: str | None = None, progress: Progress = unwatched
) -> BackupReport:
    """Reads all backups of a target, or one and those that it goes back to, and says what is wrong.

    Every file against its digest, every row against its checksum and the rules of an insert, every
    collection at its newest moment: rows that are live are there and counted, and no id is in two of them.
    No database is needed. About 10 us a row, and 16 to 40 bytes of memory a live one. Raises BackupNotFound
    when there is no such backup, Unavailable.
    """
    opened = open_target(target)
    found = _Found(opened, progress)
    ids = complete(opened) if backup is None else found.with_ancestors(backup)
    for one in ids:
        found.look(one)
    return BackupReport(
        not found.problems,
        len(ids),
        found.files,
        found.bytes,
        found.problems[:_MOST_PROBLEMS],
        incomplete(opened),
    )


class _Found:
    def __init__(self, target: Target, progress: Progress) -> None:
        self._target = target
        # Each manifest is of as many chains as backups follow it.
        self._load = functools.cache(functools.partial(load, target))
        self._progress = progress
        self._histories: dict[str, tuple[str, History]] = {}
        """Of each collection, by its token, the last that was read, and of which backup."""
        self._ids: dict[str, tuple[str, LiveIds]] = {}
        """Likewise the ids of the rows that are live there."""
        self.problems: list[str] = []
        self.files = 0
        self.bytes = 0

    @functools.cached_property
    def _files(self) -> dict[str, dict[str, int]]:
        return folders(self._target)

    def with_ancestors(self, backup: str) -> list[str]:
        """Ids of a backup and of those it goes back to, as far as they are there, oldest first."""
        ids = []
        try:
            for held, _ in Chain(self._load(backup), self._load):
                ids.append(held.id)
        except VecdbError:
            if not ids:
                raise  # else told by `look`
        return ids[::-1]

    def look(self, backup: str) -> None:
        """Adds what is wrong with a backup."""
        try:
            chain = Chain(self._load(backup), self._load)
            for _ in chain:
                pass
        except VecdbError as error:
            self._note(error)
            return
        self.files += 1
        for part in chain.start[0].collections:
            try:
                self._look_at(chain, part)
            except VecdbError as error:
                self._note(error)
            self.files += len(manifest.files_of(part))
            self.bytes += sum(file.bytes for file in manifest.files_of(part))
            self._progress(BackupProgress("verify", backup, 0, 0, self.bytes))

    def _note(self, error: VecdbError) -> None:
        # A disk may fail to give one file. A store that does not answer says nothing of what it holds, and to ask it for
        # each of its files takes minutes a file.
        if isinstance(error, Unavailable) and isinstance(self._target, StoreTarget):
            raise error
        self.problems.append(error.message)

    def _look_at(self, chain: Chain, part: manifest.Part) -> None:
        steps, backup = steps_to(chain, part.token), chain.start[0].id
        info, shape = manifest.settings_of(part), shape_of(part.settings.encode())
        live = self._history(part.token, steps).live_at(part.sequence)
        ids = self._ids_before(steps, shape, live)
        with closing(rows_of(self._target, steps[-1], shape, part.next_row)) as pieces:
            for piece, _ in pieces:
                # Of rows that are dead by now only that they are whole: an id may be in several of them.
                damaged = piece.damaged()
                if len(damaged):
                    self.problems.append(
                        f"backup {backup}: row {damaged[0]} of collection {part.name!r} fails its checksum"
                    )
                    continue
                of_now = only_live(piece, live[piece.first : piece.end], part.name)
                check_rows(info, of_now, compared=True)
                ids.add(of_now.rows.ids, _live_rows(piece, live))
        for pair in ids.met():
            first, second = (self._id_of(steps, shape, row) for row in pair)
            if first == second:
                self.problems.append(
                    f"backup {backup}: an id of collection {part.name!r} is in two live rows, {pair[0]} and {pair[1]}"
                )
                break
        if int(live.sum()) != part.live:
            self.problems.append(
                f"backup {backup}: collection {part.name!r} counts {part.live} records, its rows "
                f"{int(live.sum())}"
            )

    def _ids_before(self, steps: list[Step], shape: Shape, live: Mask) -> LiveIds:
        """Ids of the live rows of all steps but the last, to which those of the last are to be added. They are at hand as
        the history is; where they are not, files are read again."""
        part, backup = steps[-1].part, steps[-1].backup
        of, ids = self._ids.pop(part.token, ("", LiveIds()))
        at_hand = len(steps) > 1 and of == steps[-2].backup
        if not at_hand:
            ids = LiveIds()
        # At once, so that what goes wrong from here on is told once, and not for each backup that follows.
        self._ids[part.token] = backup, ids
        ids.keep(live)
        for step in [] if at_hand else steps[:-1]:
            with closing(rows_of(self._target, step, shape, len(live))) as pieces:
                for piece, _ in pieces:
                    of_now = only_live(piece, live[piece.first : piece.end], part.name)
                    ids.add(of_now.rows.ids, _live_rows(piece, live))
        ids.met()
        return ids

    def _id_of(self, steps: list[Step], shape: Shape, row: int) -> bytes:
        """The id of a row that is held, read once more."""
        step = next(step for step in steps if row < step.part.next_row)
        with closing(rows_of(self._target, step, shape, row + 1)) as pieces:
            for piece, _ in pieces:
                if piece.first <= row < piece.end:
                    return piece.rows.ids[int(piece.held[: row - piece.first].sum())]
        raise BackupDamaged(f"backup {step.backup} does not hold row {row}")

    def _history(self, token: str, steps: list[Step]) -> History:
        """That of some steps. Where the one of those before the last is at hand, only the last is read: so a
        chain takes time as it is long, not as the square of that."""
        of, before = self._histories.get(token, ("", None))
        if before is None or len(steps) == 1 or of != steps[-2].backup:
            before = None
        must_be_there(self._files, steps if before is None else steps[-1:])
        history = History(self._target, steps, before)
        self._histories[token] = steps[-1].backup, history
        return history


def _live_rows(piece: StoredRows, live: Mask) -> NDArray[np.int64]:
    return piece.first + np.flatnonzero(live[piece.first : piece.end])
