"""Files of a backup: put together, written past the cache where that can be, read back; each read once to verify."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import subprocess
import sys
import threading
from contextlib import closing

import numpy as np
import pytest
from backup_rows import NAMED, change, filled
from blake3 import blake3
from seeds import RUN_SEED

import vecdb
from vecdb import disk, errors
from vecdb.backup import child, direct, open_target, sink, taking
from vecdb.backup.blocks import BLOCK_BYTES, Blocks, Filling
from vecdb.backup.files import File, read_ahead
from vecdb.backup.target import FolderTarget
from vecdb.store import EncodedRows, checksums

SIZES = (1, 4_095, 4_096, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 5, 2 * BLOCK_BYTES + 12_288)


def pieces_of(data: bytes, rng: random.Random) -> list[bytes]:
    """`data` cut at random places, often into small pieces."""
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(6)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@pytest.fixture(params=["direct", "cached", "refused"])
def way(request, monkeypatch):
    """Past the cache; through it, as where the system has no O_DIRECT; and where each such write is refused."""
    if request.param == "cached":
        monkeypatch.setattr(direct, "_DIRECT", 0)
    if request.param == "refused":
        monkeypatch.setattr(direct, "_DIRECT", os.O_APPEND)
        real = {"write": os.write, "readv": os.readv}

        def refuse(name: str):
            def call(descriptor, *args):
                if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND:
                    raise OSError(errno.EINVAL, "not aligned")
                return real[name](descriptor, *args)

            return call

        for name in real:
            monkeypatch.setattr(f"vecdb.backup.direct.os.{name}", refuse(name))
    return request.param


@pytest.mark.parametrize("size", SIZES)
def test_what_is_put_together_is_written_and_read_back(tmp_path, way, size):
    """A file of any size holds what was added, whichever way it is written, and reads back as its BLAKE3."""
    print(f"seed {RUN_SEED}")
    rng = random.Random(f"{RUN_SEED}{way}{size}")
    blocks = Blocks()
    blocks.give([memoryview(bytearray(b"\xff" * BLOCK_BYTES))])  # used before
    data, filling = rng.randbytes(size), Filling(Blocks() if way == "direct" else blocks)
    for piece in pieces_of(data, rng):
        filling.add(piece)
    assert filling.bytes == size
    assert b"".join(filling.parts()) == data
    target = open_target(tmp_path / "b")
    target.write("a/file", filling.parts())
    assert (tmp_path / "b" / "a" / "file").read_bytes() == data
    assert target.read("a/file", size) == data
    assert target.read_back("a/file", filling.parts()) == blake3(data).hexdigest()
    filling.free()
    assert (filling.bytes, filling.parts()) == (0, [])


@pytest.mark.parametrize("where", ["folder", "store"])
def test_what_is_not_as_written_is_found_when_read_back(tmp_path, where, way):
    """A wrong bit, a missing end and an end too much are found by reading back, with the name of the file."""
    if where == "store":
        target = open_target(pytest.importorskip("obstore.store").MemoryStore())
    else:
        target = open_target(tmp_path / "b")
    print(f"seed {RUN_SEED}")
    rng = random.Random(f"{RUN_SEED}{where}{way}")
    data = rng.randbytes(BLOCK_BYTES + 20_001)
    at = rng.randrange(len(data))
    wrong = [
        data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :],
        data[: rng.randrange(1, len(data))],
        data + b"\0",
    ]
    for number, one in enumerate(wrong):
        target.write(f"a/{number}", [one])
        with pytest.raises(errors.BackupDamaged, match=f"a/{number}"):
            target.read_back(f"a/{number}", pieces_of(data, rng))


def test_a_backup_that_does_not_read_back_is_not_kept(tmp_path, monkeypatch):
    """Where the disk gives back something else than was written, the backup fails, and nothing of it is left."""
    real = direct.write

    def write(descriptor, parts, sync):
        real(descriptor, parts, sync)
        if sum(memoryview(part).nbytes for part in parts) > 1_000:
            byte = os.pread(descriptor, 1, 500)
            os.pwrite(descriptor, bytes([byte[0] ^ 4]), 500)

    with vecdb.open(tmp_path / "db", auto_build=False) as db:
        filled(db, rows=300)
        monkeypatch.setattr(direct, "write", write)
        with pytest.raises(errors.BackupDamaged, match="does not hold what was just written"):
            db.backup(tmp_path / "b")
        assert list((tmp_path / "b").iterdir()) == []
        info = db.backup(tmp_path / "b", verify=False)
    report = vecdb.verify_backups(tmp_path / "b")
    assert (report.ok, report.backups, info.files > 1) == (False, 1, True)


def test_each_file_of_a_chain_is_read_once_to_verify(tmp_path, monkeypatch):
    """Verifying a chain reads each of its files once, so it takes time as the chain is long."""
    print(f"seed {RUN_SEED}")
    rng = random.Random(RUN_SEED)
    with vecdb.open(tmp_path / "db", auto_build=False) as db:
        docs = filled(db, rows=300, vectors=NAMED)
        for _ in range(6):
            change(docs, rng)
            db.backup(tmp_path / "b")
    read, real = [], FolderTarget.read

    def counted(self, name, limit_bytes):
        read.append(name)
        return real(self, name, limit_bytes)

    monkeypatch.setattr(FolderTarget, "read", counted)
    report = vecdb.verify_backups(tmp_path / "b")
    assert (report.ok, report.backups) == (True, 6)
    assert sorted(read) == sorted(set(read))
    assert len(read) == len(list((tmp_path / "b").glob("*/*"))) == report.files


def test_one_process_copies_all_collections(tmp_path, monkeypatch):
    """A process is started once a backup, and again only after it died."""
    monkeypatch.setattr(taking, "SMALL_BYTES", -1)
    started, real = [], child._started
    monkeypatch.setattr(child, "_started", lambda: started.append(real()) or started[-1])
    with vecdb.open(tmp_path / "db", auto_build=False) as db:
        for name in ("a", "b", "c"):
            db.create_collection(name, dimension=4).insert([name], np.ones((1, 4)))
        db.backup(tmp_path / "b")
        assert len(started) == 1
        assert started[0].poll() is not None  # it has ended with the backup
        with monkeypatch.context() as armed:
            armed.setenv("VECDB_FAILPOINTS", "backup.*=kill@3")
            with pytest.raises(errors.Unavailable):
                db.backup(tmp_path / "b", kind="full")
        db.backup(tmp_path / "b", kind="full")
        assert len(started) == 3
    assert vecdb.verify_backups(tmp_path / "b").ok


def test_files_of_a_backup_are_removed_one_after_the_other(tmp_path, monkeypatch):
    """Each is gone for good before the next is removed: freed together they would hold up commits for long."""
    target = open_target(tmp_path / "b")
    for n in range(4):
        target.write(f"x/{n}", [b"data"])
    steps = []
    for name in ("remove", "sync_folder"):
        real = getattr(disk, name)
        monkeypatch.setattr(
            disk, name, lambda *given, name=name, real=real: (steps.append(name), real(*given))[1]
        )
    target.delete_folder("x")
    assert steps == ["remove", "sync_folder"] * 4
    assert not (tmp_path / "b" / "x").exists()


def test_memory_is_used_again(tmp_path):
    """A backup of many files takes blocks for those on their way at once, and no more."""
    target = open_target(tmp_path / "b")
    made = sink.Sink(target, "a", number=0, verify=True, limit_bytes_s=None, done=lambda _: None)
    part = np.arange(1 << 17, dtype=np.uint64)
    for _ in range(16 * (sink.FILE_BYTES >> 20) // 4):
        made.add([part], 0, 1)
    files = made.take()
    made.close()
    assert len(files) >= 4
    most = (sink._MOST_WAITING + 2) * (sink.FILE_BYTES // BLOCK_BYTES + 1)
    assert len(made._blocks._free) <= most


def test_columns_with_gaps_have_their_checksums():
    """Rows of which some lack a value have the checksums that they have one by one, as bytes or as buffers."""
    print(f"seed {RUN_SEED}")
    rng = random.Random(RUN_SEED)
    n = 600
    texts = [rng.randbytes(rng.randrange(9)) if rng.random() < 0.8 else None for _ in range(n)]
    texts[300:556] = [b"x"] * 256  # a stretch without gaps
    ids, vectors = [b"r%d" % i for i in range(n)], np.ones((n, 2), np.float32)
    one_by_one = [
        checksums(EncodedRows(ids[i : i + 1], vectors[:1], documents=texts[i : i + 1]))[0]
        for i in range(n)
    ]
    views = [None if text is None else memoryview(text) for text in texts]
    assert checksums(EncodedRows(ids, vectors, documents=texts)) == one_by_one
    assert checksums(EncodedRows(ids, vectors, documents=views)) == one_by_one


@pytest.mark.parametrize("module", ["vecdb", "vecdb.backup_worker"])
def test_a_light_import_stays_light(module):
    """Importing vecdb, or the process that copies, imports no index library and no collections."""
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"faiss", "vecdb.index", "vecdb.core", "vecdb.collection", "vecdb.device"}


@pytest.mark.parametrize("package", [vecdb, vecdb.backup])
def test_all_public_names_are_there(package):
    """Each public name of a package is found and listed, and another is refused as any module refuses it."""
    for name in package.__all__:
        assert getattr(package, name) is getattr(package, name)
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        package.nothing  # noqa: B018


class Shelf:
    """A target of files in memory that notes what is read, and by whom."""

    name = "shelf"

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.read_names: list[str] = []
        self.threads: set[str] = set()

    def read(self, name: str, limit_bytes: int) -> bytes:
        self.read_names.append(name)
        self.threads.add(threading.current_thread().name)
        if name not in self.files:
            raise errors.BackupNotFound(f"no {name}")
        return self.files[name]


def shelf(count: int) -> tuple[Shelf, list[File]]:
    data = {f"b/{n}": bytes([n]) * (n + 1) for n in range(count)}
    made = [
        File(name[2:], len(held), blake3=blake3(held).hexdigest()) for name, held in data.items()
    ]
    return Shelf(data), made


def ahead_threads() -> list[str]:
    return [one.name for one in threading.enumerate() if "read-ahead" in one.name]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_files_are_read_one_ahead(count):
    """All come, in order, each read once; while the caller has one, at most the next was read."""
    target, wanted = shelf(count)
    for n, (file, data) in enumerate(read_ahead(target, "b", wanted)):
        assert (file, data) == (wanted[n], target.files[f"b/{n}"])
        assert n + 1 <= len(target.read_names) + (n + 1 == count)
        assert len(target.read_names) <= n + 2
    assert target.read_names == list(target.files)
    assert not ahead_threads()
    if count > 1:
        assert len(target.threads) == 1
        assert "read-ahead" in target.threads.pop()


@pytest.mark.parametrize("gone", [True, False])
def test_a_file_that_is_damaged_or_gone_is_told_when_its_turn_comes(gone):
    """Those before it are given, and nothing behind it is read."""
    target, wanted = shelf(5)
    if gone:
        del target.files["b/2"]
    else:
        target.files["b/2"] = b"xxx"
    seen = []
    with pytest.raises(errors.BackupNotFound if gone else errors.BackupDamaged, match="b/2"):
        for file, _ in read_ahead(target, "b", wanted):
            seen.append(file.name)
    assert seen == ["0", "1"]
    assert target.read_names == ["b/0", "b/1", "b/2"]
    assert not ahead_threads()


def test_who_stops_early_leaves_no_thread():
    """The thread ends when the generator is closed, and what is far behind is never read."""
    target, wanted = shelf(9)
    with closing(read_ahead(target, "b", wanted)) as files:
        next(files)
    assert not ahead_threads()
    assert len(target.read_names) <= 2


def test_a_damaged_chunk_in_the_middle_is_named_by_verify_and_restore(tmp_path, monkeypatch):
    """Read ahead or not: the file is named, the others of the backup are still counted, nothing is restored and no
    thread is left."""
    monkeypatch.setattr(sink, "FILE_BYTES", 64 << 10)
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", dimension=64)
        rng = np.random.default_rng(3)
        docs.insert([str(i) for i in range(12_000)], rng.standard_normal((12_000, 64)))
        info = db.backup(tmp_path / "b", kind="full")
    chunks = sorted((tmp_path / "b" / info.id).glob("*.chunk"))
    assert len(chunks) >= 5
    hurt = chunks[2]
    data = bytearray(hurt.read_bytes())
    data[len(data) // 2] ^= 1
    hurt.write_bytes(data)
    report = vecdb.verify_backups(tmp_path / "b")
    assert not report.ok
    assert hurt.name in report.problems[0]
    with pytest.raises(errors.BackupDamaged, match=hurt.name):
        vecdb.restore(tmp_path / "b", tmp_path / "new")
    assert not ahead_threads()
