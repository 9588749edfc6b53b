"""Compaction: the space of dead records comes back, and nothing that can be read is lost by it."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
from seeds import RUN_SEED

import vecdb
from vecdb import errors, layout

D = 16
AT_ONCE = {
    "history_s": 0.0,
    "compact_dead_share": 1.0,
    "auto_build": False,
    "exact_max_scalars": 2_000 * D,
}
"""Compacts all there is when it is asked to, and does nothing by itself."""


def clustered(n, seed=7):
    centres = np.random.default_rng(99).standard_normal((40, D)) * 3
    rng = np.random.default_rng(seed)
    return (centres[rng.integers(0, 40, n)] + rng.standard_normal((n, D))).astype(np.float32)


def filled(db, n, **settings):
    """A collection of n records r0, r1, ... and their vectors."""
    docs = db.create_collection("docs", dimension=D, metric="l2", **settings)
    vectors = clustered(n)
    docs.insert(
        [f"r{i}" for i in range(n)],
        vectors,
        metadata=[{"i": i} for i in range(n)],
        documents=[f"text {i} " + "x" * 200 for i in range(n)],
    )
    return docs, vectors


def same_answers(docs, vectors, live):
    """Records, documents and exact neighbours are those of the live ones."""
    got = {r.id: r.document.split()[1] for page in docs.scan() for r in page}
    assert got == {f"r{i}": str(i) for i in live}
    queries = clustered(10, seed=8)
    near = ((queries[:, None, :] - vectors[None, live]) ** 2).sum(axis=2)
    truth = [[f"r{live[j]}" for j in row] for row in np.argsort(near, axis=1)[:, :10].tolist()]
    assert docs.query(queries, k=10, exact=True).ids == truth
    found = docs.query(queries, k=10).ids
    hits = sum(len(set(a) & set(b)) for a, b in zip(found, truth, strict=True))
    assert hits >= 0.9 * sum(map(len, truth))
    assert docs.count({"i": {"$lt": 1_000}}) == sum(i < 1_000 for i in live)
    assert docs.check().problems == ()


@pytest.mark.parametrize("index", ["exact", "hnsw", "ivf"])
def test_compact_gives_space_back(data_folder, index):
    """Deleted and replaced records leave the disk; what is live stays right, after opening too."""
    with vecdb.open(data_folder, **AT_ONCE) as db:
        docs, vectors = filled(db, 6_000, index=index)
        docs.build_index()
        docs.delete([f"r{i}" for i in range(0, 6_000, 2)])
        docs.update([f"r{i}" for i in range(1, 3_000, 2)], metadata=[{"new": True}] * 1_500)
        live = list(range(3_001, 6_000, 2)) + list(range(1, 3_000, 2))
        live = sorted(live)
        done = docs.compact()
        assert done.purged_rows == 4_500
        assert done.bytes_after < 0.7 * done.bytes_before
        stats = docs.stats()
        assert (stats.purged_rows, stats.rows, stats.count) == (4_500, 7_500, 3_000)
        assert stats.disk_bytes == done.bytes_after
        assert index == "exact" or stats.index.dead_rows == 0
        same_answers(docs, vectors, live)
        docs.insert(["r0"], vectors[:1], metadata=[{"i": 0}], documents=["text 0"])
    with vecdb.open(data_folder, **AT_ONCE) as db:
        docs = db.get_collection("docs")
        assert docs.stats().purged_rows == 4_500
        same_answers(docs, vectors, [0, *live])
        assert docs.stats().index.kind == ("exact" if index == "exact" else index)
        assert docs.compact().purged_rows == 0


def test_compact_after_everything_was_deleted(data_folder):
    """An index of which nothing is left goes too, and the collection starts again from small."""
    with vecdb.open(data_folder, **AT_ONCE) as db:
        docs, vectors = filled(db, 3_000, index="hnsw")
        docs.build_index()
        docs.delete(filter={})
        assert docs.compact().purged_rows == 3_000
        stats = docs.stats()
        assert (stats.index.kind, stats.index.indexed_rows, stats.index.file_bytes) == (
            "exact",
            0,
            0,
        )
        assert stats.disk_bytes < 200_000
        assert docs.query(vectors[:1]).ids == [[]]
        docs.insert(["r5"], vectors[5:6], metadata=[{"i": 5}], documents=["text 5"])
    with vecdb.open(data_folder, **AT_ONCE) as db:
        same_answers(db.get_collection("docs"), vectors, [5])


def test_history_keeps_cursors_good(data_folder):
    """Within history_s a compaction takes nothing that an open cursor shows."""
    with vecdb.open(data_folder, auto_build=False) as db:
        docs, _ = filled(db, 200)
        first = docs.get(limit=50)
        docs.delete([f"r{i}" for i in range(100, 200)])
        assert docs.compact().purged_rows == 0
        rest = docs.get(limit=200, cursor=first.cursor)
        assert rest.ids == [f"r{i}" for i in range(50, 200)]
        assert rest.documents[-1].startswith("text 199")


def test_cursors_from_before_a_compaction_are_refused(data_folder):
    """A cursor or scan whose moment is gone says so, rather than leave out records."""
    with vecdb.open(data_folder, **AT_ONCE) as db:
        docs, _ = filled(db, 200)
        cursor = docs.get(limit=50).cursor
        scanning = docs.scan(batch_size=50)
        next(scanning)
        docs.delete(["r150"])
        later = docs.get(limit=50).cursor
        docs.compact()
        for call in (
            lambda: docs.get(limit=50, cursor=cursor),
            lambda: list(scanning),
        ):
            with pytest.raises(errors.InvalidCursor, match="compacted since"):
                call()
        assert len(docs.get(limit=200, cursor=later).ids) == 149


@pytest.mark.parametrize("condition", [{"$document": {"$contains": "text"}}, {"id": {"$ne": "r3"}}])
@pytest.mark.parametrize("verb", ["get", "scan"])
def test_a_compaction_during_a_page_leaves_no_holes(data_folder, monkeypatch, verb, condition):
    """What is purged after a cursor was found good and before its filter is evaluated is an error."""
    with vecdb.open(data_folder, **AT_ONCE) as db:
        docs, _ = filled(db, 200)
        if verb == "get":
            cursor = docs.get(filter=condition, limit=50).cursor
        else:
            cursor = next(docs.scan(filter=condition, batch_size=50)).cursor
        docs.delete([f"r{i}" for i in range(100, 150)])
        matching = docs._core.matching

        def late(*given):
            docs.compact()
            return matching(*given)

        monkeypatch.setattr(docs._core, "matching", late)
        with pytest.raises(errors.InvalidCursor, match="compacted since"):
            if verb == "get":
                docs.get(filter=condition, limit=50, cursor=cursor)
            else:
                docs.scan(filter=condition, batch_size=50, cursor=cursor)


def test_dead_records_are_purged_in_the_background(data_folder):
    """When their share grows too large they go by themselves, and their pages are used again."""
    settings = {**AT_ONCE, "compact_dead_share": 0.3}
    with vecdb.open(data_folder, **settings) as db:
        docs, vectors = filled(db, 2_000)
        sizes = []
        for _ in range(6):
            docs.upsert(
                [f"r{i}" for i in range(2_000)],
                vectors,
                metadata=[{"i": i} for i in range(2_000)],
                documents=[f"text {i} " + "x" * 200 for i in range(2_000)],
            )
            wanted = docs.stats().rows - 2_000
            end = time.monotonic() + 30
            while docs.stats().purged_rows < wanted:
                assert time.monotonic() < end, docs.stats()
                time.sleep(0.02)
            sizes.append(docs.stats().map_used_bytes)
        # All seven versions together would take three and a half times as much as the first two.
        assert sizes[-1] <= 2 * sizes[0]
        same_answers(docs, vectors, list(range(2_000)))


def test_few_dead_records_stay(data_folder):
    """Below compact_dead_share nothing is purged in the background."""
    with vecdb.open(data_folder, **{**AT_ONCE, "compact_dead_share": 0.2}) as db:
        docs, vectors = filled(db, 1_000)
        docs.delete([f"r{i}" for i in range(100)])
        time.sleep(0.3)
        assert docs.stats().purged_rows == 0
        same_answers(docs, vectors, list(range(100, 1_000)))


@pytest.mark.long
def test_reads_and_writes_go_on_during_compactions(data_folder):
    """Whatever runs beside a compaction sees whole records of one moment, and loses no write."""
    with vecdb.open(data_folder, **AT_ONCE) as db:
        docs, vectors = filled(db, 1_000)
        stop, failures = threading.Event(), []
        written = []

        def guarded(function):
            def run():
                try:
                    while not stop.is_set():
                        function()
                except BaseException as error:
                    failures.append(error)
                    stop.set()

            return threading.Thread(target=run)

        def write():
            i = len(written) % 1_000
            docs.update([f"r{i}"], metadata=[{"turn": len(written)}])
            written.append(i)

        def read():
            found = docs.query(vectors[:2], k=20, include=["document", "metadata"])
            for ids, documents, metadata in zip(
                found.ids, found.documents, found.metadata, strict=True
            ):
                assert [d.split()[1] for d in documents] == [i[1:] for i in ids]
                assert [m["i"] for m in metadata] == [int(i[1:]) for i in ids]
            assert docs.count() == 1_000
            assert len(docs.get(limit=1_000).ids) == 1_000

        threads = [guarded(f) for f in (write, read, read)]
        for thread in threads:
            thread.start()
        purged = 0
        for _ in range(8):
            purged += docs.compact().purged_rows
            time.sleep(0.1)
        stop.set()
        for thread in threads:
            thread.join()
        assert failures == []
        assert purged > 0
        assert docs.count({"turn": {"$gte": 0}}) == len(set(written))
        same_answers(docs, vectors, list(range(1_000)))


def test_a_reader_beside_a_compaction(data_folder):
    """A process that only reads goes over to the compacted file, and to the commits behind it."""
    code = """
        import sys, vecdb
        with vecdb.open(sys.argv[1], read_only=True) as db:
            docs = db.get_collection("docs")
            for line in sys.stdin:
                page = docs.get(limit=1000, min_sequence=int(line))
                print(len(page.ids), all(d.split()[1] == i[1:] for i, d in zip(page.ids, page.documents)),
                      docs.check().ok, docs.stats().purged_rows, flush=True)
    """
    with vecdb.open(data_folder, **AT_ONCE) as db:
        docs, _ = filled(db, 500)
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(data_folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

        def told(sequence):
            process.stdin.write(f"{sequence}\n")
            process.stdin.flush()
            return process.stdout.readline().split()

        try:
            assert told(1) == ["500", "True", "True", "0"]
            for n in range(4):
                docs.update([f"r{i}" for i in range(4, 500, 2)], metadata=[{"n": n}] * 248)
                docs.delete([f"r{n}"])
                docs.compact()
                stats = docs.stats()
                purged = str(stats.purged_rows)
                assert told(stats.sequence) == [str(499 - n), "True", "True", purged]
            docs.insert(["r0"], clustered(1), documents=["text 0"])
            assert told(docs.stats().sequence) == ["497", "True", "True", purged]
        finally:
            process.stdin.close()
            process.wait(30)


def test_bad_and_late_compactions(data_folder):
    """compact is refused on a database opened read-only and on a closed one, and keeps its limit."""
    with vecdb.open(data_folder, **AT_ONCE) as db:
        docs, _ = filled(db, 50)
        docs.delete(["r1"])
        queued = docs.compact(wait=False)
        assert (queued.purged_rows, queued.bytes_after) == (0, queued.bytes_before)
        with docs._core.exclusive(), pytest.raises(errors.DeadlineExceeded):
            docs.compact(timeout_s=0.01)
        docs.compact()
        assert docs.stats().purged_rows == 1
    with pytest.raises(errors.Closed):
        docs.compact()
    with vecdb.open(data_folder, read_only=True) as db, pytest.raises(errors.ReadOnly):
        db.get_collection("docs").compact()


# Writes and compacts without end, with a line after each acknowledgement.
WRITER = """
    import sys, random, numpy as np, vecdb
    folder, seed = sys.argv[1], int(sys.argv[2])
    rng = random.Random(seed)
    db = vecdb.open(folder, map_initial_bytes=1 << 20, history_s=0.0, auto_build=False)
    docs = db.create_collection("docs", dimension=8, index="hnsw", exist_ok=True,
                                vectors={"bits": {"dimension": 8, "metric": "hamming", "storage": "binary"}})
    print("ready", flush=True)
    batch = docs.stats().sequence
    while True:
        verb = rng.choice(["upsert", "upsert", "delete", "compact", "compact", "build"])
        if verb == "compact":
            docs.compact()
            continue
        if verb == "build":
            docs.build_index()
            continue
        batch += 1
        ids = sorted({f"r{rng.randrange(2500)}" for _ in range(rng.choice([1, 60, 400, 1200]))})
        if verb == "upsert":
            vectors = np.random.default_rng(batch).standard_normal((len(ids), 8), dtype=np.float32)
            named = {"bits": [[batch % 256] if n % 2 else None for n in range(len(ids))]}
            r = docs.upsert(ids, vectors, metadata=[{"batch": batch}] * len(ids), named_vectors=named)
        else:
            r = docs.delete(ids)
        print(verb, batch, r.sequence, *ids, flush=True)
