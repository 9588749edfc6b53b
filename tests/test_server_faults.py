"""A server in trouble answers with typed errors and goes on."""

from __future__ import annotations

import asyncio
import queue
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import serving, wait_until

import vecdb
from vecdb_client import aio, connect, errors
from vecdb_server import admission, status


def test_a_full_map_over_the_network(data_folder):
    """At the map limit a client gets StorageFull, reads go on, and room made by a drop can be used."""
    settings = {"map_initial_bytes": 1 << 20, "map_limit_bytes": 2 << 20}
    with serving(data_folder, **settings) as address, connect(address) as db:
        docs = db.create_collection("docs", dimension=64)
        done = 0
        with pytest.raises(errors.StorageFull, match="map_limit_bytes"):
            while done < 100_000:
                ids = [f"r{i}" for i in range(done, done + 100)]
                docs.insert(ids, np.ones((100, 64)), documents=ids)
                done += 100
        assert docs.count() == done > 0
        assert docs.query(np.ones(64), k=1).distances.shape == (1, 1)
        assert docs.check().ok
        db.drop_collection("docs")
        again = db.create_collection("docs", dimension=64)
        assert again.insert(["a"], np.ones((1, 64))).sequence == 1


def test_a_dropped_collection_over_the_network(data_folder):
    """A client that still holds a dropped collection gets CollectionNotFound."""
    with serving(data_folder) as address, connect(address) as db:
        docs = db.create_collection("docs", dimension=2)
        docs.insert(["a"], [[1, 2]])
        db.drop_collection("docs")
        with pytest.raises(errors.CollectionNotFound, match="docs"):
            docs.query([[1, 2]])


def test_a_reader_beside_a_server(data_folder):
    """Another process's folder lock is respected, and read-only use beside the server works."""
    with serving(data_folder) as address, connect(address) as db:
        db.create_collection("docs", dimension=2).insert(["a"], [[1, 2]])
        with pytest.raises(vecdb.errors.DatabaseLocked):
            vecdb.open(data_folder)


def test_a_read_without_memory_may_come_again(data_folder, monkeypatch):
    """A read that finds no memory names a delay, and a client repeats it; a change, which may have happened, does not."""
    counts, inserts = [], []
    count_at, insert = vecdb.Collection.count_at, vecdb.Collection.insert

    def scarce(seen, verb):
        def call(self, *args, **keywords):
            seen.append(1)
            if len(seen) == 1:
                raise MemoryError
            return verb(self, *args, **keywords)

        return call

    with serving(data_folder) as address, connect(address, retry_s=30) as db:
        docs = db.create_collection("docs", dimension=2)
        monkeypatch.setattr(vecdb.Collection, "count_at", scarce(counts, count_at))
        monkeypatch.setattr(vecdb.Collection, "insert", scarce(inserts, insert))
        monkeypatch.setattr(status, "retry_after_ms", lambda _: 50)
        assert docs.count() == 0
        assert len(counts) == 2
        with pytest.raises(errors.ResourceExhausted, match="memory") as caught:
            docs.insert(["a"], [[1, 2]])
        assert "retry_after_ms" not in caught.value.details
        assert len(inserts) == 1
        assert docs.insert(["a"], [[1, 2]]).count == 1


def test_too_many_reads_that_wait_for_a_commit_are_told_when_to_come_again(data_folder):
    """One of two threads may wait; the next such read is refused with a delay, is repeated, and sees the commit."""
    with (
        serving(data_folder, worker_threads=2) as address,
        connect(address, retry_s=0) as db,
        connect(address, retry_s=60) as patient,
        ThreadPoolExecutor(2) as callers,
    ):
        docs = db.create_collection("docs", dimension=2)
        again = patient.get_collection("docs")
        # Where one of those below has the place it is refused itself, and comes again until it has it.
        waits = callers.submit(again.count, min_sequence=1, timeout_s=60)

        def refused():
            try:
                docs.count(min_sequence=1, timeout_s=0.05)
            except errors.Unavailable as error:
                return "retry_after_ms" in error.details
            except errors.DeadlineExceeded:
                return False  # it came before the first one

        wait_until(refused, "the first one waits")
        repeats = callers.submit(again.count, min_sequence=1, timeout_s=60)
        docs.insert(["a"], [[1, 2]])
        assert waits.result(60) == repeats.result(60) == 1


def test_an_ingest_that_a_busy_server_refuses_comes_again(start, monkeypatch):
    """Both clients wait until there is a thread for it, and lose no batch."""
    monkeypatch.setattr(admission, "retry_after_ms", lambda _: 50)
    server = start(stream_threads=1)
    batches = [([f"r{i}"], [[1, 2]]) for i in range(6)]

    def ingested(db):
        return sum(ack.count for ack in db.get_collection("docs").ingest(batches, upsert=True))

    def ingested_by_aio(_):
        async def work():
            async with aio.connect(server.address, retry_s=60) as db:
                docs = await db.get_collection("docs")
                return sum([ack.count async for ack in docs.ingest(batches, upsert=True)])

        return asyncio.run(work())

    with connect(server.address, retry_s=60) as db, ThreadPoolExecutor(2) as callers:
        docs = db.create_collection("docs", dimension=2)
        for way in (ingested, ingested_by_aio):
            # An ingest has ended for its client a moment before its thread is free.
            wait_until(lambda: server._pools.long.busy == 0, "the thread is free")
            given = queue.SimpleQueue()
            holds = callers.submit(lambda given=given: list(docs.ingest(iter(given.get, None))))
            try:
                wait_until(lambda: server._pools.long.busy == 1, "the thread is taken")
                before = server._pools._admission.refused()["threads"]
                comes = callers.submit(way, db)
                wait_until(
                    lambda before=before: (
                        server._pools._admission.refused()["threads"] > before + 1
                    ),
                    "the other one was refused, twice",
                )
            finally:
                given.put(None)
            assert holds.result(60) == []
            assert comes.result(60) == 6
        assert docs.count() == 6
