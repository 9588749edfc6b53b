"""What the clients do on their own: split, stream, retry, translate, close. Sync and asyncio alike."""

from __future__ import annotations

import array
import asyncio
import io
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Terminal

from vecdb_client import aio, calls, connect, errors, transport
from vecdb_client.types import Records
from vecdb_server.server import Server

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = Server({"data": str(tmp_path_factory.mktemp("client") / "db"), "port": 0})
    server.start()
    yield server.address
    assert server.stop()


@pytest.fixture
def docs(address: str) -> Iterator[Any]:
    """An empty collection of dimension 4 under l2, through the synchronous client."""
    with connect(address, timeout_s=20) as client:
        yield client.create_collection("docs", dimension=4, metric="l2")
        client.drop_collection("docs")


def rows(start: int, stop: int) -> tuple[list[str], Any]:
    ids = [f"r{i}" for i in range(start, stop)]
    return ids, np.arange(start * 4, stop * 4, dtype=np.float32).reshape(-1, 4) + 1


class Sent:
    """Records the requests of a client while they are sent."""

    def __init__(self, collection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: list[Any] = []
        connection = collection._connection
        run = connection.run

        def recorded(call: Any, timeout_s: float | None = None) -> Any:
            self.requests.append(call.request)
            return run(call, timeout_s)

        monkeypatch.setattr(connection, "run", recorded)


# --- writes


def test_a_large_insert_travels_in_messages(docs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """5,000 records take three messages; the result is the last commit and the whole count."""
    sent = Sent(docs, monkeypatch)
    result = docs.insert(*rows(0, 5_000))
    assert [len(request.records.ids) for request in sent.requests] == [2_000, 2_000, 1_000]
    assert (result.sequence, result.count) == (3, 5_000)
    assert docs.count() == 5_000
    got = docs.get(["r0", "r2000", "r4999"], include=["vector"])
    assert np.array_equal(got.vectors, rows(0, 5_000)[1][[0, 2_000, 4_999]])


def test_batch_size_sets_the_rows_of_a_message(docs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`batch_size` records travel together, the rest in a last message."""
    sent = Sent(docs, monkeypatch)
    docs.upsert(*rows(0, 10), batch_size=4)
    assert [len(request.records.ids) for request in sent.requests] == [4, 4, 2]
    for wrong in (0, -1, "4", 1.5):
        with pytest.raises(errors.InvalidArgument):
            docs.upsert(*rows(0, 10), batch_size=wrong)


def test_columns_stay_with_their_records_when_split(docs: Any) -> None:
    """Every column of a split batch arrives beside its record."""
    ids, vectors = rows(0, 9)
    docs.insert(
        ids,
        vectors,
        metadata=[{"n": i} if i % 2 else None for i in range(9)],
        documents=[None if i % 3 else f"d{i}" for i in range(9)],
        contents=[(bytes([i]), "t/t") if i % 4 else None for i in range(9)],
        uris=[f"u{i}" for i in range(9)],
        batch_size=2,
    )
    got = docs.get(ids, include=["metadata", "document", "content", "uri"])
    assert got.metadata == [{"n": i} if i % 2 else {} for i in range(9)]
    assert got.documents == [None if i % 3 else f"d{i}" for i in range(9)]
    assert [c and (c.data, c.media_type) for c in got.contents] == [
        (bytes([i]), "t/t") if i % 4 else None for i in range(9)
    ]
    assert got.uris == [f"u{i}" for i in range(9)]


def test_a_failed_message_says_how_much_was_acknowledged(docs: Any) -> None:
    """When a later message fails, those before it stay and the error counts them."""
    docs.insert(["r7"], [[1, 2, 3, 4]])
    with pytest.raises(errors.RecordExists) as caught:
        docs.insert(*rows(0, 10), batch_size=3)
    assert caught.value.details["ids"] == ["r7"]
    assert caught.value.details["acknowledged"] == 6
    assert caught.value.details["acknowledged_sequence"] == 3
    assert docs.count() == 7


def test_an_id_twice_is_refused_across_messages(docs: Any) -> None:
    """An id that stands in two messages of one batch is refused before the first is sent."""
    ids, vectors = rows(0, 10)
    ids[9] = "r0"
    with pytest.raises(errors.InvalidBatch, match="r0"):
        docs.upsert(ids, vectors, batch_size=3)
    assert docs.count() == 0


def test_a_ragged_batch_sends_nothing(docs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns and vectors that do not fit together are refused before anything is sent."""
    sent = Sent(docs, monkeypatch)
    with pytest.raises(errors.InvalidVector):
        docs.insert(["a", "b"], [[1, 2, 3, 4], [1, 2]])
    with pytest.raises(errors.InvalidBatch):
        docs.insert(["a", "b"], [[1, 2, 3, 4]])
    with pytest.raises(errors.InvalidBatch):
        docs.insert(["a"], [[1, 2, 3, 4]], documents=["x", "y"])
    with pytest.raises(errors.InvalidVector):
        docs.insert(["a"], [[1, 2, 3, 1e300]])
    assert sent.requests == []


@pytest.mark.parametrize("dtype", ["f2", ">f4", "f8", "i8", "u1"])
def test_any_numbers_are_stored(docs: Any, dtype: str) -> None:
    """Vectors of other number types arrive with their values; float16 travels as float16."""
    values = np.array([[1, 2, 3, 4]], dtype)
    docs.insert(["a"], values)
    docs.insert(["b"], array.array("d", [1, 2, 3, 4]))
    docs.insert(["c"], np.array([1, 2, 3, 4], np.float32).data)
    found = docs.query(values, k=3)
    assert found.ids == [["a", "b", "c"]]
    assert found.distances.tolist() == [[0.0, 0.0, 0.0]]
    assert docs.get(["a"], include=["vector"]).vectors.tolist() == [[1.0, 2.0, 3.0, 4.0]]


def test_delete_of_no_ids_deletes_nothing(docs: Any) -> None:
    """An empty list of ids is refused; it never turns into "all that match"."""
    docs.insert(*rows(0, 3))
    for filter_ in (None, {}, {"n": 1}):
        with pytest.raises(errors.InvalidBatch):
            docs.delete([], filter=filter_)
    with pytest.raises(errors.InvalidFilter):
        docs.delete(filter="")
    assert docs.count() == 3
    assert docs.delete(filter={}).count == 3


# --- ingest


def batch_forms() -> list[Any]:
    columns = {"ids": ["c"], "vectors": [[1, 2, 3, 4]], "metadata": [{"n": 1}]}
    page = Records(["d"], np.ones((1, 4), np.float32), [{"n": 2}], ["doc"], None, None)
    return [(["a"], [[1, 2, 3, 4]]), (["b"], [1, 2, 3, 4], [{"n": 0}], ["x"]), columns, page]


def test_ingest_acknowledges_each_message_in_order(docs: Any) -> None:
    """Tuples, mappings and Records are taken; each message is acknowledged by its own commit."""
    acks = list(docs.ingest(batch_forms()))
    assert [(ack.sequence, ack.count) for ack in acks] == [(1, 1), (2, 1), (3, 1), (4, 1)]
    got = docs.get(["a", "b", "c", "d"])
    assert got.metadata == [{}, {"n": 0}, {"n": 1}, {"n": 2}]
    assert got.documents == [None, "x", None, "doc"]


def test_ingest_splits_large_batches_and_upserts(docs: Any) -> None:
    """A batch too large for one message becomes several; with `upsert` stored ids are replaced."""
    docs.insert(*rows(0, 5))
    acks = list(docs.ingest([rows(0, 4_500)], upsert=True))
    assert [ack.count for ack in acks] == [2_000, 2_000, 500]
    assert docs.count() == 4_500
    assert list(docs.ingest([])) == []


def test_ingest_takes_batches_as_acknowledgements_come(docs: Any) -> None:
    """Batches are taken in the caller's thread, and never more than four ahead."""
    taken: list[int] = []
    threads = set()

    def batches() -> Iterator[Any]:
        for i in range(20):
            taken.append(i)
            threads.add(threading.get_ident())
            yield rows(i, i + 1)

    for done, _ in enumerate(docs.ingest(batches()), 1):
        assert len(taken) <= done + calls.INGEST_WINDOW
    assert threads == {threading.get_ident()}
    assert docs.count() == 20


def test_a_failed_ingest_keeps_what_was_acknowledged(docs: Any) -> None:
    """The first failing batch ends the stream with its error, which counts the records before it."""
    docs.insert(["r7"], [[1, 2, 3, 4]])
    acks = []
    with pytest.raises(errors.RecordExists) as caught:
        for ack in docs.ingest(rows(i, i + 1) for i in range(20)):
            acks.append(ack.count)
    assert len(acks) == 7
    assert caught.value.details["acknowledged"] == 7
    assert docs.count() == 8


def test_a_failed_ingest_of_large_messages_keeps_its_error(docs: Any) -> None:
    """The server's error is not lost while large messages are still being sent."""
    docs.insert(["r0"], [[1, 2, 3, 4]])
    for _ in range(10):
        with pytest.raises(errors.RecordExists):
            list(docs.ingest((*rows(i, i + 1), None, ["d" * MIB]) for i in range(9)))


def test_a_bad_batch_lets_those_before_it_finish(docs: Any) -> None:
    """A batch that is refused on the client, or an iterable that raises, loses nothing before it."""

    def broken() -> Iterator[Any]:
        yield rows(0, 1)
        yield rows(1, 2)
        raise OSError("the file ended")

    acks = []
    with pytest.raises(OSError, match="the file ended"):
        for ack in docs.ingest(broken()):
            acks.append(ack.count)
    assert acks == [1, 1]
    with pytest.raises(errors.InvalidVector) as caught:
        list(docs.ingest([rows(2, 3), (["x"], [["a"]])]))
    assert caught.value.details["acknowledged"] == 1
    assert docs.count() == 3


# --- reads


def test_scan_resumes_from_a_cursor(docs: Any) -> None:
    """The cursor of a batch goes on behind it, at the same moment."""
    docs.insert(*rows(0, 50))
    first = next(docs.scan(batch_size=20))
    docs.delete(["r30"])
    rest = [record_id for page in docs.scan(cursor=first.cursor) for record_id in page.ids]
    assert first.ids + rest == rows(0, 50)[0]


def test_an_empty_collection_gives_empty_columns(docs: Any) -> None:
    """Where nothing matches, the columns that were asked for are there and empty."""
    page = docs.get(include=["vector", "metadata", "content"])
    assert (page.ids, page.metadata, page.contents, page.documents) == ([], [], [], None)
    found = docs.query(np.ones((2, 4)), k=3, include=["document"])
    assert found.ids == [[], []]
    assert found.documents == [[], []]
    assert found.distances.shape == (2, 3)
    assert np.isnan(found.distances).all()


# --- connecting and closing


def test_no_server_is_unavailable_soon() -> None:
    """Without a server a call fails within seconds, well before the deadline, and names the target."""
    with connect("127.0.0.1:1", timeout_s=60) as client:
        started_s = time.monotonic()
        with pytest.raises(errors.Unavailable, match=r"127\.0\.0\.1:1"):
            client.list_collections()
        assert time.monotonic() - started_s < 15


def test_a_closed_client_says_so(address: str) -> None:
    """After `close` every call, and a scan that was running, is Closed or Cancelled."""
    client = connect(address)
    docs = client.create_collection("closing", dimension=4)
    docs.insert(*rows(0, 100))
    scan = docs.scan(batch_size=1)
    next(scan)
    client.close()
    client.close()
    for call in (client.list_collections, docs.count, lambda: list(docs.scan())):
        with pytest.raises(errors.Closed):
            call()
    with pytest.raises((errors.Cancelled, errors.Closed)):
        list(scan)
    with connect(address) as again:
        again.drop_collection("closing")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("db.example:7800", "db.example:7800"),
        ("db.example", "db.example:7700"),
        ("127.0.0.1", "127.0.0.1:7700"),
        ("::1", "[::1]:7700"),
        ("[::1]", "[::1]:7700"),
        ("[::1]:7800", "[::1]:7800"),
        (" localhost:1 ", "localhost:1"),
        ("unix:/run/vecdb.sock", "unix:/run/vecdb.sock"),
    ],
)
def test_forms_of_a_target(given: str, expected: str) -> None:
    """A target is host:port, with 7700 where the port is left out."""
    assert transport.normalised_target(given) == expected


@pytest.mark.parametrize(
    "given", ["", "  ", "http://db:7700", "db:port", "db:0", "db:73236", "[::1]:65536", None, 7700]
)
def test_targets_that_are_none(given: Any) -> None:
    """What cannot be a target is InvalidSetting at once."""
    with pytest.raises(errors.InvalidSetting):
        connect(given)


@pytest.mark.parametrize("given", [0, -1, "30", True, float("nan")])
def test_timeouts_that_are_none(address: str, given: Any) -> None:
    """A timeout must be a number above 0, for the client and for a call."""
    with pytest.raises(errors.InvalidArgument):
        connect(address, timeout_s=given)
    with connect(address, timeout_s=float("inf")) as client:
        assert client.list_collections() == []
        with pytest.raises(errors.InvalidArgument):
            client.list_collections(timeout_s=given)


def test_threads_share_a_client(docs: Any) -> None:
    """Many threads write and read through one client; every write is there."""

    def work(part: int) -> int:
        docs.insert(*rows(part * 100, part * 100 + 100))
        return len(docs.query(rows(part * 100, part * 100 + 1)[1], k=5).ids[0])

    with futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(16))) == [5] * 16
    assert docs.count() == 1_600
    assert docs.check().ok


