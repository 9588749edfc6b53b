"""What the searches of one call tell about themselves, for `explain`."""

from __future__ import annotations

from .index import Trace


class Note:
    """Written by the thread that searches, read by the caller when it is through."""

    __slots__ = ("batch", "candidates", "rerank_s", "rows_compared", "search_s", "trace", "wait_s")

    def __init__(self) -> None:
        self.trace: Trace | None = None
        """Of the first search: its plan and setting; of the first one with a note of devices, if there is one,
        so that a device lost between the slices of a batch is not passed over."""
        self.batch = 1
        """Queries that were searched in the same call, at most."""
        self.candidates = 0
        self.rows_compared = 0
        self.wait_s = 0.0
        self.search_s = 0.0
        self.rerank_s = 0.0

    def add(self, trace: Trace, queries: int, batch: int, took_s: float) -> None:
        """A search of `queries` of ours among `batch`. Times are those of the whole search."""
        if self.trace is None or (trace.device_note and not self.trace.device_note):
            self.trace = trace
        self.batch = max(self.batch, batch)
        self.candidates += queries * trace.candidates
        self.rows_compared += queries * (trace.main_rows_compared + trace.tail_rows_compared)
        self.search_s += took_s
        self.rerank_s += 1e-6 * trace.rerank_us
