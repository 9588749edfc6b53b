"""What the network costs: single queries a second through the server, beside bare echoes of the same bytes.

    python -m bench serving

A server and, beside it, a process that echoes: both are gRPC's synchronous server with a thread a core. A third
process asks: asyncio tasks or threads, each with one query under way. vecdb's clients open streams by themselves,
except in the line "calls". Callers of the echo send what a query weighs and get what its answer weighs, as calls
or on one stream. Then several processes ask at once, each one caller with a connection of its own, of the echo too.
Rounds are interleaved, medians are given.

At half load queries come by chance, on average half as many a second as the asyncio client had answered at most,
whatever the answers take: so none waits because an earlier one is late.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from .. import datasets, measure
from ..children import Child
from ..index.tables import table
from ..peers.server import Server
from . import pages

NAME = "bench"
K = 10
IN_FLIGHT = (1, 8, 32)
PROCESSES = (8,)
KINDS = ("echo, calls", "echo, stream", "vecdb, calls", "vecdb, asyncio", "vecdb, threads")
_WARM_S = 0.7
_LOAD_S = 0.05
_STREAMS = 64
"""Threads of the echo for streams: as many as vecdb's server has by default (query_streams)."""
_BATCH = 5_000


def fill(collection: Any, dataset: datasets.Dataset) -> None:
    """Inserts everything into a collection, the client's or the engine's, and waits for its index."""
    for start in range(0, len(dataset.ids), _BATCH):
        part = slice(start, start + _BATCH)
        collection.insert(
            dataset.ids[part],
            dataset.vectors[part],
            metadata=dataset.metadata[part],
            documents=dataset.documents[part],
        )
    collection.build_index(wait=True, timeout_s=86_400)


class Served:
    """vecdb's server in a process of its own, with one collection; reached through the loopback device."""

    def __init__(self, folder: Path, dimension: int) -> None:
        from vecdb_client import connect

        words = ["-m", "vecdb_server", "serve", "--data", str(folder), "--port", "0"]
        self._server = Server([sys.executable, *words], heard=True)
        self.client = connect(self._server.first_line().split()[-1], timeout_s=600)
        self.collection = self.client.create_collection(NAME, dimension=dimension)

    def close(self) -> None:
        self.client.close()
        self._server.stop()


class Echo:
    """A server that answers whatever it is sent with as many bytes as an answer has."""

    def __init__(self, answer_bytes: int) -> None:
        import grpc

        answer = b"x" * answer_bytes

        def echo_all(requests: Any, context: Any) -> Any:
            return (answer for _ in requests)

        # A stream keeps its thread: without others further ones would wait until the first are closed. gRPC looks for
        # this attribute, as in vecdb's server.
        echo_all.experimental_thread_pool = ThreadPoolExecutor(_STREAMS)  # type: ignore[attr-defined]

        class Handlers(grpc.GenericRpcHandler):  # type: ignore[misc,unused-ignore]
            def service(self, details: Any) -> Any:
                if details.method == "/bench/Call":
                    return grpc.unary_unary_rpc_method_handler(lambda request, context: answer)
                return grpc.stream_stream_rpc_method_handler(echo_all)

        self._server = grpc.server(ThreadPoolExecutor(max(2, os.cpu_count() or 1)))
        self._server.add_generic_rpc_handlers((Handlers(),))
        self._port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def address(self) -> str:
        return f"127.0.0.1:{self._port}"


