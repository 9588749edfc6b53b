"""A server whose address space is limited: large calls are refused before they take what small ones cannot be done without."""

from __future__ import annotations

import resource
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_process import environment, spawn

from vecdb import errors as engine_errors
from vecdb import memory
from vecdb_client import connect, errors
from vecdb_client.v1 import vecdb_pb2 as pb
from vecdb_server import headroom
from vecdb_server.headroom import Headroom

DIMENSION = 256
KEPT = 3 * 64 << 20


def limited(pid: int, left_mb: int) -> Any:
    """Leaves a process so many MiB of address space; its limits before."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    before = resource.prlimit(pid, resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + (left_mb << 20)
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, before[1]))
    return before


@pytest.mark.parametrize("left_mb", [100, 200, 400])
def test_a_server_lives_with_too_little_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_mb: int
) -> None:
    """Large inserts, queries and scans of several clients are done or refused with an error of memory, small calls are answered
    all the while, and all goes when the limit is lifted. The process ended, or answered nobody any more."""
    monkeypatch.setenv(
        "MALLOC_ARENA_MAX", "2"
    )  # As under a limit from the start; here it comes later.
    process, address = spawn(tmp_path / "db", "--device", "cpu", "--auto-build", "false")
    told: Counter[tuple[str, str]] = Counter()
    strange: list[str] = []
    try:
        # Its log of what was refused must not fill a pipe.
        drained = threading.Thread(target=process.stderr.read, daemon=True)  # type: ignore[union-attr]
        drained.start()
        base = np.random.default_rng(1).random((5_000, DIMENSION), np.float32)
        many = np.tile(base, (2, 1))
        with connect(address, timeout_s=600, idle_s=600) as db:
            docs = db.create_collection("docs", dimension=DIMENSION, index="exact")
            docs.insert([f"r{i}" for i in range(5_000)], base, documents=["x" * 1_000] * 5_000)
            docs.query(base[0], k=1)
            before = limited(process.pid, left_mb)
            calls = {
                "insert": lambda d, n: d.upsert([f"b{n}-{i}" for i in range(10_000)], many),
                "texts": lambda d, n: d.upsert(
                    [f"c{i}" for i in range(5_000)], base, documents=["y" * 2_000] * 5_000
                ),
                "query": lambda d, _: d.query(base[:300], k=1_000, include=["vector", "document"]),
                "queries": lambda d, _: d.query(many[:5_000], k=300),
                "get": lambda d, _: d.get([f"r{i}" for i in range(2_000)], include=["vector"]),
                "scan": lambda d, _: list(d.scan(include=["vector", "document"])),
                "scan too": lambda d, _: list(d.scan(include=["vector", "document"])),
                "small": lambda d, _: (d.query(base[0], k=1), d.count()),
            }

            def drive(name: str, call: Any) -> None:
                for n in range(5):
                    # Each time by another connection.
                    with connect(address, retry_s=0, timeout_s=600, idle_s=600) as own:
                        try:
                            call(own.get_collection("docs"), n)
                            told[name, "ok"] += 1
                        except errors.ResourceExhausted as error:
                            told[name, "refused"] += 1
                            if "memory" not in str(error) and "more than" not in str(error):
                                strange.append(f"{name}: {error}")
                        except errors.VecdbError as error:
                            strange.append(f"{name}: {error!r}")

            threads = [threading.Thread(target=drive, args=one) for one in calls.items()]
            for one in threads:
                one.start()
            for one in threads:
                one.join()
            assert process.poll() is None, (told, strange)
            assert strange == []
            assert told["small", "ok"], told  # Each thread that is begun takes 8 MiB for its stack.
            assert any(told[name, "refused"] for name in calls), told
            resource.prlimit(process.pid, resource.RLIMIT_AS, before)
            scanned = docs.scan(include=["vector", "document"])
            assert sum(len(part.ids) for part in scanned) == docs.count()
            assert docs.upsert([f"after{i}" for i in range(10_000)], many).count == 10_000
            assert docs.query(base[:300], k=10).distances.shape == (300, 10)
            assert docs.check().ok
        process.terminate()
        assert process.wait(timeout=300) == 0
    finally:
        process.kill()
        process.wait()


def printed(code: str, folder: Path) -> list[str]:
    """The lines that a Python process of this code prints, given a database in `folder` to make."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(folder / "db")],
        capture_output=True, text=True, timeout=120, check=False, env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout.splitlines()