"""


@pytest.mark.long
@pytest.mark.parametrize("seed", [RUN_SEED])
def test_killed_while_compacting(data_folder, seed):
    """After SIGKILL at random moments of writing and compacting every acknowledged write is whole."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    model: dict[str, int] = {}
    for round_ in range(7):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(data_folder), str(seed + round_)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.05, 1.0))
        process.send_signal(signal.SIGKILL)
        lines = process.stdout.read().splitlines(keepends=True)
        process.wait()
        sequence = 0
        for line in (line for line in lines if line.endswith("\n")):
            verb, batch, sequence, *ids = line.split()
            for record_id in ids:
                if verb == "upsert":
                    model[record_id] = int(batch)
                else:
                    model.pop(record_id, None)
        with vecdb.open(data_folder, auto_build=False) as db:
            docs = db.get_collection("docs")
            assert docs.check().problems == (), (seed, round_)
            held = {
                i: m["batch"]
                for page in docs.scan(include=["metadata"])
                for i, m in zip(page.ids, page.metadata, strict=True)
            }
            if docs.stats().sequence == int(sequence):
                assert held == model, (seed, round_)
            else:
                # One commit may have come before the kill and its acknowledgement after.
                changed = {i: b for i, b in held.items() if model.get(i) != b}
                assert len(set(changed.values())) <= 1, (seed, round_)
            for page in docs.scan(include=["named_vectors", "metadata"]):
                for record in page:
                    bits = record.named_vectors.get("bits")
                    assert bits is None or bits.tolist() == [record.metadata["batch"] % 256]
            names = {p.name for p in docs._core.store.folder.iterdir()}
            record = docs._core.default.record
            assert names == {
                layout.DATA_FILE, layout.LMDB_LOCK_FILE, *(() if record is None else record.files()),
            }  # fmt: skip
            model = held
