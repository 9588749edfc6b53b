"""The judge of histories and time: what cannot have happened one after another is refused, what nearly is the same and
can have happened passes."""

from __future__ import annotations

import itertools
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from history import Call, Space, Violation, check

SPACES = {"": Space(2, "l2")}
THREADS = itertools.count()
History = list[Call]


def wrote(verb: str, start: float, end: float, commit: int, count: int, **asked: Any) -> Call:
    """An acknowledged write, of a thread of its own as all calls here are, unless they say otherwise."""
    answer = SimpleNamespace(sequence=commit, count=count)
    return Call(f"{verb} {next(THREADS)}", verb, asked, start, end, answer, commit)


def put(start: float, end: float, commit: int, *ids: str, count: int | None = None) -> Call:
    n = len(ids)
    vectors = np.ones((n, 2), np.float32)
    count = n if count is None else count
    return wrote("upsert", start, end, commit, count, ids=list(ids), vectors=vectors)


def dropped(start: float, end: float, commit: int, count: int, *ids: str) -> Call:
    return wrote("delete", start, end, commit, count, ids=list(ids))


def counted(start: float, end: float, answer: int, commit: int | None = None, **asked: Any) -> Call:
    thread = asked.pop("thread", f"count {next(THREADS)}")
    return Call(thread, "count", asked, start, end, answer, commit)


def refused(verb: str, start: float, end: float, why: str, *ids: str, **details: Any) -> Call:
    asked = {"ids": list(ids)} if ids else {}
    return Call(f"{verb} {next(THREADS)}", verb, asked, start, end, details, None, refusal=why)


def late_delete(start: float) -> History:
    return [put(0, 1, 1, "x"), dropped(start, 3, 1, 0, "x")]


def late_delete_of_another(start: float) -> History:
    # The other write of the commit is not acknowledged yet; the commit is.
    return [put(0, 1, 1, "x"), put(0, 9, 1, "y"), dropped(start, 3, 1, 0, "y")]


def delete_after_a_read(start: float) -> History:
    return [put(0, 9, 1, "x"), counted(1, 2, 1, commit=1), dropped(start, 4, 1, 0, "x")]


def idle_upsert(verb: str) -> History:
    idle = wrote(verb, 2, 3, 1, 0, ids=["y"], vectors=np.ones((1, 2), np.float32))
    return [put(0, 1, 1, "x"), idle, counted(4, 5, 1, commit=1)]


def idle_upsert_beside(ids: tuple[str, ...]) -> History:
    return [put(0, 1, 1, "x"), put(0.5, 3, 1, *ids, count=0), counted(4, 5, 1, commit=1)]


def reads_of_two(start: float) -> History:
    return [put(0, 1, 1, "x"), put(2, 9, 2, "y"), counted(3, 4, 2, 2), counted(start, 6, 1, 1)]


def write_after_a_read(start: float) -> History:
    return [put(0, 1, 1, "x"), put(2, 9, 2, "y"), counted(3, 4, 3, 2), put(start, 6, 2, "z")]


def counts_of_one(second: int) -> History:
    told = [counted(3, 4, 2, thread="one"), counted(5, 6, second, thread="one")]
    return [put(0, 1, 1, "x"), put(2, 9, 2, "y"), *told]


def counts_of_two(start: float) -> History:
    return [put(0, 1, 1, "x"), put(2, 9, 2, "y"), counted(3, 4, 2), counted(start, 6, 1)]


def count_then_a_named_one(start: float) -> History:
    return [put(0, 1, 1, "x"), put(2, 9, 2, "y"), counted(3, 4, 2), counted(start, 6, 1, 1)]


def count_of_a_later_write(start: float) -> History:
    writes = [put(0, 1, 1, "x"), put(start, 6, 2, "z"), put(2, 9, 3, "y")]
    return [*writes, counted(3, 4, 2, filter={"id": {"$in": ["x", "y", "z"]}})]


def count_then_a_refusal(start: float) -> History:
    gone = refused("update", start, 6, "RecordNotFound", "y")
    return [put(0, 1, 1, "x"), put(2, 9, 2, "y"), counted(3, 4, 2), gone]


def count_beyond_all(least: int) -> History:
    return [put(0, 1, 1, "x"), counted(0, 1, 1, min_sequence=least)]


