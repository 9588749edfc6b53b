"""Vectors are read where they lie in the map, whatever moves the blocks meanwhile."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import store_rows

from vecdb.index import door
from vecdb.store import EncodedRows, FieldShape, Shape, checksums
from vecdb.store.mapped import MappedBlocks

WIDE = Shape(384, "float32", (FieldShape(1_000, "float16"), FieldShape(4_096, "binary")))
PER_BLOCK = 64


def vectors_of(rows):
    """What row numbers hold: (n, 384), told apart by every number."""
    return (np.asarray(rows)[:, None] * 1_000 + np.arange(384)).astype(np.float32)


def append(store, first, count, named=()):
    rows = np.arange(first, first + count)
    fields = {}
    for number in named:
        shape = WIDE.fields[number]
        held = (rows[:, None] + np.arange(shape.width)) % 251
        fields[number] = (held.astype(shape.dtype), rows % 5 != 4)
    encoded = EncodedRows([b"id-%d" % n for n in rows], vectors_of(rows), named=fields)
    store.commit(lambda writer, _: writer.append(encoded, checksums(encoded)))


def kill(store, rows):
    """Deletes and purges rows."""
    store_rows.delete(store, [f"id-{n}" for n in rows])
    return sum(store_rows.purge(store))


@pytest.fixture
def store(tmp_path):
    made = store_rows.create(tmp_path / "store", WIDE)
    yield made
    made.close()


def check(store, rows, gone=()):
    expected = vectors_of(rows)
    expected[np.isin(rows, gone)] = 0
    with store.read() as reader:
        for _ in range(2):  # where blocks lie is learned, and then known
            assert np.array_equal(reader.vectors(rows), expected)


def test_whole_and_open_blocks(store):
    """Rows of whole blocks, of the last, open one, repeated ones and none at all."""
    append(store, 0, 5 * PER_BLOCK + 7)
    check(store, np.arange(5 * PER_BLOCK + 7))
    check(store, np.array([326, 0, 63, 64, 0, 325, 100]))
    check(store, np.empty(0, np.int64))
    append(store, 5 * PER_BLOCK + 7, 200)
    check(store, np.arange(5 * PER_BLOCK + 207)[::-1].copy())


def test_known_blocks_are_not_asked_for_again(store, monkeypatch):
    """The second read of a whole block does not look into LMDB; an open one does."""
    append(store, 0, 4 * PER_BLOCK + 1)
    asked = []
    with store.read() as reader:
        reader.vectors([0, 70, 200])
        found = type(reader)._block
        monkeypatch.setattr(
            type(reader), "_block", lambda self, f, n: asked.append(n) or found(self, f, n)
        )
        reader.vectors([1, 71, 201, 63])
        assert asked == []
        reader.vectors([1, 256])
        assert set(asked) == {4}


def test_purged_blocks_are_read_anew(store):
    """What a purge thins, moves or takes away is forgotten before its pages are used again."""
    append(store, 0, 20 * PER_BLOCK)
    rows = np.arange(20 * PER_BLOCK)
    check(store, rows)
    gone = np.concatenate([np.arange(0, 640, 3), np.arange(704, 768)])
    assert kill(store, gone) == len(gone)
    check(store, rows, gone)
    # Their pages are given to new rows now.
    for first in range(20 * PER_BLOCK, 60 * PER_BLOCK, PER_BLOCK):
        append(store, first, PER_BLOCK)
    check(store, np.arange(60 * PER_BLOCK), gone)
    store.vacuum()
    check(store, np.arange(60 * PER_BLOCK), gone)
    append(store, 60 * PER_BLOCK, 300)
    check(store, np.arange(60 * PER_BLOCK + 300), gone)


def test_an_old_transaction_teaches_nothing(store):
    """A transaction from before a purge reads its own moment, and leaves no old address behind."""
    append(store, 0, 8 * PER_BLOCK)
    store_rows.delete(store, [f"id-{n}" for n in range(10)])
    rows = np.arange(8 * PER_BLOCK)
    with store.read() as old:
        purger = threading.Thread(target=lambda: sum(store_rows.purge(store)))
        purger.start()
        purger.join()
        assert np.array_equal(old.vectors(rows), vectors_of(rows))
    check(store, rows, np.arange(10))
    for first in range(8 * PER_BLOCK, 30 * PER_BLOCK, PER_BLOCK):
        append(store, first, PER_BLOCK)
    check(store, rows, np.arange(10))


def test_a_map_that_grows(tmp_path):
    """The map moves when it has to grow; addresses of the old place are not used."""
    store = store_rows.create(tmp_path / "store", WIDE, map_initial_bytes=1 << 20)
    for first in range(0, 200 * PER_BLOCK, 4 * PER_BLOCK):
        append(store, first, 4 * PER_BLOCK)
        check(store, np.arange(0, first + 4 * PER_BLOCK, 7))
    store.close()


def test_named_fields(store):
    """Blocks of fields that some rows lack are read by their gaps; whole ones as they lie."""
    append(store, 0, 600, named=(1, 2))
    rows = np.arange(600)
    with store.read() as reader:
        for number in (1, 2):
            shape = WIDE.fields[number]
            expected = ((rows[:, None] + np.arange(shape.width)) % 251).astype(shape.dtype)
            expected[rows % 5 == 4] = 0
            for _ in range(2):
                assert np.array_equal(reader.vectors(rows, number), expected)


def test_a_read_only_process_learns_no_addresses(tmp_path):
    """Another process may move blocks at any time, so one that only reads asks LMDB each time."""
    store = store_rows.create(tmp_path / "store", WIDE)
    append(store, 0, 4 * PER_BLOCK)
    kill(store, np.arange(5, 50))
    store.close()
    reader = store_rows.reopen(tmp_path / "store", WIDE, read_only=True)
    check(reader, np.arange(4 * PER_BLOCK), np.arange(5, 50))
    assert not reader._mapped
    reader.close()


def test_what_was_forgotten_while_it_was_read_does_not_count():
    """An address that is let go between the two looks is answered as not found."""
    shape = FieldShape(384, "float32")
    blocks = MappedBlocks(shape)
    vectors = vectors_of(np.arange(2 * PER_BLOCK)).reshape(2, PER_BLOCK, 384)
    first = np.zeros(PER_BLOCK * 384 * 4 + 64, np.uint8)
    start = -first.__array_interface__["data"][0] % 16
    block = first[start : start + PER_BLOCK * 384 * 4].view(np.float32).reshape(PER_BLOCK, 384)
    block[:] = vectors[0]
    rows = np.array([3, 9])
    found, missing = blocks.take(rows, 7, lambda number: (block, 0))
    assert np.array_equal(found, vectors[0][rows])
    assert not missing.size
    blocks.forget(9)

    def forgetting(number):
        blocks.forget(9)
        return block, 0

    assert blocks.take(rows, 9, forgetting)[1].tolist() == [0, 1]
    assert blocks.take(rows, 8, lambda number: (block, 0))[1].tolist() == [0, 1], "too old"
    assert not blocks.take(rows, 9, lambda number: (block, 0))[1].size
    assert blocks.take(rows, 9, lambda number: (block, 1))[1].tolist() == []
    blocks.forget()
    assert blocks.take(rows, 9, lambda number: (block, 1))[1].tolist() == [0, 1], "not whole"


@pytest.mark.long
def test_readers_beside_a_writer_that_moves_everything(store):
    """Random rows read by threads while rows are added, purged and the file is rewritten."""
    append(store, 0, 40 * PER_BLOCK)
    stop, faults = threading.Event(), []

    def read(seed):
        rng = np.random.default_rng(seed)
        while not stop.is_set():
            rows = rng.integers(0, 40 * PER_BLOCK, 30)
            with store.read() as reader:
                found = reader.vectors(rows)
            right = (found == vectors_of(rows)).all(1) | (~found.any(1) & (rows % 4 == 1))
            if not right.all():
                faults.append(rows[~right])
                return

    readers = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
    for thread in readers:
        thread.start()
    end, top = time.monotonic() + 3, 40 * PER_BLOCK
    dying = iter(range(1, 40 * PER_BLOCK, 4))
    while time.monotonic() < end and not faults:
        kill(store, [n for _, n in zip(range(16), dying, strict=False)])
        append(store, top, PER_BLOCK)
        top += PER_BLOCK
        if top % (10 * PER_BLOCK) == 0:
            store.vacuum()
    stop.set()
    for thread in readers:
        thread.join()
    assert not faults


@pytest.mark.parametrize("dimension", [2, 25, 96, 128, 300, 384, 768, 1_000, 1_536])
def test_places_reach_every_vector(tmp_path, dimension):
    """FAISS compares vectors where they lie, whatever a row takes of a page, as numpy compares copies."""
    store = store_rows.create(tmp_path / "store", Shape(dimension, "float32"))
    rng = np.random.default_rng(dimension)
    per_block = store.shape.fields[0].rows_per_block
    stored = rng.standard_normal((6 * per_block + 3, dimension)).astype(np.float32)
    for first in range(0, len(stored), per_block):
        part = stored[first : first + per_block]
        encoded = EncodedRows([b"id-%d" % (first + i) for i in range(len(part))], part)
        store.commit(lambda writer, _: writer.append(encoded, checksums(encoded)))  # noqa: B023
    queries = rng.standard_normal((9, dimension)).astype(np.float32)
    rows = rng.integers(0, 6 * per_block, (9, 17))

    def compared(count):
        def work(origin, places):
            at = places.reshape(count, 17)
            return (
                door.products_at(queries[:count], origin, at),
                door.squares_at(queries[:count], origin, at),
                door.lengths_at(origin, at, dimension),
            )

        return work

    assert store.in_place(rows.ravel(), compared(9)) is None, "nothing is known yet"
    with store.read() as reader:
        reader.vectors(np.arange(len(stored)))
    if dimension * 4 * per_block <= 1 << 15:
        assert store.in_place(rows.ravel(), compared(9)) is None, "blocks share their pages"
        store.close()
        return
    for count in (1, 9):
        picked = stored[rows[:count]].astype(np.float64)
        q = queries[:count, None].astype(np.float64)
        found = store.in_place(rows[:count].ravel(), compared(count))
        assert found is not None
        for got, expected in zip(
            found,
            ((picked * q).sum(2), ((picked - q) ** 2).sum(2), (picked**2).sum(2)),
            strict=True,
        ):
            assert np.allclose(got, expected, rtol=1e-5, atol=1e-4)
    beyond = rows.copy()
    beyond[3, 4] = len(stored) - 1
    assert store.in_place(beyond.ravel(), compared(9)) is None, "in the open block"
    store.close()


def test_what_has_no_place_is_copied(tmp_path):
    """Rows of two pages, and numbers that are not float32."""
    store = store_rows.create(
        tmp_path / "store", Shape(2_048, "float32", (FieldShape(384, "float16"),))
    )
    per_block = store.shape.fields[0].rows_per_block
    rows = np.arange(4 * max(per_block, PER_BLOCK))
    stored = np.tile(rows[:, None], (1, 2_048)).astype(np.float32)
    named = {1: (np.tile(rows[:, None], (1, 384)).astype(np.float16), np.ones(len(rows), bool))}
    encoded = EncodedRows([b"id-%d" % n for n in rows], stored, named=named)
    store.commit(lambda writer, _: writer.append(encoded, checksums(encoded)))
    with store.read() as reader:
        assert np.array_equal(reader.vectors(rows), stored)
        assert np.array_equal(reader.vectors(rows, 1)[:, 0], rows.astype(np.float16))
    wanted = np.array([per_block, 1])
    origins = set()

    def work(origin, places):
        origins.add(origin)
        return door.lengths_at(origin, places[None], 2_048)

    found = store.in_place(wanted, work)
    if found is not None:  # the blocks lie a whole number of rows apart by chance
        assert found[0].tolist() == (stored[wanted] ** 2).sum(1).tolist()
    assert store.in_place(wanted, work, 1) is None
    store.close()


def test_what_is_forgotten_while_it_is_compared_does_not_count():
    """The pages may have been given to others meanwhile."""
    blocks = MappedBlocks(FieldShape(384, "float32"))
    memory = np.zeros(PER_BLOCK * 384 + 16, np.float32)
    start = -memory.__array_interface__["data"][0] % 16 // 4
    block = memory[start : start + PER_BLOCK * 384].reshape(PER_BLOCK, 384)
    rows = np.array([3, 9])
    blocks.take(rows, 7, lambda number: (block, 0))
    assert blocks.in_place(rows, lambda origin, places: places.tolist()) == [3, 9]

    def forgetting(origin, places):
        blocks.forget(9)
        return places

    assert blocks.in_place(rows, forgetting) is None
    assert blocks.in_place(rows, lambda origin, places: places) is None
