"""Times without end, and clients that are taken from one event loop into another."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from conftest import StartServer, event_loop_thread

from vecdb_client import aio, connect, errors


@pytest.mark.parametrize("timeout_s", [1e9, 1e10, 1e18, 1e300, float("inf")])
def test_a_time_that_is_longer_than_clocks_count_is_no_limit(
    start: StartServer, timeout_s: float
) -> None:
    """Of reads, streams and writes of both clients, for a call and for all; it had passed already."""
    server = start()
    with connect(server.address, retry_s=0, timeout_s=timeout_s) as client:
        docs = client.create_collection("docs", dimension=2)
        rows: Any = [{"ids": ["a"], "vectors": [[1, 2]]}]
        assert [one.count for one in docs.ingest(rows, timeout_s=timeout_s)] == [1]
        assert docs.count(timeout_s=timeout_s) == 1
        assert docs.query([1, 2], timeout_s=timeout_s).ids == [["a"]]
        assert [len(page) for page in docs.scan(timeout_s=timeout_s)] == [1]
        assert docs.check(timeout_s=timeout_s).ok

    async def asynchronous() -> None:
        async with aio.connect(server.address, retry_s=0, timeout_s=timeout_s) as db:
            found = await db.get_collection("docs")
            assert await found.count(timeout_s=timeout_s) == 1
            assert (await found.query([1, 2], timeout_s=timeout_s)).ids == [["a"]]
            assert [len(page) async for page in found.scan(timeout_s=timeout_s)] == [1]

    asyncio.run(asynchronous())


@pytest.mark.parametrize("ended", [True, False], ids=["ended", "running"])
def test_an_asyncio_client_is_for_one_event_loop(start: StartServer, ended: bool) -> None:
    """A call in another says so, whether the first loop has ended or runs in another thread; the client can be closed
    there."""
    server = start()
    with connect(server.address) as client:
        client.create_collection("docs", dimension=2).insert(["a"], [[1, 2]])
    db = aio.connect(server.address)

    async def ask() -> Any:
        return (await (await db.get_collection("docs")).query([1, 2])).ids

    async def ask_elsewhere() -> None:
        with pytest.raises(errors.FailedPrecondition, match="make a client in each"):
            await ask()

    async def scan_elsewhere(docs: Any) -> None:
        with pytest.raises(errors.FailedPrecondition, match="make a client in each"):
            await anext(docs.scan())

    async def close() -> None:
        await db.close()

    if ended:
        assert asyncio.run(ask()) == [["a"]]
        asyncio.run(ask_elsewhere())
        asyncio.run(close())
        return
    with event_loop_thread() as loop:
        assert asyncio.run_coroutine_threadsafe(ask(), loop).result(60) == [["a"]]
        docs = asyncio.run_coroutine_threadsafe(db.get_collection("docs"), loop).result(60)
        asyncio.run(ask_elsewhere())
        asyncio.run(scan_elsewhere(docs))
        assert asyncio.run_coroutine_threadsafe(ask(), loop).result(60) == [["a"]]
        asyncio.run_coroutine_threadsafe(close(), loop).result(60)
