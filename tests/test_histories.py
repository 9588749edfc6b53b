"""Readers, writers, builds and compactions at once, and a judge of all that they were answered."""

from __future__ import annotations

import random
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import serving
from history import Call, Recorder, Report, Space, check
from test_concurrency import run_all

import vecdb
import vecdb_client

ROWS, DIMENSION, HOT = 2_100, 24, 24
WRITERS, READERS = 3, 3
TARGET, SLACK = 0.9, 0.03
COLORS = ["red", "green", "blue", "grey", "pink"]
FILTERS: list[dict[str, Any] | None] = [
    None,
    None,
    {"color": "red"},
    {"shelf": {"$lt": 4}},
    {"tags": "b"},
    {"$not": {"color": {"$in": ["red", "green"]}}},
    {"stamp": {"$gt": 0}},
    {"$document": {"$contains": "7"}, "color": "blue"},
    {"id": {"$in": [f"hot{i}" for i in range(0, HOT, 2)]}},
]
WRITE_REFUSALS = ("RecordExists", "RecordNotFound")
READ_REFUSALS = ("RecordNotFound", "InvalidQuery")
PURGED = ("InvalidCursor",)
"""What a scan may meet where dead records keep their content for no time at all."""


@dataclass(frozen=True)
class Plan:
    """A collection, and what happens to it."""

    collection: dict[str, Any]
    named: bool = False
    seconds: float = 2.0
    compacts: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def spaces(self) -> dict[str, Space]:
        storage = self.collection.get("storage", "float32")
        spaces = {"": Space(DIMENSION, self.collection["metric"], storage)}
        if self.named:
            spaces |= {"title": Space(8, "cosine"), "bits": Space(4, "hamming", "uint8")}
        return spaces

    @property
    def include(self) -> list[str]:
        return ["vector", "metadata", "document", *["named_vectors"] * self.named]

    def create(self, db: Any) -> Any:
        vectors = None
        if self.named:
            vectors = {
                "title": {"dimension": 8, "index": "hnsw"},
                "bits": {"dimension": 32, "metric": "hamming", "storage": "binary"},
            }
        return db.create_collection(
            "docs", dimension=DIMENSION, target_recall=TARGET, vectors=vectors, **self.collection
        )


class Source:
    """Random records and queries of one thread; the same for the same seed."""

    def __init__(self, plan: Plan, seed: str, thread: str) -> None:
        self.plan = plan
        self.rng = np.random.default_rng(zlib.crc32(f"{seed}/{thread}".encode()))
        self.stamp = 0

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def some(self, of: list[str], most: int) -> list[str]:
        """Up to `most` of these, each once."""
        n = min(len(of), int(self.rng.integers(1, most + 1)))
        return [of[i] for i in self.rng.choice(len(of), n, replace=False)]

    def vectors(self, name: str, n: int) -> Any:
        """Around a few centres, as a graph likes it and real data are."""
        space = self.plan.spaces[name]
        if space.metric == "hamming":
            return self.rng.integers(0, 256, (n, space.width), np.uint8)
        centres = np.random.default_rng(5).standard_normal((40, space.width))
        near = centres[self.rng.integers(0, 40, n)]
        near = near + 0.4 * self.rng.standard_normal(near.shape)
        if space.dtype == "int8":
            return np.clip(np.rint(near * 30), -128, 127).astype(np.int8)
        return near.astype(space.dtype)

    def metadata(self, n: int) -> list[dict[str, Any]]:
        self.stamp += 1
        return [
            {
                "stamp": self.stamp,
                "shelf": int(self.rng.integers(150)),
                "color": COLORS[int(self.rng.integers(5))],
                "tags": ["a", "b", "c"][: int(self.rng.integers(4))],
            }
            for _ in range(n)
        ]

    def named(self, n: int) -> dict[str, Any] | None:
        if not self.plan.named:
            return None
        return {
            name: [None if self.chance(0.2) else row for row in self.vectors(name, n)]
            for name in ("title", "bits")
        }

    def records(self, ids: list[str]) -> dict[str, Any]:
        n = len(ids)
        return {
            "ids": ids,
            "vectors": self.vectors("", n),
            "metadata": self.metadata(n),
            "documents": [f"text {self.stamp} {self.rng.integers(50)}" for _ in range(n)],
            **({"named_vectors": self.named(n)} if self.plan.named else {}),
        }