class Load:
    """Asks for a while, from so many callers, each with one query under way."""

    def __init__(self, echo: str, server: str, queries: np.ndarray[Any, Any]) -> None:
        self._echo, self._server = echo, server
        self._queries = np.ascontiguousarray(queries, np.float32)

    def run(self, kind: str, callers: int, seconds: float) -> dict[str, float]:
        """Queries a second, p50 and p99 in ms, and the cores that asking took."""
        if kind == "vecdb, threads":
            return self._threads(callers, seconds)
        ask = {
            "echo, calls": self._calls,
            "echo, stream": self._stream,
            "vecdb, calls": self._client_calls,
            "vecdb, asyncio": self._client,
        }[kind]
        return asyncio.run(ask(callers, seconds))

    async def _calls(self, callers: int, seconds: float) -> dict[str, float]:
        import grpc.aio

        async with grpc.aio.insecure_channel(self._echo) as channel:
            call = channel.unary_unary("/bench/Call")

            async def one(number: int) -> None:
                await call(self._queries[number].tobytes())

            return await self._tasks(one, callers, seconds)

    async def _stream(self, callers: int, seconds: float) -> dict[str, float]:
        import grpc.aio

        async with grpc.aio.insecure_channel(self._echo) as channel:
            stream = channel.stream_stream("/bench/Stream")()
            waiting: deque[asyncio.Future[None]] = deque()
            writing = asyncio.Lock()

            async def read() -> None:
                while await stream.read() is not grpc.aio.EOF:
                    waiting.popleft().set_result(None)

            async def one(number: int) -> None:
                answered = asyncio.get_running_loop().create_future()
                async with writing:
                    waiting.append(answered)
                    await stream.write(self._queries[number].tobytes())
                await answered

            reader = asyncio.create_task(read())
            found = await self._tasks(one, callers, seconds)
            reader.cancel()
            stream.cancel()
            return found

    async def _client_calls(self, callers: int, seconds: float) -> dict[str, float]:
        """The asyncio client, kept from opening streams."""
        from vecdb_client import streaming

        streaming.FEW_QUERIES = 1 << 60  # this process runs nothing else
        return await self._client(callers, seconds)

    async def _client(self, callers: int, seconds: float) -> dict[str, float]:
        from vecdb_client.aio import connect

        async with connect(self._server) as client:
            collection = await client.get_collection(NAME)

            async def one(number: int) -> None:
                await collection.query(self._queries[number], k=K)

            return await self._tasks(one, callers, seconds)

    def paced(self, rate: float, seconds: float) -> dict[str, float]:
        """Queries of the asyncio client that come `rate` times a second, by an exponential clock of a fixed seed."""

        async def all_ask() -> dict[str, float]:
            from vecdb_client.aio import connect

            async with connect(self._server) as client:
                collection = await client.get_collection(NAME)
                await self._at(collection, rate, min(_WARM_S, seconds))
                return await self._at(collection, rate, seconds)

        return asyncio.run(all_ask())

    async def _at(self, collection: Any, rate: float, seconds: float) -> dict[str, float]:
        rng, taken_s, under_way = np.random.default_rng(1), list[float](), set[asyncio.Task[None]]()

        async def one(number: int) -> None:
            sent_s = time.perf_counter()
            await collection.query(self._queries[number % len(self._queries)], k=K)
            taken_s.append(time.perf_counter() - sent_s)

        begun_s, used_s = time.perf_counter(), time.process_time()
        due_s, number = begun_s, 0
        while due_s < begun_s + seconds:
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            task = asyncio.create_task(one(number))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            due_s, number = due_s + float(rng.exponential(1 / rate)), number + 1
        await asyncio.gather(*under_way)
        return _figures(taken_s, time.perf_counter() - begun_s, time.process_time() - used_s)

    async def _tasks(
        self, one: Callable[[int], Awaitable[None]], callers: int, seconds: float
    ) -> dict[str, float]:
        async def ask(first: int, end_s: float, taken_s: list[float]) -> None:
            number = first
            while (begun_s := time.perf_counter()) < end_s:
                await one(number % len(self._queries))
                taken_s.append(time.perf_counter() - begun_s)
                number += callers

        async def all_ask(seconds: float) -> dict[str, float]:
            taken_s: list[float] = []
            begun_s, used_s = time.perf_counter(), time.process_time()
            end_s = begun_s + seconds
            await asyncio.gather(*[ask(i, end_s, taken_s) for i in range(callers)])
            return _figures(taken_s, time.perf_counter() - begun_s, time.process_time() - used_s)

        await all_ask(min(_WARM_S, seconds))
        return await all_ask(seconds)

    def _threads(self, callers: int, seconds: float) -> dict[str, float]:
        from vecdb_client import connect

        with connect(self._server) as client:
            collection = client.get_collection(NAME)

            def ask(first: int, end_s: float, taken_s: list[float]) -> None:
                number = first
                while (begun_s := time.perf_counter()) < end_s:
                    collection.query(self._queries[number % len(self._queries)], k=K)
                    taken_s.append(time.perf_counter() - begun_s)
                    number += callers

            def all_ask(seconds: float) -> dict[str, float]:
                taken_s: list[float] = []
                begun_s, used_s = time.perf_counter(), time.process_time()
                end_s = begun_s + seconds
                threads = [
                    threading.Thread(target=ask, args=(i, end_s, taken_s)) for i in range(callers)
                ]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                took_s = time.perf_counter() - begun_s
                return _figures(taken_s, took_s, time.process_time() - used_s)

            all_ask(min(_WARM_S, seconds))
            return all_ask(seconds)


