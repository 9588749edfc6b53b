"""What was read of a mapped file does not stay in the memory of the process."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

import vecdb
from vecdb.store import resident

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="asks /proc for what is resident"
)


def resident_bytes(path: Path) -> int:
    """Of all mappings of a file by this process."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


def test_opening_leaves_only_copies_in_memory(tmp_path: Path) -> None:
    """After a collection was opened its vectors are in memory once, not in the map beside the index too; and
    all of it is still read right."""
    vectors = np.random.default_rng(5).standard_normal((20_000, 64)).astype(np.float32)
    ids = [f"r{n}" for n in range(len(vectors))]
    with vecdb.open(tmp_path / "db") as database:
        made = database.create_collection("c", dimension=64, index="exact")
        for start in range(0, len(ids), 5_000):
            part = slice(start, start + 5_000)
            made.insert(ids[part], vectors[part], documents=ids[part])
    with vecdb.open(tmp_path / "db") as database:
        found = database.get_collection("c")
        assert found.count() == len(ids)
        (path,) = (tmp_path / "db").glob("collections/*/data.mdb")
        assert resident_bytes(path) < path.stat().st_size / 4
        answer = found.query(vectors[123], k=1, include=["document"])
        assert answer.documents == [["r123"]]
        assert np.array_equal(found.get(["r19999"], include=["vector"]).vectors[0], vectors[19999])


def test_pages_that_are_needed_stay(tmp_path: Path) -> None:
    """A look at a file that may be written, or whose changes nobody else sees, keeps its content."""
    path = tmp_path / "file"
    path.write_bytes(b"a" * 65_536)
    with open(path, "r+b") as file:
        private = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        shared = mmap.mmap(file.fileno(), 0)
        reading = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        private[:4], shared[4:8] = b"mine", b"ours"
        before = resident_bytes(path)
        assert reading[65_535:] == b"a"
        assert resident_bytes(path) > before
        resident.let_go(path)
        assert (private[:4], shared[4:8], reading[4:8]) == (b"mine", b"ours", b"ours")
        for one in (private, shared, reading):
            one.close()
    resident.let_go(tmp_path / "none")
