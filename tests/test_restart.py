"""A server is started again under load: clients that retry lose nothing and see nothing twice."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from conftest import wait_until
from server_process import spawn

import vecdb
from vecdb_client import connect

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