def asked(
    load: tuple[Any, ...], kind: str, processes: int, callers: int, seconds: float
) -> dict[str, float]:
    """`Load.run` of several processes at once: the sum of what they were answered and used, the median of their p50, the
    worst p99. `load` is what a `Load` is made of."""
    # A process for each: what one client leaves behind must not be in the way of the next.
    askers = [Child("bench.serving.queries:Load", *load) for _ in range(processes)]
    try:
        with ThreadPoolExecutor(processes) as pool:

            def all_run(seconds: float) -> list[dict[str, float]]:
                return list(pool.map(lambda one: one.call("run", kind, callers, seconds), askers))

            if processes > 1:
                # They load what they need first, or some would be done before others have begun.
                all_run(_LOAD_S)
            found = all_run(seconds)
    finally:
        for one in askers:
            one.close()
    return {
        "queries_per_s": sum(one["queries_per_s"] for one in found),
        "p50_ms": median(one["p50_ms"] for one in found),
        "p99_ms": max(one["p99_ms"] for one in found),
        "cores_of_the_asker": sum(one["cores_of_the_asker"] for one in found),
    }


def _figures(taken_s: list[float], took_s: float, used_s: float) -> dict[str, float]:
    p50_s, p99_s = np.percentile(taken_s, [50, 99])
    return {
        "queries_per_s": len(taken_s) / took_s,
        "p50_ms": 1e3 * float(p50_s),
        "p99_ms": 1e3 * float(p99_s),
        "cores_of_the_asker": used_s / took_s,
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench serving", description=__doc__)
    parser.add_argument("--rows", type=int, help="rows to take; default: all of the set")
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each figure (default 3)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--in-flight", type=int, nargs="+", default=list(IN_FLIGHT))
    parser.add_argument(
        "--processes", type=int, nargs="*", default=list(PROCESSES), help="of one caller each"
    )
    parser.add_argument("--results", type=Path, default=Path("bench/results"))
    args = parser.parse_args(arguments)
    # (processes, callers of each)
    cases = [(1, callers) for callers in args.in_flight] + [(count, 1) for count in args.processes]
    results = {
        **pages.begun("serving", *arguments),
        **run(args.rows, args.queries, args.seconds, args.rounds, cases),
    }
    pages.save(args.results, "serving", results, page(results))
    return 0


def run(
    rows: int | None,
    queries: int,
    seconds: float,
    rounds: int,
    cases: Sequence[tuple[int, int]],
) -> dict[str, Any]:
    dataset = datasets.load(rows, queries, 1)
    truth = dataset.truth(K)
    with tempfile.TemporaryDirectory(prefix="vecdb-bench-") as folder:
        served = Served(Path(folder), dataset.vectors.shape[1])
        try:
            fill(served.collection, dataset)
            found = served.collection.query(dataset.queries, k=K, include=()).ids
            recall = measure.recall(dataset, found, truth)
            answer_bytes = 4 * K + sum(map(len, found[0])) + 2 * K + 16
            with Child("bench.serving.queries:Echo", answer_bytes) as echo:
                load = (echo.call("address"), served.client.target, dataset.queries)
                figures = _rounds(load, seconds, rounds, cases)
                half = _at_half(load, seconds, rounds, figures)
        finally:
            served.close()
    return {
        "dataset": {"name": dataset.name, "rows": len(dataset.ids)},
        "dimension": int(dataset.vectors.shape[1]),
        "recall": recall,
        "answer_bytes": answer_bytes,
        "rounds": rounds,
        "seconds": seconds,
        "figures": figures,
        "half_load": half,
    }


def _rounds(
    load: tuple[Any, ...], seconds: float, rounds: int, cases: Sequence[tuple[int, int]]
) -> list[dict[str, Any]]:
    seen: dict[tuple[int, int, str], list[dict[str, float]]] = {}
    for _ in range(rounds):
        for processes, callers in cases:
            for kind in KINDS:
                one = asked(load, kind, processes, callers, seconds)
                seen.setdefault((processes, callers, kind), []).append(one)
    return [
        {
            "processes": processes,
            "in_flight": processes * callers,
            "kind": kind,
            **{name: median(one[name] for one in all_) for name in all_[0]},
            "lowest": min(one["queries_per_s"] for one in all_),
            "highest": max(one["queries_per_s"] for one in all_),
        }
        for (processes, callers, kind), all_ in seen.items()
    ]


def _at_half(
    load: tuple[Any, ...], seconds: float, rounds: int, figures: list[dict[str, Any]]
) -> dict[str, float]:
    """Medians at half of the most that the asyncio client had answered; `asked` is what should come a second."""
    alone = [f for f in figures if f["processes"] == 1]
    most = max(f["queries_per_s"] for f in alone if f["kind"] == "vecdb, asyncio")
    seen = []
    for _ in range(rounds):
        with Child("bench.serving.queries:Load", *load) as asker:
            seen.append(asker.call("paced", most / 2, seconds))
    return {"asked": most / 2, **{name: median(one[name] for one in seen) for name in seen[0]}}


def page(results: dict[str, Any]) -> str:
    """The page of a run."""
    half = results["half_load"]
    dataset = results["dataset"]

    def share(of: dict[str, Any], kind: str) -> str:
        """Of what callers of this kind got who were as many, in as many processes."""
        (same,) = [
            f
            for f in results["figures"]
            if (f["processes"], f["in_flight"], f["kind"])
            == (of["processes"], of["in_flight"], kind)
        ]
        return f"{of['queries_per_s'] / same['queries_per_s']:.2f}"

    lines = [
        (
            str(f["in_flight"]),
            f["kind"] if f["processes"] == 1 else f"{f['kind']}, {f['processes']} processes",
            f"{f['queries_per_s']:,.0f} ({f['lowest']:,.0f}-{f['highest']:,.0f})",
            f"{f['p50_ms']:.2f}",
            f"{f['p99_ms']:.2f}",
            share(f, "echo, calls"),
            share(f, "echo, stream"),
            f"{f['cores_of_the_asker']:.2f}",
        )
        for f in results["figures"]
    ]
    header = ("in flight", "who", "queries/s", "p50, ms", "p99, ms", "of calls", "of stream",
              "cores of the asker")  # fmt: skip
    return pages.page(
        "Queries through the server",
        results,
        (
            f"{dataset['name']}: {dataset['rows']:,} rows of {results['dimension']} dimensions, k = {K}, ids and "
            f"distances, recall@10 {results['recall']:.3f}; an answer has {results['answer_bytes']} bytes. Server "
            f"and asker on the same machine; medians of {results['rounds']} rounds of {results['seconds']:g} s, "
            "lowest and highest rate in brackets. Several processes have one caller each: the sum of what they were "
            "answered and used, the median of p50, the worst p99.\n",
            table(header, lines),
            f"At half load, {half['asked']:,.0f} queries a second that come by chance, asyncio client:"
            f" {half['queries_per_s']:,.0f} answered a second, p50 {half['p50_ms']:.2f} ms, p99"
            f" {half['p99_ms']:.2f} ms, {half['p99_ms'] / half['p50_ms']:.1f} times as long.\n",
        ),
    )