def test_a_batch_without_room_for_blas_is_refused(tmp_path: Path) -> None:
    """The first large batch of a process takes buffers; where a limit leaves none it is LimitExceeded, and single queries go on.
    OpenBLAS read what it had not got, which ended the process."""
    code = """
        import resource, sys, numpy as np, vecdb
        db = vecdb.open(sys.argv[1], auto_build=False, device="cpu")
        docs = db.create_collection("docs", dimension=256, index="exact")
        vectors = np.random.default_rng(1).random((20_000, 256), np.float32)
        docs.insert([f"r{i}" for i in range(20_000)], vectors)
        docs.query(vectors[0], k=1)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        unlimited = resource.getrlimit(resource.RLIMIT_AS)
        for more in (30, 60):
            resource.setrlimit(resource.RLIMIT_AS, (used + (more << 20), unlimited[1]))
            try:
                print(len(docs.query(vectors[:600], k=10).ids))
            except vecdb.errors.LimitExceeded as error:
                print("refused")
            print(docs.query(vectors[5], k=1).ids)
        resource.setrlimit(resource.RLIMIT_AS, unlimited)
        print(len(docs.query(vectors[:600], k=10).ids))
        db.close()
    """
    assert printed(code, tmp_path) == [*["refused", "[['r5']]"] * 2, "600"]


def test_a_server_that_starts_under_a_limit_takes_the_buffers_at_once(tmp_path: Path) -> None:
    """A large batch then goes where a process that has not prepared for it has no room for them; without a limit nothing is taken."""
    code = """
        import resource, sys, numpy as np, vecdb
        from vecdb import memory
        from vecdb.index import door
        from vecdb_server import headroom
        headroom.prepare(64 << 20)
        print(door._blas._known)
        unlimited = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (1 << 36, unlimited[1]))
        headroom.prepare(64 << 20)
        print(memory._kept_bytes)
        db = vecdb.open(sys.argv[1], auto_build=False, device="cpu")
        docs = db.create_collection("docs", dimension=256, index="exact")
        vectors = np.random.default_rng(1).random((20_000, 256), np.float32)
        docs.insert([f"r{i}" for i in range(20_000)], vectors)
        docs.query(vectors[0], k=1)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (60 << 20), unlimited[1]))
        print(len(docs.query(vectors[:600], k=10).ids))
        resource.setrlimit(resource.RLIMIT_AS, unlimited)
        db.close()
    """
    assert printed(code, tmp_path) == ["0", str(KEPT), "600"]


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """What the limit is said to leave: its one entry, which may be changed."""
    found: list[int | None] = [None]
    monkeypatch.setattr(memory, "address_space_left", lambda: found[0])
    monkeypatch.setattr(headroom, "_WAIT_S", 0.01)
    return found


def inserting(mb: int) -> Any:
    vectors = pb.Vectors(data=b"v" * (mb << 20), count=1, dimension=mb << 18)
    return pb.InsertRequest(collection="c", records=pb.RecordBatch(ids=["a"], vectors=vectors))


def test_who_is_told_to_come_again(left: list[int | None]) -> None:
    """Where others have been promised room it comes back, so the refusal says when to come; alone, only the limit can change."""
    room = Headroom(64 << 20)
    left[0] = KEPT + (100 << 20)
    with room.serving("Insert", inserting(10)):
        with pytest.raises(engine_errors.ResourceExhausted, match="promised to calls") as found:
            room.serving("Insert", inserting(10)).__enter__()
        assert found.value.details["retry_after_ms"]
    with pytest.raises(engine_errors.LimitExceeded, match="ulimit -v") as alone:
        room.serving("Insert", inserting(30)).__enter__()
    assert "retry_after_ms" not in alone.value.details
    assert alone.value.details["left_bytes"] == left[0]
    with room.serving("Insert", inserting(10)):
        assert room.refused == 2
    left[0] = None
    with room.serving("Insert", inserting(30)):
        pass


def test_small_calls_go_on_until_next_to_nothing_is_left(left: list[int | None]) -> None:
    """They take of what large ones leave; below 8 MiB nothing is begun."""
    room, small = Headroom(64 << 20), pb.QueryRequest(collection="c", k=10)
    left[0] = 9 << 20
    with room.reading(large=False), room.serving("Query", small):
        pass
    with pytest.raises(engine_errors.LimitExceeded):
        room.reading(large=True).__enter__()
    left[0] = 7 << 20
    with pytest.raises(engine_errors.LimitExceeded):
        room.serving("Query", small).__enter__()


def test_what_is_promised_is_waited_for(
    left: list[int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that ends soon makes room for one that waits."""
    monkeypatch.setattr(headroom, "_WAIT_S", 60.0)
    room, entered = Headroom(64 << 20), threading.Event()
    left[0] = KEPT + (100 << 20)

    def second() -> None:
        with room.serving("Insert", inserting(10)):
            entered.set()

    waiting = threading.Thread(target=second)
    with room.serving("Insert", inserting(10)):
        waiting.start()
        assert not entered.wait(0.05)
    assert entered.wait(30)
    waiting.join()


def test_large_pieces_of_the_engine_leave_room_too(
    monkeypatch: pytest.MonkeyPatch, left: list[int | None]
) -> None:
    """What takes whole pages is refused where it would touch what is kept, what is small is not."""
    monkeypatch.setattr(memory, "_kept_bytes", 100 << 20)
    left[0] = 110 << 20
    memory.anonymous(1 << 16).close()
    memory.anonymous(9 << 20).close()
    with pytest.raises(MemoryError, match="small pieces"):
        memory.anonymous(11 << 20)
    left[0] = None
    memory.anonymous(11 << 20).close()
