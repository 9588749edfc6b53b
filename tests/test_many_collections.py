"""Many small collections in one process, one for each tenant: what each takes, and that there may be hundreds."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

CHILD = """
    import gc, json, os, resource, sys, threading
    import numpy as np
    import vecdb

    folder = sys.argv[1]
    ROWS, D = 1_000, 384
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((ROWS, D), dtype=np.float32)
    ids = [f"record-{i:05}" for i in range(ROWS)]
    metadata = [{"shelf": i % 7, "language": "en" if i % 3 else "de", "row": i} for i in range(ROWS)]
    documents = [f"The text of record {i}, of the length that a sentence has: some words." for i in range(ROWS)]

    def fill(docs):
        # Arrays that come and go, as they do: what they leave behind is used for other things.
        own = rng.standard_normal((ROWS, D), dtype=np.float32)
        docs.insert(ids, own, metadata=metadata, documents=documents)
        assert docs.query(own[5], k=3).ids[0][0] == ids[5]
        found = docs.query(own[5], k=1, filter={"shelf": 5}, include=["document"])
        assert found.documents == [[documents[5]]]

    def private_bytes():
        gc.collect()
        lines = open("/proc/self/smaps_rollup").read().splitlines()
        return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))

    def files():
        return len(os.listdir("/proc/self/fd"))
"""


def told(code, *arguments):
    """What a child process prints, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CHILD) + textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE, text=True, check=True, timeout=300,
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize(("open_at_once", "most_bytes"), [(64, 700 << 10), (4, 300 << 10)])
def test_a_small_collection_takes_little_beside_its_vectors(data_folder, open_at_once, most_bytes):
    """1,000 rows of 384 with metadata and documents, which were just written and queried, take at most 700 KiB of
    memory of the process's own beside their vectors, 300 KiB where the files are closed; no threads of their own."""
    before, after, threads = told(
        """
        db = vecdb.open(folder, max_open_collections=int(sys.argv[2]), auto_build=False)
        # What a process takes once, garbage that is used again included, is there after some.
        for n in range(8):
            fill(db.create_collection(f"first-{n}", dimension=D))
        before = private_bytes()
        for n in range(24):
            fill(db.create_collection(f"c{n}", dimension=D))
        print(json.dumps([before, private_bytes(), threading.active_count()]))
        db.close()
        """,
        data_folder,
        open_at_once,
    )
    each = (after - before) / 24
    assert each >= 1_000 * 384 * 4, "the vectors were not counted"
    assert each - 1_000 * 384 * 4 < most_bytes
    assert threads <= 4


@pytest.mark.long
def test_hundreds_of_collections_in_a_process_that_may_open_256_files(data_folder):
    """300 collections are made, written, read and opened again where 256 files may be open, with a handful of threads."""
    made, opened = told(
        """
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        N = 300
        def figures():
            maps = sum(1 for line in open("/proc/self/maps") if line.rstrip().endswith(".mdb"))
            return {"files": files(), "threads": threading.active_count(), "maps": maps}

        def check(held, rows):
            for n, docs in enumerate(held):
                assert docs.get([ids[n]]).documents == [documents[n]]
                assert docs.query(vectors[n], k=2, include=["document"]).ids[0][0] == ids[n]
                assert docs.count() == rows

        with vecdb.open(folder) as db:
            held = [db.create_collection(f"c{n}", dimension=D) for n in range(N)]
            for n, docs in enumerate(held):
                part = slice(n, n + 2)
                docs.insert(ids[part], vectors[part], documents=documents[part])
            check(held, 2)
            made = figures()
        with vecdb.open(folder) as db:
            held = [db.get_collection(f"c{n}") for n in range(N)]
            check(held, 2)
            for n, docs in enumerate(held):
                docs.delete([ids[n + 1]])
            check(held, 1)
            assert all(docs.check().ok for docs in held[::30])
            print(json.dumps([made, figures()]))
        """,
        data_folder,
    )
    for found in (made, opened):
        assert found["files"] < 220
        assert found["threads"] < 8
        assert found["maps"] < 400