def exists_beside_a_filter(name: str) -> History:
    gone = wrote("delete", 2, 9, 2, 1, filter={"id": "x"})
    return [put(0, 1, 1, "x"), gone, refused("insert", 3, 4, "RecordExists", name)]


def exists_beside_its_delete(name: str) -> History:
    gone = dropped(2, 9, 2, 1, "x", "never")
    return [put(0, 1, 1, "x"), gone, refused("insert", 3, 4, "RecordExists", name)]


def missing_beside_its_upsert(name: str) -> History:
    writes = [put(0, 1, 1, "x"), put(2, 9, 2, name)]
    return [*writes, refused("update", 3, 4, "RecordNotFound", name)]


def between_two_writes(*refusals: Call) -> History:
    """Deleted and written again by one commit: between the two, and then only, it was not there."""
    writes = [put(0, 1, 1, "x"), dropped(2, 9, 2, 1, "x"), put(2, 9, 2, "x")]
    return [*writes, *refusals, counted(20, 21, 1, 2)]


def both_there(commit: int) -> History:
    gone = dropped(2, 9, 2, 1, "x")
    both = refused("insert", 3, 4, "RecordExists", "x", "y", ids=["x", "y"], count=2)
    return [put(0, 1, 1, "x"), gone, put(2, 9, commit, "y"), both]


def reasons(*named: str) -> History:
    told = refused("insert", 2, 3, "RecordExists", "x", "never", ids=list(named), count=len(named))
    return [put(0, 1, 1, "x"), told]


def of_verb(verb: str) -> History:
    return [put(0, 1, 1, "x"), refused(verb, 2, 3, "RecordExists", "x")]


def too_late(start: float) -> History:
    return [put(0, 1, 1, "x"), put(3, 4, 2, "y"), refused("scan", start, 6, "InvalidCursor")]


NOT_THERE = refused("update", 3, 4, "RecordNotFound", "x")


@pytest.mark.parametrize(
    ("possible", "impossible", "why"),
    [
        (late_delete(0.5), late_delete(2), "deleted nothing"),
        (late_delete_of_another(0.5), late_delete_of_another(2), "deleted nothing"),
        (delete_after_a_read(1.5), delete_after_a_read(3), "deleted nothing"),
        (idle_upsert("delete"), idle_upsert("upsert"), "acknowledged before it began commit 1"),
        (idle_upsert_beside(()), idle_upsert_beside(("y",)), "counted 0, and it was 1"),
        (reads_of_two(3.5), reads_of_two(5), "ended before it began was of commit 2"),
        (write_after_a_read(3.5), write_after_a_read(5), "ended before it began was of commit 2"),
        (counts_of_one(2), counts_of_one(1), "fits no commit"),
        (counts_of_two(3.5), counts_of_two(5), "fits no commit"),
        (count_then_a_named_one(3.5), count_then_a_named_one(5), "fits no commit"),
        (count_then_a_refusal(3.5), count_then_a_refusal(5), "fits no commit"),
        (
            count_beyond_all(1),
            count_beyond_all(2),
            "no commit after 1, though it asked for commit 2",
        ),
        (exists_beside_a_filter("x"), exists_beside_a_filter("never"), "no reason"),
        (exists_beside_its_delete("x"), exists_beside_its_delete("never"), "no reason"),
        (missing_beside_its_upsert("y"), missing_beside_its_upsert("x"), "no reason"),
        (both_there(2), both_there(3), "for 2 records, not 1|names '[xy]', which is no reason"),
        (reasons("x"), reasons("never"), "names 'never', which is no reason"),
        (reasons("x"), reasons(), "for 0 records, not 1"),
        (of_verb("insert"), of_verb("upsert"), "no reason"),
    ],
)
def test_what_cannot_have_been_is_refused_and_what_nearly_is_the_same_passes(
    possible: History, impossible: History, why: str
) -> None:
    """Two histories that differ in one thing, mostly in whether two calls overlapped."""
    check(possible, SPACES)
    with pytest.raises(Violation, match=why):
        check(impossible, SPACES)


def test_a_count_is_of_no_commit_that_its_threads_next_write_precedes() -> None:
    """Two writes last, and a count has seen one of them: it is the earlier one, or had not begun when the count ended."""
    seen = {"id": "y"}

    def played(z: int, start: float) -> History:
        writes = [put(0, 1, 1, "x"), put(2, 9, 5 - z, "y"), put(start, 6, z, "z")]
        return [*writes, counted(3, 4, 1, filter=seen)]

    check(played(3, 5), SPACES)
    check(played(2, 3.5), SPACES)
    with pytest.raises(Violation, match="fits no commit"):
        check(played(2, 5), SPACES)


