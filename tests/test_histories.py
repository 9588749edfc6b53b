"""Readers, writers, builds and compactions at once, and a judge of all that they were answered."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from history import Call, Recorder, check
from history_traffic import Plan, Run, Source
from history_ways import embedded as in_threads
from history_ways import served, stress
from test_concurrency import run_all

import vecdb
from vecdb.search_lane import LANE


@contextmanager
def hasty_switches() -> Iterator[None]:
    """The interpreter changes threads as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextmanager
def random_pauses(seed: str, share: float = 0.02) -> Iterator[None]:
    """Threads that start inside give way at random calls of functions of the engine."""
    rng = random.Random(seed)

    def pause(frame: Any, event: str, _: Any) -> None:
        inside = event == "call" and frame.f_globals.get("__name__", "").startswith("vecdb")
        if inside and rng.random() < share:
            time.sleep(0)

    threading.setprofile(pause)
    try:
        yield
    finally:
        threading.setprofile(None)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> str:
    """Differs in each run; `--hypothesis-seed` with the number of a failure replays its choices."""
    return f"{request.config.option.hypothesis_seed}/{request.node.name}"


def embedded(plan: Plan, seed: str, folder: Path, around: Any) -> Run:
    """Plays, closes, opens again, reads once more, and judges all of it."""
    run = Run(plan, seed)
    in_threads(run, folder, around)
    return run


@pytest.mark.long
def test_answers_while_graphs_are_built_and_named_vectors_come_and_go(data_folder, seed):
    """Every answer, by own and named vectors, is that of one moment between call and return."""
    plan = Plan({"metric": "l2", "index": "hnsw"}, named=True)
    embedded(plan, seed, data_folder, nullcontext())


def test_answers_while_threads_switch_all_the_time(data_folder, seed):
    """The same with codes in the index, and a change of threads every 10 us."""
    plan = Plan({"metric": "cosine", "index": "hnsw", "quantization": "sq8"})
    embedded(plan, seed, data_folder, hasty_switches())


@pytest.mark.long
def test_answers_while_threads_pause_anywhere(data_folder, seed, monkeypatch):
    """The same with vectors of small integers, searches that wait for one core, and are made together,
    and threads that give way at any call."""
    monkeypatch.setattr(LANE, "_cores", 1)
    plan = Plan({"metric": "l2", "index": "hnsw", "storage": "int8"}, crowd=3)
    embedded(plan, seed, data_folder, random_pauses(seed))


def test_answers_while_dead_records_are_purged(data_folder, seed):
    """The same while compactions take away all that no read can still see."""
    plan = Plan({"metric": "l2", "index": "hnsw"}, compacts=True, settings={"history_s": 0.0})
    assert embedded(plan, seed, data_folder, nullcontext()).compactions


@pytest.mark.long
def test_answers_of_a_server_to_many_clients_under_stress(data_folder, tmp_path, seed):
    """The same over sockets to a server process, where counts name no commit: ten clients, sync and asyncio, while
    other processes take the cores and the disk, the collection is renamed, and others come and go."""
    plan = Plan({"metric": "l2", "index": "hnsw"}, seconds=2.0, renames=True, writers=4, readers=6)
    served(Run(plan, seed), data_folder, stress(tmp_path / "noise"))


@pytest.mark.long
def test_answers_under_lazy_syncs_and_stress(data_folder, tmp_path, seed):
    """The same of threads, with durability `interval`."""
    settings = {"durability": "interval", "durability_interval_ms": 20.0}
    plan = Plan(
        {"metric": "l2", "index": "hnsw"}, renames=True, seconds=1.5, writers=4, settings=settings
    )
    in_threads(Run(plan, seed), data_folder, stress(tmp_path / "noise"))


def test_no_read_is_ahead_of_the_others(data_folder, monkeypatch):
    """Between a commit and its publication all verbs, by ids and by vectors, show the same moment."""
    plan = Plan({"metric": "l2"}, named=True)
    source, calls = Source(plan, "1", "only"), list[Call]()
    names = ["a", "b", "c", "d"]

    def records() -> dict[str, Any]:
        return source.records(names) | {"named_vectors": {"title": source.vectors("title", 4)}}

    def upsert_in_two_steps(target: Any, name: str) -> None:
        """Readers look before the second step, which begins with the call of a method."""
        reached, go_on = threading.Event(), threading.Event()
        step = getattr(target, name)

        def late(*arguments: Any) -> None:
            reached.set()
            go_on.wait(10)
            step(*arguments)

        def read() -> None:
            assert reached.wait(10)
            # Readers may wait for the publication: it comes in a moment.
            timer = threading.Timer(0.1, go_on.set)
            timer.start()
            for verb, asked in [
                ("get", {"ids": names, "include": ["vector", "metadata"]}),
                ("query", {"ids": names, "k": 3, "exact": True}),
                ("query", {"ids": names, "k": 3, "vector_name": "title"}),
                ("count", {"filter": {"color": "red"}}),
            ]:
                reader.call(verb, **asked)
            timer.join()

        monkeypatch.setattr(target, name, late)
        run_all(lambda: writer.call("upsert", **records()), read)
        monkeypatch.setattr(target, name, step)

    with vecdb.open(data_folder) as db:
        docs = plan.create(db)
        writer, reader = Recorder(docs, calls, "writer"), Recorder(docs, calls, "reader")
        writer.call("insert", **records())
        upsert_in_two_steps(docs._core._lane, "_publish")
        for each in docs._core.all_fields:
            upsert_in_two_steps(each, "publish")
    check(calls, plan.spaces)
