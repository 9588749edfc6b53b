"""What an ingest refuses that is no iterable of batches, and in which words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from conftest import StartServer

from vecdb_client import aio, connect, errors

BATCH = {"ids": ["a"], "vectors": [[1.0, 2.0]]}


async def asynchronous() -> AsyncIterator[Any]:
    yield BATCH


CASES = [
    (BATCH, r"takes an iterable of batches, given one batch \(dict\); give \[batch\], or use insert"),
    ("ids", "takes an iterable of batches, given str$"),
    (None, "takes an iterable of batches, given NoneType$"),
    ([["a"], np.ones((1, 2))], r"a batch of an ingest is .*, given list; .* of one, \[batch\]"),
    ((["a"], [[1.0, 2.0]]), r"a batch of an ingest is .*, given list; .* of one, \[batch\]"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "expected"), CASES, ids=["a mapping", "a text", "none", "list", "tuple"]
)
def test_what_is_no_iterable_of_batches_is_called_so(
    start: StartServer, given: Any, expected: str
) -> None:
    """By both clients, whichever way somebody gives one batch; nothing is written."""
    server = start()
    with connect(server.address) as client:
        docs = client.create_collection("docs", dimension=2)
        with pytest.raises(errors.InvalidBatch, match=expected):
            list(docs.ingest(given))

        async def ingest() -> None:
            async with aio.connect(server.address) as db:
                async for _ in (await db.get_collection("docs")).ingest(given):
                    pass

        with pytest.raises(errors.InvalidBatch, match=expected):
            asyncio.run(ingest())
        assert docs.count() == 0


def test_records_and_asynchronous_batches(start: StartServer) -> None:
    """Records of a scan are one batch; an asynchronous iterable is for the asyncio client, and the other says so."""
    server = start()
    with connect(server.address) as client:
        docs = client.create_collection("docs", dimension=2)
        docs.insert(["a"], [[1, 2]])
        page = next(docs.scan(include=["vector"]))
        with pytest.raises(
            errors.InvalidBatch, match=r"given one batch \(Records\); give \[batch\]"
        ):
            list(docs.ingest(page, upsert=True))
        assert [one.count for one in docs.ingest([page], upsert=True)] == [1]
        with pytest.raises(errors.InvalidBatch, match="asynchronous ones are for"):
            list(docs.ingest(asynchronous(), upsert=True))  # type: ignore[arg-type]

        async def ingest() -> list[int]:
            async with aio.connect(server.address) as db:
                made = await db.get_collection("docs")
                return [one.count async for one in made.ingest(asynchronous(), upsert=True)]

        assert asyncio.run(ingest()) == [1]
