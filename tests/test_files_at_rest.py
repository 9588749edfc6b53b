"""A folder that may not be written any more, with more collections than may have their files open at once."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import faults

import vecdb

COLLECTIONS = 7
SETTINGS = {"auto_build": False, "device": "cpu", "max_open_collections": 2}


def fill(folder: Path) -> None:
    with vecdb.open(folder, **SETTINGS) as db:
        for n in range(COLLECTIONS):
            docs = db.create_collection(f"c{n}", dimension=2, metric="l2")
            docs.insert(
                ["a", "b"], [[n, 0], [n, 9]], metadata=[{"n": n}, {}], documents=["one", None]
            )


def test_all_collections_of_a_read_only_disk_are_served(tmp_path: Path) -> None:
    """Files that were closed for others are opened again, again and again, though nothing can be locked or written."""
    with faults.small_disk(tmp_path / "disk") as disk:
        fill(disk / "db")
        faults.remount(disk, "ro")
        with vecdb.open(disk / "db", read_only=True, **SETTINGS) as db:
            for _ in range(2):
                for n in range(COLLECTIONS):
                    docs = db.get_collection(f"c{n}")
                    assert docs.get(["a"], include=["document"]).documents == ["one"]
                    assert docs.count({"n": n}) == 1
                    assert docs.query([[n, 8]], k=1, include=["metadata"]).ids == [["b"]]
                    assert docs.check().problems == ()
                    assert len(db._awake) <= 2
        faults.remount(disk, "rw")


def test_permissions_that_go_while_files_rest(data_folder: Path) -> None:
    """Of an open database whose folder may not be written any more those collections go on whose files are open; the
    others answer from memory, refuse the rest with ReadOnly, and lose nothing: all works once permission is back."""
    fill(data_folder)
    code = """
        import os, sys
        sys.path.insert(0, sys.argv[2])
        import faults
        faults.obey_modes()
        import vecdb
        from vecdb import errors
        db = vecdb.open(sys.argv[1], auto_build=False, device="cpu", max_open_collections=2)
        every = [db.get_collection(f"c{n}") for n in range(7)]
        for docs in every:
            docs.count({"n": 1})
        paths = [os.path.join(p, f) for p, _, files in os.walk(sys.argv[1]) for f in ["", *files]]
        modes = {p: os.stat(p).st_mode for p in paths}
        for p in paths:
            os.chmod(p, modes[p] & ~0o222)
        memory, read, refused, written = 0, 0, 0, 0
        for n, docs in enumerate(every):
            memory += docs.count({"n": n}) == 1 and docs.query([[n, 8]], k=1).ids == [["b"]]
            try:
                read += docs.get(["a"], include=["document"]).documents == ["one"]
                written += docs.insert(["new"], [[n, 1]]).count
            except errors.ReadOnly as error:
                refused += "permission" in str(error)
        print(memory, read, written, refused)
        for p in paths:
            os.chmod(p, modes[p])
        for docs in every:
            docs.upsert(["new"], [[0, 1]])
            assert docs.check().problems == ()
            assert docs.get(["a"], include=["document"]).documents == ["one"]
        print([docs.count() for docs in every])
        db.close()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(data_folder), os.path.dirname(__file__)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["7 2 2 5", str([3] * COLLECTIONS)]
