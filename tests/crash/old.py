"""A database of the first format, from tests/data: upgraded, written and set back, it holds what was saved in it."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import numpy as np

import vecdb
from crash import records
from crash.model import OF_OLD, Model, Old, Part
from crash.wrong import Wrong
from tools import save_database

SAVED = Path(__file__).resolve().parents[1] / "data" / "format-1.tar.gz"
COLLECTIONS = ("docs", "half")
FIRST, LATER = 1, 2
"""The formats it goes between."""

SETTINGS: dict[str, Any] = {"auto_build": False, "device": "cpu", "map_initial_bytes": 1 << 20}
"""Of this database and of those restored beside, which wait for the disk at each commit."""

LONG = "x" * 1_000
"""An id that it holds."""


def unpack(beside: Path) -> None:
    """Puts it there, unless it is there already."""
    if (beside / records.OLD).exists():
        return
    with tarfile.open(SAVED) as archive:
        # Python 3.11 has filters from 3.11.4 on.
        safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(beside, **safely)
    (beside / "data").rename(beside / records.OLD)


def write(database: Any, version: int) -> None:
    """One record of this version."""
    database.get_collection("docs").upsert(
        [f"new{version}"], [[version, 0, 0, 1]], metadata=[{"n": -version}]
    )


def compare(path: Path, model: Model) -> Old:
    """What is there; Wrong unless it is what was acknowledged, with or without what was under way."""
    found = Old({}, [])
    with vecdb.open(path, read_only=True, **SETTINGS) as database:
        names = sorted(info.name for info in database.list_collections())
        if names != [*COLLECTIONS]:
            raise Wrong(f"{path}: collections {names}")
        for name in COLLECTIONS:
            docs = database.get_collection(name)
            report = docs.check()
            if not report.ok:
                raise Wrong(f"check of {name} in {path}: {report.problems}")
            with docs._core.read() as reader:
                found.formats[name] = reader.format()
        found.written = _written(database.get_collection("docs"))
        half = database.get_collection("half").get(["a"], include=["vector"])
        if not np.array_equal(half.vectors, [[1, 2, 3, 4]]):
            raise Wrong(f"{path}: half holds {half.vectors}")
    may_be = [_after(model.old, None), *(_after(model.old, part) for part in model.pending)]
    if any(part["do"] == "downgrade" for part in model.pending):
        # Which first ends what an upgrade has left undone, in whichever of the collections.
        may_be.append(Old(dict.fromkeys(model.old.formats, LATER), list(model.old.written)))
    docs_now = found.formats["docs"], found.written
    if docs_now not in [(old.formats["docs"], old.written) for old in may_be]:
        raise Wrong(f"{path}: docs is {docs_now}, expected {model.old}, under way {model.pending}")
    if found.formats["half"] not in [old.formats["half"] for old in may_be]:
        raise Wrong(f"{path}: half is {found}, expected {model.old}, under way {model.pending}")
    return found


def _after(old: Old, part: Part | None) -> Old:
    made = Model(old=Old(dict(old.formats), list(old.written)))
    if part is not None and part["do"] in OF_OLD:
        made.apply(part)
    return made.old


def _written(docs: Any) -> list[int]:
    """Versions of the records that were written since; Wrong if those that were saved are not as they were."""
    vectors = save_database.vectors()
    written, saved = [], set()
    for page in docs.scan(include=["vector", "metadata"]):
        for n, record in enumerate(page.ids):
            if record.startswith("new"):
                version = int(record[3:])
                expected = [version, 0, 0, 1], {"n": -version}
                written.append(version)
            else:
                expected = _saved(record, vectors)
                saved.add(record)
            if page.vectors[n].tolist() != expected[0] or (
                expected[1] is not None and page.metadata[n] != expected[1]
            ):
                raise Wrong(f"old record {record[:20]} holds {page.vectors[n]}, {page.metadata[n]}")
    expected_ids = {LONG, *(f"r{n}" for n in range(2, save_database.ROWS))}
    if saved != expected_ids:
        raise Wrong(
            f"old records are not those that were saved: {sorted(saved ^ expected_ids)[:4]}"
        )
    return sorted(written)


def _saved(record: str, vectors: Any) -> tuple[list[float], dict[str, Any] | None]:
    if record == LONG:
        return [1, 2, 3, 4], None
    number = int(record[1:])
    return vectors[number].tolist(), {"new": True} if number == 2 else {"n": number}
