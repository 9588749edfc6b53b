"""Out of memory in the caller's own process: a typed error from every verb, nothing half done, and on it goes."""

from __future__ import annotations

import errno
import inspect
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import grpc
import pytest

import vecdb
from vecdb import errors, out_of_memory, paging, searching
from vecdb.builder import Builder
from vecdb.core import Core
from vecdb.store import CollectionStore, Writer
from vecdb_server.status import failure_of

SETTINGS = {"auto_build": False, "device": "cpu"}


@pytest.fixture
def db(data_folder: Path) -> Iterator[vecdb.Database]:
    with vecdb.open(data_folder, **SETTINGS) as db:
        docs = db.create_collection("docs", dimension=2, metric="l2")
        docs.insert(
            [f"r{n}" for n in range(50)], [[n, 1] for n in range(50)], metadata=[{"n": 1}] * 50
        )
        yield db


def spent(*_: object, **__: object) -> Any:
    raise MemoryError("777 bytes")


def verbs(db: vecdb.Database, target: Path) -> dict[str, tuple[Any, str, Callable[[], Any]]]:
    """By name: where memory ends, and the call that meets it."""
    docs = db.get_collection("docs")
    return {
        "insert": (Writer, "append", lambda: docs.insert(["new"], [[1, 1]])),
        "insert, before the lane": (
            import_module("vecdb.writes"), "checksums", lambda: docs.upsert(["r1"], [[1, 1]])
        ),
        "update": (Writer, "append", lambda: docs.update(["r1"], metadata=[{"n": 2}])),
        "delete": (Writer, "kill", lambda: docs.delete(["r1"])),
        "delete by filter": (Core, "matching", lambda: docs.delete(filter={"n": 1})),
        "query": (searching, "query", lambda: docs.query([[1, 1]], k=1)),
        "get": (CollectionStore, "read", lambda: docs.get(["r1"])),
        "count": (Core, "matching", lambda: docs.count({"n": 1})),
        "scan": (paging, "_records", lambda: list(docs.scan())),
        "check": (CollectionStore, "read", docs.check),
        "stats": (Core, "field", docs.stats),
        "build": (Builder, "build", docs.build_index),
        "compact": (Builder, "compact", docs.compact),
        "backup": (import_module("vecdb.backed_up"), "take", lambda: db.backup(target)),
        "create": (vecdb.Database, "_make_folder", lambda: db.create_collection("more", dimension=2)),
        "verify": (
            import_module("vecdb.backup.verifying"), "open_target", lambda: vecdb.verify_backups(target)
        ),
    }  # fmt: skip


