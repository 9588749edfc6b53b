"""The store against a dict: any order of writes, purges, vacuums and openings."""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import store_rows
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from store_rows import NAMED

from vecdb import layout
from vecdb.store import FieldShape, Shape, fresh, purge, vacuum, writer

IDS = [f"id {n}" for n in range(40)] + ["x" * 600 + str(n) for n in range(5)]
BATCHES = st.lists(st.sampled_from(IDS), min_size=1, max_size=30, unique=True)


class Store(RuleBasedStateMachine):
    """Small blocks and few fresh rows, so that a short run goes through every case of them."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(layout, "_BLOCK_BYTES", 256)
        self.patch.setattr(fresh, "LEAST_FRESH_ROWS", 12)
        self.patch.setattr(writer, "_ROUND_STEP_ROWS", 8)
        self.patch.setattr(purge, "_KEYS_A_STEP", 16)
        self.patch.setattr(vacuum, "_CHUNK_BYTES", 2_000)
        self.folder = Path(tempfile.mkdtemp())
        # A shape keeps what it has computed, so this one is made anew.
        named = tuple(FieldShape(one.dimension, one.storage) for one in NAMED.named)
        self.shape = Shape(NAMED.dimension, NAMED.storage, named)
        self.store = store_rows.create(self.folder, self.shape)
        self.model: dict[str, int] = {}
        self.version = 0
        self.moment = None

    @initialize(count=st.integers(0, 700))
    def begin(self, count):
        """Rows behind the first blocks of 256, some of them dead."""
        for start in range(0, count, 100):
            self.upsert([f"old {n % 90}" for n in range(start, min(start + 90, count))])

    @rule(ids=BATCHES)
    def upsert(self, ids):
        versions = {i: self.version + n for n, i in enumerate(ids, 1)}
        self.version += len(ids)
        store_rows.put(self.store, versions, self.shape)
        self.model |= versions

    @rule(ids=BATCHES)
    def delete(self, ids):
        store_rows.delete(self.store, ids)
        for one in ids:
            self.model.pop(one, None)

    @rule(first=BATCHES, second=BATCHES)
    def two_writes_in_one_commit(self, first, second):
        """As the lane does for writers that wait."""
        batches = []
        for ids in (first, second):
            batches.append({i: self.version + n for n, i in enumerate(ids, 1)})
            self.version += len(ids)

        def work(one, sequence):
            for batch in batches:
                rows = store_rows.encode(batch, self.shape)
                found = one.rows_of_ids(rows.ids)
                one.kill(found[found >= 0], sequence)
                one.append(rows, store_rows.checksums(rows))

        self.store.commit(work)
        self.model |= batches[0] | batches[1]

    @rule(ids=BATCHES)
    def a_commit_that_breaks(self, ids):
        def work(one, sequence):
            rows = store_rows.encode(dict.fromkeys(ids, 1), self.shape)
            one.append(rows, store_rows.checksums(rows))
            raise KeyError("broken")

        try:
            self.store.commit(work)
        except KeyError:
            return
        raise AssertionError("it was committed")

    @rule(share=st.floats(0, 1), steps=st.integers(0, 6), step_bytes=st.sampled_from([300, 5_000]))
    def purge(self, share, steps, step_bytes):
        """Some steps of a purge, or all."""
        with self.store.read() as reader:
            before = reader.purged()
            horizon = int(share * reader.state().sequence)
        done = 0
        for step in self.store.purge(horizon, step_bytes=step_bytes):
            done += step
            steps -= 1
            if not steps:
                break
        with self.store.read() as reader:
            after = reader.purged()
            assert len(after) == len(before) + done
            assert not reader.vectors(after).any()
            assert not any(reader.id_range(r, r + 1)[0] for r in after[:20].tolist())

    @precondition(lambda self: self.moment is None)
    @rule()
    def vacuum(self):
        before, after = self.store.vacuum()
        # The copy is committed in pieces, which leave free pages of their own: after a purge that freed nearly nothing
        # of a file without free pages it was larger by one.
        assert after <= before + 2 * mmap.PAGESIZE
        assert {p.name for p in self.folder.iterdir()} == {"data.mdb", "lock.mdb"}

    @precondition(lambda self: self.moment is None)
    @rule()
    def reopen(self):
        self.store.close()
        self.store = store_rows.reopen(self.folder, self.shape)

    @rule()
    def rest(self):
        """Closed until it is used again, unless it is in use."""
        assert self.store._env.rest() == (self.moment is None)

    @precondition(lambda self: self.moment is None)
    @rule()
    def keep_a_moment(self):
        context = self.store.read()
        self.moment = (context, context.__enter__(), dict(self.model))

    @precondition(lambda self: self.moment is not None)
    @rule()
    def look_at_the_moment(self):
        """An open transaction shows what it showed when it began, whatever came after it."""
        context, reader, model = self.moment
        self.moment = None
        try:
            store_rows.assert_moment(reader, model, self.shape)
        finally:
            context.__exit__(None, None, None)

    @invariant()
    def holds_the_model(self):
        store_rows.assert_holds(self.store, self.model, self.shape)
        with self.store.read() as reader:
            n = reader.n_rows
            lengths, texts = reader.packed_ids(0, n)
            ids = reader.id_range(0, n)
            assert lengths.tolist() == [*map(len, ids)]
            assert texts == b"".join(ids)
            for field in range(3):
                rows = np.arange(n)
                assert np.array_equal(reader.vectors(rows, field), reader.vector_range(0, n, field))
                absent = np.flatnonzero(~reader.present(rows, field))
                assert np.array_equal(reader.absent(field), absent)
            dead, _ = reader.dead()
            assert n - len(dead) == len(self.model)

    def teardown(self):
        if self.moment is not None:
            self.look_at_the_moment()
        self.store.close()
        shutil.rmtree(self.folder)
        self.patch.undo()


TestStore = Store.TestCase
TestStore.settings = settings(
    max_examples=int(os.environ.get("VECDB_STORE_EXAMPLES", "25")),
    stateful_step_count=25,
    deadline=None,
)
