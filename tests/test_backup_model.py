"""Backups at random moments of a random history: each commit comes back as a dict remembers it."""

from __future__ import annotations

import copy
import shutil
import tempfile
from pathlib import Path

import numpy as np
from backup_rows import everything
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

import vecdb
from vecdb import errors

IDS = st.sampled_from([f"r{n}" for n in range(12)] + ["x" * 700 + str(n) for n in range(2)])
VECTORS = st.tuples(*[st.integers(-8, 8)] * 8).filter(any)
METADATA = st.none() | st.dictionaries(st.sampled_from("ab"), st.integers(0, 3), max_size=2)
DOCUMENTS = st.none() | st.sampled_from(["", "a text", "another"])
NAMED = st.none() | st.tuples(*[st.integers(1, 8)] * 2)


class Machine(RuleBasedStateMachine):
    """`self.states` maps each commit to what was live after it; `self.base` is the oldest that the newest
    backup can still give back, behind that of the backup before."""

    @initialize(storage=st.sampled_from(["float32", "float16", "int8"]), named=st.booleans())
    def create(self, storage, named):
        self.folder = Path(tempfile.mkdtemp(prefix="vecdb-backups-"))
        self.target = self.folder / "backups"
        self.db = vecdb.open(self.folder / "db", history_s=0.0, auto_build=False)
        vectors = {"side": {"dimension": 2, "metric": "l2"}} if named else None
        self.named = named
        self.docs = self.db.create_collection(
            "docs", dimension=8, metric="l2", storage=storage, vectors=vectors
        )
        self.states = {0: {}}
        self.covered = set()
        self.taken = []
        self.made = 0

    def done(self, sequence):
        self.states[sequence] = everything(self.docs)

    @rule(
        records=st.dictionaries(
            IDS, st.tuples(VECTORS, METADATA, DOCUMENTS, NAMED), min_size=1, max_size=8
        )
    )
    def upsert(self, records):
        side = {"side": [r[3] for r in records.values()]} if self.named else None
        result = self.docs.upsert(
            list(records),
            np.array([r[0] for r in records.values()]),
            metadata=[r[1] for r in records.values()],
            documents=[r[2] for r in records.values()],
            named_vectors=side,
        )
        self.done(result.sequence)

    @rule(ids=st.sets(IDS, min_size=1, max_size=4))
    def delete(self, ids):
        self.done(self.docs.delete(sorted(ids)).sequence)

    @rule()
    def compact(self):
        self.docs.compact()

    @rule(kind=st.sampled_from(["auto", "auto", "full"]))
    def backup(self, kind):
        info = self.db.backup(self.target, kind=kind, verify=False)
        (held,) = info.collections
        if not held.since:
            self.covered = set()
        self.covered |= {s for s in self.states if held.oldest_sequence <= s <= held.sequence}
        self.taken.append((info.id, held.sequence))

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def restore_a_commit(self, data):
        newest = self.taken[-1][1]
        sequence = data.draw(st.sampled_from(sorted(s for s in self.states if s <= newest)))
        self.made += 1
        name = f"made-{self.made}"
        if sequence not in self.covered:
            try:
                self.db.restore(self.target, collections={"docs": name}, sequence=sequence)
            except errors.BackupNotFound:
                return
            raise AssertionError(f"commit {sequence} came back, but had been compacted away")
        self.db.restore(self.target, collections={"docs": name}, sequence=sequence)
        self.compare(name, sequence)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def restore_a_backup(self, data):
        backup, sequence = data.draw(st.sampled_from(self.taken))
        self.made += 1
        name = f"made-{self.made}"
        self.db.restore(self.target, backup=backup, collections={"docs": name})
        self.compare(name, sequence)

    def compare(self, name, sequence):
        made = self.db.get_collection(name)
        assert everything(made) == self.states[sequence]
        report = made.check()
        assert report.ok, report.problems
        assert made.stats().sequence == sequence
        # It goes on from there like any other.
        some = copy.copy(self.states[sequence])
        for record_id in list(some)[:2]:
            made.delete([record_id])
            del some[record_id]
        made.upsert(["fresh"], np.ones((1, 8)))
        assert set(everything(made)) == {*some, "fresh"}
        assert made.check().ok
        self.db.drop_collection(name)

    def teardown(self):
        if not hasattr(self, "db"):
            return
        try:
            if self.taken:
                report = vecdb.verify_backups(self.target)
                assert report.ok, report.problems
        finally:
            self.db.close()
            shutil.rmtree(self.folder)


TestBackupModel = Machine.TestCase
TestBackupModel.settings = settings(max_examples=40, stateful_step_count=15)