NAMES = [
    "insert", "insert, before the lane", "update", "delete", "delete by filter", "query", "get", "count", "scan", "check",
    "stats", "build", "compact", "backup", "create", "verify",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_verb_says_that_memory_has_ended(
    db: vecdb.Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """LimitExceeded where it was Python's own error, with what to do; the next call finds all as it was, and works."""
    docs = db.get_collection("docs")
    place, inner, call = verbs(db, tmp_path / "b")[name]
    with monkeypatch.context() as patch:
        patch.setattr(place, inner, spent)
        with pytest.raises(
            errors.LimitExceeded, match=r"not enough memory for .*ulimit -v.*777 bytes"
        ) as told:
            call()
    assert isinstance(told.value.__cause__, MemoryError)
    assert ("nothing of it was written" in str(told.value)) == (
        name.split(",")[0].split()[0] in ("insert", "update", "delete")
    )
    assert docs.count() == docs.count({"n": 1}) == 50
    assert docs.stats().sequence == 1
    assert [i.name for i in db.list_collections()] == ["docs"]
    assert docs.check().problems == ()
    call()


def test_a_write_that_stands_is_not_called_undone(
    db: vecdb.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a commit calls for, as a build, may find no memory: the write is acknowledged, and that is tried again."""
    docs = db.get_collection("docs")
    with monkeypatch.context() as patch:
        patch.setattr(Builder, "consider", spent)
        assert docs.insert(["new"], [[1, 1]]).count == 1
    assert docs.count() == 51


def test_other_errors_of_the_system_stay_what_they_are() -> None:
    """Only the one of memory is told in our words."""

    def refused(number: int) -> None:
        raise OSError(number, "refused")

    told = out_of_memory.memory_told(refused)
    with pytest.raises(errors.LimitExceeded, match="not enough memory for refused"):
        told(errno.ENOMEM)
    with pytest.raises(PermissionError) as found:
        told(errno.EACCES)
    assert found.value.__cause__ is None


def test_a_server_says_the_same_as_before() -> None:
    """Over the wire it is ResourceExhausted, with a time to repeat reads after; of a write nobody knows how far it came."""
    for name, repeats in (("Query", True), ("Insert", False)):
        try:
            out_of_memory.memory_told(spent)()
        except errors.LimitExceeded as error:
            code, told = failure_of(name, error)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert type(told) is errors.ResourceExhausted
        assert ("retry_after_ms" in told.details) == repeats


def test_under_a_limit_of_the_address_space(data_folder: Path) -> None:
    """RLIMIT_AS as in a small container: large calls are refused, small ones go on, and all when it is lifted."""
    code = """
        import resource, sys, numpy as np, vecdb
        from vecdb import errors
        db = vecdb.open(sys.argv[1], auto_build=False, device="cpu")
        docs = db.create_collection("docs", dimension=64, index="exact")
        vectors = np.random.default_rng(1).random((20_000, 64), np.float32)
        docs.insert([f"r{i}" for i in range(20_000)], vectors)
        docs.query(vectors[:3000], k=100)
        docs.query(vectors[0], k=1)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        unlimited = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 20), unlimited[1]))
        big = lambda: np.broadcast_to(np.zeros(64, np.float32), (90_000, 64))
        for call in (
            lambda: docs.insert([f"b{i}" for i in range(90_000)], big()),
            lambda: docs.query(vectors, k=1000),
            lambda: db.backup(sys.argv[1] + "/../backups"),
        ):
            try:
                call()
                print("done")
            except errors.LimitExceeded as error:
                print("refused")
        print(docs.query(vectors[:2], k=1).ids, docs.count())
        resource.setrlimit(resource.RLIMIT_AS, unlimited)
        print(docs.check().problems, docs.count(), docs.insert(["new"], vectors[:1]).count)
        print(len(vecdb.list_backups(sys.argv[1] + "/../backups")))
        db.backup(sys.argv[1] + "/../backups")
        print(vecdb.verify_backups(sys.argv[1] + "/../backups").ok)
        db.close()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(data_folder)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        *["refused"] * 3, "[['r0'], ['r1']] 20000", "() 20000 1", "0", "True",
    ], done.stderr  # fmt: skip


@pytest.mark.parametrize("border", [vecdb.Database, vecdb.Collection])
def test_every_public_verb_tells_it(border: type) -> None:
    """Also those that a class has from another one of ours."""
    for owner in border.__mro__:
        if owner.__module__.startswith("vecdb"):
            for name, member in vars(owner).items():
                if inspect.isfunction(member) and not name.startswith("_") and name != "close":
                    assert hasattr(member, "__wrapped__"), f"{owner.__name__}.{name}"


@pytest.mark.parametrize("index", ["hnsw", "ivf"])
def test_a_build_under_a_limit_of_the_address_space(data_folder: Path, index: str) -> None:
    """No thread for it to be had, or too little for it and its threads: it is refused, whoever waits is told, queries go on,
    and the next one is done. FAISS's threads ended the process, and no build began any more in the first case."""
    code = """
        import resource, sys, numpy as np, vecdb
        from vecdb import errors
        db = vecdb.open(sys.argv[1], auto_build=False, device="cpu")
        docs = db.create_collection("docs", dimension=64, index=sys.argv[2])
        vectors = np.random.default_rng(1).random((3_000, 64), np.float32)
        docs.insert([f"r{i}" for i in range(3_000)], vectors)
        docs.query(vectors[0], k=1)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        unlimited = resource.getrlimit(resource.RLIMIT_AS)
        for more in (2, 24, 48):
            resource.setrlimit(resource.RLIMIT_AS, (used + (more << 20), unlimited[1]))
            try:
                docs.build_index(wait=True, timeout_s=30)
                print("built")
            except errors.LimitExceeded as error:
                print("refused")
            resource.setrlimit(resource.RLIMIT_AS, unlimited)
            print(docs.query(vectors[5], k=1).ids)
        docs.build_index(wait=True, timeout_s=60)
        print(docs.stats().index.kind, docs.check().problems)
        db.close()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(data_folder), index],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [*["refused", "[['r5']]"] * 3, f"{index} ()"], done.stderr
