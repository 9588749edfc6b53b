"""Writes with a request id: done once, however often and through whatever they are repeated."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from conftest import Backend
from seeds import RUN_SEED

import vecdb
from vecdb.errors import InvalidBatch, RecordExists
from vecdb.layout import COLLECTION_TABLES
from vecdb.store import Writer, requests

ROOT = Path(__file__).resolve().parent.parent


def collection(folder: Path, **settings: Any) -> tuple[vecdb.Database, vecdb.Collection]:
    db = vecdb.open(folder, device="cpu", auto_build=False, **settings)
    return db, db.create_collection("docs", dimension=2, exist_ok=True)


def test_a_repetition_is_answered_and_not_done(backend: Backend) -> None:
    """Insert, upsert, update and deletes with an id answer alike the second time, whatever came between."""
    docs = backend.db.create_collection("docs", dimension=2)
    first = docs.insert(["a", "b"], [[1, 2], [3, 4]], request_id="one")
    assert docs.insert(["a", "b"], [[1, 2], [3, 4]], request_id="one") == first
    assert docs.count() == 2
    put = docs.upsert(["a"], [[5, 6]], metadata=[{"n": 1}], request_id="two")
    changed = docs.update(["a"], metadata=[{"n": 2}], request_id="three")
    assert docs.upsert(["a"], [[5, 6]], metadata=[{"n": 1}], request_id="two") == put
    assert docs.get(["a"]).metadata == [{"n": 2}]
    assert docs.update(["a"], metadata=[{"n": 2}], request_id="three") == changed
    gone = docs.delete(["b"], request_id="four")
    assert gone.count == 1
    docs.insert(["b"], [[1, 1]])
    assert docs.delete(["b"], request_id="four") == gone
    none = docs.delete(filter={"n": 99}, request_id="five")
    docs.update(["a"], metadata=[{"n": 99}])
    assert docs.delete(filter={"n": 99}, request_id="five") == none
    assert none.count == 0
    assert docs.count() == 2
    assert docs.check().ok


def test_an_id_belongs_to_one_write(tmp_path: Path) -> None:
    """The id of another write, and one that is no short text, are InvalidBatch; a refused write keeps none."""
    db, docs = collection(tmp_path / "db")
    docs.insert(["a"], [[1, 2]], request_id="x")
    for other in (
        lambda: docs.insert(["a"], [[1, 3]], request_id="x"),
        lambda: docs.upsert(["a"], [[1, 2]], request_id="x"),
        lambda: docs.delete(["a"], request_id="x"),
        lambda: docs.update(["a"], metadata=[{}], request_id="x"),
    ):
        with pytest.raises(InvalidBatch, match="another write"):
            other()
    for wrong in ("", "x" * 65, 5, b"x"):
        with pytest.raises(InvalidBatch, match="request_id"):
            docs.delete(["a"], request_id=wrong)  # type: ignore[arg-type]
    with pytest.raises(RecordExists):
        docs.insert(["a"], [[1, 2]], request_id="y")
    docs.delete(["a"])
    assert docs.insert(["a"], [[1, 2]], request_id="y").count == 1
    db.close()


def test_repetitions_at_once_share_one_write(tmp_path: Path) -> None:
    """Eight that send the same write at the same moment get one answer, and it is done once."""
    db, docs = collection(tmp_path / "db")
    answers: list[Any] = []

    def send(n: int) -> None:
        answers.append((n, docs.insert([f"r{n}"], [[1, 2]], request_id=f"id{n}")))

    threads = [threading.Thread(target=send, args=(n,)) for n in range(4) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 32
    assert len(set(answers)) == 4
    assert docs.count() == 4
    assert docs.check().ok
    db.close()


def test_ids_survive_a_kill(tmp_path: Path) -> None:
    """After SIGKILL each write that was acknowledged is answered as it was, and each other one is done once."""
    rng = random.Random(RUN_SEED)
    print("seed", RUN_SEED)
    code = """
