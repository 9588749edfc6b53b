"""Deletes by filter share a commit with the writers that wait beside them, and are judged as if each came alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import wait_until

import vecdb
from vecdb import deleting, errors

WRITERS, EACH = 16, 10
FILTERS: list[dict[str, Any]] = [
    {"n": 1},
    {"$document": {"$contains": "one"}},
    {"$document": {"$regex": "^one"}, "id": {"$ne": "none"}},
]
"""All match the records that `put` writes as such."""


def put(docs: vecdb.Collection, ids: list[str], one: bool) -> int:
    text, n = ("one of them", 1) if one else ("another", 0)
    return docs.upsert(
        ids, np.ones((len(ids), 2)), metadata=[{"n": n}] * len(ids), documents=[text] * len(ids)
    ).count


@pytest.fixture
def docs(data_folder: Path) -> Iterator[vecdb.Collection]:
    with vecdb.open(data_folder, auto_build=False) as db:
        docs = db.create_collection("docs", dimension=2)
        put(docs, ["a1", "a2", "a3"], one=True)
        put(docs, ["b1", "b2", "b3"], one=False)
        yield docs


def together(docs: vecdb.Collection, calls: list[Callable[[], int]]) -> list[Any]:
    """What calls answer that wait for the lane in this order, or what they raise."""
    lane = docs._core._lane
    with ThreadPoolExecutor(len(calls)) as threads:
        with docs._core.exclusive():
            started = []
            for n, call in enumerate(calls, 1):
                started.append(threads.submit(call))
                wait_until(lambda n=n: len(lane._waiting) == n, "it waits")
        return [one.exception(30) or one.result(30) for one in started]


def in_one_commit(docs: vecdb.Collection, calls: list[Callable[[], int]]) -> list[Any]:
    """The same, which must take one commit."""
    before = docs.stats().sequence
    answers = together(docs, calls)
    assert docs.stats().sequence == before + 1
    return answers


def test_a_delete_shares_no_commit_with_many_rows(docs: vecdb.Collection) -> None:
    """It would look at each of them while all writers wait: it takes the next commit, with what waits behind it."""
    lane, groups = docs._core._lane, []
    commit = lane._commit
    lane._commit = lambda group: (groups.append(len(group)), commit(group))[1]  # type: ignore[method-assign,func-returns-value]
    calls = [
        lambda: put(docs, [f"m{i}" for i in range(1_000)], one=True),
        lambda: put(docs, [f"n{i}" for i in range(100)], one=False),
        lambda: docs.delete(filter={"n": 1}).count,
        lambda: put(docs, ["late"], one=True),
    ]
    assert together(docs, calls) == [1_000, 100, 1_003, 1]
    assert groups == [2, 2]
    assert docs.count({"n": 1}) == 1


@pytest.mark.parametrize("few_rows", [1, 1_000])
@pytest.mark.parametrize("expression", FILTERS, ids=["metadata", "text", "pattern"])
def test_a_delete_sees_what_earlier_writes_of_its_commit_have_done(
    docs: vecdb.Collection,
    monkeypatch: pytest.MonkeyPatch,
    expression: dict[str, Any],
    few_rows: int,
) -> None:
    """Records that come, change and go in one commit are deleted or kept as if each write had had its own."""
    monkeypatch.setattr(deleting, "_FEW_ROWS", few_rows)

    def delete(*ids: str, **more: Any) -> Callable[[], int]:
        return lambda: docs.delete(list(ids) or None, **more).count

    answers = in_one_commit(
        docs,
        [
            lambda: put(docs, ["new1", "new2", "new3"], one=True),
            lambda: put(docs, ["a1", "new4"], one=False),
            lambda: put(docs, ["b1", "new4"], one=True),
            delete("new2", "a2"),
            delete("new1", "b2", "a3", filter=expression),
            delete(filter=expression),
            delete(filter=expression),
            lambda: put(docs, ["new1", "a2"], one=True),
            lambda: docs.update(["b3"], metadata=[{"n": 1}], documents=["one of them"]).count,
            lambda: put(docs, ["new1"], one=False),
            delete(filter=expression),
            lambda: put(docs, ["last"], one=True),
        ],
    )
    # Of a3 and new1 the one with ids; then b1, new3 and new4, then nothing; then a2 and b3.
    assert answers == [3, 2, 2, 2, 2, 3, 0, 2, 1, 1, 2, 1]
    assert sorted(docs.get(limit=100).ids) == ["a1", "b2", "last", "new1"]
    assert docs.count(expression) == 1
    assert docs.check().problems == ()
    assert docs.query([[1, 1]], k=10, exact=True).ids[0].count(None) == 0
    with docs._core.read() as reader:
        assert (reader.rows_of_ids([b"a2", b"new2", b"b3", b"new4"]) == -1).all()


def test_a_delete_that_is_refused_takes_none_of_its_commit_with_it(
    docs: vecdb.Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that runs out of time in the lane does nothing, and who shares its commit is not held responsible."""
    real = deleting.Matching._of_this_commit

    def late(self: Any, writer: Any, first: int) -> Any:
        if self._expression.text.count("other"):
            raise errors.DeadlineExceeded("told to")
        return real(self, writer, first)

    monkeypatch.setattr(deleting.Matching, "_of_this_commit", late)
    answers = in_one_commit(
        docs,
        [
            lambda: put(docs, ["new"], one=True),
            lambda: docs.delete(filter={"$document": {"$contains": "other"}}).count,
            lambda: docs.delete(filter={"n": 1}).count,
        ],
    )
    assert isinstance(answers[1], errors.DeadlineExceeded)
    assert (answers[0], answers[2]) == (1, 4)
    assert sorted(docs.get(limit=100).ids) == ["b1", "b2", "b3"]


def test_waiting_deletes_by_filter_share_commits(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen that delete by filter without pause have at least eight to a commit, where each took one of its own, and
    each is told how many records it has deleted."""
    with vecdb.open(data_folder, auto_build=False) as db:
        docs = db.create_collection("docs", dimension=2)
        n = WRITERS * EACH * 3
        docs.insert(
            [f"r{i}" for i in range(n)],
            np.ones((n, 2)),
            metadata=[{"n": i % (WRITERS * EACH)} for i in range(n)],
        )
        docs.count({"n": 0})
        commit = docs._core.store.commit

        def slow(*work: Any) -> Any:
            # A disk as slow as many are: what this one takes must not decide.
            time.sleep(0.01)
            return commit(*work)

        monkeypatch.setattr(docs._core.store, "commit", slow)
        counts: list[int] = []

        def delete(writer: int) -> None:
            for i in range(EACH):
                counts.append(docs.delete(filter={"n": writer * EACH + i}).count)

        threads = [threading.Thread(target=delete, args=(w,)) for w in range(WRITERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert counts == [3] * WRITERS * EACH
        assert docs.count() == 0
        assert docs.stats().sequence - 1 <= WRITERS * EACH / 8
        assert docs.check().problems == ()
