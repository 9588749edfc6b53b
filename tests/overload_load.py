"""A process that sends queries to a server, as fast as they are answered or at a rate, and says what came of them.

    python overload_load.py ADDRESS COLLECTION DIMENSION QUERIES closed CALLERS SECONDS
    python overload_load.py ADDRESS COLLECTION DIMENSION QUERIES open RATE SECONDS

Not through our client, which would wait when it is told to: strangers do not.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from typing import Any

import grpc
import grpc.aio
import numpy as np

from vecdb_client.v1 import vecdb_pb2 as pb
from vecdb_client.v1 import vecdb_pb2_grpc as pb_grpc

TIMEOUT_S = 3.0


class Load:
    def __init__(self, stub: Any, request: Any) -> None:
        self.stub = stub
        self.request = request
        self.codes: Counter[str] = Counter()
        self.took_s: list[float] = []
        self.delays = 0

    async def ask(self) -> None:
        begun = time.monotonic()
        try:
            await self.stub.Query(self.request, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            self.codes[error.code().name] += 1
            trailing = dict(error.trailing_metadata() or ())
            self.delays += "vecdb-retry-after-ms" in trailing
        else:
            self.codes["OK"] += 1
            self.took_s.append(time.monotonic() - begun)

    async def closed(self, callers: int, seconds: float) -> None:
        end = time.monotonic() + seconds

        async def call() -> None:
            while time.monotonic() < end:
                await self.ask()

        await asyncio.gather(*[call() for _ in range(callers)])

    async def open(self, rate: float, seconds: float) -> None:
        begun, sent, tasks = time.monotonic(), 0, set()
        while (passed := time.monotonic() - begun) < seconds:
            for _ in range(int(passed * rate) - sent):
                task = asyncio.ensure_future(self.ask())
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                sent += 1
            await asyncio.sleep(0.005)
        await asyncio.gather(*tasks)


async def main(address: str, name: str, dimension: int, queries: int, how: str, much: float,
               seconds: float) -> None:  # fmt: skip
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((queries, dimension)).astype("<f4")
    request = pb.QueryRequest(
        collection=name, k=10, exact=True,
        vectors=pb.Vectors(data=vectors.tobytes(), count=queries, dimension=dimension),
    )  # fmt: skip
    async with grpc.aio.insecure_channel(address) as channel:
        load = Load(pb_grpc.VecdbServiceStub(channel), request)
        await load.ask()
        load.codes.clear()
        load.took_s.clear()
        begun = time.monotonic()
        if how == "closed":
            await load.closed(int(much), seconds)
        else:
            await load.open(much, seconds)
        took = time.monotonic() - begun
    took_s = sorted(load.took_s) or [0.0]
    print(json.dumps({
        "codes": load.codes, "per_s": load.codes["OK"] / took, "delays": load.delays,
        "p50_s": took_s[len(took_s) // 2], "p99_s": took_s[int(0.99 * (len(took_s) - 1))],
    }))  # fmt: skip


if __name__ == "__main__":
    given = sys.argv[1:]
    asyncio.run(main(given[0], given[1], int(given[2]), int(given[3]), given[4], float(given[5]),
                     float(given[6])))  # fmt: skip
