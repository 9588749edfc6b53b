"""A new file from what can still be read of a damaged one; the old one is kept where something was lost."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import disk
from ..errors import Corrupted, FormatMismatch, Internal
from ..layout import (
    COLLECTION_FORMAT,
    COLLECTION_TABLES,
    COMPACTING_PREFIX,
    DATA_FILE,
    LATER_TABLES,
    META_FORMAT,
    META_INDEX,
    META_REPAIRS,
    META_SETTINGS,
    SYNC_POINT_FILE,
    format_number,
    id_key,
)
from . import page_faults, quarantine, sync_point, vacuum
from .check import problems
from .collection_store import CollectionStore
from .losses import TIME_FORMAT, entries
from .mending import mend
from .open_file import PUT_BACK
from .restoring import Restorer
from .salvage import Salvaged, Table, salvage
from .shape import Shape
from .sums import BY_ROW
from .verdict import Verdict, judge
from .writer import EncodedRows

_WHAT = "repair"
_ROWS_A_STEP = 4_096
_BYTES_A_STEP = 32 << 20
_MOST_NAMED = 1_000
"""Ids of lost records that the file itself remembers; the quarantine names all."""

_FIRST_NAMED = 20
"""Ids of a kind of loss that are named before a repair."""

ShapeOf = Callable[[bytes], Shape]


@dataclass(frozen=True, slots=True)
class RepairedFile:
    """What became of the file of a collection. Ids as texts."""

    records: int
    sequence: int
    lost: tuple[str, ...] = ()
    """Ids of live records that are not there any more."""
    lost_unknown: int = 0
    """How many more rows are lost whose ids are not known."""
    lost_versions: int = 0
    """Dead rows, kept for moments in the past, that are lost."""
    lost_commits: int = 0
    """Newest commits that could not be read: what they wrote is not there, what they deleted is there again."""
    history_dropped: bool = False
    """Moments before now could be read, and none can any more."""
    unverified: tuple[str, ...] = ()
    undecided: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    """What else is lost or may be wrong, one sentence each."""
    quarantine: str = ""
    """The folder with the old file; empty when nothing was lost."""

    @property
    def whole(self) -> bool:
        return not (
            self.lost or self.lost_unknown or self.lost_versions or self.lost_commits
            or self.unverified or self.undecided or self.history_dropped
            or self.doubts
        )  # fmt: skip


def settle(folder: Path) -> None:
    """Finishes what a crash has left undone; the caller holds the lock of the database. Corrupted as `vacuum.must_belong`."""
    if (folder / DATA_FILE).is_file():
        # A power cut may have left meta pages that nobody can read: the sync point holds one that is whole.
        sync_point.recover(folder, repairing=True)
    made = vacuum.whole_copy(folder)
    if made is not None:
        vacuum.must_belong(folder)
        old_is_sound = (folder / DATA_FILE).is_file() and not page_faults.file_faults(
            folder / DATA_FILE
        )
        if not old_is_sound or not page_faults.file_faults(made / DATA_FILE):
            if not (made / "lock.mdb").exists():
                disk.make_empty(made / "lock.mdb", _WHAT)
            vacuum.move_in(folder)
    vacuum.sweep(folder)


def file_problems(folder: Path, shape_of: ShapeOf, options: Mapping[str, Any]) -> list[str]:
    """What is wrong with the file of a collection that nobody writes to; LMDB reads it only if its pages are sound."""
    path = folder / DATA_FILE
    if not disk.must_be_file(path, PUT_BACK):
        return [f"{path} is missing"]
    return _copy_problems(folder, shape_of, options) or _problems(folder, shape_of, options)


def _copy_problems(folder: Path, shape_of: ShapeOf, options: Mapping[str, Any]) -> list[str]:
    """What is wrong with a whole copy that the next opening puts in the place of the file."""
    made = vacuum.whole_copy(folder)
    if made is None:
        return []
    try:
        vacuum.must_belong(folder)
    except Corrupted as error:
        return [error.message]
    found = _problems(made, shape_of, options)
    return [f"{made}, which is to take the place of {DATA_FILE}: {one}" for one in found]


def _problems(folder: Path, shape_of: ShapeOf, options: Mapping[str, Any]) -> list[str]:
    faults = page_faults.file_faults(folder / DATA_FILE)
    if faults:
        return faults
    try:
        store = CollectionStore.open(folder, shape_of, options, read_only=True)
        try:
            with store.read() as reader:
                return list(problems(reader))
        finally:
            store.close()
    except (Corrupted, FormatMismatch) as error:
        return [error.message]


def repair_file(
    folder: Path, shape_of: ShapeOf, options: Mapping[str, Any], database: Path, found: list[str]
) -> RepairedFile:
    """Puts a sound file in the place of the one whose problems were `found`.

    Stopped at any moment, the old file or the new one is there, and it can be done again. Corrupted when
    not even the settings can be read, or nothing fits them: a backup is the only way then. FormatMismatch when
    the file says that it is of a later format, of which tables would be left out.
    """
    path = folder / DATA_FILE
    vacuum.locks_must_be_a_file(folder)  # the new file could not be moved in
    if not disk.must_be_file(path, PUT_BACK):
        raise Corrupted(f"{path} is missing: nothing can be read from it; restore a backup")
    read, doubts, settings, shape, verdict = _judged(path, shape_of)
    aside = folder / (COMPACTING_PREFIX + secrets.token_hex(8))
    kept: Path | None = None
    try:
        disk.make_folder(aside, _WHAT)
        done = _told(verdict, read, (*doubts, *verdict.doubts))
        if not done.whole:
            told = {"found": found, **_plain(done)}
            kept = quarantine.keep(folder, database, told, verdict, read)
            done = replace(done, quarantine=str(kept))
        _write(aside, settings, shape, options, verdict, read, done)
        wrong = file_problems(aside, shape_of, options)
        if wrong:
            raise Internal(
                f"the repaired file of {folder} is not sound: {wrong[0]}; nothing was changed"
            )
        vacuum.note_source(folder, aside)
    except BaseException:
        disk.remove_tree(aside, _WHAT)
        if kept is not None:
            disk.remove_tree(kept, _WHAT)
        raise
    # From the first step of this on the old file may be gone, so what is kept of it stays.
    vacuum.declare_whole(folder, aside)
    if (folder / SYNC_POINT_FILE).exists():
        sync_point.forget(folder)
    vacuum.move_in(folder)
    return done


def losses(folder: Path, shape_of: ShapeOf) -> list[str]:
    """What cannot be read of a file whose pages are damaged, as a repair would find it, a sentence each, with the first ids;
    empty where the pages are sound. Nothing is changed. Reads the file without LMDB, in the time and memory of a repair; the
    caller sees that nobody writes to it. OSError."""
    path = folder / DATA_FILE
    if not path.is_file() or not page_faults.file_faults(path):
        return []
    try:
        read, doubts, _, _, verdict = _judged(path, shape_of)
    except (Corrupted, FormatMismatch) as error:
        return [error.message]
    told = _told(verdict, read, (*doubts, *verdict.doubts))
    if told.whole:
        return [f"all {told.records:,} records can be read; a repair would lose nothing"]
    found = []
    if lost := len(told.lost) + told.lost_unknown:
        found.append(
            f"{lost:,} records cannot be read, a repair would keep the other {told.records:,}: "
            f"{_first(told.lost, told.lost_unknown)}"
        )
    if told.lost_versions:
        found.append(f"{told.lost_versions:,} earlier versions of records cannot be read")
    if told.lost_commits:
        found.append(f"up to {told.lost_commits:,} of the newest commits cannot be read")
    if told.history_dropped:
        found.append("moments before now cannot be read any more")
    if told.unverified:
        found.append(
            f"{len(told.unverified):,} records have lost their checksum, a repair would keep them as they are: "
            f"{_first(told.unverified)}"
        )
    if told.undecided:
        found.append(
            f"{len(told.undecided):,} records may have been deleted or replaced, a repair would keep them: "
            f"{_first(told.undecided)}"
        )
    return [*found, *(f"a repair would say: {doubt}" for doubt in told.doubts)]


def _first(ids: tuple[str, ...], unknown: int = 0) -> str:
    parts = [repr(name) for name in ids[:_FIRST_NAMED]]
    if more := len(ids) - len(parts):
        parts.append(f"{more:,} more")
    if unknown:
        parts.append(f"{unknown:,} whose ids are not known")
    return ", ".join(parts)


def _judged(
    path: Path, shape_of: ShapeOf
) -> tuple[Salvaged, tuple[str, ...], bytes, Shape, Verdict]:
    """(what can be read, doubts about it, the settings, what follows from them, what is to be kept). Errors as `repair_file`."""
    read, doubts = mend(salvage(path, COLLECTION_TABLES))
    read = _without_later_tables(read, path)
    settings, shape = _settings(read, shape_of, path)
    verdict = judge(read, shape, path.stat().st_size)
    if verdict.lost and not verdict.rows:
        raise Corrupted(
            f"nothing in {path} has its checksum, maybe because its settings are damaged; restore a backup. "
            "Nothing was changed"
        )
    return read, tuple(doubts), settings, shape, verdict


def _without_later_tables(read: Salvaged, path: Path) -> Salvaged:
    """The same, in which what the format of the file does not have is not missing."""
    raw = bytes(read.tables["meta"].get(META_FORMAT, b""))
    # No number: that entry itself is damaged.
    number = format_number(raw)
    found = COLLECTION_FORMAT if number is None else number
    if found > COLLECTION_FORMAT:
        raise FormatMismatch(
            f"{path} has collection format {found}, this version repairs 1 to {COLLECTION_FORMAT}; repair it "
            "with the version of vecdb that wrote it, or a later one. Nothing was changed",
            given=found,
            expected=COLLECTION_FORMAT,
        )
    if found == COLLECTION_FORMAT:
        return read
    none: dict[str, Table] = {name: {} for name in LATER_TABLES}
    return read._replace(tables=read.tables | none, damaged=read.damaged - none.keys())


def _settings(read: Salvaged, shape_of: ShapeOf, path: Path) -> tuple[bytes, Shape]:
    raw = read.tables["meta"].get(META_SETTINGS)
    if raw is None:
        raise Corrupted(
            f"the settings in {path} cannot be read; restore a backup. Nothing was changed"
        )
    return bytes(raw), shape_of(bytes(raw))


def _told(verdict: Verdict, read: Salvaged, doubts: tuple[str, ...]) -> RepairedFile:
    return RepairedFile(
        records=len(verdict.rows) - len(verdict.dead),
        sequence=verdict.sequence,
        lost=_texts([i for i in verdict.lost.values() if i]),
        lost_unknown=sum(not i for i in verdict.lost.values()),
        lost_versions=verdict.lost_history,
        lost_commits=max(read.lost_commits, verdict.lost_commits),
        history_dropped=verdict.history_lost,
        unverified=_texts(verdict.unverified),
        undecided=_texts(verdict.undecided),
        doubts=doubts,
    )


def _texts(ids: list[bytes]) -> tuple[str, ...]:
    return tuple(i.decode(errors="replace") for i in ids)


def _plain(done: RepairedFile, most: int | None = None) -> dict[str, Any]:
    return {
        "sequence": done.sequence,
        "lost": list(done.lost[:most]),
        "lost_records": len(done.lost) + done.lost_unknown,
        "lost_versions": done.lost_versions,
        "lost_commits": done.lost_commits,
        "history_dropped": done.history_dropped,
        "unverified_records": len(done.unverified),
        "unverified": list(done.unverified[:most]),
        "undecided_records": len(done.undecided),
        "undecided": list(done.undecided[:most]),
        "doubts": list(done.doubts),
        "quarantine": done.quarantine,
    }


def _write(
    aside: Path, settings: bytes, shape: Shape, options: Mapping[str, Any], verdict: Verdict,
    read: Salvaged, done: RepairedFile,
) -> None:  # fmt: skip
    store = CollectionStore.create(aside, settings, shape, options)
    try:
        at = 0
        while at < verdict.n_rows:
            end = _step(verdict, at)
            store.restore(lambda r, at=at, end=end: _append(r, shape, verdict, at, end))  # type: ignore[misc]
            at = end
        live = {i: row for row, i in _live(verdict)}
        store.restore(lambda r: _finish(r, verdict, read, done, live))
    finally:
        store.close()


def _live(verdict: Verdict) -> list[tuple[int, bytes]]:
    return [(row, w.record_id) for row, w in verdict.rows.items() if row not in verdict.dead]


def _step(verdict: Verdict, at: int) -> int:
    """Where the rows from `at` on end that one transaction takes."""
    room = _BYTES_A_STEP
    end = at
    while end < min(verdict.n_rows, at + _ROWS_A_STEP) and (room > 0 or end == at):
        row = verdict.rows.get(end)
        if row is not None:
            room -= sum(map(len, row.vectors.values())) + sum(map(len, row.texts.values()))
        end += 1
    return end


def _append(writer: Restorer, shape: Shape, verdict: Verdict, at: int, end: int) -> None:
    rows = [verdict.rows.get(row) for row in range(at, end)]
    held = [row for row in rows if row is not None]
    vectors = {}
    for f, one in enumerate(shape.fields):
        raw = b"".join(bytes(row.vectors.get(f, bytes(one.row_bytes))) for row in held)
        present = np.array([f in row.vectors for row in held], np.bool_)
        vectors[f] = np.frombuffer(raw, one.dtype).reshape(len(held), one.width), present
    columns = {
        table: [None if (v := row.texts.get(table)) is None else bytes(v) for row in held]
        for table in BY_ROW
    }
    encoded = EncodedRows(
        [row.record_id for row in held],
        vectors[0][0],
        metadata=columns["metadata"],
        documents=columns["documents"],
        contents=columns["contents"],
        uris=columns["uris"],
        named={f: v for f, v in vectors.items() if f and v[1].any()},
    )
    sums = np.array([row.checksum for row in held], np.uint32)
    writer.append_restored(np.array([row is not None for row in rows], np.bool_), encoded, sums)
    # The next transaction goes on behind these.
    writer.state_as(verdict.sequence, writer.live, 0)


def _finish(
    writer: Restorer, verdict: Verdict, read: Salvaged, done: RepairedFile, live: dict[bytes, int]
) -> None:
    ids = sorted(live, key=id_key)
    writer.key_ids(ids, np.array([live[i] for i in ids], np.int64))
    writer.all_keyed()
    writer.history(verdict.dead, verdict.log, read.tables["requests"])
    writer.state_as(verdict.sequence, len(live), verdict.horizon)
    meta = read.tables["meta"]
    if replace(done, history_dropped=False).whole:
        for key, value in meta.items():
            if key.startswith(META_INDEX):
                writer.put_meta(key, bytes(value))
    before = entries(bytes(meta.get(META_REPAIRS, b"")))
    if not done.whole:
        before.append(
            {
                "time": time.strftime(TIME_FORMAT, time.gmtime()),
                **_plain(done, _MOST_NAMED),
            }
        )
    if before:
        writer.put_meta(META_REPAIRS, json.dumps(before, ensure_ascii=False).encode())
