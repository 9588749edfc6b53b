"""Ids of the newest rows, which wait in memory for the table `keys`: found in every moment."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import numpy as np
import pytest
import store_rows
from seeds import RUN_SEED
from store_rows import names

from vecdb.store import EncodedRows, Shape, checksums, fresh


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(fresh, "LEAST_FRESH_ROWS", 300)
    store = store_rows.create(tmp_path / "store")
    yield store
    store.close()


def insert(store, ids, dimension=8):
    rows = EncodedRows(ids, np.ones((len(ids), dimension), np.float32))
    store.commit(lambda writer, _: writer.append(rows, checksums(rows)))


def test_the_table_is_filled_in_rounds(store):
    """At most twice the limit waits, a round takes as many ids as rows come in, and all are found."""
    rng = random.Random(4)
    order = rng.sample(range(20_000), 8_000)
    waiting = []
    for first in range(0, 8_000, 100):
        insert(store, [b"%05d" % n for n in order[first : first + 100]])
        with store.read() as reader:
            n = reader.n_rows
            keyed, entries = reader.keyed(), reader.entries("keys")
            assert keyed.first <= entries <= keyed.end <= n
            waiting.append((n - entries) / fresh.fresh_limit(n))
            some = rng.sample(range(n), 50)
            assert reader.rows_of_ids([b"%05d" % order[r] for r in some]).tolist() == some
            absent = reader.rows_of_ids([b"%05d" % m for m in range(20_001, 20_050)])
            assert (absent == -1).all()
    assert 1 < max(waiting) < 2.5


def test_every_moment_finds_its_own_rows(store):
    """Beside a writer that replaces and deletes, each read sees the rows of one commit only."""
    count, stop, failures = 400, threading.Event(), []
    insert(store, [b"r%d" % n for n in range(count)])

    def read(seed):
        rng = random.Random(seed)
        try:
            while not stop.is_set():
                with store.read() as reader:
                    # Commit s replaces all records whose number is s modulo 7.
                    state = reader.state()
                    wanted = rng.sample(range(count), 40)
                    rows = reader.rows_of_ids([b"r%d" % n for n in wanted])
                    assert (rows < state.next_row).all()
                    assert reader.id_range(0, state.next_row)[rows[0]] == b"r%d" % wanted[0]
                    assert not any(v is not None for v in reader.views("dead", rows))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for sequence in range(120):
        store_rows.put(store, {f"r{n}": n for n in range(sequence % 7, count, 7)})
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    with store.read() as reader:
        assert reader.keyed().first > 1_000
    store_rows.assert_holds(store, _replaced(count))


def _replaced(count):
    """All records have been replaced by version n."""
    return {f"r{n}": n for n in range(count)}


def test_a_moment_from_before_a_round_ended_is_right(store):
    """A transaction that was open when its rows left the memory reads them from the table of ids."""
    for first in range(0, 2_000, 100):
        store_rows.put(store, names(first, 100))
    with store.read() as old:
        keyed, n_rows = old.keyed(), old.n_rows
        for first in range(1_000, 4_000, 100):
            store_rows.put(store, names(first, 100))
        with store.read() as new:
            assert new.keyed().first > n_rows > keyed.first
            ids = [b"r%d" % n for n in range(4_000)]
            assert (new.rows_of_ids(ids) >= 0).all()
        expected = [*range(2_000), *[-1] * 2_000]
        assert old.rows_of_ids(ids).tolist() == expected


def test_rounds_find_the_newest_row_below_any_moment():
    """Ids written again before, during and after a round are found as in a plain list, for every moment still covered;
    when a round is over its ids are let go of as a whole."""
    rng = random.Random(seed := RUN_SEED)
    held, names_now, first, end = fresh.FreshIds(), [], 0, 0

    def read(start, stop):
        return names_now[start:stop]

    def newest(one, low, stop):
        return max((r for r in range(low, stop) if names_now[r] == one), default=-1)

    for step in range(120):
        new = [b"%d" % rng.randrange(90) for _ in range(rng.randrange(1, 9))]
        if step % 10 == 3:
            end = len(names_now)
            ids, rows = held.in_order(first, end, read)
            wanted = {i: newest(i, first, end) for i in names_now[first:end]}
            assert dict(zip(ids, rows.tolist(), strict=True)) == wanted, seed
            assert ids == sorted(ids), seed
        if step % 10 == 8:
            first = end
        start, names_now = len(names_now), names_now + new
        held.follow(first, start, new)
        stop = rng.randrange(first, len(names_now) + 1)
        asked = [b"%d" % n for n in range(90)]
        assert held.rows(asked, first, stop, read) == [newest(i, first, stop) for i in asked], seed
        if step % 10 == 8:
            assert held._spans.first == first, seed


def test_random_ids_write_few_pages(tmp_path):
    """A batch at random ids writes little more than its rows: its ids share the pages of `keys`."""
    shape = Shape(4, "float32")
    store = store_rows.create(tmp_path / "store", shape)
    order = np.random.default_rng(1).permutation(60_000)

    def written():
        counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return int(counters["wchar"])

    for first in range(0, 60_000, 1_000):
        if first == 50_000:
            before = written()
        insert(store, [b"wn-noun-%08d" % n for n in order[first : first + 1_000]], 4)
    # One page a row would be 4,096.
    assert (written() - before) / 10_000 < 1_600
    store.close()


def test_ids_that_wait_are_found_after_opening_again(store):
    """What waited in memory is made anew from the stored ids, in the middle of a round too."""
    for first in range(0, 3_000, 50):
        insert(store, [b"%d" % (n * 7_919 % 3_001) for n in range(first, first + 50)])
        if first % 450 == 0:
            folder = store.folder
            store.close()
            store = store_rows.reopen(folder)
            with store.read() as reader:
                ids = [b"%d" % (n * 7_919 % 3_001) for n in range(first + 50)]
                assert reader.rows_of_ids(ids).tolist() == [*range(first + 50)]
    store.close()
