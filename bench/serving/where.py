"""Where the time of a query through the server goes: the client's threads, the wire, the server, the engine.

    python -m bench serving where

The functions of client and server are timed as they are, from outside, some 0.5 us a call. Server and client have
a process each, on the same machine. The client's threads have one query under way each; queries travel on streams,
several in a message where several wait. Cases take turns, medians of the rounds are given, each of means.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean, median
from time import perf_counter_ns
from typing import Any

import numpy as np

from .. import datasets
from ..children import Child
from ..index.tables import table
from ..stages import Stages
from . import pages
from .queries import NAME, K, fill

IN_FLIGHT = (1, 8)
INCLUDES: dict[str, tuple[str, ...]] = {
    "ids and distances": (),
    "with document and metadata": ("document", "metadata"),
}
_WARM_S = 0.5

SERVER = (
    ("server: limits", "vecdb_server.limits", "Limits.check"),
    ("server: decode", "vecdb_client.wire", "decode_vectors"),
    ("server: decode", "vecdb_client.messages", "decode_includes"),
    ("server: decode", "vecdb_server.query_stream", "_together"),
    ("engine: check and plan", "vecdb.collection", "Collection.query"),
    ("engine: wait for a core", "vecdb.search_lane", "SearchLane.search"),
    ("engine: search", "vecdb.index", "View.search"),
    ("engine: rows to ids", "vecdb.ids", "Ids.take"),
    ("engine: rows to ids", "vecdb.ids", "Ids.take_each"),
    ("engine: fetch", "vecdb.fetching", "fetch"),
    ("server: group and encode", "vecdb_server.query_stream", "_searched"),
    ("server: group and encode", "vecdb_server.query_stream", "_alone"),
    ("server: group and encode", "vecdb_server.query_stream", "_packed"),
    ("server: group and encode", "vecdb_client.answers", "encode_query_result"),
    ("server: message to bytes", "vecdb_server.status", "Border._bytes"),
    ("server: the rest of a stream", "vecdb_server.query_stream", "QueryStreams._message"),
)
_MESSAGE = SERVER[-1][0]
CLIENT = (
    ("client: check and encode", "vecdb_client.reads", "query"),
    ("client: decode", "vecdb_client.answers", "decode_query_result"),
)
_OF_A_QUERY = (
    "client: check and encode",
    "client: wait for a stream",
    "message under way",
    "client: wake the caller",
    "client: decode",
    "client: the rest",
)
_TOTAL = "query, total"
_TRANSPORT = "gRPC of both sides, and the wire"
_OF_A_MESSAGE = (
    "client: make the message",
    _TRANSPORT,
    *dict.fromkeys(name for name, *_ in SERVER),
    "client: hand out the answers",
)


class Asker:
    """Runs in a child: the client's threads, and the clocks beside them."""

    def __init__(self, address: str, queries: np.ndarray[Any, Any]) -> None:
        from vecdb_client import connect

        self._stages = Stages(CLIENT)
        self._clocks = Clocks()
        self._queries = np.ascontiguousarray(queries, np.float32)
        self._collection = connect(address).get_collection(NAME)

    def run(self, callers: int, include: tuple[str, ...], seconds: float) -> None:
        """Asks from so many threads."""

        def ask(first: int, end_s: float) -> None:
            number = first
            while time.perf_counter() < end_s:
                begun_ns = perf_counter_ns()
                self._collection.query(
                    self._queries[number % len(self._queries)], k=K, include=include
                )
                self._clocks.totals_ns.append(perf_counter_ns() - begun_ns)
                number += callers

        end_s = time.perf_counter() + seconds
        threads = [threading.Thread(target=ask, args=(i, end_s)) for i in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def reset(self) -> None:
        self._stages.reset()
        self._clocks.clear()

    def taken(self) -> dict[str, Any]:
        """Mean milliseconds of a query and of a message by part, and what the messages were."""
        clocks, count = self._clocks, len(self._clocks.totals_ns)
        found = {name: 1e3 * taken_s / count for name, taken_s in self._stages.taken_s.items()}
        waits = np.array(clocks.waits_ns, float).mean(axis=0) / 1e6
        found.update(zip(_OF_A_QUERY[1:4], waits.tolist(), strict=True))
        found[_TOTAL] = fmean(clocks.totals_ns) / 1e6
        found["client: the rest"] = found[_TOTAL] - sum(found.get(n, 0.0) for n in _OF_A_QUERY)
        messages = len(clocks.made_ns)
        found["client: make the message"] = sum(clocks.made_ns) / messages / 1e6
        found["client: hand out the answers"] = sum(clocks.handed_ns) / messages / 1e6
        found["exchange"] = sum(clocks.exchanges_ns) / len(clocks.exchanges_ns) / 1e6
        return {
            "ms": found,
            "queries": count,
            "messages": messages,
            "request_bytes": clocks.sent_bytes / messages,
            "answer_bytes": clocks.answer_bytes / messages,
            "absent": self._stages.absent,
        }


class Clocks:
    """Moments in the life of the client's queries and messages. One in a process: it replaces functions."""

    def __init__(self) -> None:
        from vecdb_client import streaming, streams

        self.clear()
        here = threading.local()

        class Asked(streams._Asked):
            __slots__ = ("answered_ns", "sent_ns")

            def __init__(self, *given: Any) -> None:
                super().__init__(*given)
                self.sent_ns = self.answered_ns = perf_counter_ns()
                here.asked = self

        def ask(streams_: Any, *given: Any) -> Any:
            begun_ns = perf_counter_ns()
            answer = plain_ask(streams_, *given)
            if answer is not None:
                ended_ns, asked = perf_counter_ns(), here.asked
                self.waits_ns.append(
                    (
                        asked.sent_ns - begun_ns,
                        asked.answered_ns - asked.sent_ns,
                        ended_ns - asked.answered_ns,
                    )
                )
            return answer

        def parcels(group: Any) -> Any:
            here.begun_ns = perf_counter_ns()
            return plain_parcels(group)

        def message_of(sent: Any) -> Any:
            message = plain_message_of(sent)
            ended_ns = perf_counter_ns()
            for asked in chain.from_iterable(sent):
                asked.sent_ns = ended_ns
            self.made_ns.append(ended_ns - here.begun_ns)
            self.sent_bytes += message.ByteSize()
            return message

        def outcomes_of(answer: Any, parcel: Any) -> Any:
            begun_ns = perf_counter_ns()
            outcomes = plain_outcomes_of(answer, parcel)
            ended_ns = perf_counter_ns()
            for asked in parcel:
                asked.answered_ns = ended_ns
            self.handed_ns.append(ended_ns - begun_ns)
            self.answer_bytes += answer.ByteSize()
            return outcomes

        def exchange(stream: Any, group: Any) -> None:
            begun_ns = perf_counter_ns()
            plain_exchange(stream, group)
            self.exchanges_ns.append(perf_counter_ns() - begun_ns)

        plain_ask, plain_exchange = streams.QueryStreams.ask, streams._Stream.exchange
        plain_parcels, plain_message_of = streaming.parcels, streaming.message_of
        plain_outcomes_of = streaming.outcomes_of
        replaced: Any = streams
        replaced._Asked, replaced.QueryStreams.ask = Asked, ask
        replaced._Stream.exchange = exchange
        replaced.streaming.parcels, replaced.streaming.message_of = parcels, message_of
        replaced.streaming.outcomes_of = outcomes_of

    def clear(self) -> None:
        self.totals_ns: list[int] = []
        self.waits_ns: list[tuple[int, int, int]] = []
        """Of each query: until its message was made, until its answer was read, until its caller went on."""
        self.made_ns: list[int] = []
        self.handed_ns: list[int] = []
        self.exchanges_ns: list[int] = []
        self.sent_bytes = self.answer_bytes = 0


class EchoAsker:
    """Runs in a child."""

    def run(self, address: str, request_bytes: int, seconds: float) -> float:
        """Mean milliseconds of a message on a stream that is echoed, one under way."""
        from queue import SimpleQueue

        import grpc

        message, to_send = b"x" * request_bytes, SimpleQueue[bytes]()
        with grpc.insecure_channel(address) as channel:
            stream = channel.stream_stream("/bench/Stream")(iter(to_send.get, b""))
            taken_ns = []
            warm_s = time.perf_counter() + min(_WARM_S, seconds)
            while (begun_s := time.perf_counter()) < warm_s + seconds:
                begun_ns = perf_counter_ns()
                to_send.put(message)
                next(stream)
                if begun_s > warm_s:
                    taken_ns.append(perf_counter_ns() - begun_ns)
            to_send.put(b"")
        return fmean(taken_ns) / 1e6


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench serving where", description=__doc__)
    parser.add_argument("--rows", type=int, help="rows to take; default: all of the set")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each figure (default 2)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--in-flight", type=int, nargs="+", default=list(IN_FLIGHT))
    parser.add_argument("--results", type=Path, default=Path("bench/results"))
    args = parser.parse_args(arguments)
    results = pages.begun("serving", "where", *arguments)
    dataset = datasets.load(args.rows, 1_000, 1)
    results["dataset"] = {"name": dataset.name, "rows": len(dataset.ids)}
    results["dimension"] = int(dataset.vectors.shape[1])
    with (
        tempfile.TemporaryDirectory(prefix="vecdb-bench-") as folder,
        Child("bench.serving.inside:Server", Path(folder), SERVER, {}) as server,
    ):
        _fill(server.call("address"), dataset)
        results["rounds"] = [
            _round(server, dataset.queries, args.in_flight, args.seconds)
            for _ in range(args.rounds)
        ]
        server.call("stop")
    pages.save(args.results, "serving-where", results, page(results))
    return 0


def _fill(address: str, dataset: datasets.Dataset) -> None:
    from vecdb_client import connect

    with connect(address, timeout_s=600) as client:
        fill(client.create_collection(NAME, dimension=dataset.vectors.shape[1]), dataset)


def _round(
    server: Child, queries: Any, in_flight: Sequence[int], seconds: float
) -> list[dict[str, Any]]:
    """The figures of all cases."""
    found = []
    for what, include in INCLUDES.items():
        for callers in in_flight:
            with Child("bench.serving.where:Asker", server.call("address"), queries) as asker:
                asker.call("run", callers, include, min(_WARM_S, seconds))
                asker.call("reset")
                server.call("reset")
                asker.call("run", callers, include, seconds)
                here, there = asker.call("taken"), server.call("taken")
            ms = here["ms"]
            messages = there["calls"][_MESSAGE]
            parts = {name: 1e3 * s / messages for name, s in there["taken_s"].items()}
            own = ms["client: make the message"] + ms["client: hand out the answers"]
            ms[_TRANSPORT] = ms["exchange"] - own - sum(parts.values())
            ms.update(parts)
            with (
                Child("bench.serving.queries:Echo", round(here["answer_bytes"])) as echo,
                Child("bench.serving.where:EchoAsker") as asker,
            ):
                address, size = echo.call("address"), round(here["request_bytes"])
                ms["echo"] = asker.call("run", address, size, seconds / 2)
            absent = here.pop("absent") + there["absent"]
            found.append(
                {"what": what, "in_flight": callers, **here, "absent": absent, "seconds": seconds}
            )
    return found


def page(results: dict[str, Any]) -> str:
    """The page of a run."""
    rounds = results["rounds"]
    cases = list(zip(*rounds, strict=True))

    def line(label: str, name: str) -> tuple[str, ...]:
        return (label, *(f"{median(one['ms'][name] for one in case):.3f}" for case in cases))

    def figure(label: str, of: Any, digits: int) -> tuple[str, ...]:
        return (label, *(f"{median(map(of, case)):,.{digits}f}" for case in cases))

    header = ("", *(f"{case[0]['in_flight']} in flight, {case[0]['what']}" for case in cases))
    of_a_query = [line(name, name) for name in (*_OF_A_QUERY, _TOTAL)]
    of_a_query.append(figure("queries a second", lambda one: one["queries"] / one["seconds"], 0))
    of_a_message = [line(name, name) for name in _OF_A_MESSAGE]
    of_a_message += [
        line("message, total", "exchange"),
        line("bare echo of the same bytes", "echo"),
        figure("queries a message", lambda one: one["queries"] / one["messages"], 1),
        figure("bytes of a request", lambda one: one["request_bytes"], 0),
        figure("bytes of an answer", lambda one: one["answer_bytes"], 0),
    ]
    absent = sorted({name for case in cases for one in case for name in one["absent"]})
    missing = [f"Not timed, because not found: {', '.join(absent)}.\n"] if absent else []
    data = results["dataset"]
    return pages.page(
        "Where the time of a query goes",
        results,
        (
            f"{data['name']}: {data['rows']:,} rows of {results['dimension']} dimensions, k = {K}; the client's "
            f"threads, queries on streams, server and client on the same machine; medians of {len(rounds)} rounds "
            f"of {rounds[0][0]['seconds']:g} s.\n",
            "## A query, as its caller sees it\n\nMean milliseconds.\n",
            table(header, of_a_query),
            "## A message, which carries what waits\n\nMean milliseconds, each part without those inside it. gRPC "
            "and the wire are what is left of the whole: serializing, its threads and their turns for the "
            "interpreter, sockets, and reading of messages.\n",
            table(header, of_a_message),
            *missing,
        ),
    )
