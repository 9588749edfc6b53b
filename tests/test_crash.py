"""Processes killed for real: what was acknowledged is there, nothing is half there."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from seeds import RUN_SEED

import vecdb
from vecdb import errors

ROUNDS = 12

# Writes batches without end, and a line to stdout after each acknowledgement. Every batch carries its
# number in the metadata, so that a half-written one would show.
WRITER = """
    import sys, random, numpy as np, vecdb
    folder, seed = sys.argv[1], int(sys.argv[2])
    rng = random.Random(seed)
    db = vecdb.open(folder, map_initial_bytes=1 << 20)
    docs = db.create_collection("docs", dimension=8, index="hnsw", exist_ok=True)
    print("ready", flush=True)
    batch = docs.stats().sequence
    while True:
        batch += 1
        ids = [f"r{rng.randrange(3000)}" for _ in range(rng.choice([1, 7, 60, 400]))]
        ids = sorted(set(ids))
        verb = rng.choice(["upsert", "upsert", "upsert", "delete", "build", "filter"])
        if verb == "upsert":
            vectors = np.random.default_rng(batch).standard_normal((len(ids), 8), dtype=np.float32)
            r = docs.upsert(ids, vectors, metadata=[{"batch": batch}] * len(ids), documents=ids)
        elif verb == "delete":
            r = docs.delete(ids)
        elif verb == "filter":
            r = docs.delete(filter={"batch": {"$lt": batch - 40}})
            ids = [batch - 40]
        else:
            docs.build_index()
            continue
        print(verb, batch, r.sequence, r.count, *ids, flush=True)
"""


def replay(journal, model):
    """Applies acknowledged lines to a dict of id to batch number."""
    for line in journal:
        verb, batch, sequence, count, *ids = line.split()
        if verb == "upsert":
            model.update(dict.fromkeys(ids, int(batch)))
        elif verb == "delete":
            assert int(count) == sum(model.pop(i, None) is not None for i in ids)
        else:
            doomed = [i for i, b in model.items() if b < int(ids[0])]
            assert int(count) == len(doomed)
            for i in doomed:
                del model[i]
        model["sequence"] = int(sequence)
    return model


@pytest.mark.parametrize("seed", [RUN_SEED])
def test_killed_while_writing(data_folder, seed):
    """After SIGKILL at random moments every acknowledged batch is there and none is there in part."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    model = {"sequence": 0}
    for round_ in range(ROUNDS):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(data_folder), str(seed + round_)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.01, 0.5))
        process.send_signal(signal.SIGKILL)
        lines = process.stdout.read().splitlines(keepends=True)
        process.wait()
        whole = [line for line in lines if line.endswith("\n")]
        sequence = model.pop("sequence")
        model = replay(whole, {**model, "sequence": sequence})
        with vecdb.open(data_folder) as db:
            docs = db.get_collection("docs")
            report = docs.check()
            assert report.ok, (seed, round_, report.problems)
            acknowledged = model.pop("sequence")
            stats = docs.stats()
            # The kill may come between a commit and its acknowledgement: at most one commit more.
            assert stats.sequence in (acknowledged, acknowledged + 1), (seed, round_)
            held = {
                i: m["batch"]
                for b in docs.scan(include=["metadata"])
                for i, m in zip(b.ids, b.metadata, strict=True)
            }
            if stats.sequence == acknowledged:
                assert held == model, (seed, round_)
            else:
                unacknowledged(held, model, seed, round_)
            assert docs.count() == len(held)
            query = np.random.default_rng(seed).standard_normal(8)
            exact = docs.query(query, k=20, exact=True)
            assert set(exact.ids[0]) <= set(held)
            assert len(exact.ids[0]) == min(20, len(held))
            model = {**held, "sequence": stats.sequence}


def unacknowledged(held, model, seed, round_):
    """The one commit without an acknowledgement is there as a whole: it has one kind of effect."""
    gone = set(model) - set(held)
    changed = {i for i in held if held[i] != model.get(i)}
    assert bool(gone) != bool(changed), (seed, round_)
    assert len({held[i] for i in changed}) <= 1, (seed, round_)


def test_killed_while_creating_and_dropping(data_folder):
    """Killed between any two steps of create, rename and drop, the database opens and is whole."""
    code = """
        import sys, vecdb
        db = vecdb.open(sys.argv[1])
        print("ready", flush=True)
        while True:
            for n in range(5):
                db.create_collection(f"c{n}", dimension=2, exist_ok=True).upsert(["a"], [[1, 2]])
            db.rename_collection("c0", "renamed")
            db.set_alias("alias", "c1")
            for name in ("renamed", "c1", "c2", "c3", "c4"):
                db.drop_collection(name)
    """
    rng = random.Random(11)
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(data_folder)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.02, 0.3))
        process.kill()
        process.wait()
        with vecdb.open(data_folder) as db:
            names = [i.name for i in db.list_collections()]
            assert set(names) <= {"c0", "c1", "c2", "c3", "c4", "renamed"}
            assert set(db.list_aliases().values()) <= set(names)
            for name in names:
                assert db.get_collection(name).check().ok
            folders = {p.name for p in (data_folder / "collections").iterdir()}
            assert len(folders) == len(names)
            for name in names:
                db.drop_collection(name)


