"""A server is started again under load: clients that retry lose nothing and see nothing twice."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from conftest import wait_until
from server_process import spawn

import vecdb
from vecdb_client import aio, connect

RESTARTS = 2
CALLERS = 3


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


class Traffic:
    """Callers that write and read until told to end. Each call must be answered, however often it was sent."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.end = threading.Event()
        self.failures: list[BaseException] = []
        self.inserted: list[str] = []
        self.queries = 0
        self.threads = [
            threading.Thread(target=self._guarded, args=(work, n))
            for n in range(CALLERS)
            for work in (self._insert, self._query)
        ]

    def _guarded(self, work: Any, number: int) -> None:
        try:
            with connect(self.address, timeout_s=60, retry_s=45) as client:
                work(client.get_collection("docs"), number)
        except BaseException as error:
            self.failures.append(error)

    def goes_on(self) -> None:
        """Waits until 50 more calls of each kind were answered."""
        before = len(self.inserted), self.queries
        wait_until(
            lambda: (
                bool(self.failures)
                or (len(self.inserted) > before[0] + 50 and self.queries > before[1] + 50)
            ),
            "inserts and queries are answered",
            limit_s=60,
        )
        assert self.failures == []

    def _insert(self, docs: Any, number: int) -> None:
        n = 0
        while not self.end.is_set():
            # insert, not upsert: a repetition that is not known as one would be refused.
            name = f"{number}-{n}"
            docs.insert([name], np.ones((1, 4)))
            self.inserted.append(name)
            n += 1
            time.sleep(0.002)

    def _query(self, docs: Any, number: int) -> None:
        while not self.end.is_set():
            assert len(docs.query([1, 1, 1, 1], k=1).ids[0]) == 1
            self.queries += 1
            time.sleep(0.002)


def test_a_restart_loses_no_call_of_clients_that_retry(tmp_path: Path) -> None:
    """While a server is stopped by SIGTERM and started again on its port, every insert and query of clients that
    retry is answered; each record is there once."""
    folder, port = tmp_path / "db", free_port()
    process, address = spawn(folder, "--log-level", "error", port=port)
    try:
        with connect(address) as client:
            client.create_collection("docs", dimension=4).insert(["first"], np.ones((1, 4)))
        traffic = Traffic(address)
        for thread in traffic.threads:
            thread.start()
        for _ in range(RESTARTS):
            traffic.goes_on()
            process.terminate()
            _, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
            process, _ = spawn(folder, "--log-level", "error", port=port)
        traffic.goes_on()
        traffic.end.set()
        for thread in traffic.threads:
            thread.join(90)
        assert traffic.failures == []
    finally:
        process.terminate()
        process.communicate(timeout=60)
    with vecdb.open(folder, device="cpu") as database:
        docs = database.get_collection("docs")
        assert docs.count() == len(traffic.inserted) + 1
        assert len(docs.get(traffic.inserted[-500:], include=[])) == len(traffic.inserted[-500:])
        assert docs.check().ok


DRAIN_S = 6
"""Longer than calls are repeated for before a server has answered their client."""


def test_a_restart_beside_a_scan_loses_no_call_of_clients_as_they_come(tmp_path: Path) -> None:
    """Clients that say nothing of repetitions wait for a server that a running scan keeps from ending, and for the next
    one; the scan goes on there and gives each record once."""
    folder, port = tmp_path / "db", free_port()
    flags = ("--log-level", "error", "--drain-timeout-s", str(DRAIN_S))
    process, address = spawn(folder, *flags, port=port)
    ids = [f"r{n}" for n in range(40)]
    answered, failures, end = Counter[str](), list[BaseException](), threading.Event()

    def calls(name: str, call: Any) -> None:
        try:
            while not end.is_set():
                call()
                answered[name] += 1
                time.sleep(0.01)
        except BaseException as error:
            failures.append(error)

    def in_asyncio() -> None:
        async def ask() -> None:
            async with aio.connect(address, timeout_s=120) as client:
                docs = await client.get_collection("docs")
                while not end.is_set():
                    await docs.query([1, 1], k=1)
                    answered["asyncio"] += 1
                    await asyncio.sleep(0.01)

        try:
            asyncio.run(ask())
        except BaseException as error:
            failures.append(error)

    try:
        # So long a patience only where a machine is slow: a restart takes some DRAIN_S.
        with connect(address, timeout_s=120) as client:
            docs = client.create_collection("docs", dimension=2)
            docs.insert(ids, np.ones((40, 2)), documents=["d" * 200_000] * 40)
            # More than lies in buffers: the server waits for its reader.
            scan = docs.scan(include=["document"], batch_size=1)
            seen = list(next(scan).ids)
            threads = [
                threading.Thread(target=calls, args=("query", lambda: docs.query([1, 1], k=1))),
                threading.Thread(
                    target=calls, args=("write", lambda: docs.upsert(["w"], [[0, 1]]))
                ),
                threading.Thread(target=in_asyncio),
            ]
            for thread in threads:
                thread.start()

            def goes_on() -> None:
                before = answered.copy()
                wait_until(
                    lambda: (
                        bool(failures)
                        or all(answered[one] > before[one] for one in ("query", "write", "asyncio"))
                    ),
                    "all are answered",
                )

            goes_on()
            begun_s = time.monotonic()
            process.terminate()
            _, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
            assert time.monotonic() - begun_s >= DRAIN_S, "the scan has kept the server"
            process, _ = spawn(folder, *flags, port=port)
            goes_on()
            end.set()
            for thread in threads:
                thread.join(130)
            assert failures == []
            for records in scan:
                seen += records.ids
    finally:
        end.set()
        process.terminate()
        process.communicate(timeout=60)
    assert sorted(seen) == sorted(ids)
