"""The file rewritten without free pages: readers go on, a crash or a full disk costs nothing."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time

import lmdb
import numpy as np
import pytest
import store_rows
from store_rows import ask, child, files, filled, names, reader_beside

from vecdb import errors, failpoints, layout
from vecdb.store import EncodedRows, Shape, checksums, page_faults, vacuum
from vecdb.store.watched_file import WatchedFile


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


def test_the_file_is_near_its_contents_after_updates_and_deletes(folder):
    """20 % updated, 10 % deleted, purged and rewritten: at most 1.15 times what the records hold."""
    shape = Shape(384, "float32")
    store = store_rows.create(folder, shape)
    rng = np.random.default_rng(1)
    count, batch = 20_000, 1_000
    vectors = rng.standard_normal((count, 384), dtype=np.float32)
    metadata = b'{"pos":"noun","category":"noun.artifact","n_lemmas":3,"offset":12345678}'
    document = b"a text of sixty bytes".ljust(60, b".")

    def write(numbers):
        columns = [[part] * len(numbers) for part in (metadata, document)]
        ids = [b"wn-noun-%08d" % n for n in numbers]
        rows = EncodedRows(ids, vectors[numbers], *columns)

        def work(writer, sequence):
            held = writer.rows_of_ids(ids)
            writer.kill(held[held >= 0], sequence)
            writer.append(rows, checksums(rows))

        store.commit(work)

    order = rng.permutation(count)
    for first in range(0, count, batch):
        write(order[first : first + batch])
    changed = rng.permutation(count)
    for first in range(0, count // 5, batch):
        write(changed[first : first + batch])
    store_rows.delete(store, [f"wn-noun-{n:08}" for n in changed[-count // 10 :]])
    assert sum(store_rows.purge(store)) == count * 3 // 10
    before, after = store.vacuum()
    contents = 0.9 * count * (4 * 384 + len(metadata) + len(document))
    assert before > 1.3 * contents
    assert after < 1.15 * contents, after / contents
    assert os.path.getsize(folder / layout.DATA_FILE) == after
    store.close()


def test_it_holds_the_same_and_goes_on(folder, monkeypatch):
    """Records, dead rows and history are the same; writing, purging and another vacuum work."""
    monkeypatch.setattr(vacuum, "_CHUNK_BYTES", 10_000)  # many transactions a table
    store, model = filled(folder)
    store_rows.put(store, {"r1": 7_000})
    model["r1"] = 7_000
    with store.read() as reader:
        old = reader.state(), [*reader.log(0)], *(a.tolist() for a in reader.dead())
    for turn in range(3):
        before, after = store.vacuum()
        assert after <= before
        assert files(folder) == {layout.DATA_FILE, layout.LMDB_LOCK_FILE}
        store_rows.assert_holds(store, model)
        if not turn:
            with store.read() as reader:
                new = reader.state(), [*reader.log(0)], *(a.tolist() for a in reader.dead())
            assert [len(old[1]), *old[2:]] == [len(new[1]), *new[2:]]
            assert old[0] == new[0]
        store_rows.put(store, names(1_000 * (turn + 1), 300))
        model |= names(1_000 * (turn + 1), 300)
        store_rows.purge(store)
        store_rows.assert_holds(store, model)
    store.close()
    store = store_rows.reopen(folder)
    store_rows.assert_holds(store, model)
    store.close()


def test_readers_go_on_meanwhile(folder):
    """Threads that read all the time see whole moments, before, during and after."""
    store, model = filled(folder, 2_000)
    stop, failures, reads = threading.Event(), [], [0, 0]

    def read(number):
        rng = random.Random(number)
        try:
            while not stop.is_set():
                some = dict(rng.sample(sorted(model.items()), 20))
                with store.read() as reader:
                    found = store_rows.held(reader, some)
                    assert [f[1:] for f in found] == [store_rows.row(n)[1:] for n in some.values()]
                    if rng.random() < 0.1:  # one inside another, as nested calls have them
                        with store.read() as inner:
                            assert inner.state() == reader.state()
                reads[number] += 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        store.vacuum()
        time.sleep(0.02)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert min(reads) > 5
    store_rows.assert_holds(store, model)
    store.close()


def test_a_process_that_reads_beside_follows(folder):
    """Each read of another process shows the newest commit, before and after the file is replaced."""
    store, _ = filled(folder)
    process = reader_beside(folder)
    sequence = 7
    for turn in range(4):
        assert ask(process, "r1", "r3", f"new {turn}") == ["2", str(sequence), "x-" + "--"]
        store.vacuum()
        assert ask(process, "r1", "r3") == ["2", str(sequence), "x-"]
        sequence = store_rows.put(store, {f"turn{turn}": turn})
        store_rows.purge(store)
        assert ask(process, "r1", f"turn{turn}") == ["2", str(sequence), "xx"]
    process.stdin.close()
    assert process.wait() == 0
    store.close()


def test_a_full_disk_leaves_the_old_file(folder):
    """Without room for the copy a vacuum is StorageFull, leaves no litter, and the old file goes on."""
    code = """
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        store = store_rows.reopen(folder)
        limit = (folder / "data.mdb").stat().st_size // 3
        hard = resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            store.vacuum()
        except errors.StorageFull as error:
            print("nothing was written" in str(error), sorted(p.name for p in folder.iterdir()))
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        store_rows.put(store, {"after": 1})
        print(store.vacuum()[1] > limit)
    """
    store, model = filled(folder)
    store.close()
    output, _ = child(code, folder).communicate()
    assert output.splitlines() == ["True ['data.mdb', 'lock.mdb']", "True"]
    store = store_rows.reopen(folder)
    store_rows.assert_holds(store, model | {"after": 1})
    store.close()


@pytest.mark.parametrize("durability", ["commit", "interval"])
def test_an_exchange_that_fails_once_is_finished_at_once(folder, durability):
    """Whichever step fails: before the copy is declared whole the old file stays and is written to, later all is opened
    again by itself. Nothing is lost, nothing is left, and nobody has to open anything."""
    sound, model = filled(folder, 100)
    sound.close()

    def vacuum_with(place, strikes):
        """The points that were reached, the one at `strikes` with an error, and what the call raised."""
        seen, error = [], None

        def reached(name, path):
            seen.append(name)
            if len(seen) == strikes + 1:
                raise PermissionError(13, "Permission denied", str(path))

        shutil.copytree(folder, place)
        store = store_rows.reopen(place, durability=durability)
        try:
            failpoints.install(reached)
            try:
                store.vacuum()
            except errors.ReadOnly as raised:
                error = raised
            finally:
                failpoints.install(None)
            yield seen, error
            store_rows.put(store, {"late": 1})
            store_rows.assert_holds(store, model | {"late": 1})
            store.vacuum()
        finally:
            store.close()
        assert files(place) == {layout.DATA_FILE, layout.LMDB_LOCK_FILE}
        store = store_rows.reopen(place)
        with store.read() as reader:
            store_rows.assert_moment(reader, model | {"late": 1})
        store.close()
        shutil.rmtree(place)

    for points, _ in vacuum_with(folder.with_name("whole"), -1):
        steps = points
    declared = steps.index("vacuum.rename.before")
    assert steps[declared + 1] == "vacuum.rename.after"
    assert declared > 4
    assert len(steps) > declared + 6
    for strikes in range(declared - 2, len(steps)):
        for _, error in vacuum_with(folder.with_name(f"at-{strikes}"), strikes):
            assert (error is not None) == (strikes <= declared), steps[strikes]


def test_an_exchange_that_cannot_be_finished_is_tried_by_each_call(folder, monkeypatch):
    """As long as the whole copy cannot be put in its place calls are refused and nothing is written to the old file;
    the first call for which it can goes on."""
    store, model = filled(folder)

    def refuse(*_):
        raise OSError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(vacuum, "move_in", refuse)
        for call in (store.vacuum, lambda: store_rows.put(store, {"late": 1}), store.map_use):
            with pytest.raises(errors.ReadOnly, match="permission, "):
                call()
        assert layout.COMPACTED_FOLDER in files(folder)
    store_rows.put(store, {"late": 1})
    store_rows.assert_holds(store, model | {"late": 1})
    assert files(folder) == {layout.DATA_FILE, layout.LMDB_LOCK_FILE}
    store.vacuum()
    store.close()
    store = store_rows.reopen(folder)
    store_rows.assert_holds(store, model | {"late": 1})
    store.close()


def test_a_store_is_closed_between_two_files(folder, monkeypatch):
    """Closed while an exchange waits to be finished, it is right when it is opened again."""
    store, model = filled(folder)
    store_rows.close_between(store, monkeypatch)
    with pytest.raises(errors.Closed):
        store_rows.put(store, {"late": 1})
    store = store_rows.reopen(folder)
    store_rows.assert_holds(store, model)
    store.close()


def test_the_old_file_is_kept_until_lmdb_has_closed_it(folder, monkeypatch):
    """Else another thread may make a file that gets its inode, which py-lmdb still takes for one that is open: making a
    collection beside a compaction was refused."""
    store, model = filled(folder)
    old, number = store._env._env, (folder / layout.DATA_FILE).stat().st_ino
    real, closed = WatchedFile.close, []

    def close(file):
        assert os.fstat(file._descriptor).st_ino == number
        with pytest.raises(lmdb.Error):
            old.info()
        closed.append(file)
        real(file)

    with monkeypatch.context() as patch:
        patch.setattr(WatchedFile, "close", close)
        store.vacuum()
    assert len(closed) == 1
    store_rows.assert_holds(store, model)
    store.close()


def test_a_reader_that_cannot_open_the_new_file_tries_again(folder):
    """Out of file descriptors, a reader in another process has an error until there are some again."""
    code = """
        store = store_rows.reopen(folder, read_only=True)
        print("ready", flush=True)
        sys.stdin.readline()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        for limit in (3, soft, soft):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            try:
                with store.read() as reader:
                    print(reader.state().sequence, flush=True)
            except errors.LimitExceeded as error:
                print("ulimit -n" in str(error), flush=True)
    """
    store, _ = filled(folder)
    process = child(code, folder)
    assert process.stdout.readline() == "ready\n"
    store.vacuum()
    output, _ = process.communicate("go\n")
    assert output.split() == ["True", "7", "7"]
    store.close()


@pytest.mark.parametrize("replaced", [True, False])
def test_pages_looked_over_while_the_file_is_replaced(folder, monkeypatch, replaced):
    """What a process that opens read-only finds in a file that was put in place meanwhile counts for nothing: it opens
    that one. In the same file it is damage."""
    store, held = filled(folder)
    store.close()
    look, looks = page_faults.file_faults, []

    def replace(path, transaction):
        looks.append(path)
        if len(looks) > 1:
            return look(path, transaction)
        if replaced:
            shutil.copy(path, folder / "other.mdb")
            os.replace(folder / "other.mdb", path)
        return ["page 28 (a branch of table ids) is damaged"]

    monkeypatch.setattr(page_faults, "file_faults", replace)
    if not replaced:
        with pytest.raises(errors.Corrupted, match="page 28"):
            store_rows.reopen(folder, read_only=True)
        return
    store = store_rows.reopen(folder, read_only=True)
    store_rows.assert_holds(store, held)
    store.close()
    assert len(looks) >= 2


def test_the_new_file_is_durable_before_its_copy_goes(tmp_path):
    """A power cut between them would leave the copy where it was, without the note of which file it was made of
    (TEST_SEED=16523241 of `test_power_cuts.py::test_a_repair`)."""
    made = tmp_path / layout.COMPACTED_FOLDER
    made.mkdir()
    for path in (
        made / layout.DATA_FILE,
        made / layout.LMDB_LOCK_FILE,
        made / layout.COPIED_FROM_FILE,
    ):
        path.write_bytes(b"new")
    steps = []
    failpoints.install(lambda name, path: steps.append((name, path)))
    try:
        vacuum.move_in(tmp_path)
    finally:
        failpoints.install(None)
    assert (tmp_path / layout.DATA_FILE).read_bytes() == b"new"
    assert not made.exists()
    moved = steps.index(("vacuum.rename.after", tmp_path / layout.DATA_FILE))
    synced = steps.index(("vacuum.sync-folder.after", tmp_path), moved)
    removed = next(at for at, (name, _) in enumerate(steps) if name.startswith("vacuum.remove"))
    assert moved < synced < removed
