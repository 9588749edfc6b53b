"""A caller who meets no other: its stream, without a thread between, and whatever may become of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import StartServer, wait_until

from vecdb_client import alone, connect, errors, streaming, streams
from vecdb_client.v1 import vecdb_pb2 as pb


class Ended(grpc.RpcError):
    """What gRPC raises for a stream that was cancelled."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.CANCELLED


class Stream:
    """Answers each query with its own k as the sequence. `before` is called with each k before its answer."""

    made: list[Stream]
    before: Callable[[Stream, int], None]

    def __init__(self, messages: Iterator[Any]) -> None:
        self.messages, self.asked = messages, 0
        self.cancelled = threading.Event()
        type(self).made.append(self)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Any:
        if self.cancelled.is_set():
            raise Ended
        (streamed,) = next(self.messages).queries
        self.asked += 1
        type(self).before(self, streamed.query.k)
        if self.cancelled.is_set():
            raise Ended
        answer = pb.QueryResponse(sequence=streamed.query.k)
        return pb.QueryStreamResponse(answers=[pb.StreamedAnswer(position=0, answer=answer)])

    def cancel(self) -> None:
        self.cancelled.set()


@pytest.fixture
def opened() -> type[Stream]:
    """Streams that a client opens, those of this test alone."""

    class Mine(Stream):
        made: list[Stream] = []
        before = staticmethod(lambda stream, k: None)

    return Mine


@pytest.fixture
def owner(opened: type[Stream]) -> Iterator[streams.QueryStreams]:
    made = streams.QueryStreams(opened)
    made._queries = streaming.FEW_QUERIES
    yield made
    made.close()
    wait_until(lambda: not lookers(), "the thread that looks has ended")


def lookers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "vecdb-alone"]


def ask(owner: streams.QueryStreams, k: int, timeout_s: float | None = 60.0) -> int | None:
    found = owner.ask(pb.QueryRequest(collection="docs", k=k), timeout_s)
    return None if found is None else int(found.sequence)


def test_one_caller_has_one_stream_and_wakes_nobody(owner: Any, opened: type[Stream]) -> None:
    """However often it asks."""
    assert [ask(owner, k) for k in range(1, 50)] == list(range(1, 50))
    assert [one.asked for one in opened.made] == [49]
    assert owner._threads == 0, "no thread stands between a caller and its stream"
    assert len(lookers()) == 1