def test_only_a_refused_write_stands_between_the_writes_of_a_commit() -> None:
    """It may, since it was judged where they were; but at one moment, and no read ever sees what was there."""
    check(between_two_writes(NOT_THERE), SPACES)
    overlapping = refused("update", 3.5, 6, "RecordNotFound", "x")
    check(between_two_writes(NOT_THERE, overlapping), SPACES)
    with pytest.raises(Violation, match="no reason"):
        check(between_two_writes(NOT_THERE, refused("update", 5, 6, "RecordNotFound", "x")), SPACES)
    with pytest.raises(Violation, match="no reason"):
        check(between_two_writes(refused("query", 3, 4, "RecordNotFound", "x")), SPACES)
    with pytest.raises(Violation, match="no reason"):
        check(between_two_writes(refused("update", 10, 11, "RecordNotFound", "x")), SPACES)
    # A read of the commit had ended before.
    with pytest.raises(Violation, match="no reason"):
        check(between_two_writes(counted(2, 2.5, 1, 2), NOT_THERE), SPACES)


def test_a_scan_comes_too_late_only_where_content_is_purged_and_something_was_written() -> None:
    """Else a refusal of it has no reason."""
    check(too_late(2), SPACES, purges=True)
    with pytest.raises(Violation, match="no reason"):
        check(too_late(2), SPACES)
    with pytest.raises(Violation, match="no reason"):
        check(too_late(5), SPACES, purges=True)


class Played:
    """A collection of a few ids, whose calls take effect one after another, and last a little around that."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.calls: History = []
        self.held: set[str] = set()
        self.commit = 0
        self.now = 0.0

    def some(self) -> list[str]:
        return self.rng.sample("abcd", self.rng.randint(1, 2))

    def around(self) -> tuple[float, float]:
        """Begin and end of a call that takes effect now."""
        return self.now - 3 * self.rng.random(), self.now + 3 * self.rng.random()

    def write(self, verb: str, ids: list[str]) -> tuple[str, int]:
        """Why it is refused, and how many records it changes."""
        there = [i for i in ids if i in self.held]
        if verb == "insert" and there:
            return "RecordExists", len(there)
        if verb == "update" and len(there) < len(ids):
            return "RecordNotFound", len(ids) - len(there)
        if verb == "delete":
            self.held -= set(ids)
            return "", len(there)
        self.held |= set(ids)
        return "", len(ids)

    def group(self) -> None:
        """Writes of one commit."""
        asked = [
            (self.rng.choice(["insert", "upsert", "update", "delete", "delete"]), self.some())
            for _ in range(self.rng.randint(1, 4))
        ]
        done = []
        for verb, ids in asked:
            held = set(self.held)
            named = [i for i in ids if (i in held) == (verb == "insert")]
            done.append((verb, ids, *self.write(verb, ids), named))
        changed = any(count and not why for _, _, why, count, _ in done)
        self.commit += changed
        for verb, ids, why, count, named in done:
            start, end = self.around()
            if why:
                self.calls.append(refused(verb, start, end, why, *ids, ids=named, count=count))
                continue
            vectors = None if verb in ("update", "delete") else np.ones((len(ids), 2), np.float32)
            asked_of = {"ids": ids} if vectors is None else {"ids": ids, "vectors": vectors}
            self.calls.append(wrote(verb, start, end, self.commit, count, **asked_of))

    def read(self) -> None:
        start, end = self.around()
        only = {"id": {"$in": self.some()}}
        answer = len(self.held & set(only["id"]["$in"]))
        named = self.commit if self.rng.random() < 0.3 else None
        self.calls.append(counted(start, end, answer, named, filter=only))

    def play(self, steps: int) -> History:
        for _ in range(steps):
            self.now += 1
            self.rng.choice([self.group, self.read, self.read])()
        return self.calls


@pytest.mark.parametrize("seed", range(40))
def test_what_happened_one_after_another_passes(seed: int) -> None:
    """However long the calls lasted, who shared a commit, and which answers name theirs."""
    report = check(Played(seed).play(60), SPACES, seed)
    assert report.commits > 5
