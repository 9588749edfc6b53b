"""Workers that are killed, hang or lack memory beneath a real server, while its clients ask over the network."""

from __future__ import annotations

import os
import resource
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import wait_until
from server_process import spawn

import vecdb_client

pytestmark = pytest.mark.long

DIMENSION, ROWS, K, CALLERS = 16, 6_000, 5, 4
VECTORS = np.random.default_rng(5).standard_normal((ROWS, DIMENSION)).astype(np.float32)
IDS = [f"r{i}" for i in range(ROWS)]
KINDS = ("exact", "ivf")
FLAGS = (
    "--device",
    "gpu",
    "--exact-max-scalars",
    "1000",
    "--device-timeout-s",
    "1",
    "--audit-share",
    "0",
)


def workers(server: int) -> set[int]:
    """The processes of devices that a server has."""
    found = set()
    for one in Path("/proc").iterdir():
        try:
            parent = int((one / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == server and b"vecdb.gpu_worker" in (one / "cmdline").read_bytes():
                found.add(int(one.name))
        except (OSError, ValueError):
            continue  # no process, or one that has just ended
    return found


class Served:
    """A server process with a device, and a client of it."""

    def __init__(self, folder, faults="", **settings):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VECDB_STAND_IN_DEVICES", "1")
            patch.setenv("VECDB_STAND_IN_FAULTS", faults)
            self.process, self.address = spawn(folder, *FLAGS)
        self.db = vecdb_client.connect(self.address)
        self.seen, self.shares = [], []
        """What the queries were told that came while rows were placed first, and what share of them was right."""

    def close(self):
        self.db.close()
        self.process.terminate()
        out = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, out

    def fill(self, kind):
        made = self.db.create_collection(
            kind, dimension=DIMENSION, metric="l2", index=kind, quantization="none"
        )
        made.insert(IDS, VECTORS)
        if kind != "exact":
            made.build_index(wait=True)
        return made

    @property
    def worker(self):
        (found,) = workers(self.process.pid)
        return found

    def device(self):
        return self.db.get_collection(KINDS[0]).stats().devices[0]


class Asking:
    """Threads that ask all the time, each over a connection of its own, and look at each answer."""

    def __init__(self, served, count=3):
        self.answers = []
        """(collection, device, note) of each that came, in order."""
        self.failures = []
        self._shares = []
        self._stop = threading.Event()
        self._served, self._count = served, count
        self._threads = [
            threading.Thread(target=self._ask, args=(KINDS[i % 2], i)) for i in range(CALLERS)
        ]

    def __enter__(self):
        for one in self._threads:
            one.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for one in self._threads:
            one.join(60)
            assert not one.is_alive()
        assert not self.failures, self.failures[0]
        assert np.mean(self._shares) >= 0.93

    def since(self, start, kind, device):
        """Whether `device` has answered for this collection since the answer `start`."""
        return any(one[:2] == (kind, device) for one in self.answers[start:])

    def until(self, start, device, what):
        """Waits until `device` has answered for all collections; then how many answers there were."""
        wait_until(
            lambda: bool(self.failures) or all(self.since(start, kind, device) for kind in KINDS),
            what,
        )
        assert not self.failures, self.failures[0]
        return len(self.answers)

    def _ask(self, kind, seed):
        rng = np.random.default_rng(seed)
        try:
            # Nothing is repeated: a call that fails is a failure here.
            with vecdb_client.connect(self._served.address, retry_s=0) as db:
                docs = db.get_collection(kind)
                while not self._stop.is_set():
                    rows = rng.integers(0, ROWS, self._count)
                    found = docs.query(VECTORS[rows], k=K, explain=True)
                    share = share_right(found, rows)
                    assert kind == "ivf" or share == 1.0
                    self._shares.append(share)
                    share_right(docs.query(VECTORS[rows], k=K), rows)  # shorter ways, on a stream
                    told = found.explain
                    assert (told.device == "cpu") == told.device_note.endswith(
                        "answered by the CPU"
                    )
                    self.answers.append((kind, told.device, told.device_note))
        except BaseException as error:
            self.failures.append(error)


def share_right(found, rows):
    """Which share of the nearest was found; all that was lies where it is said to, each of `rows` first."""
    near = ((VECTORS[rows][:, None] - VECTORS[None]) ** 2).sum(axis=2)
    shares = []
    for i, row in enumerate(rows):
        got = [int(one[1:]) for one in found.ids[i]]
        assert got[0] == row
        assert len(set(got)) == K
        np.testing.assert_allclose(found.distances[i], near[i, got], rtol=1e-4, atol=1e-4)
        shares.append(np.isin(np.argsort(near[i])[:K], got).mean())
    return float(np.mean(shares))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server with a collection of each kind, all on its device, whose first worker died when it was given rows."""
    folder = tmp_path_factory.mktemp("served")
    made = Served(folder / "db", faults=f"die_at_add=1,once={folder / 'once'}")
    rows = np.array([1, 7, ROWS - 1])
    try:
        for kind in KINDS:
            docs = made.fill(kind)

            def on_the_device(docs=docs):
                found = docs.query(VECTORS[rows], k=K, explain=True)
                made.shares.append(share_right(found, rows))
                made.seen.append(found.explain)
                return found.explain.device == "gpu:0"

            wait_until(on_the_device, f"{kind} is placed")
        yield made
    finally:
        made.close()


def test_a_worker_that_dies_while_rows_are_placed(served):
    """The first worker died at the first rows that it was given: queries were answered by the CPU and marked so, and
    another worker got the rows without anybody writing again."""
    assert served.device().restarts >= 1
    away = [one for one in served.seen if one.device == "cpu"]
    assert away
    assert all(one.device_note.endswith("answered by the CPU") for one in away)
    assert np.mean(served.shares) >= 0.9


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_clients_of_a_server_notice_no_more_of_a_lost_worker_than_a_note(served, how):
    """Killed or hung beneath clients that ask: each query is answered right, by the CPU with a note of why while the
    worker is away, and by the device again once another is up."""
    before, restarts = served.worker, served.device().restarts
    with Asking(served) as asking:
        start = asking.until(0, "gpu:0", "the device answers")
        os.kill(before, how)
        start = asking.until(start, "cpu", "the CPU answers while the worker is away")
        asking.until(start, "gpu:0", "the device answers again")
    assert served.worker != before
    figures = served.device()
    # A busy machine may keep a worker for a second too.
    assert figures.state == "up"
    assert figures.restarts > restarts
    if how == signal.SIGSTOP:
        assert "within 1 s" in figures.last_error


def test_a_worker_without_memory_fails_no_query_of_a_client(served):
    """Where the worker gets no memory more, what it cannot answer the CPU does, with a note; with memory the device
    answers again."""
    with Asking(served, count=64) as asking:
        start = asking.until(0, "gpu:0", "the device answers")
        worker = served.worker
        unlimited = resource.prlimit(worker, resource.RLIMIT_AS)
        resource.prlimit(worker, resource.RLIMIT_AS, (1, unlimited[1]))
        docs = served.db.get_collection("exact")

        def refused():
            # Larger than any before: for this the worker has nothing left over.
            rows = np.arange(1_000)
            found = docs.query(VECTORS[rows], k=K, explain=True)
            assert [ids[0] for ids in found.ids] == IDS[:1_000]
            return found.explain.device == "cpu"

        wait_until(refused, "the CPU answers what the worker has no memory for")
        if worker in workers(served.process.pid):
            resource.prlimit(worker, resource.RLIMIT_AS, unlimited)
        start = len(asking.answers)
        asking.until(start, "gpu:0", "the device answers again")
    assert served.process.poll() is None