def test_callers_who_meet_share_messages_for_a_while(
    owner: Any, opened: type[Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one waits for its answer the other goes by the other streams, and both do then."""
    monkeypatch.setattr(alone, "COMPANY_S", 0.5)
    there, go_on = threading.Event(), threading.Event()

    def before(stream: Stream, k: int) -> None:
        if k == 1:
            there.set()
            assert go_on.wait(10)

    opened.before = staticmethod(before)  # type: ignore[assignment]
    found: list[Any] = []
    first = threading.Thread(target=lambda: found.append(ask(owner, 1)))
    first.start()
    assert there.wait(10)
    begun_s = time.monotonic()
    assert ask(owner, 2) == 2
    assert len(opened.made) == 2
    go_on.set()
    first.join()
    assert found == [1]
    assert opened.made[0].cancelled.is_set(), "in company nobody needs it"
    assert ask(owner, 3) == 3
    if time.monotonic() < begun_s + 0.5:
        assert [one.asked for one in opened.made] == [1, 2]
    wait_until(lambda: ask(owner, 4) == 4 and len(opened.made) == 3, "it goes alone again")


@pytest.mark.parametrize("timeout_s", [0.5, 3.0])
def test_who_cannot_wait_long_leaves_the_stream_to_others(owner: Any, timeout_s: float) -> None:
    """A caller that leaves at its deadline would take the stream along."""
    assert ask(owner, 5, timeout_s) == 5
    assert owner._threads == 1
    assert not lookers()


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_the_answer_of_a_query_that_was_interrupted_is_nobodys(
    owner: Any, opened: type[Stream], error: type[BaseException]
) -> None:
    """Its stream is ended, whatever is still on the way there."""

    def before(stream: Stream, k: int) -> None:
        if k == 2:
            raise error

    opened.before = staticmethod(before)  # type: ignore[assignment]
    assert ask(owner, 1) == 1
    if error is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            ask(owner, 2)
    else:
        assert ask(owner, 2) is None, "it is sent as a call"
        owner._alone._rests_until_s = 0.0
    assert opened.made[0].cancelled.is_set()
    assert [ask(owner, k) for k in (3, 4)] == [3, 4]
    assert [one.asked for one in opened.made] == [2, 2]


def test_a_stream_that_breaks_sends_its_query_as_a_call_and_rests(
    owner: Any, opened: type[Stream]
) -> None:
    """Meanwhile queries go by the streams that are shared."""

    def before(stream: Stream, k: int) -> None:
        if k == 2:
            stream.cancel()

    opened.before = staticmethod(before)  # type: ignore[assignment]
    assert [ask(owner, k) for k in (1, 2, 3)] == [1, None, 3]
    assert owner._threads == 1, "while it rests, by the other streams"
    assert len(opened.made) == 2
    owner._alone._rests_until_s = 0.0
    assert ask(owner, 4) == 4
    assert len(opened.made) == 3


@pytest.mark.parametrize("response", [None, pb.QueryStreamResponse()])
def test_a_stream_that_ends_or_says_nothing_is_not_believed(owner: Any, response: Any) -> None:
    """Its query is sent as a call."""

    class Odd(Stream):
        made: list[Stream] = []

        def __next__(self) -> Any:
            if response is None:
                raise StopIteration
            return response

    owner._alone = alone.Alone(Odd)
    assert ask(owner, 1) is None
    assert Odd.made[0].cancelled.is_set()


def test_a_server_that_says_nothing_is_waited_for_until_the_deadline(
    owner: Any, opened: type[Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the stream is ended, and the next query has another."""
    monkeypatch.setattr(alone, "LEAST_S", 0.3)

    def before(stream: Stream, k: int) -> None:
        if k == 2:
            assert stream.cancelled.wait(10)

    opened.before = staticmethod(before)  # type: ignore[assignment]
    assert ask(owner, 1) == 1
    begun_s = time.monotonic()
    with pytest.raises(errors.DeadlineExceeded):
        ask(owner, 2, 0.4)
    assert 0.4 <= time.monotonic() - begun_s < 5
    assert ask(owner, 3) == 3
    assert len(opened.made) == 2


def test_a_stream_that_was_ended_for_the_query_before_costs_the_next_nothing(
    owner: Any, opened: type[Stream]
) -> None:
    """Its own time is not over: it is sent as a call."""

    def before(stream: Stream, k: int) -> None:
        if k == 2:
            owner._alone._waits[0].end()

    opened.before = staticmethod(before)  # type: ignore[assignment]
    assert [ask(owner, 1), ask(owner, 2)] == [1, None]


def test_a_stream_that_nobody_uses_is_closed_and_opened_anew(
    owner: Any, opened: type[Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while, with the thread that looks after it."""
    monkeypatch.setattr(streaming, "IDLE_S", 0.2)
    assert ask(owner, 1) == 1
    wait_until(lambda: not lookers(), "the thread that looks has ended")
    assert opened.made[0].cancelled.is_set()
    assert ask(owner, 2) == 2
    assert len(opened.made) == 2


def test_without_a_thread_more_queries_are_calls(
    owner: Any, opened: type[Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process at its limit of threads loses no query; once it has one it goes alone again."""

    def refused(*_: Any) -> Any:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        assert ask(owner, 1) is None
    owner._alone._rests_until_s = 0.0
    assert ask(owner, 2) == 2
    assert len(lookers()) == 1


def test_answers_are_those_of_each_caller(start: StartServer) -> None:
    """Callers who come and go, alone and together, each get their own answers."""
    vectors = np.random.default_rng(3).standard_normal((200, 8), dtype=np.float32)
    wrong: list[int] = []
    with connect(start().address) as client:
        docs = client.create_collection("docs", dimension=8, metric="l2")
        docs.insert([str(n) for n in range(200)], vectors)

        def work(number: int) -> None:
            rng = np.random.default_rng(number)
            for _ in range(150):
                row = int(rng.integers(200))
                if docs.query(vectors[row], k=1).ids != [[str(row)]]:
                    wrong.append(row)
                if rng.random() < 0.05:
                    time.sleep(0.02)

        for count in (1, 3, 1):
            client._connection._streams._alone._company_until_s = 0.0
            threads = [threading.Thread(target=work, args=(n,)) for n in range(count)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert not wrong
        assert client._connection._streams._alone._stream is not None
    wait_until(lambda: not lookers(), "a closed client leaves no thread behind")
