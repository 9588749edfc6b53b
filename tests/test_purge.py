"""Purging: dead rows give their space back, rows keep their numbers, writers go on in between."""

from __future__ import annotations

import time

import numpy as np
import pytest
import store_rows
from store_rows import NAMED, names

from vecdb import layout
from vecdb.store import EncodedRows, Shape, checksums, fresh, problems


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


def test_nothing_is_left_of_a_purged_row_but_its_number(folder):
    """After purge and vacuum no byte of a dead record is in the file, and its row reads as empty."""
    store = store_rows.create(folder)
    secret = b"the secret of row %d"
    rows = EncodedRows(
        [b"id-%d-secret" % n for n in range(600)],
        np.full((600, 8), 7.25, np.float32) + np.arange(600, dtype=np.float32)[:, None],
        *([secret % n for n in range(600)] for _ in range(4)),
    )
    store.commit(lambda writer, _: writer.append(rows, checksums(rows)))
    doomed = [n for n in range(600) if n % 3 and n < 599]
    store_rows.delete(store, [f"id-{n}-secret" for n in doomed])
    assert sum(store_rows.purge(store)) == len(doomed)
    store.vacuum()
    with store.read() as reader:
        assert [*problems(reader)] == []
        assert reader.purged().tolist() == doomed
        assert reader.dead()[0].tolist() == doomed
        assert set(reader.dead()[1].tolist()) == {reader.horizon()} == {2}
        assert len(reader.dying()[0]) == 0
        assert [reader.entries(t) for t in ("keys", "documents", "dead", "log")] == [201, 201, 0, 0]
        assert not reader.vectors(doomed).any()
        assert np.array_equal(reader.vectors([0, 3, 599]), rows.vectors[[0, 3, 599]])
        assert reader.id_range(2, 5) == [b"", b"id-3-secret", b""]
    data = (folder / layout.DATA_FILE).read_bytes()
    for n in doomed:
        assert secret % n + b"\0" not in data
        assert b"id-%d-secret" % n not in data
        assert rows.vectors[n].tobytes() not in data
    assert secret % 3 in data
    store.close()


def test_blocks_of_dead_rows_only_go_altogether(folder):
    """Where a whole block of rows is purged, a bitmap of 32 bytes is all that stays."""
    store = store_rows.create(folder, NAMED)
    for first in range(0, 1_024, 128):
        store_rows.put(store, names(first, 128), NAMED)
    store_rows.delete(store, names(0, 768))
    store_rows.purge(store)
    with store.read() as reader:
        assert [reader.entries(t) for t in ("ids", "purged")] == [1, 3]
        assert [reader.raw("metadata", [n])[0] for n in (0, 767)] == [None, None]
    store_rows.assert_holds(store, names(768, 256), NAMED)
    store.close()


def test_rows_in_the_last_block_are_purged_and_it_grows_on(folder):
    """A short last block can be thinned too, and later rows are put behind what is left."""
    store = store_rows.create(folder, NAMED)
    model = names(0, 10)
    store_rows.put(store, model, NAMED)
    for first in range(10, 600, 10):
        gone = list(model)[:7]
        store_rows.delete(store, gone)
        store_rows.purge(store)
        model = {i: n for i, n in model.items() if i not in gone} | names(first, 10)
        store_rows.put(store, names(first, 10), NAMED)
        store_rows.assert_holds(store, model, NAMED)
    store.close()


def test_only_what_died_before_the_horizon_goes(folder):
    """Rows that died later stay as they are, with their log; the horizon never moves back."""
    store = store_rows.create(folder)
    store_rows.put(store, names(0, 100))
    store_rows.delete(store, names(0, 10))
    store_rows.delete(store, names(10, 10))
    assert sum(store_rows.purge(store, 2)) == 10
    assert store_rows.purge(store, 1) == []
    with store.read() as reader:
        assert reader.horizon() == 2
        assert [c.sequence for c in reader.log(2)] == [3]
        assert reader.dying()[0].tolist() == [*range(10, 20)]
        assert reader.id_range(10, 11) == [b"r10"]
        assert [*problems(reader)] == []
    with pytest.raises(ValueError, match="4 is behind commit 3"):
        store.purge(4)
    store.close()


def test_nothing_to_purge_writes_nothing(folder):
    """Without dead rows and old log entries a purge has no steps."""
    store = store_rows.create(folder)
    assert store_rows.purge(store) == []
    store_rows.put(store, names(0, 10))
    assert store_rows.purge(store, 0) == []
    assert sum(store_rows.purge(store)) == 0
    assert store_rows.purge(store) == []
    store.close()


def test_steps_are_small_and_writers_go_on_between_them(folder):
    """A step writes at most so many blocks; commits between steps are seen and kept."""
    shape = Shape(384, "float32")
    store = store_rows.create(folder, shape)
    model = names(0, 3_000)
    store_rows.put(store, model, shape)
    store_rows.delete(store, [f"r{n}" for n in range(0, 3_000, 2)])
    model = {i: n for i, n in model.items() if n % 2}
    steps = []
    with store.read() as reader:
        horizon = reader.state().sequence
    for step, done in enumerate(store.purge(horizon, step_bytes=1 << 20)):
        steps.append(done)
        new = names(10_000 + step, 1) | {"r1": 20_000 + step}
        store_rows.put(store, new, shape)
        model |= new
    # 10 blocks of 64 rows, half of which are dead, and their ids fit into a MiB.
    assert max(steps) == 10 * 32
    assert sum(steps) == 1_500
    store_rows.assert_holds(store, model, shape)
    store.close()


