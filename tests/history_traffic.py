"""Traffic for histories: threads that read, write, build, cancel and compact one collection at once."""

from __future__ import annotations

import random
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from history import Call, Recorder, Report, Space, check
from test_concurrency import run_all

ROWS, DIMENSION, HOT = 2_100, 24, 24
WRITERS, READERS = 3, 3
_PATIENCE_S = 300.0
"""For a build, whose threads are of the lowest priority: under stress one took longer than a call has (seed 36020)."""
TARGET, SLACK = 0.9, 0.03
ENOUGH = 12
"""Queries of a vector field without which nothing is known about its recall."""
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
    renames: bool = False
    writers: int = WRITERS
    readers: int = READERS
    crowd: int = 0
    """Readers who all ask the same without pause, so that they are answered together."""
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
    """One history: threads that call until the time is over, builds have been done, and all vectors been asked for."""

    def __init__(self, plan: Plan, seed: str) -> None:
        self.plan, self.seed = plan, seed
        self.calls: list[Call] = []
        self.acknowledged = 0
        self.builds = self.compactions = 0
        self.asked = dict.fromkeys(plan.spaces, 0)
        """Query vectors whose recall will be judged, by vector field."""
        self.begun = 0.0

    @property
    def late(self) -> bool:
        """Whether only a build, or queries of a field that is seldom asked for, are waited for."""
        return time.monotonic() - self.begun > self.plan.seconds

    def go_on(self) -> bool:
        if not self.late:
            return True
        # A slow machine with other work needs longer for as many.
        done = self.builds and min(self.asked.values()) >= ENOUGH
        return not done and time.monotonic() - self.begun < 20

    def play(
        self,
        docs: Any,
        reach: Callable[[], AbstractContextManager[Any]] | None = None,
        also: Sequence[Callable[[], None]] = (),
    ) -> None:
        """Loads, indexes, and lets all threads loose; those of `also` too, while `go_on` is true.

        Each reader and writer has the collection from a call of `reach`; without it all share `docs`.
        """
        source = Source(self.plan, self.seed, "load")
        load = Recorder(docs, self.calls, "load")

        def own(work: Callable[[Any, int], None], n: int) -> Callable[[], None]:
            def run() -> None:
                with nullcontext(docs) if reach is None else reach() as reached:
                    work(reached, n)

            return run

        for n in range(self.plan.writers):
            load.call("insert", **source.records(self._ids(n)[: ROWS // self.plan.writers]))
        load.call("insert", **source.records([f"hot{i}" for i in range(HOT)]))
        docs.build_index(timeout_s=_PATIENCE_S)
        self.begun = time.monotonic()
        run_all(
            *[own(self._write, n) for n in range(self.plan.writers)],
            *[own(self._read, n) for n in range(self.plan.readers)],
            *[lambda n=n: self._throng(docs, n) for n in range(self.plan.crowd)],
            lambda: self._care(docs),
            lambda: self._disturb(docs),
            *also,
        )
        self.look(docs, "last")

    def look(self, docs: Any, thread: str) -> None:
        """Reads everything."""
        recorder = Recorder(docs, self.calls, thread)
        recorder.call("scan", include=self.plan.include)
        recorder.call("count")

    def judge(self) -> Report:
        report = check(self.calls, self.plan.spaces, self.seed, purges=self.plan.compacts)
        for name in self.plan.spaces:
            judged = len(report.recalls[name])
            assert judged >= ENOUGH, f"seed {self.seed}: {judged} queries of {name!r} in 20 s"
            assert report.recall(name) >= TARGET - SLACK, f"seed {self.seed}: recall of {name!r}"
        assert self.builds, f"seed {self.seed}: no build was done in 20 s"
        return report

    def _ids(self, writer: int) -> list[str]:
        return [f"w{writer}-{i}" for i in range(int(1.25 * ROWS / self.plan.writers))]

    def _write(self, docs: Any, n: int) -> None:
        source = Source(self.plan, self.seed, f"writer-{n}")
        recorder = Recorder(docs, self.calls, f"writer-{n}", WRITE_REFUSALS)
        every, hot = self._ids(n), [f"hot{i}" for i in range(HOT)]
        held = set(every[: ROWS // self.plan.writers])
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
        shared = source.some(hot, 4) if source.chance(0.5) else []
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
        if draw < 0.9:
            return "delete", {"ids": source.some(there, 25) + shared + ["never"]}
        if source.chance(0.4):
            return "delete", {"filter": {"shelf": int(source.rng.integers(150))}}
        color = COLORS[int(source.rng.integers(5))]
        return "delete", {"filter": {"color": color, "id": {"$in": source.some(hot, 8)}}}

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
                asked = self._next_query(source, hot)
                answer = recorder.call("query", **asked, filter=expression)
                approximate = not asked.keys() & {"exact", "group_by", "max_distance"}
                if answer is not None and approximate:
                    # Another reader may count at once, and one of the two be lost: more are asked then.
                    queries = asked["ids"] if "ids" in asked else asked["vectors"]
                    self.asked[asked.get("vector_name", "")] += len(queries)
            self._pace(source)

    def _throng(self, docs: Any, n: int) -> None:
        source = Source(self.plan, self.seed, f"crowd-{n}")
        recorder = Recorder(docs, self.calls, f"crowd-{n}")
        while not self.late:
            recorder.call("query", vectors=source.vectors("", 1).astype(np.float32), k=10)

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
                docs.build_index(timeout_s=_PATIENCE_S)
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
