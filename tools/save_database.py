"""Saves a small database for `tests/data`, one a format version; they are opened by tests for ever.

    python tools/save_database.py tests/data/format-2.tar.gz
    python tools/save_database.py tests/data/format-2-checksums.tar.gz
    python tools/save_database.py tests/data/indexes-4.tar.gz
    python tools/save_database.py tests/data/backups-3.tar.gz
    python tools/save_database.py tests/data/index-records-5-sha256.tar.gz

The first two are of one format; since the first was saved settings, times, names and requests have got checksums, and backups
their epochs, which files without them are read without. The third holds a saved index of each kind, named after the format of their records, the fourth a database and backups of
it, named after the format of their manifests. The last is small and holds a graph and lists, named after the format of
their records and how the checksums of their files were made. Run it once when a format is new, never again for the same
version. What an earlier version has written is made by its code: `git archive COMMIT | tar x -C old`, then
`PYTHONPATH=old python tools/save_database.py ...`.
"""

from __future__ import annotations

import datetime as dt
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import vecdb

ROWS = 1_200
DIMENSION = 4


def vectors() -> np.ndarray:
    """(ROWS, DIMENSION) float32, the same on every machine."""
    n = np.arange(ROWS * DIMENSION, dtype=np.float64).reshape(ROWS, DIMENSION)
    return (np.sin(n) * 10).astype(np.float32)


def fill(folder: Path) -> None:
    """Collections of every kind of content, with an index, dead rows, a long id and an alias; and what
    format 2 has added: named vectors, storages, purged rows, and ids that wait for their table."""
    with vecdb.open(folder, auto_build=False, map_initial_bytes=1 << 20, history_s=0.0) as db:
        docs = db.create_collection(
            "docs", dimension=DIMENSION, metric="l2", index="hnsw", schema={"n": "int"}
        )
        docs.insert(
            [f"r{n}" for n in range(ROWS)], vectors(), metadata=[{"n": n} for n in range(ROWS)]
        )
        docs.build_index()
        docs.insert(
            ["x" * 1_000],
            [[1, 2, 3, 4]],
            metadata=[
                {"when": dt.datetime(2026, 1, 31, tzinfo=dt.UTC), "tags": ["a", 1], "d": {"e": 1.5}}
            ],
            documents=["grün"],
            contents=[(b"\x00\xff", "image/png")],
            uris=["file:///x"],
        )
        docs.delete(["r0", "r1"])
        docs.update(["r2"], metadata=[{"n": None, "new": True}])
        half = db.create_collection("half", dimension=DIMENSION, storage="float16")
        half.insert(["a"], [[1, 2, 3, 4]])
        db.set_alias("alias", "docs")
        fill_fields(db)


def fill_fields(db: vecdb.Database) -> None:
    """1,500 records f<n>; every third is purged, f1 is deleted and f2 replaced after that.

    Record n has the vector of the bits of n; `title` (n mod 100, 1) if n is even, `body` if n > 1,400.
    """
    fields = db.create_collection(
        "fields",
        dimension=16,
        metric="hamming",
        storage="binary",
        vectors={
            "title": {"dimension": 2, "metric": "l2", "storage": "int8"},
            "body": {"dimension": 3, "metric": "ip", "storage": "float16"},
        },
    )
    for first in range(0, 1_500, 500):
        numbers = range(first, first + 500)
        fields.insert(
            [f"f{n}" for n in numbers],
            np.array([[n >> 8, n & 255] for n in numbers], np.uint8),
            metadata=[{"n": n} for n in numbers],
            named_vectors={
                "title": [None if n % 2 else [n % 100, 1] for n in numbers],
                "body": [[n, 1, 0.5] if n > 1_400 else None for n in numbers],
            },
        )
    fields.delete([f"f{n}" for n in range(0, 1_500, 3)])
    fields.compact()
    fields.delete(["f1"])
    fields.upsert(["f2"], np.array([[0, 255]], np.uint8), named_vectors={"title": [[7, 7]]})


INDEXES: dict[str, dict[str, Any]] = {
    "graph": {"index": "hnsw", "quantization": "none"},
    "graph_half": {"index": "hnsw", "quantization": "float16"},
    "graph_codes": {"index": "hnsw", "quantization": "sq8"},
    "graph_small": {"index": "hnsw", "quantization": "sq4"},
    "lists": {"index": "ivf", "quantization": "none"},
    "lists_codes": {"index": "ivf", "quantization": "sq8"},
    "lists_small": {"index": "ivf", "quantization": "pq4"},
    "lists_card": {"index": "ivf", "quantization": "pq8"},
}
"""Collections of INDEX_ROWS records i<n> with the vectors of `index_vectors`, i3 deleted after the build, and i<n> new
ones behind it; `named` has a graph for its field too."""
INDEX_ROWS, INDEX_DIMENSION = 1_100, 16


