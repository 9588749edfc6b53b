"""What a client is told of many rows at once: answers of more hits than a batch may have, positions in batches of several
messages, and calls that end since their client was closed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run, StartServer

from vecdb.types import MAX_BATCH_ROWS
from vecdb_client import aio, connect, errors

QUERIES, K = MAX_BATCH_ROWS // 100 + 1, 100


def filled(client: Any, dimension: int = 4) -> Any:
    docs = client.create_collection("docs", dimension=dimension, metric="l2")
    rng = np.random.default_rng(4)
    docs.insert(
        [str(n) for n in range(300)],
        rng.standard_normal((300, dimension), dtype=np.float32),
        metadata=[{"n": n} for n in range(300)],
    )
    return docs


@pytest.mark.parametrize("include", [(), ("metadata",)])
def test_an_answer_has_as_many_hits_as_the_engine_gives(
    start: StartServer, include: tuple[str, ...]
) -> None:
    """What a write may have at most is no limit of what is read."""
    server = start()
    asked = np.random.default_rng(5).standard_normal((QUERIES, 4), dtype=np.float32)
    with connect(server.address) as client:
        docs = filled(client)
        expected = server._database.get_collection("docs").query(asked, k=K, include=include)
        found = docs.query(asked, k=K, include=include)
        all_near = docs.query(asked[:400], max_distance=1e9)

    async def ask() -> Any:
        async with aio.connect(server.address) as client:
            return await (await client.get_collection("docs")).query(asked, k=K, include=include)

    for one in (found, asyncio.run(ask())):
        assert sum(map(len, one.ids)) == QUERIES * K > MAX_BATCH_ROWS
        assert one.ids == expected.ids
        assert one.metadata == expected.metadata
        np.testing.assert_array_equal(one.distances, expected.distances)
    assert [len(ids) for ids in all_near.ids] == [300] * 400


def test_the_position_of_a_fault_is_that_in_what_was_given(start: StartServer) -> None:
    """However many messages a batch takes: of an insert, and of an ingest by both clients."""
    server = start()
    rows, bad = 2_500, 2_100
    ids = [str(n) for n in range(rows)]
    vectors = np.ones((rows, 2), np.float32)
    vectors[bad] = 0
    batches = [
        (ids[first : first + 700], vectors[first : first + 700]) for first in (0, 700, 1_400)
    ]
    seen = []
    with connect(server.address) as client:
        docs = client.create_collection("docs", dimension=2, metric="cosine")
        with pytest.raises(errors.InvalidVector) as caught:
            docs.insert(ids, vectors, batch_size=1_000)
        assert caught.value.details["acknowledged"] == 2_000
        assert f"position {bad} of all" in str(caught.value) == caught.value.message
        seen.append(caught.value)
        other = client.create_collection("other", dimension=2, metric="cosine")
        with pytest.raises(errors.InvalidVector) as caught:
            list(other.ingest([(ids[:2_000], vectors[:2_000]), (ids[2_000:], vectors[2_000:])]))
        seen.append(caught.value)
        with pytest.raises(errors.InvalidVector) as caught:
            docs.upsert(ids[bad - 5 :], vectors[bad - 5 :])
        assert caught.value.details["position"] == 5

    async def ingest() -> None:
        async with aio.connect(server.address) as client:
            made = await client.create_collection("third", dimension=2, metric="cosine")
            with pytest.raises(errors.InvalidVector) as caught:
                async for _ in made.ingest([*batches, (ids[2_100:], vectors[2_100:])]):
                    pass
            seen.append(caught.value)

    asyncio.run(ingest())
    assert [error.details["position"] for error in seen] == [bad] * 3


def test_an_import_goes_on_where_a_batch_of_several_messages_has_stopped(
    run: Run, tmp_path: Path
) -> None:
    """What it says of how to go on is right: on a server part of the batch is stored."""
    rows = [{"id": str(n), "vector": [1.0, n]} for n in range(3_000)]
    source, broken = tmp_path / "rows.jsonl", tmp_path / "broken.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    rows[2_500] = {"id": "2500", "vector": [0.0, 0.0]}
    broken.write_text("\n".join(map(json.dumps, rows)))
    words = ["--create", "--metric", "cosine", "--batch-size", "5000"]
    done = run("import", "docs", str(broken), *words)
    assert done.code == 1
    stored = int(run("count", "docs").out)
    assert (f"--skip {stored}" in done.err) == bool(stored)
    done = run("import", "docs", str(source), "--skip", str(stored))
    assert done.code == 0, done.err
    assert run("count", "docs").out == "3000\n"


def test_a_call_of_a_client_that_is_closed_says_so(start: StartServer) -> None:
    """It is cancelled for grpc.aio, but not for whoever waits for it: that nobody has cancelled."""
    server = start(worker_threads=4)  # so that both may wait
    with connect(server.address) as client:
        filled(client)

    async def ask() -> None:
        client = aio.connect(server.address)
        docs = await client.get_collection("docs")
        waits = asyncio.create_task(docs.count(min_sequence=99, timeout_s=30))
        cancelled = asyncio.create_task(docs.count(min_sequence=98, timeout_s=30))
        await asyncio.sleep(0.3)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await client.close()
        with pytest.raises(errors.Closed, match="while the call was under way"):
            await waits
        assert not waits.cancelled()

    asyncio.run(ask())
