"""How long a filter may be evaluated, at most: the server's setting `max_filter_s`, and how often is looked."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import StartServer

import vecdb
from vecdb import comparisons, filters, predicates
from vecdb.columns import ColumnBatch, Columns
from vecdb.stopping import evaluating, while_wanted
from vecdb_client import connect, errors, joining
from vecdb_client.v1 import vecdb_pb2 as pb
from vecdb_server.settings import check

SLOW = {"$document": {"$regex": "t+"}}


class Texts:
    """Documents of rows; there are no ids."""

    def __init__(self, text: str) -> None:
        self._text = text

    def rows_of_ids(self, ids: Any) -> Any:
        return np.empty(0, np.int64)

    def ids(self, rows: Any) -> list[str]:
        return [str(row) for row in rows]

    def documents(self, rows: Any) -> list[str | None]:
        return [self._text] * len(rows)


def work(seconds: float) -> None:
    """Keeps a core busy for so long."""
    end_s = time.thread_time() + seconds
    while time.thread_time() < end_s:
        pass


def columns_of(n_rows: int) -> Columns:
    columns = Columns(100)
    columns.extend(
        ColumnBatch.from_metadata([{"n": i % 10, "s": f"s{i}"} for i in range(n_rows)]), 0
    )
    return columns


def asked(expression: Any, columns: Columns, text: str = "t") -> int:
    """How often the evaluation of a filter over all rows looks whether it should end."""
    calls: list[int] = []
    found = filters.parse(expression)
    filters.select(found, columns, Texts(text), columns.n_rows, interrupt=lambda: calls.append(1))
    return len(calls)


@pytest.mark.parametrize("n_rows", [10, 100_000])
def test_a_filter_of_many_parts_looks_at_each(n_rows: int) -> None:
    """However cheap its parts are, many of them together take long; also where they are only found to be no list."""
    columns = columns_of(n_rows)
    parts = [{"n": {"$gte": 0}}, {"n": {"$ne": 20}}, {"$not": {"n": {"$gt": 10}}}] * 20
    assert asked({"$and": parts}, columns) >= 60
    assert asked({"$or": [{"n": {"$gt": 10}}, {"n": "none"}] * 30}, columns) >= 60
    if n_rows > 10:
        columns.column("n").want_postings(n_rows)  # type: ignore[union-attr]
        assert asked({"$or": [{"n": i} for i in range(20, 80)]}, columns) >= 60


def test_texts_are_asked_in_small_pieces() -> None:
    """Long documents are looked at a megabyte at a time, distinct strings by the thousand."""
    columns = columns_of(4_000)
    assert asked({"s": {"$regex": "7$"}}, columns) >= 4_000 // comparisons._CHUNK
    assert comparisons._CHUNK <= 1_024
    few = columns_of(20)
    assert asked(SLOW, few, "x" * 2_000_000) >= 20
    assert asked(SLOW, few, "x") <= 4


def test_reading_a_long_filter_ends_as_evaluating_it_does() -> None:
    """Once nobody waits for it, or once it has taken what a filter may take, a filter is read no further."""
    text = json.dumps({"$and": [{}] * 100_000})
    with while_wanted(lambda: False), pytest.raises(vecdb.errors.Cancelled):
        filters.parse(text)
    with while_wanted(lambda: True, 1e-9), pytest.raises(vecdb.errors.LimitExceeded):
        filters.parse(text)
    with while_wanted(lambda: False):
        assert filters.parse('{"a": 1}').depth == 1  # too short to ask
    assert filters.parse(text).depth == 2


def test_the_limit_is_counted_from_where_evaluation_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each evaluation has its own time; without a limit the interrupt is left as it is."""

    def interrupt() -> None:
        """Asks nothing."""

    assert evaluating(interrupt) is interrupt
    with while_wanted(lambda: True, 0.05):
        first = evaluating(interrupt)
        first()
        time.sleep(0.06)
        first()  # to wait is no work
        work(0.06)
        with pytest.raises(vecdb.errors.LimitExceeded, match=r"0\.05 s.*max_filter_s") as caught:
            first()
        assert caught.value.details == {"setting": "max_filter_s", "limit": 0.05}
        evaluating(interrupt)()
    assert evaluating(interrupt) is interrupt
    assert check({})["max_filter_s"] == 10.0


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Patterns take 15 ms a text; how many texts were asked each time."""
    pieces: list[int] = []
    texts = predicates.Regex.texts

    def slowly(self: Any, values: Any, interrupt: Any) -> list[bool]:
        pieces.append(len(values))
        work(0.015 * len(values))
        return texts(self, values, interrupt)

    monkeypatch.setattr(predicates.Regex, "texts", slowly)
    return pieces


def verbs(docs: Any) -> dict[str, Callable[[], Any]]:
    """Each call that evaluates a filter."""
    return {
        "query": lambda: docs.query([1, 1], k=1, filter=SLOW).ids,
        "query and more": lambda: docs.query([1, 1], k=1, filter=SLOW, include=["vector"]).ids,
        "count": lambda: docs.count(SLOW),
        "page": lambda: docs.get(filter=SLOW).ids,
        "ids": lambda: docs.get(["a", "b"], filter=SLOW).ids,
        "scan": lambda: [page.ids for page in docs.scan(filter=SLOW)],
        "delete": lambda: docs.delete(filter=SLOW).count,
        "delete ids": lambda: docs.delete(["b"], filter=SLOW).count,
    }


def test_a_filter_that_takes_too_long_is_refused_over_the_wire(
    start: StartServer, slow: list[int]
) -> None:
    """Every verb with a filter ends with LimitExceeded, which names setting and limit, and has done nothing; at once
    when the setting is changed, and not at all where it is 0."""
    server = start(max_filter_s=0.01)
    with connect(server.address, timeout_s=20) as client:
        docs = client.create_collection("docs", dimension=2)
        docs.insert(["a", "b"], np.ones((2, 2)), documents=["text", "other"])
        for verb, call in verbs(docs).items():
            with pytest.raises(
                errors.LimitExceeded, match=r"0\.01 s.*\$and.*max_filter_s"
            ) as caught:
                call()
            assert caught.value.details["setting"] == "max_filter_s", verb
            assert caught.value.details["limit"] == 0.01
        # A limit is no word about the call's own deadline, which ends it sooner where it is sooner.
        server.reload({**server.settings, **server._engine_settings, "max_filter_s": 30.0})
        with pytest.raises(errors.DeadlineExceeded):
            docs.count(SLOW, timeout_s=0.01)
        server.reload({**server.settings, **server._engine_settings, "max_filter_s": 0.0})
        answers = {verb: call() for verb, call in verbs(docs).items()}
        assert answers["count"] == 2
        assert answers["delete"] == 2
        assert answers["scan"] == [["a", "b"]]


def test_queries_that_went_as_one_are_refused_as_one(start: StartServer, slow: list[int]) -> None:
    """Queries of a stream with one filter that takes too long are each told so, after it was evaluated once."""
    server = start(max_filter_s=0.01)
    with connect(server.address, timeout_s=20) as client:
        docs = client.create_collection("docs", dimension=2)
        docs.insert(["a"], [[1, 1]], documents=["text"])
        vectors = pb.Vectors(data=b"\0\0\x80\x3f" * 2, count=1, dimension=2)
        query = pb.QueryRequest(collection="docs", vectors=vectors, k=1, filter=json.dumps(SLOW))
        message = pb.QueryStreamRequest(queries=[pb.StreamedQuery(query=query)] * 5)
        stub: Any = client._connection._stub
        told = [
            json.loads(one.error.error)
            for response in stub.QueryStream(iter([message]), timeout=20)
            for one in response.answers
        ]
    assert [one["reason"] for one in told] == ["LIMIT_EXCEEDED"] * 5
    assert len(slow) == 1
    refusal = errors.LimitExceeded("too long", setting="max_filter_s")
    assert [type(one) for one in joining.outcomes(refusal, 3)] == [errors.LimitExceeded] * 3
    assert joining.outcomes(errors.LimitExceeded("too large"), 3) == [None] * 3


def test_embedded_there_is_no_limit(data_folder: Path, slow: list[int]) -> None:
    """Whoever embeds the engine gives deadlines; nothing else ends a filter."""
    with vecdb.open(data_folder) as db:
        docs = db.create_collection("docs", dimension=2)
        docs.insert(["a", "b"], np.ones((2, 2)), documents=["text", "other"])
        assert docs.count(SLOW) == 2
        with pytest.raises(vecdb.errors.DeadlineExceeded):
            docs.count(SLOW, timeout_s=0.01)
