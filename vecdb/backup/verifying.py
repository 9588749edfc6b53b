"""Comparing backups with themselves: every file, every checksum, every link of a chain."""

from __future__ import annotations

from ..backup_types import BackupProgress, BackupReport, BackupTarget, Progress
from ..collection_info import shape_of
from ..errors import VecdbError
from . import manifest
from .chains import Kept, ancestors, complete, incomplete, load, steps_to
from .reading import History, rows_of
from .restoring import check_rows, only_live
from .target import Target, open_target

_MOST_PROBLEMS = 100


def verify_backups(
    target: BackupTarget, *, backup: str | None = None, progress: Progress = lambda _: None
) -> BackupReport:
    """Reads all backups of a target, or one and those that it goes back to, and says what is wrong.

    Every file against its SHA-256, every row against its checksum and the rules of an insert, every
    collection at its newest moment: rows that are live are there, ids are counted. No database is needed.
    About 10 us a row. Raises BackupNotFound when there is no such backup, Unavailable.
    """
    opened = open_target(target)
    ids = complete(opened)
    if backup is not None:
        kept = load(opened, backup)
        ids = _with_ancestors(opened, kept)
    found = _Found(progress)
    for one in ids:
        found.look(opened, one)
    return BackupReport(
        not found.problems,
        len(ids),
        found.files,
        found.bytes,
        found.problems[:_MOST_PROBLEMS],
        incomplete(opened),
    )


def _with_ancestors(target: Target, kept: Kept) -> list[str]:
    ids = [kept[0].id]
    try:
        ids = [held.id for held, _ in ancestors(target, kept)]
    except VecdbError:
        pass  # told by `look`
    return sorted(ids)


class _Found:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.problems: list[str] = []
        self.files = 0
        self.bytes = 0

    def look(self, target: Target, backup: str) -> None:
        try:
            kept = load(target, backup)
            for _ in ancestors(target, kept):
                pass
        except VecdbError as error:
            self.problems.append(error.message)
            return
        self.files += 1
        for part in kept[0].collections:
            try:
                self._look_at(target, kept, part)
            except VecdbError as error:
                self.problems.append(error.message)
            self.files += len(manifest.files_of(part))
            self.bytes += sum(file.bytes for file in manifest.files_of(part))
            self._progress(BackupProgress("verify", backup, 0, 0, self.bytes))

    def _look_at(self, target: Target, kept: Kept, part: manifest.Part) -> None:
        steps = steps_to(target, kept, part.token)
        info, shape = manifest.settings_of(part), shape_of(part.settings.encode())
        live = History(target, steps).live_at(part.sequence)
        for piece, _ in rows_of(target, steps[-1], shape, part.next_row):
            # Of rows that are dead by now only that they are whole: an id may be in several of them.
            damaged = piece.damaged()
            if len(damaged):
                self.problems.append(
                    f"backup {kept[0].id}: row {damaged[0]} of collection {part.name!r} fails its checksum"
                )
                continue
            check_rows(info, only_live(piece, live[piece.first : piece.end], part.name))
        if int(live.sum()) != part.live:
            self.problems.append(
                f"backup {kept[0].id}: collection {part.name!r} counts {part.live} records, its rows "
                f"{int(live.sum())}"
            )
