"""Processes that run out of room, of rights or of files, or are interrupted; `test_crash_campaign` kills them."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import textwrap

import pytest

import vecdb
from vecdb import errors


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
            used = max(map(int, os.listdir("/proc/self/fd")))
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, used + 200), hard))
            with pytest.raises(OSError, match="Too many open files"):
                while True:
                    held.append(os.open(os.devnull, os.O_RDONLY))
            for _ in range(30):
                os.close(held.pop())
            # Only the engine opens files from here on, so the last one is missing to it.
            with pytest.raises(errors.LimitExceeded, match="ulimit -n"):
                for n in range(400):
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
        writing = [False]
        def strike(*_):
            # Once in each write: what the test itself does between them must not be struck.
            if writing[0]:
                writing[0] = False
                raise KeyboardInterrupt
        signal.signal(signal.SIGINT, strike)
        thread = threading.Thread(target=interrupt)
        end = time.monotonic() + 3
        started = False
        while time.monotonic() < end:
            try:
                if not started:
                    started = True
                    thread.start()
                n += 1
                writing[0] = True
                docs.upsert([f"r{n}"], [[n, 0, 0, 1]], documents=[f"d{n}"])
                writing[0] = False
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