import sys, vecdb
docs = vecdb.open(sys.argv[1], device="cpu").create_collection("docs", dimension=2)
for n in range(100_000):
    done = docs.insert([f"r{n}"], [[1, n]], request_id=f"id{n}")
    print(n, done.sequence, flush=True)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "db")],
        stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert child.stdout is not None
    seen = [child.stdout.readline() for _ in range(rng.randrange(20, 200))]
    child.send_signal(signal.SIGKILL)
    seen += child.stdout.read().splitlines()
    child.wait()
    acknowledged = dict(tuple(map(int, line.split())) for line in seen if line.count(" ") == 1)
    db, docs = collection(tmp_path / "db")
    count = docs.count()
    for n in range(max(acknowledged) + 3):
        answer = docs.insert([f"r{n}"], [[1, n]], request_id=f"id{n}")
        if n in acknowledged:
            assert answer.sequence == acknowledged[n]
    assert docs.count() == max(count, max(acknowledged) + 3)
    assert docs.check().ok
    db.close()


def test_old_ids_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of ids is bounded, in memory and on disk, by number and by age; a vacuum keeps it."""
    monkeypatch.setattr(requests, "KEPT", 50)
    db, docs = collection(tmp_path / "db")
    for n in range(200):
        docs.upsert(["a"], np.ones((1, 2)), request_id=f"id{n}")
    store = docs._core.store  # the table itself is what is promised to stay small
    assert len(store._requests) <= 51
    with store.read() as reader:
        assert reader.entries("requests") == len(store._requests)
    kept = docs.upsert(["a"], np.ones((1, 2)), request_id="id199")
    docs.compact()
    db.close()
    db, docs = collection(tmp_path / "db")
    assert docs.upsert(["a"], np.ones((1, 2)), request_id="id199") == kept
    assert docs.upsert(["a"], np.ones((1, 2)), request_id="id1").sequence == 201
    monkeypatch.setattr(requests, "KEPT_US", -1)
    for n in range(40):
        docs.upsert(["a"], np.ones((1, 2)), request_id=f"again{n}")
    assert len(docs._core.store._requests) <= 5
    db.close()


def test_old_ids_are_forgotten_by_shared_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commits that many writers share drop as many of the old ids as they add."""
    monkeypatch.setattr(requests, "KEPT", 50)
    db, docs = collection(tmp_path / "db")
    store = docs._core.store  # how many writers share a commit is left to chance above it
    for n in range(20):

        def shared(writer: Writer, sequence: int, n: int = n) -> None:
            for i in range(30):
                writer.remember(f"{n}/{i}".encode(), sequence, 1, n, 0)

        store.commit(shared)
    kept = [i for i in range(30) if store._requests.find(f"19/{i}".encode())]
    assert kept == list(range(30))
    assert len(store._requests) <= 80
    with store.read() as reader:
        assert reader.entries("requests") == len(store._requests)
    db.close()
    db, docs = collection(tmp_path / "db")
    assert docs._core.store._requests.find(b"19/29") is not None
    assert docs._core.store._requests.find(b"0/0") is None
    db.close()


def test_a_file_without_the_table_gets_it(tmp_path: Path) -> None:
    """A collection of before, which has no table of ids, is read as it is and gets the table by writing."""
    db, docs = collection(tmp_path / "db")
    docs.insert(["a"], [[1, 2]])
    db.close()
    (folder,) = (tmp_path / "db" / "collections").iterdir()
    with (
        lmdb.open(str(folder), max_dbs=len(COLLECTION_TABLES)) as env,
        env.begin(write=True) as txn,
    ):
        txn.drop(env.open_db(b"requests", txn=txn, create=False))
    with vecdb.open(tmp_path / "db", read_only=True) as reading:
        assert reading.get_collection("docs").count() == 1
    db, docs = collection(tmp_path / "db")
    done = docs.insert(["b"], [[1, 2]], request_id="x")
    with db:
        assert docs.insert(["b"], [[1, 2]], request_id="x") == done
