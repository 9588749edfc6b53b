"""What adapters do that can be told without the systems they are for."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench.peers import pgvector

MEETING_S = 60


def test_batches_of_pgvector_are_asked_over_several_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As many queries are under way as there are cores, each on a connection of its own; answers keep their order."""
    meeting = threading.Barrier(2)
    made: list[Any] = []

    class Connection:
        def __init__(self) -> None:
            self.asking = threading.Lock()

        def execute(self, statement: str, values: Any = ()) -> Any:
            if not statement.startswith("SELECT"):
                return None
            assert self.asking.acquire(blocking=False), "two queries at once on one connection"
            try:
                meeting.wait(MEETING_S)
            finally:
                self.asking.release()
            number = int(np.frombuffer(values[0][4:], ">f4")[0])
            return SimpleNamespace(fetchall=lambda: [(f"row {number}", 0.0)])

    def connected(words: str, *, packed: bool = False) -> Any:
        made.append(Connection())
        return made[-1]

    monkeypatch.setattr(pgvector, "_CORES", 2)
    monkeypatch.setattr(pgvector, "_connected", connected)
    source: Any = SimpleNamespace(rows=0, records=lambda *_: ([], [], []), conditions=tuple)
    system = pgvector.System.joined(source, ("", "SET x = 1", "t"))
    queries = np.arange(8, dtype=np.float32).reshape(8, 1)
    assert system.batch(queries, 1, 40.0) == [[f"row {number}"] for number in range(8)]
    assert len(made) == 2