def test_an_object_says_what_it_is(docs: Any) -> None:
    """A collection prints its name and server."""
    assert re.fullmatch(r"<Collection 'docs' at 127\.0\.0\.1:\d+>", repr(docs))


def test_progress_is_for_terminals(docs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`progress=True` draws on a terminal up to 100 %, and nothing into a pipe."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    docs.insert(*rows(0, 30), batch_size=10, progress=True)
    assert "100%  insert 30 rows" in terminal.getvalue()
    pipe = io.StringIO()
    monkeypatch.setattr("sys.stderr", pipe)
    docs.upsert(*rows(0, 30), batch_size=10, progress=True)
    assert pipe.getvalue() == ""


# --- asyncio


def test_the_asyncio_client_has_the_same_verbs() -> None:
    """Both clients have the same public names with the same parameters."""
    import inspect

    from vecdb_client import Client, Collection

    for one, other in ((Client, aio.Client), (Collection, aio.Collection)):
        names = {name for name in vars(one) if not name.startswith("_")}
        assert names == {name for name in vars(other) if not name.startswith("_")}
        for name in names:
            member = getattr(one, name)
            if callable(member):
                ours = inspect.signature(member).parameters
                theirs = inspect.signature(getattr(other, name)).parameters
                assert [(p.name, p.kind, p.default) for p in ours.values()] == [
                    (p.name, p.kind, p.default) for p in theirs.values()
                ], name


def test_asyncio_writes_reads_and_streams(address: str) -> None:
    """The asyncio client splits, queries, scans and ingests, from plain and asynchronous iterables."""

    async def batches() -> AsyncIterator[Any]:
        for i in range(10):
            await asyncio.sleep(0)
            yield rows(5_000 + i, 5_001 + i)

    def large(i: int) -> tuple[list[str], Any]:
        return rows(5_000 + i, 5_001 + i)

    async def drained(acks: AsyncIterator[Any]) -> None:
        async for _ in acks:
            pass

    async def work() -> None:
        async with aio.connect(address, timeout_s=20) as db:
            docs = await db.create_collection("async", dimension=4, metric="l2")
            result = await docs.insert(*rows(0, 5_000))
            assert (result.sequence, result.count) == (3, 5_000)
            acks = [ack async for ack in docs.ingest(batches())]
            assert [ack.sequence for ack in acks] == list(range(4, 14))
            acks = [ack async for ack in docs.ingest([rows(0, 10)], upsert=True)]
            assert [ack.count for ack in acks] == [10]
            assert sum([len(page) async for page in docs.scan()]) == 5_010
            found = await asyncio.gather(*(docs.query(rows(i, i + 1)[1], k=1) for i in range(50)))
            assert [result.ids[0] for result in found] == [[f"r{i}"] for i in range(50)]
            # Large messages: the stream ends while the next ones are still being written.
            for _ in range(10):
                with pytest.raises(errors.RecordExists) as caught:
                    await drained(docs.ingest((*large(i), None, ["d" * MIB]) for i in range(9)))
                assert caught.value.details["acknowledged"] == 0
            await db.drop_collection("async")

    asyncio.run(work())


def test_asyncio_cancels_a_call(address: str, tmp_path: Path) -> None:
    """Cancelling a task cancels its call; the client goes on."""

    async def work() -> None:
        async with aio.connect(address) as db:
            docs = await db.create_collection("cancelled", dimension=4)
            task = asyncio.create_task(docs.count(min_sequence=99, timeout_s=20))
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await docs.count() == 0
            await db.drop_collection("cancelled")

    asyncio.run(work())
