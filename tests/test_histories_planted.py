"""Faults planted into the engine while clients call it: the judge of histories finds each of them."""

from __future__ import annotations

import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from history import Call, Recorder, Space, Violation, check
from seeds import RUN_SEED
from test_concurrency import run_all

import vecdb
from vecdb.core import Core
from vecdb.lane import Lane
from vecdb.types import WriteResult

IDS = [f"r{n}" for n in range(12)]
SECONDS = 0.4
ROUNDS = 5
"""A fault that shows in none of so many histories is one that is not found."""


def play(docs: Any, seed: str) -> list[Call]:
    """Two threads that write a few records again and again, three that read them."""
    calls: list[Call] = []
    end = time.monotonic() + SECONDS

    def write(n: int) -> None:
        rng = np.random.default_rng(zlib.crc32(f"{seed}/{n}".encode()))
        recorder = Recorder(docs, calls, f"writer-{n}")
        stamp = 0
        while time.monotonic() < end:
            ids = [str(i) for i in rng.choice(IDS, 5, replace=False)]
            stamp += 1
            if rng.random() < 0.8:
                metadata = [{"stamp": f"{n}-{stamp}"}] * 5
                recorder.call(
                    "upsert", ids=ids, vectors=rng.standard_normal((5, 4)), metadata=metadata
                )
            else:
                recorder.call("delete", ids=ids[:2])

    def read(n: int) -> None:
        recorder = Recorder(docs, calls, f"reader-{n}")
        while time.monotonic() < end:
            recorder.call("get", ids=IDS, include=["vector", "metadata"])
            recorder.call("query", vectors=np.ones((1, 4), np.float32), k=12, exact=True)
            recorder.call("count")

    run_all(lambda: write(0), lambda: write(1), *[lambda n=n: read(n) for n in range(3)])
    return calls


def judged(folder: Any, seed: str) -> None:
    with vecdb.open(folder / seed.replace("/", "-")) as db:
        docs = db.create_collection("docs", dimension=4, metric="l2")
        calls = play(docs, seed)
        assert len(calls) > 20
    check(calls, {"": Space(4, "l2")}, seed)


def stale_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Now and then a read is given the moment before the newest."""
    real, seen, count = Core.view.fget, [], [0]
    assert real is not None

    def view(core: Core) -> Any:
        newest = real(core)
        if not seen or seen[-1] is not newest:
            seen.append(newest)
        count[0] += 1
        return seen[-2] if count[0] % 5 == 0 and len(seen) > 1 else newest

    monkeypatch.setattr(Core, "view", property(view))


def lost_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last record of some batches is acknowledged and not written."""
    real, count = vecdb.Collection.upsert, [0]

    def upsert(docs: Any, ids: list[str], vectors: Any, *, metadata: Any) -> WriteResult:
        count[0] += 1
        if count[0] % 4:
            return real(docs, ids, vectors, metadata=metadata)
        done = real(docs, ids[:-1], vectors[:-1], metadata=metadata[:-1])
        return WriteResult(done.sequence, len(ids))

    monkeypatch.setattr(vecdb.Collection, "upsert", upsert)


def half_visible_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """New versions are shown a moment before the old ones are gone."""
    real = Core._publish

    def publish(core: Core, applied: Any, sequence: int) -> None:
        kill, killed = core.index.kill, []
        monkeypatch.setattr(core.index, "kill", killed.append)
        real(core, applied, sequence)
        monkeypatch.setattr(core.index, "kill", kill)
        time.sleep(0.002)
        for rows in killed:
            kill(rows)
        core.default.publish(sequence)

    monkeypatch.setattr(Core, "_publish", publish)


def acknowledged_too_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes are acknowledged before readers can see them."""
    behind = ThreadPoolExecutor(1)
    real = Core._publish

    def late(*arguments: Any) -> None:
        time.sleep(0.003)
        real(*arguments)

    monkeypatch.setattr(Core, "_publish", lambda *arguments: behind.submit(late, *arguments))


def reordered_acknowledgements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some writes are told the commit before their own."""
    real, count = Lane.submit, [0]

    def submit(lane: Lane, write: Any) -> Any:
        applied, sequence = real(lane, write)
        count[0] += 1
        return applied, sequence - (1 if count[0] % 5 == 0 and sequence > 1 else 0)

    monkeypatch.setattr(Lane, "submit", submit)


def shown_to_some_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until a write is acknowledged some threads see it, while others are given the moment before: each of them
    by itself sees one moment after another."""
    real_view, real = Core.view.fget, Core._publish
    assert real_view is not None
    before: list[Any] = []
    threads: dict[int, int] = {}

    def publish(core: Core, *arguments: Any) -> None:
        held = real_view(core)
        real(core, *arguments)
        before.append(held)
        time.sleep(0.002)
        before.clear()

    def view(core: Core) -> Any:
        newest, held = real_view(core), before[:]
        late = threads.setdefault(threading.get_ident(), len(threads)) % 2
        return held[0] if held and late else newest

    monkeypatch.setattr(Core, "_publish", publish)
    monkeypatch.setattr(Core, "view", property(view))


def test_without_a_fault_nothing_is_found(tmp_path):
    """The traffic that finds the faults below finds none in the engine as it is."""
    judged(tmp_path, f"{RUN_SEED}/sound")


@pytest.mark.parametrize(
    "plant",
    [
        stale_read,
        lost_write,
        half_visible_batch,
        acknowledged_too_soon,
        reordered_acknowledgements,
        shown_to_some_first,
    ],
)
def test_a_planted_fault_is_found(plant, tmp_path, monkeypatch):
    """Clients of an engine with this fault get answers that no collection could give one after another."""
    plant(monkeypatch)
    for round_ in range(ROUNDS):
        try:
            judged(tmp_path, f"{RUN_SEED}/{plant.__name__}/{round_}")
        except Violation as found:
            print(str(found).splitlines()[0])
            return
    raise AssertionError(f"seed {RUN_SEED}: {plant.__name__} was not found in {ROUNDS} histories")
