"""Comparing backups with themselves: every file, every checksum, every link of a chain."""

from __future__ import annotations

import functools
from contextlib import closing

from ..backup_types import BackupProgress, BackupReport, BackupTarget, Progress, unwatched
from ..collection_info import shape_of
from ..errors import VecdbError
from . import manifest
from .chains import Chain, Step, complete, folders, incomplete, load, must_be_there, steps_to
from .reading import History, rows_of
from .restoring import check_rows, only_live
from .target import Target, open_target

_MOST_PROBLEMS = 100


def verify_backups(
    target: BackupTarget, *, backup: str | None = None, progress: Progress = unwatched
) -> BackupReport:
    """Reads all backups of a target, or one and those that it goes back to, and says what is wrong.

    Every file against its digest, every row against its checksum and the rules of an insert, every
    collection at its newest moment: rows that are live are there, ids are counted. No database is needed.
    About 10 us a row. Raises BackupNotFound when there is no such backup, Unavailable.
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
            self.problems.append(error.message)
            return
        self.files += 1
        for part in chain.start[0].collections:
            try:
                self._look_at(chain, part)
            except VecdbError as error:
                self.problems.append(error.message)
            self.files += len(manifest.files_of(part))
            self.bytes += sum(file.bytes for file in manifest.files_of(part))
            self._progress(BackupProgress("verify", backup, 0, 0, self.bytes))

    def _look_at(self, chain: Chain, part: manifest.Part) -> None:
        steps, backup = steps_to(chain, part.token), chain.start[0].id
        info, shape = manifest.settings_of(part), shape_of(part.settings.encode())
        live = self._history(part.token, steps).live_at(part.sequence)
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
        if int(live.sum()) != part.live:
            self.problems.append(
                f"backup {backup}: collection {part.name!r} counts {part.live} records, its rows "
                f"{int(live.sum())}"
            )

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