class Run:
    """One history: threads that call until the time is over and builds have been done."""

    def __init__(self, plan: Plan, seed: str) -> None:
        self.plan, self.seed = plan, seed
        self.calls: list[Call] = []
        self.acknowledged = 0
        self.builds = self.compactions = 0
        self.begun = 0.0

    @property
    def late(self) -> bool:
        """Whether only a build is waited for."""
        return time.monotonic() - self.begun > self.plan.seconds

    def go_on(self) -> bool:
        return not self.late or (not self.builds and time.monotonic() - self.begun < 20)

    def play(self, docs: Any) -> None:
        """Loads, indexes, and lets all threads loose."""
        source = Source(self.plan, self.seed, "load")
        load = Recorder(docs, self.calls, "load")
        for n in range(WRITERS):
            load.call("insert", **source.records(self._ids(n)[: ROWS // WRITERS]))
        load.call("insert", **source.records([f"hot{i}" for i in range(HOT)]))
        docs.build_index()
        self.begun = time.monotonic()
        run_all(
            *[lambda n=n: self._write(docs, n) for n in range(WRITERS)],
            *[lambda n=n: self._read(docs, n) for n in range(READERS)],
            lambda: self._care(docs),
            lambda: self._disturb(docs),
        )
        self.look(docs, "last")

    def look(self, docs: Any, thread: str) -> None:
        """Reads everything."""
        recorder = Recorder(docs, self.calls, thread)
        recorder.call("scan", include=self.plan.include)
        recorder.call("count")

    def judge(self) -> Report:
        report = check(self.calls, self.plan.spaces, self.seed)
        for name in self.plan.spaces:
            assert len(report.recalls[name]) > 10, f"seed {self.seed}: too few queries of {name!r}"
            assert report.recall(name) >= TARGET - SLACK, f"seed {self.seed}: recall of {name!r}"
        assert self.builds, f"seed {self.seed}: no build was done in 20 s"
        return report

    @staticmethod
    def _ids(writer: int) -> list[str]:
        return [f"w{writer}-{i}" for i in range(int(1.25 * ROWS / WRITERS))]

    def _write(self, docs: Any, n: int) -> None:
        source = Source(self.plan, self.seed, f"writer-{n}")
        recorder = Recorder(docs, self.calls, f"writer-{n}", WRITE_REFUSALS)
        every, hot = self._ids(n), [f"hot{i}" for i in range(HOT)]
        held = set(every[: ROWS // WRITERS])
        while self.go_on():
            verb, asked = self._next_write(source, every, hot, held)
            answer = recorder.call(verb, **asked)
            if answer is None:
                wrong = recorder.last.answer["ids"]
                held = held.union(wrong) if verb == "insert" else held.difference(wrong)
            else:
                self.acknowledged = max(self.acknowledged, answer.sequence)
                names = asked.get("ids", ())
                held = held.difference(names) if verb == "delete" else held.union(names)
            held &= set(every)
            self._pace(source)

    @staticmethod
    def _next_write(
        source: Source, every: list[str], hot: list[str], held: set[str]
    ) -> tuple[str, dict[str, Any]]:
        absent, there = sorted(set(every) - held), sorted(held)
        draw = source.rng.random()
        shared = source.some(hot, 2) if source.chance(0.3) else []
        if draw < 0.25 and absent:
            return "insert", source.records(source.some(absent, 40) + shared[:1])
        if draw < 0.5:
            return "upsert", source.records(source.some(every, 40) + shared)
        if draw < 0.8:
            ids = source.some(there, 30) + shared
            asked: dict[str, Any] = {"ids": ids}
            if source.chance(0.5):
                asked["vectors"] = source.vectors("", len(ids))
            if source.chance(0.5) or len(asked) == 1:
                drop = {"shelf": None} if source.chance(0.3) else {}
                asked["metadata"] = [
                    {k: row[k] for k in ("stamp", "color")} | drop
                    for row in source.metadata(len(ids))
                ]
            if source.plan.named and source.chance(0.3):
                asked["named_vectors"] = source.named(len(ids))
            return "update", asked
        if draw < 0.92:
            return "delete", {"ids": source.some(there, 25) + shared + ["never"]}
        return "delete", {"filter": {"shelf": int(source.rng.integers(150))}}

    def _read(self, docs: Any, n: int) -> None:
        source = Source(self.plan, self.seed, f"reader-{n}")
        recorder = Recorder(docs, self.calls, f"reader-{n}", READ_REFUSALS)
        recorder.refusals += PURGED if self.plan.compacts else ()
        hot = [f"hot{i}" for i in range(HOT)]
        while self.go_on():
            draw = source.rng.random()
            expression = FILTERS[int(source.rng.integers(len(FILTERS)))]
            if draw < 0.15:
                ids = source.some([*hot, "never", *self._ids(n)[:40]], 30)
                recorder.call("get", ids=ids, filter=expression, include=self.plan.include)
            elif draw < 0.3:
                recorder.call("count", filter=expression)
            elif draw < 0.34:
                recorder.call("stats")
            elif draw < 0.38:
                recorder.call("scan", filter=expression, batch_size=700, include=self.plan.include)
            elif draw < 0.42:
                recorder.call("pages", filter=expression, limit=900, include=["metadata"])
            else:
                recorder.call("query", **self._next_query(source, hot), filter=expression)
            self._pace(source)

    def _pace(self, source: Source) -> None:
        """Leaves some time to builds, and all of it in the end."""
        time.sleep(0.05 if self.late else source.rng.uniform(0, 0.003))

    def _next_query(self, source: Source, hot: list[str]) -> dict[str, Any]:
        draw = source.rng.random()
        name = ""
        if self.plan.named and source.chance(0.3):
            name = ["title", "bits"][int(source.rng.integers(2))]
        queries = source.vectors(name, 1 if source.chance(0.8) else 8)
        if name != "bits":
            queries = queries.astype(np.float32)
        asked: dict[str, Any] = {"vectors": queries, "k": [1, 10, 10, 50][int(4 * draw)]}
        if name:
            asked["vector_name"] = name
        if draw < 0.5:
            return asked
        if draw < 0.6:
            return asked | {"exact": True, "include": ["metadata", "vector"]}
        if draw < 0.7:
            asked["min_sequence"] = self.acknowledged
            return asked | {"exact": True, "k": 200, "include": ["document"]}
        if draw < 0.8:
            del asked["vectors"]
            return asked | {"ids": source.some(hot, 3)}
        if draw < 0.9:
            path = ["color", "tags", "shelf"][int(source.rng.integers(3))]
            size = int(source.rng.integers(1, 4))
            return asked | {"group_by": path, "group_size": size, "exact": source.chance(0.5)}
        del asked["k"]
        own = source.vectors(name, 200)
        if name == "bits":
            return asked | {"max_distance": 9.0}
        apart = ((own.astype(np.float64) - queries[:1]) ** 2).sum(axis=1)
        bound = 0.3 if self.plan.spaces[name].metric == "cosine" else float(np.min(apart)) * 1.5
        return asked | {"max_distance": bound}

    def _care(self, docs: Any) -> None:
        """Builds again and again, and compacts."""
        while self.go_on():
            try:
                docs.build_index(wait=True)
                self.builds += 1
            except Exception as error:
                if type(error).__name__ != "Cancelled":
                    raise
            if self.plan.compacts:
                docs.compact()
                self.compactions += 1

    def _disturb(self, docs: Any) -> None:
        rng = random.Random(self.seed)
        while self.go_on():
            time.sleep(rng.uniform(0.1, 0.5))
            if rng.random() < 0.3 and not self.late:
                docs.cancel_build()


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
    with around, vecdb.open(folder, **plan.settings) as db:
        docs = plan.create(db)
        run.play(docs)
        assert docs.check().problems == ()
    with vecdb.open(folder) as db:
        run.look(db.get_collection("docs"), "reopened")
    run.judge()
    return run


def test_answers_while_graphs_are_built_and_named_vectors_come_and_go(data_folder, seed):
    """Every answer, by own and named vectors, is that of one moment between call and return."""
    plan = Plan({"metric": "l2", "index": "hnsw"}, named=True)
    embedded(plan, seed, data_folder, nullcontext())


def test_answers_while_threads_switch_all_the_time(data_folder, seed):
    """The same with codes in the index, and a change of threads every 10 us."""
    plan = Plan({"metric": "cosine", "index": "hnsw", "quantization": "sq8"})
    embedded(plan, seed, data_folder, hasty_switches())


def test_answers_while_threads_pause_anywhere(data_folder, seed):
    """The same with vectors of small integers, and threads that give way at any call."""
    plan = Plan({"metric": "l2", "index": "hnsw", "storage": "int8"})
    embedded(plan, seed, data_folder, random_pauses(seed))


def test_answers_while_dead_records_are_purged(data_folder, seed):
    """The same while compactions take away all that no read can still see."""
    plan = Plan({"metric": "l2", "index": "hnsw"}, compacts=True, settings={"history_s": 0.0})
    assert embedded(plan, seed, data_folder, nullcontext()).compactions


def test_answers_of_a_server(data_folder, seed):
    """The same over gRPC, where counts name no commit."""
    run = Run(Plan({"metric": "l2", "index": "hnsw"}, seconds=1.5), seed)
    with serving(data_folder) as address, vecdb_client.connect(address) as db:
        run.play(run.plan.create(db))
    run.judge()


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
