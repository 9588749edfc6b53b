"""The judge of histories: a true one passes, and whatever is made wrong in it is found."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from history import WRITES, Call, Recorder, Space, Violation, check

import vecdb

SPACES = {"": Space(4, "l2"), "side": Space(2, "cosine")}
IDS = [f"r{i}" for i in range(30)]
QUERY = np.ones(4, np.float32)


@pytest.fixture(scope="module")
def true_calls(tmp_path_factory: pytest.TempPathFactory) -> list[Call]:
    """A history of one thread, which finds the collection before and after each kind of write."""
    rng = np.random.default_rng(3)
    calls: list[Call] = []

    def records(ids: list[str], stamp: int) -> dict[str, Any]:
        n = len(ids)
        side = [row if i % 3 else None for i, row in enumerate(rng.standard_normal((n, 2)))]
        return {
            "ids": ids,
            "vectors": rng.standard_normal((n, 4)).astype(np.float32),
            "metadata": [{"stamp": stamp, "kind": f"k{i % 4}"} for i in range(n)],
            "named_vectors": {"side": side},
        }

    def look(recorder: Recorder) -> None:
        every = ["vector", "metadata", "named_vectors"]
        recorder.call("count", filter={"stamp": 2})
        recorder.call("query", vectors=QUERY, k=5, exact=True, include=["metadata"])
        recorder.call("query", vectors=QUERY, k=40)
        recorder.call("query", vectors=QUERY, k=3, group_by="kind", group_size=2)
        recorder.call("query", vectors=QUERY, max_distance=6.0)
        recorder.call("query", ids=["r1", "r4"], k=4, vector_name="side")
        recorder.call("scan", include=every, batch_size=8)
        recorder.call("get", ids=IDS[:10], include=every)

    with vecdb.open(tmp_path_factory.mktemp("history")) as db:
        side = {"side": {"dimension": 2}}
        docs = db.create_collection("docs", dimension=4, metric="l2", vectors=side)
        recorder = Recorder(docs, calls, "alone", ["RecordExists"])
        for verb, asked in [
            ("insert", records(IDS, 1)),
            ("upsert", records(IDS[:10], 2)),
            ("update", {"ids": IDS[5:9], "metadata": [{"stamp": 3, "kind": None}] * 4}),
            ("delete", {"ids": ["r3", "r20", "never"]}),
            ("insert", records(["new", "r3"], 4)),
            ("delete", {"filter": {"kind": "k2"}}),
            ("delete", {"filter": {"kind": "k2"}}),
        ]:
            recorder.call(verb, **asked)
            look(recorder)
        recorder.call("insert", **records(["fresh", "r3"], 5))
    return calls


@pytest.fixture
def calls(true_calls: list[Call]) -> list[Call]:
    """A copy to be spoilt."""
    return copy.deepcopy(true_calls)


def last(calls: list[Call], verb: str, asks: str = "") -> Call:
    """The last call of a verb that asks for something."""
    return [c for c in calls if c.verb == verb and (not asks or asks in c.asked)][-1]


def before(calls: list[Call], call: Call) -> Call:
    """The call that asked the same before the last write."""
    same = [c for c in calls if c.verb == call.verb and c.asked.keys() == call.asked.keys()]
    return same[same.index(call) - 1]


def changed(call: Call, **parts: Any) -> None:
    """Another answer, in the batch that it begins with."""
    if isinstance(call.answer, list):
        call.answer[0] = dataclasses.replace(call.answer[0], **parts)
    else:
        call.answer = dataclasses.replace(call.answer, **parts)


def stale_answer(calls: list[Call]) -> None:
    upsert = last(calls, "upsert")
    after = next(c for c in calls if c.verb == "query" and c.start > upsert.end)
    earlier = next(c for c in calls if c.verb == "query")
    changed(after, **{k: getattr(earlier.answer, k) for k in ("ids", "distances", "metadata")})


def stale_moment(calls: list[Call]) -> None:
    scan = [c for c in calls if c.verb == "scan"][3]
    scan.answer = before(calls, scan).answer
    scan.sequence = scan.answer[0].sequence


def went_back(calls: list[Call]) -> None:
    # As if the write had lasted until after both reads: only their own order tells.
    delete = next(c for c in calls if c.verb == "delete")
    delete.end = calls[-1].end
    stale_moment(calls)


def from_the_future(calls: list[Call]) -> None:
    delete = next(c for c in calls if c.verb == "delete")
    get = [c for c in calls if c.verb == "get"][2]
    get.answer, get.sequence = last(calls, "get").answer, delete.sequence


def lost_write(calls: list[Call]) -> None:
    upsert = last(calls, "upsert")
    upsert.asked["ids"] = [*upsert.asked["ids"][:-1], "lost"]


def half_applied(calls: list[Call]) -> None:
    gets = [c for c in calls if c.verb == "get"]
    metadata = gets[0].answer.metadata[:5] + gets[1].answer.metadata[5:]
    changed(gets[1], metadata=metadata)


def half_vectors(calls: list[Call]) -> None:
    gets = [c for c in calls if c.verb == "get"]
    vectors = np.concatenate([gets[0].answer.vectors[:5], gets[1].answer.vectors[5:]])
    changed(gets[1], vectors=vectors)


def ghost(calls: list[Call]) -> None:
    query = last(calls, "query", "vectors")
    changed(query, ids=[["r20", *query.answer.ids[0][1:]]])


def never_written(calls: list[Call]) -> None:
    scan = last(calls, "scan")
    changed(scan, ids=["ghost", *scan.answer[0].ids[1:]])


def wrong_count(calls: list[Call]) -> None:
    last(calls, "count").answer += 1


def wrong_acknowledgement(calls: list[Call]) -> None:
    changed(next(c for c in calls if c.verb == "delete"), count=3)


def hidden_commit(calls: list[Call]) -> None:
    calls.remove(last(calls, "update"))


def unseen_commit(calls: list[Call]) -> None:
    calls[:] = [c for c in calls if c.verb in WRITES and c.verb != "update"]


def needless_refusal(calls: list[Call]) -> None:
    calls[-1].asked["ids"] = ["fresh", "r20"]


def needless_nothing(calls: list[Call]) -> None:
    calls[-10].asked["filter"] = {"kind": "k1"}
    assert calls[-10].answer.count == 0


def wrong_distance(calls: list[Call]) -> None:
    query = last(calls, "query", "vectors")
    changed(query, distances=query.answer.distances + np.float32(0.01))


def too_few(calls: list[Call]) -> None:
    query = [c for c in calls if c.verb == "query" and c.asked.get("k") == 40][-1]
    distances = query.answer.distances.copy()
    distances[0, len(query.answer.ids[0]) - 1] = np.nan
    changed(query, ids=[query.answer.ids[0][:-1]], distances=distances)


def not_the_nearest(calls: list[Call]) -> None:
    wide = next(c for c in calls if c.verb == "query" and c.asked.get("k") == 40)
    query = next(c for c in calls if c.verb == "query")
    ids, distances = wide.answer.ids[0][1:6], wide.answer.distances[:, 1:6]
    metadata = [{"stamp": 1, "kind": f"k{int(i[1:]) % 4}"} for i in ids]
    changed(query, ids=[ids], distances=distances, metadata=[metadata])


def out_of_range(calls: list[Call]) -> None:
    query = last(calls, "query", "max_distance")
    changed(query, ids=[query.answer.ids[0][:-1]], distances=query.answer.distances[:, :-1])


def wrong_group(calls: list[Call]) -> None:
    query = next(c for c in calls if "group_by" in c.asked)
    changed(query, groups=[query.answer.groups[0][::-1]])


def out_of_order(calls: list[Call]) -> None:
    scan = next(c for c in calls if c.verb == "scan")
    scan.answer.reverse()


def several_moments(calls: list[Call]) -> None:
    changed(last(calls, "scan"), sequence=1)
    last(calls, "scan").sequence = last(calls, "scan").answer[1].sequence


@pytest.mark.parametrize(
    ("corrupt", "why"),
    [
        (stale_answer, "said to be|does not match|metadata"),
        (stale_moment, "acknowledged before it began"),
        (went_back, "its own thread had seen"),
        (from_the_future, "no write had begun"),
        (lost_write, "missed nearer records"),
        (half_applied, "metadata of"),
        (half_vectors, "vector of"),
        (ghost, "'r20' was not live"),
        (never_written, "'ghost' was never written"),
        (wrong_count, "counted"),
        (wrong_acknowledgement, "counted 3, and it was 2"),
        (hidden_commit, "which no write had begun"),
        (unseen_commit, "no write was told commit 3"),
        (needless_refusal, "no reason for RecordExists"),
        (needless_nothing, "deleted nothing"),
        (wrong_distance, "said to be"),
        (too_few, "answers, though"),
        (not_the_nearest, "missed nearer records"),
        (out_of_range, "is missing"),
        (wrong_group, "not in group"),
        (out_of_order, "out of order"),
        (several_moments, "several commits"),
    ],
)
def test_what_is_made_wrong_is_found(
    calls: list[Call], corrupt: Callable[[list[Call]], None], why: str
) -> None:
    """A true history passes; with one thing changed it is refused, for the right reason."""
    report = check(calls, SPACES, 1)
    assert (report.commits, report.refusals) == (6, 1)
    assert report.recall() == 1.0
    corrupt(calls)
    with pytest.raises(Violation, match=why) as caught:
        check(calls, SPACES, 42)
    assert re.match(r"seed 42: .*\n(  call \d+ of .*\n)*writes nearby:\n  call", str(caught.value))


def put(name: str, start: float, end: float, stamp: int, commit: int = 1) -> Call:
    asked = {"ids": ["a"], "vectors": np.eye(4)[:1], "metadata": [{"stamp": stamp}]}
    answer = SimpleNamespace(sequence=commit, count=1)
    return Call(name, "upsert", asked, start, end, answer, commit)


def got(name: str, start: float, end: float, stamp: int, commit: int = 1) -> Call:
    answer = vecdb.types.Records(["a"], metadata=[{"stamp": stamp}], sequence=commit)
    return Call(name, "get", {"ids": ["a"]}, start, end, answer, commit)


def test_writes_of_one_commit_may_stand_in_any_order_but_only_in_one() -> None:
    """Two upserts of a record share a commit: readers may see either, and then all the same one."""
    writes = [put("w1", 0, 1, 1), put("w2", 0, 1, 2)]
    report = check([*writes, got("r", 2, 3, 2)], SPACES)
    assert report.most_orders == 2
    check([*writes, got("r", 2, 3, 1)], SPACES)
    with pytest.raises(Violation, match="metadata of 'a'"):
        check([*writes, got("r", 2, 3, 1), got("r", 4, 5, 2)], SPACES)
    with pytest.raises(Violation, match="metadata of 'a'"):
        check([*writes, got("r", 2, 3, 3)], SPACES)


def test_a_read_beside_a_write_may_see_it_or_not() -> None:
    """While a write lasts both moments are right; once it was acknowledged only the later one."""
    first, second = put("w", 0, 1, 1), put("w", 2, 4, 2, commit=2)
    check([first, second, got("r", 3, 5, 1)], SPACES)
    check([first, second, got("r", 3, 5, 2, commit=2)], SPACES)
    with pytest.raises(Violation, match="acknowledged before"):
        check([first, second, got("r", 5, 6, 1)], SPACES)


def test_an_answer_without_a_commit_must_fit_one_that_it_may_have_seen() -> None:
    """A count that names no commit is held against every moment between call and return."""
    first, second = put("w", 0, 1, 1), put("w", 2, 4, 2, commit=2)

    def counted(start: float, end: float, stamp: int, answer: int) -> Call:
        return Call("r", "count", {"filter": {"stamp": stamp}}, start, end, answer, None)

    check([first, second, counted(3, 5, 1, 1), counted(3, 5, 2, 1)], SPACES)
    check([first, second, counted(5, 6, 2, 1), counted(0.5, 1.5, 1, 0)], SPACES)
    with pytest.raises(Violation, match="fits no commit"):
        check([first, second, counted(5, 6, 1, 1)], SPACES)
    with pytest.raises(Violation, match="fits no commit"):
        check([first, second, counted(1.5, 1.6, 2, 1)], SPACES)