def test_a_purge_left_in_the_middle_is_right_and_can_be_finished(folder):
    """Whatever number of steps was taken, the store is sound, closed and opened too."""
    for steps in range(8):
        store = store_rows.create(folder / str(steps), NAMED)
        model = {}
        for first in range(0, 400, 40):
            store_rows.put(store, names(first % 120, 40) | {"x": first}, NAMED)
            model |= names(first % 120, 40) | {"x": first}
        iterator = store.purge(9, step_bytes=3_000)
        for _ in range(steps):
            next(iterator, None)
        store.close()
        store = store_rows.reopen(folder / str(steps), NAMED)
        store_rows.assert_holds(store, model, NAMED)
        store_rows.purge(store)
        store_rows.assert_holds(store, model, NAMED)
        store.close()


def test_large_contents_are_purged_in_several_steps(folder):
    """Contents of megabytes count for a step, since the list of their pages is written."""
    store = store_rows.create(folder)
    n = 12
    rows = EncodedRows(
        [b"c%d" % i for i in range(n)],
        np.ones((n, 8), np.float32),
        contents=[b"\0" + bytes(4 << 20)] * n,
    )
    store.commit(lambda writer, _: writer.append(rows, checksums(rows)))
    store_rows.delete(store, [f"c{i}" for i in range(n)])
    used = store.map_bytes()[0]
    steps = [s for s in store_rows.purge(store) if s]
    assert sum(steps) == n
    assert len(steps) > 2
    # The pages are free again: as much can be written without the file growing.
    store.commit(lambda writer, _: writer.append(rows, checksums(rows)))
    assert store.map_bytes()[0] < 1.1 * used
    store.close()


@pytest.mark.long
def test_steady_updates_keep_the_file_bounded(folder):
    """Updates without end, purged now and then: LMDB uses the pages again, the file stops growing."""
    shape = Shape(384, "float32")
    store = store_rows.create(folder, shape)
    rng = np.random.default_rng(5)
    count, batch = 3_000, 150
    vectors = rng.standard_normal((count, 384), dtype=np.float32)

    def write(numbers):
        rows = EncodedRows(
            [b"record %d" % n for n in numbers], vectors[numbers], [b'{"a":1}'] * len(numbers)
        )

        def work(writer, sequence):
            held = writer.rows_of_ids(rows.ids)
            writer.kill(held[held >= 0], sequence)
            writer.append(rows, checksums(rows))

        store.commit(work)

    write(np.arange(count))
    sizes = []
    for n in range(160):  # eight times all records
        write(np.sort(rng.choice(count, batch, replace=False)))
        if n % 4 == 3:
            store_rows.purge(store, step_bytes=1 << 18)
        sizes.append(store.map_bytes()[0] / vectors.nbytes)
    assert max(sizes) < 2.5, max(sizes)
    assert max(sizes[80:]) < 1.2 * max(sizes[:80]), sizes[::8]
    with store.read() as reader:
        assert [*problems(reader)] == []
        assert reader.entries("log") <= 4
        assert reader.entries("dead") <= 4 * batch
    store.close()


def test_ids_that_wait_for_their_table_survive_a_purge(folder, monkeypatch):
    """A record deleted while its id waits in memory is gone for good, after opening again too."""
    monkeypatch.setattr(fresh, "LEAST_FRESH_ROWS", 100)
    store = store_rows.create(folder)
    for first in range(0, 1_000, 50):
        store_rows.put(store, names(first, 50))
    store_rows.put(store, {f"r{n}": n + 5_000 for n in range(0, 1_000, 3)})
    store_rows.delete(store, [f"r{n}" for n in range(0, 1_000, 9)])
    model = names(0, 1_000) | {f"r{n}": n + 5_000 for n in range(0, 1_000, 3)}
    model = {i: n for i, n in model.items() if int(i[1:]) % 9}
    with store.read() as reader:
        assert 0 < reader.keyed().first < reader.n_rows
    store_rows.purge(store)
    with store.read() as reader:
        assert reader.keyed().first == reader.n_rows
        assert reader.entries("keys") == len(model)
    store.close()
    store = store_rows.reopen(folder)
    store_rows.assert_holds(store, model)
    store.close()


def test_single_vectors_of_thinned_blocks_are_read_quickly(folder):
    """A row of a thinned block costs little more than one of a whole block that LMDB is asked for: no block
    is unfolded."""
    shape = Shape(384, "float32")
    store = store_rows.create(folder, shape)
    rows = EncodedRows([b"%d" % n for n in range(6_400)], np.ones((6_400, 384), np.float32))
    store.commit(lambda writer, _: writer.append(rows, checksums(rows)))
    wanted = np.random.default_rng(2).permutation(np.arange(0, 6_400, 2))

    def best():
        taken = []
        for _ in range(7):
            with store.read() as reader:
                reader._mapped = ()
                start = time.perf_counter()
                assert reader.vectors(wanted).all()
                taken.append(time.perf_counter() - start)
        return min(taken)

    whole = best()
    store_rows.delete(store, [str(n) for n in range(1, 6_400, 4)])
    store_rows.purge(store)
    assert best() < 5 * whole
    store.close()
