"""A server process on a small disk, out of files or memory: typed errors, reads go on, writes resume."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import faults
import numpy as np
import pytest

from vecdb_client import connect, errors

DIMENSION = 64


@contextmanager
def serving(folder, *words):
    """A server process and a client of it; the process must still be there at the end, and stop in order."""
    process = subprocess.Popen(
        [
            sys.executable, "-m", "vecdb_server", "serve", "--data", str(folder), "--port", "0",
            "--device", "cpu", *words,
        ],
        stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    try:
        for line in process.stderr:
            found = re.search(r"address=(\S+)", line)
            if found:
                break
        else:
            raise AssertionError(f"the server has ended with {process.wait()}")
        with connect(found[1]) as db:
            yield process, db
        assert process.poll() is None
        process.terminate()
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def rows(first, count):
    return [f"r{i}" for i in range(first, first + count)], np.ones((count, DIMENSION))


@pytest.mark.parametrize("durability", ["commit", "interval"])
def test_a_server_on_a_full_disk(tmp_path, durability):
    """Clients get StorageFull for each verb that writes and answers for each that reads, and write again when
    there is room."""
    with (
        faults.small_disk(tmp_path / "disk") as disk,
        # A build that ends on the full disk would leave room behind it.
        serving(disk / "db", "--durability", durability, "--auto-build", "false") as (_, db),
    ):
        docs = db.create_collection("docs", dimension=DIMENSION, index="hnsw")
        docs.insert(*rows(0, 1_000))
        faults.fill(disk)
        for call in (
            lambda: docs.insert(*rows(1_000, 300)),
            lambda: docs.delete(["r1"]),
            lambda: docs.build_index(),
            lambda: db.create_collection("more", dimension=2),
            lambda: db.set_alias("alias", "docs"),
        ):
            with pytest.raises(errors.StorageFull, match=r"[Ff]ree some"):
                call()
        assert docs.count() == 1_000
        assert docs.query(np.ones(DIMENSION), k=5).distances.shape == (1, 5)
        assert docs.check().ok
        faults.free(disk)
        docs.insert(*rows(1_000, 300))
        docs.build_index()
        db.create_collection("more", dimension=2)
        assert docs.count() == 1_300
        assert docs.check().ok


def test_a_server_without_files(tmp_path):
    """Out of descriptors a change of names is LimitExceeded, open connections are served, and more is possible
    when the limit is lifted."""
    with serving(tmp_path / "db") as (process, db):
        docs = db.create_collection("docs", dimension=DIMENSION)
        docs.insert(*rows(0, 100))
        limits = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        used = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (used, limits[1]))
        with pytest.raises(errors.LimitExceeded, match="ulimit -n"):
            for n in range(64):
                db.create_collection(f"c{n}", dimension=2)
        docs.insert(*rows(100, 10))
        assert docs.count() == 110
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, limits)
        db.create_collection("after", dimension=2).insert(["a"], [[1, 2]])
        assert docs.check().ok


def test_a_server_without_memory(tmp_path):
    """When the store cannot grow for want of address space a write is LimitExceeded, what was acknowledged is
    answered, and writes go on when the limit is lifted."""
    with serving(tmp_path / "db", "--map-initial-bytes", str(1 << 20)) as (process, db):
        docs = db.create_collection("docs", dimension=1_024, index="exact")
        docs.insert(["a"], np.ones((1, 1_024)))
        for _ in range(20):
            docs.query(np.ones(1_024), k=1)
        many = [f"b{i}" for i in range(12_000)], np.ones((12_000, 1_024))
        pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[0])
        limits = resource.prlimit(process.pid, resource.RLIMIT_AS)
        limit = pages * resource.getpagesize() + (36 << 20)
        resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, limits[1]))
        with pytest.raises(errors.LimitExceeded, match="ulimit -v"):
            docs.insert(*many)
        before = docs.count()
        assert docs.query(np.ones(1_024), k=1).ids
        resource.prlimit(process.pid, resource.RLIMIT_AS, limits)
        docs.upsert(*many)
        assert docs.count() == 12_001 >= before
        assert docs.check().ok


def test_two_servers_on_one_folder(tmp_path):
    """A second server on a folder ends with a message that names the first, which goes on."""
    with serving(tmp_path / "db") as (process, db):
        db.create_collection("docs", dimension=2)
        second = subprocess.run(
            [sys.executable, "-m", "vecdb_server", "serve", "--data", str(tmp_path / "db")],
            capture_output=True, text=True, timeout=60, check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )  # fmt: skip
        assert second.returncode == 3
        assert f"process {process.pid}" in second.stderr
        db.get_collection("docs").insert(["a"], [[1, 2]])
