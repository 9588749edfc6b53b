"""Saves a small database for `tests/data`, one a format version; they are opened by tests for ever.

    python tools/save_database.py tests/data/format-1.tar.gz

Run it once when a format is new, never again for the same version.
"""

from __future__ import annotations

import datetime as dt
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np

import vecdb

ROWS = 1_200
DIMENSION = 4


def vectors() -> np.ndarray:
    """(ROWS, DIMENSION) float32, the same on every machine."""
    n = np.arange(ROWS * DIMENSION, dtype=np.float64).reshape(ROWS, DIMENSION)
    return (np.sin(n) * 10).astype(np.float32)


def fill(folder: Path) -> None:
    """A collection of every kind of content, with an index, dead rows, a long id and an alias."""
    with vecdb.open(folder, auto_build=False, map_initial_bytes=1 << 20) as db:
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


def main(target: str) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "data"
        fill(folder)
        with tarfile.open(target, "w:gz") as archive:
            for path in sorted(folder.rglob("*")):
                if path.is_file() and path.name != "lock.mdb":
                    archive.add(path, path.relative_to(made))


if __name__ == "__main__":
    main(sys.argv[1])
