"""The streams of the asyncio client as they begin and end; what travels on them is in `test_query_streams.py`."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from vecdb_client import streaming
from vecdb_client.aio.streams import QueryStreams
from vecdb_client.v1 import vecdb_pb2 as pb


class Answering:
    """A stream in this process: answers each query of a message at once."""

    async def write(self, message: Any) -> None:
        self._count = len(message.queries)

    async def read(self) -> Any:
        await asyncio.sleep(0)
        answers = [
            pb.StreamedAnswer(position=i, answer=pb.QueryResponse()) for i in range(self._count)
        ]
        return pb.QueryStreamResponse(answers=answers)

    def cancel(self) -> None:
        pass


def test_a_query_at_the_moment_streams_end_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks just when both idle streams of an asyncio client end waits for neither."""
    monkeypatch.setattr(streaming, "IDLE_S", 0.1)

    async def work() -> None:
        loop, asked = asyncio.get_running_loop(), pb.QueryRequest()
        streams = QueryStreams(Answering)
        for _ in range(streaming.FEW_QUERIES):
            assert await streams.ask(asked, 5) is None
        await asyncio.gather(*[streams.ask(asked, 5) for _ in range(streaming.MOST_STREAMS)])
        late: list[Any] = []
        loop.call_later(0.15, lambda: late.append(loop.create_task(streams.ask(asked, 1))))
        await asyncio.sleep(0.01)
        # A busy loop: the alarms of both, and the query, are due at once.
        time.sleep(0.3)  # noqa: ASYNC251
        await asyncio.sleep(0.01)
        assert await late[0] is not None
        await streams.close()

    asyncio.run(work())


def test_a_query_at_the_moment_of_closing_is_sent_as_a_call() -> None:
    """Closing gives a query back to its caller also where its stream had not begun."""

    async def work() -> None:
        streams = QueryStreams(Answering)
        for _ in range(streaming.FEW_QUERIES):
            assert await streams.ask(pb.QueryRequest(), 5) is None
        asked = asyncio.create_task(streams.ask(pb.QueryRequest(), 1))
        await asyncio.sleep(0)
        await streams.close()
        assert await asked is None

    asyncio.run(work())
