"""Large batches and answers do not keep the event loop of the asyncio client from everybody else."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import pytest
from conftest import StartServer

from vecdb_client import aio, batches, connect, errors, reads
from vecdb_client.aio import aside
from vecdb_client.aio.aside import MANY_HITS, MANY_ROWS, Aside

SLOW_S = 0.3


@pytest.fixture
def address(start: StartServer) -> str:
    """Of a server with a collection of more rows than an answer holds that is read at once."""
    found: str = start().address
    with connect(found) as db:
        docs = db.create_collection("docs", dimension=4)
        count = MANY_HITS + 10
        docs.insert([str(n) for n in range(count)], np.random.default_rng(1).random((count, 4)))
    return found


def rows(count: int, name: str = "w") -> tuple[list[str], Any]:
    return [f"{name}{n}" for n in range(count)], np.ones((count, 4), np.float32)


async def beats(work: Any) -> float:
    """Awaits some work; the longest time that the loop was kept from a task beside it."""
    longest_s, over = 0.0, asyncio.Event()

    async def beat() -> None:
        nonlocal longest_s
        while not over.is_set():
            begun_s = time.monotonic()
            await asyncio.sleep(0.001)
            longest_s = max(longest_s, time.monotonic() - begun_s)

    task = asyncio.create_task(beat())
    await asyncio.sleep(0.01)
    await work
    over.set()
    await task
    return longest_s


def in_thread(seen: list[bool], right: Callable[..., Any], sleep_s: float) -> Callable[..., Any]:
    """`right`, slowly; `seen` says of each time whether a thread did it."""

    def slow(*given: Any, **named: Any) -> Any:
        seen.append(threading.current_thread() is not threading.main_thread())
        time.sleep(sleep_s)
        return right(*given, **named)

    return slow


@pytest.mark.parametrize("count", [MANY_ROWS, 3])
def test_columns_of_many_rows_are_made_by_a_thread(
    address: str, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """By insert, upsert, update and ingest: the loop goes on meanwhile. Few are made at once."""
    seen: list[bool] = []
    many = count == MANY_ROWS
    monkeypatch.setattr(
        batches, "to_columns", in_thread(seen, batches.to_columns, SLOW_S if many else 0.0)
    )

    stalls_s: list[float] = []

    async def work() -> None:
        async with aio.connect(address) as db:
            docs = await db.get_collection("docs")
            ids, vectors = rows(count)

            async def stream() -> AsyncIterator[Any]:
                yield {"ids": ids, "vectors": vectors}
                yield ids, vectors

            async def ingest(batch_stream: Any) -> None:
                async for _ in docs.ingest(batch_stream, upsert=True):
                    pass

            for call in (
                docs.insert(ids, vectors),
                docs.upsert(ids, vectors),
                docs.update(ids, vectors=vectors),
                ingest(stream()),
                ingest([(ids, vectors)]),
            ):
                stalls_s.append(await beats(call))
            assert await docs.count() == MANY_HITS + 10 + count

    asyncio.run(work())
    # Each is made there; that the loop goes on is seen where the machine lets it, which it need not each time.
    assert seen == [many] * 6
    assert not many or min(stalls_s) < SLOW_S


def test_large_answers_are_read_by_a_thread(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of get, query and scan; small ones at once."""
    seen: list[bool] = []
    for name in ("decode_records", "decode_query_result"):
        module = reads.messages if name == "decode_records" else reads.answers
        monkeypatch.setattr(module, name, in_thread(seen, getattr(module, name), 0.0))

    async def work() -> None:
        async with aio.connect(address) as db:
            docs = await db.get_collection("docs")
            for count in (MANY_HITS, 10):
                many = count == MANY_HITS
                await docs.get(limit=count)
                await docs.query([1, 1, 1, 1], k=count)
                async for _page in docs.scan(batch_size=count):
                    break
                assert set(seen) == {many}
                assert len(seen) >= 3
                seen.clear()

    asyncio.run(work())


def test_errors_and_the_end_are_as_ever(address: str) -> None:
    """What is wrong with a large batch is said in the words of a small one, a caller may give up while a thread works for
    it, and a closed client works no more."""

    async def work() -> None:
        db = aio.connect(address)
        docs = await db.get_collection("docs")
        ids, vectors = rows(MANY_ROWS)
        with pytest.raises(errors.InvalidBatch, match="metadata were given"):
            await docs.insert(ids, vectors, metadata=[{}])
        with pytest.raises(errors.InvalidId):
            async for _ in docs.ingest([([1] * MANY_ROWS, vectors)]):
                pass
        call = asyncio.create_task(docs.insert(ids, vectors))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await db.close()
        with pytest.raises(errors.Closed):
            await docs.insert(ids, vectors)

    asyncio.run(work())


def test_threads_of_the_loop_are_left_to_its_user(address: str) -> None:
    """Where all of them wait for this client, it answers."""

    async def work() -> None:
        async with aio.connect(address) as db:
            docs = await db.get_collection("docs")
            loop = asyncio.get_running_loop()

            def ask(number: int) -> int:
                insert = docs.upsert(*rows(MANY_ROWS, f"t{number}-"))
                asyncio.run_coroutine_threadsafe(insert, loop).result(30)
                return number

            asked = [asyncio.to_thread(ask, n) for n in range(40)]
            assert await asyncio.gather(*asked) == list(range(40))

    asyncio.run(work())


def test_what_may_be_for_its_own_thread_stays_there() -> None:
    """Columns that are no plain sequences are read in the thread that gave them, however many; ids of any form are looked
    at without a failure of ours."""
    ids, vectors = rows(MANY_ROWS)
    where: list[int] = []

    class Rows(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            where.append(threading.get_ident())
            return super().__iter__()

    async def work() -> None:
        own = Aside()
        made = await own.columns(
            batches.to_columns, ids, vectors, iter([{}] * MANY_ROWS), None, None, None, None
        )
        assert len(made.ids) == MANY_ROWS
        assert own._pool is None
        await own.columns(
            batches.to_columns, ids, vectors, Rows([{}] * MANY_ROWS), None, None, None
        )
        assert where[-1] != threading.get_ident()
        own.close()

    asyncio.run(work())
    for given in (
        (None,), ((),), ({},), (5,), (np.array(5), vectors), ("x" * 500, vectors), (None, None),
        ({"ids": None},), ((iter(ids), vectors),),
    ):  # fmt: skip
        assert not aside._are_many(given), given
    for given in ((ids, vectors), (np.array(ids), vectors), ({"ids": ids, "vectors": vectors},)):
        assert aside._are_many(given)
