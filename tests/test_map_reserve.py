"""Of a map that is full a part is kept for deletes and compaction, so that a collection can be emptied where it is."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import vecdb
from vecdb import errors
from vecdb.store.environment import Environment

LIMIT_BYTES = 4 << 20
RESERVE_BYTES = 1 << 20
SETTINGS = {
    "auto_build": False, "device": "cpu", "history_s": 0.0, "compact_dead_share": 1.0,
    "map_initial_bytes": 1 << 20, "map_limit_bytes": LIMIT_BYTES,
}  # fmt: skip
DIMENSION = 64
VECTORS = np.random.default_rng(1).random((200, DIMENSION), dtype=np.float32)


def fill(docs, first):
    """Inserts from record `first` on until nothing fits; the number of the next."""
    for count in (200, 1):
        with pytest.raises(errors.StorageFull, match="kept for deletes and compaction"):
            while True:
                docs.insert([f"r{n}" for n in range(first, first + count)], VECTORS[:count])
                first += count
    return first


@pytest.mark.parametrize("durability", ["commit", "interval"])
def test_a_full_collection_is_emptied_and_filled_again(data_folder, durability):
    """Deletes by ids and by filter, and compaction, work at the limit, and then as much fits as before."""
    # How much fits at `interval` hangs on when syncs come: here only where there is no room.
    with vecdb.open(
        data_folder, durability=durability, durability_interval_ms=60_000, **SETTINGS
    ) as db:
        docs = db.create_collection("docs", dimension=DIMENSION, metric="l2")
        full = fill(docs, 0)
        for refused in (
            lambda: docs.upsert([f"r{n}" for n in range(200)], VECTORS),
            lambda: docs.update([f"r{n}" for n in range(200)], vectors=VECTORS),
        ):
            # At `interval` a sync in the background may have freed pages of before since, and what fits there is taken.
            with pytest.raises(errors.StorageFull, match=rf"map_limit_bytes, now {LIMIT_BYTES}"):
                for _ in range(RESERVE_BYTES // VECTORS.nbytes):
                    refused()
        assert docs.delete([f"r{n}" for n in range(1_000)], request_id="one").count == 1_000
        assert docs.delete(filter={}).count == full - 1_000
        assert full <= docs.compact().purged_rows <= full + 2 * RESERVE_BYTES // VECTORS[0].nbytes
        assert docs.stats().map_used_bytes < LIMIT_BYTES / 10
        again = fill(docs, full)
        assert again - full > 0.9 * full
        assert docs.count() == again - full
        assert docs.check().ok
        assert docs.stats().map_used_bytes <= LIMIT_BYTES - RESERVE_BYTES


def test_what_an_unsynced_commit_freed_is_no_want_of_room(data_folder):
    """At `interval` a write that finds no room has the commits so far synced, whose pages of before it then has, and goes on."""
    with vecdb.open(
        data_folder, durability="interval", durability_interval_ms=60_000, **SETTINGS
    ) as db:
        docs = db.create_collection("docs", dimension=DIMENSION, metric="l2")
        docs.insert([f"r{n}" for n in range(200)], VECTORS)
        for n in range(1_000):
            docs.update(["r0"], metadata=[{"n": n}])
        assert docs.stats().map_used_bytes <= LIMIT_BYTES - RESERVE_BYTES
        assert docs.get(["r0"]).metadata == [{"n": 999}]


def test_a_file_that_rests_meanwhile_is_synced_too(data_folder, monkeypatch):
    """A file that another collection has let rest after a write found no room, and before that write goes on, has been synced for
    that: the write goes on just so."""
    full, rested = threading.local(), []
    plain_try, plain_leave = Environment._try_write, Environment._leave

    def try_write(made, *given):
        try:
            return plain_try(made, *given)
        except Exception:
            full.here = True
            raise

    def leave(made):
        plain_leave(made)
        if getattr(full, "here", False):
            full.here = False
            rested.append(made.rest())

    with vecdb.open(
        data_folder, durability="interval", durability_interval_ms=60_000, **SETTINGS
    ) as db:
        docs = db.create_collection("docs", dimension=DIMENSION, metric="l2")
        docs.insert([f"r{n}" for n in range(200)], VECTORS)
        monkeypatch.setattr(Environment, "_try_write", try_write)
        monkeypatch.setattr(Environment, "_leave", leave)
        for n in range(1_000):
            docs.update(["r0"], metadata=[{"n": n}])
        monkeypatch.undo()
        assert len(rested) > 3
        assert all(rested)
        assert docs.get(["r0"]).metadata == [{"n": 999}]


def test_what_gave_space_back_leaves_no_room_to_writes(data_folder):
    """A delete that has taken of the reserve opens it for no insert: the next delete finds as much as it left."""
    with vecdb.open(data_folder, **SETTINGS) as db:
        docs = db.create_collection("docs", dimension=DIMENSION, metric="l2")
        full = fill(docs, 0)
        for n in range(3):
            docs.delete([f"r{i}" for i in range(n * 1_000, (n + 1) * 1_000)])
            used = docs.stats().map_used_bytes
            full = fill(docs, full)
            assert docs.stats().map_used_bytes <= max(used, LIMIT_BYTES - RESERVE_BYTES)
        assert used > LIMIT_BYTES - RESERVE_BYTES
        docs.compact()
        assert fill(docs, full) - full > 2_000
        assert docs.check().ok
    with vecdb.open(data_folder, **{**SETTINGS, "map_limit_bytes": 64 << 20}) as db:
        db.get_collection("docs").insert(["more"], VECTORS[:1])


@pytest.mark.parametrize(
    ("limit_bytes", "reserve_bytes"),
    [(1 << 20, 1 << 18), (4 << 20, 1 << 20), (64 << 20, 4 << 20), (1 << 42, 1 << 30)],
)
def test_how_much_is_kept(tmp_path, limit_bytes, reserve_bytes):
    """A sixteenth, at least 1 MiB or a quarter, at most 1 GiB."""
    (tmp_path / "made").mkdir()
    made = Environment(
        tmp_path / "made", ("meta",), create=True, read_only=False,
        map_initial_bytes=1 << 20, map_limit_bytes=limit_bytes,
    )  # fmt: skip
    assert made.reserve_bytes == reserve_bytes
    made.close()