def test_a_full_disk_is_a_typed_error(data_folder):
    """When the file cannot grow any more a write raises StorageFull, and what was there stays."""
    code = """
        import resource, signal, sys, numpy as np, vecdb
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        db = vecdb.open(sys.argv[1])
        docs = db.create_collection("docs", dimension=128)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, resource.RLIM_INFINITY))
        done = 0
        try:
            while done < 100_000:
                docs.insert([f"r{i}" for i in range(done, done + 500)], np.ones((500, 128)))
                done += 500
        except vecdb.errors.StorageFull as error:
            print(done, docs.count(), docs.check().ok, "Free some" in str(error))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        docs.insert(["after"], np.ones((1, 128)))
        print(docs.count(), docs.check().ok)
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(data_folder)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    first, second = process.stdout.splitlines()
    done = int(first.split()[0])
    assert done > 0
    assert first == f"{done} {done} True True"
    assert second == f"{done + 1} True"


def test_a_folder_that_cannot_be_written(data_folder):
    """A folder without write permission is ReadOnly."""
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    data_folder.mkdir(mode=0o500)
    with pytest.raises(errors.ReadOnly):
        vecdb.open(data_folder)


def test_too_many_open_files(data_folder):
    """Out of file descriptors, a typed error, and the database goes on after it."""
    with vecdb.open(data_folder) as db:
        docs = db.create_collection("docs", dimension=2)
        docs.insert(["a"], [[1, 2]])
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        held = []
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
            with pytest.raises(errors.LimitExceeded, match="ulimit -n"):
                for n in range(400):
                    held.append(os.open(os.devnull, os.O_RDONLY))
                    db.create_collection(f"c{n}", dimension=2)
        finally:
            for descriptor in held:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        docs.insert(["b"], [[1, 2]])
        assert docs.count() == 2
        assert db.create_collection("after", dimension=2).count() == 0


def test_ctrl_c_in_the_middle_of_writes(data_folder):
    """Interrupted anywhere, an embedded writer goes on with copies that agree with the store."""
    code = """
        import signal, sys, threading, time, os, random
        import numpy as np, vecdb
        rng = random.Random(int(sys.argv[2]))
        db = vecdb.open(sys.argv[1])
        docs = db.create_collection("docs", dimension=4, metric="l2")
        stop = threading.Event()
        def interrupt():
            while not stop.is_set():
                time.sleep(rng.uniform(0.0005, 0.01))
                os.kill(os.getpid(), signal.SIGINT)
        acknowledged, interrupts, n = set(), 0, 0
        thread = threading.Thread(target=interrupt)
        end = time.monotonic() + 3
        started = False
        while time.monotonic() < end:
            try:
                if not started:
                    started = True
                    thread.start()
                n += 1
                docs.upsert([f"r{n}"], [[n, 0, 0, 1]], documents=[f"d{n}"])
                acknowledged.add(n)
            except KeyboardInterrupt:
                interrupts += 1
        while not stop.is_set():
            try:
                stop.set()
            except KeyboardInterrupt:
                pass
        while thread.is_alive():
            try:
                thread.join()
            except KeyboardInterrupt:
                pass
        time.sleep(0.1)
        assert interrupts > 20, interrupts
        report = docs.check()
        assert report.ok, report.problems
        assert docs.count() == docs._core.view.n_live >= len(acknowledged)
        for m in rng.sample(sorted(acknowledged), min(200, len(acknowledged))):
            found = docs.query([[m, 0, 0, 1]], k=1, include=["document"])
            assert (found.ids, found.documents) == ([[f"r{m}"]], [[f"d{m}"]]), (m, found)
        docs.delete(filter={"$document": {"$regex": "7$"}})
        assert docs.check().ok
        assert all(not i.endswith("7") for b in docs.scan() for i in b.ids)
        db.close()
        print("ok", interrupts, len(acknowledged))
    """
    seed = int.from_bytes(os.urandom(3), "little")
    print(f"seed {seed}")
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(data_folder), str(seed)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert process.stdout.startswith("ok"), (seed, process.stderr)
    with vecdb.open(data_folder) as db:
        assert db.get_collection("docs").check().ok