def index_vectors() -> np.ndarray:
    """(INDEX_ROWS + 2, INDEX_DIMENSION) float32 of whole numbers, the same on every machine."""
    n = np.arange((INDEX_ROWS + 2) * INDEX_DIMENSION, dtype=np.float64)
    whole: np.ndarray = np.rint(np.sin(n**1.37) * 40)
    return whole.reshape(-1, INDEX_DIMENSION).astype(np.float32)


def fill_indexes(folder: Path) -> None:
    """A collection for each of INDEXES, and `named`."""
    vectors = index_vectors()
    ids = [f"i{n}" for n in range(len(vectors))]
    with vecdb.open(folder, auto_build=False, map_initial_bytes=1 << 20) as db:
        for name, kind in INDEXES.items():
            made = db.create_collection(name, dimension=INDEX_DIMENSION, metric="l2", **kind)
            made.insert(ids[:INDEX_ROWS], vectors[:INDEX_ROWS])
            made.build_index()
            made.delete(["i3"])
            made.insert(ids[INDEX_ROWS:], vectors[INDEX_ROWS:])
        side = {"side": {"dimension": INDEX_DIMENSION, "metric": "l2", "index": "hnsw"}}
        made = db.create_collection("named", dimension=2, metric="l2", vectors=side)
        made.insert(ids, np.ones((len(ids), 2)), named_vectors={"side": [*vectors]})
        made.build_index()


RECORDS: dict[str, dict[str, Any]] = {
    "graph": {"index": "hnsw", "quantization": "none"},
    "lists": {"index": "ivf", "quantization": "none"},
}
"""Collections of INDEX_ROWS records i<n> with the vectors of `record_vectors`, then i3 deleted and two more behind."""
RECORD_DIMENSION = 64
"""From so many on a graph is walked over codes of its own, which format 3 has brought."""


def record_vectors() -> np.ndarray:
    """(INDEX_ROWS + 2, RECORD_DIMENSION) float32 of -1, 0 and 1, which take little room, the same on every machine."""
    n = np.arange((INDEX_ROWS + 2) * RECORD_DIMENSION, dtype=np.float64)
    whole: np.ndarray = np.rint(np.sin(n**1.37) * 1.4)
    return whole.reshape(-1, RECORD_DIMENSION).astype(np.float32)


def fill_records(folder: Path) -> None:
    """A collection for each of RECORDS, by what every version has."""
    vectors = record_vectors()
    ids = [f"i{n}" for n in range(len(vectors))]
    metadata = [{"n": n % 10} for n in range(len(vectors))]
    with vecdb.open(folder, auto_build=False, map_initial_bytes=1 << 20) as db:
        for name, kind in RECORDS.items():
            made = db.create_collection(name, dimension=RECORD_DIMENSION, metric="l2", **kind)
            made.insert(ids[:INDEX_ROWS], vectors[:INDEX_ROWS], metadata=metadata[:INDEX_ROWS])
            made.build_index()
            made.delete(["i3"])
            made.insert(ids[INDEX_ROWS:], vectors[INDEX_ROWS:], metadata=metadata[INDEX_ROWS:])


BACKED_UP = 400
"""Records b<n>, n in their metadata; b0 is replaced by one with a negative n between the two backups."""


def fill_backups(folder: Path) -> None:
    """A database in `db`, and in `backups` a full backup of it and an increment."""
    with vecdb.open(folder / "db", auto_build=False, map_initial_bytes=1 << 20) as db:
        docs = db.create_collection("docs", dimension=2, metric="l2")
        docs.insert(
            [f"b{n}" for n in range(BACKED_UP)],
            np.array([[n, 1] for n in range(BACKED_UP)], np.float32),
            metadata=[{"n": n} for n in range(BACKED_UP)],
            documents=[f"text {n}" for n in range(BACKED_UP)],
        )
        db.backup(folder / "backups")
        docs.upsert(["b0"], [[-1, 1]], metadata=[{"n": -1}])
        docs.delete(["b1"])
        db.backup(folder / "backups")


def main(target: str) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "data"
        if Path(target).name.startswith("indexes-"):
            fill_indexes(folder)
        elif Path(target).name.startswith("index-records-"):
            fill_records(folder)
        elif Path(target).name.startswith("backups-"):
            fill_backups(folder)
        else:
            fill(folder)
        with tarfile.open(target, "w:gz") as archive:
            for path in sorted(folder.rglob("*")):
                if path.is_file() and path.name != "lock.mdb":
                    archive.add(path, path.relative_to(made))


if __name__ == "__main__":
    main(sys.argv[1])
