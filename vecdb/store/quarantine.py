"""What a repair keeps of what it could not keep: the file as it was, and what is left of each row that is lost.

A folder in `quarantine/` has the old file (`data.mdb`), what the repair told (`repair.json`), and `rows.jsonl`: an
object a line for each row that is not in the new file, in ascending order.
"""

from __future__ import annotations

import base64
import json
import secrets
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import disk
from ..layout import DATA_FILE, QUARANTINE_FOLDER, QUARANTINED_ROWS, QUARANTINED_TOLD
from .evidence import Piece
from .salvage import Salvaged
from .verdict import TornRow, Verdict

_WHAT = "repair"
_MOST_BYTES = 1 << 20
"""Of one part of a row that are written out; longer ones are in the old file, where the line says."""
_CHUNK_BYTES = 1 << 20
_TEXTS = ("metadata", "documents", "uris")


def keep(
    folder: Path, database: Path, told: Mapping[str, Any], verdict: Verdict, read: Salvaged
) -> Path:
    """Makes a folder durable that has the data file of `folder` as `keep_file` keeps it, `told` as JSON, and the rows that
    are lost; the folder. Nothing is left of it after an error: those of the system, and Corrupted where something else has
    the name of the quarantine."""
    must_be_possible(database)
    name = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    kept = database / QUARANTINE_FOLDER / f"{folder.name}-{name}-{secrets.token_hex(2)}"
    disk.make_folder(kept, _WHAT, parents=True, exist_ok=True)
    try:
        keep_file(folder / DATA_FILE, kept / DATA_FILE)
        with disk.written_aside(kept / QUARANTINED_ROWS, _WHAT) as file:
            starts = [(raw.__array_interface__["data"][0], len(raw)) for raw in read.maps]
            for row, torn in sorted(verdict.torn.items()):
                line = json.dumps(_plain(row, torn, starts), ensure_ascii=False)
                file.write(line.encode() + b"\n")
        with disk.written_aside(kept / QUARANTINED_TOLD, _WHAT) as file:
            file.write(json.dumps(told, indent=1, ensure_ascii=False).encode())
        for made in (kept, kept.parent, database):
            disk.sync_folder(made, _WHAT)
    except BaseException:
        disk.remove_tree(kept, _WHAT)
        raise
    return kept


def must_be_possible(database: Path) -> None:
    """Corrupted where something that is no folder has the name of the quarantine."""
    disk.must_be_folder(
        database / QUARANTINE_FOLDER,
        "move it away: what a repair cannot keep is put into a folder of this name. Nothing was changed",
    )


def keep_file(path: Path, kept: Path) -> None:
    """Gives a file, or the one that a link leads to, a second name; where it lies on another disk, or on one without hard
    links, a copy of it, durable but for its name. OSError when there is no room for that."""
    # By itself the system would give a second name to the link, which may lead nowhere from there.
    path = path.resolve()
    try:
        disk.link(path, kept, _WHAT)
        return
    except OSError as error:
        if error.errno not in disk.NO_LINK:
            raise
    with open(path, "rb") as old, disk.written_aside(kept, _WHAT) as file:
        shutil.copyfileobj(old, file, _CHUNK_BYTES)


def _plain(row: int, torn: TornRow, starts: list[tuple[int, int]]) -> dict[str, Any]:
    parts = [
        *(_part(starts, "vectors", piece, field=f) for f, piece in torn.vectors.items()),
        *(_part(starts, table, piece) for table, piece in torn.texts.items()),
    ]
    name = torn.record_id
    return {
        "row": row,
        "id": None if name is None else name.decode(errors="replace"),
        "id_certain": torn.id_certain,
        "live": not torn.dead,
        "written_in": torn.written_in,
        "died_in": torn.died_in,
        "fault": torn.fault,
        "checksum": None if torn.checksum is None else f"{torn.checksum:08x}",
        "vectors_certain": torn.certain,
        "parts": parts,
    }


def _part(starts: list[tuple[int, int]], table: str, piece: Piece, **more: int) -> dict[str, Any]:
    told: dict[str, Any] = {
        "table": table,
        **more,
        "at": _offset(starts, piece),
        "bytes": len(piece),
    }
    if len(piece) <= _MOST_BYTES or told["at"] is None:
        raw = bytes(piece)
        try:
            if table in _TEXTS:
                return told | {"text": raw.decode()}
        except UnicodeDecodeError:
            pass  # as bytes, then
        told["base64"] = base64.b64encode(raw).decode()
    return told


def _offset(starts: list[tuple[int, int]], piece: Piece) -> int | None:
    """Where in the file a piece lies; None where it is not as it was found there."""
    if not len(piece):
        return None
    at: int = np.frombuffer(piece, np.uint8).__array_interface__["data"][0]
    return next((at - start for start, size in starts if start <= at < start + size), None)
