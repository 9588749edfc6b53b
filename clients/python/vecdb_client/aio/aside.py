"""Work that would keep the event loop from everybody else for milliseconds: a thread does it.

Making the columns of 1,000 records takes 6 ms of a core, 23 where vectors are lists; reading an answer of 100,000 hits 12. A thread
that computes gives the interpreter up every 5 ms, so others wait for not much longer: beside an upsert of 10,000 records the loop
stood still for 31 and 60 ms instead of 251 and 287, on two cores that were busy with other work (two rounds each in turn). Vectors
that are lists of lists are one call of numpy, which gives it up at its end only: who wants a smooth loop gives arrays.
What is small is done at once: to hand it over costs as much.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
MANY_ROWS = 200
"""Records of a batch whose columns a thread makes."""
MANY_HITS = 2_000
"""Hits or records of an answer that a thread reads."""
_THREADS = 2
_PLAIN = (list, tuple, np.ndarray, type(None))


class Aside:
    """The threads of one client, made when they are first needed. For one event loop.

    They are its own: those of the loop may all be taken by work of its user that waits for this client.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False

    async def columns(self, make: Callable[..., T], *given: Any) -> T:
        """`make(*given)`, which makes columns of what a caller has given."""
        return await self._run(make, *given) if _are_many(given) else make(*given)

    async def read(self, read: Callable[[Any], T], answer: Any) -> T:
        """`read(answer)`, which reads an answer of a server."""
        return await self._run(read, answer) if _holds_many(answer) else read(answer)

    async def _run(self, work: Callable[..., T], *given: Any) -> T:
        if self._closed:
            return work(*given)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="vecdb-client")
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *given)

    def close(self) -> None:
        """Ends the threads once they have done what they have; more work is done at once."""
        self._closed = True
        if self._pool is not None:
            self._pool.shutdown(wait=False)


def _are_many(given: tuple[Any, ...]) -> bool:
    """Whether these columns, or the one batch of them, hold many records, and nothing but plain sequences: what else a
    caller gives, as rows that are fetched while they are read, may be for his own thread."""
    columns: Iterable[Any] = given
    ids = given[0]
    if len(given) == 1:
        (batch,) = given
        if isinstance(batch, Mapping):
            ids, columns = batch.get("ids"), batch.values()
        elif isinstance(batch, tuple):
            ids, columns = next(iter(batch), None), batch
        else:
            # Records, as a scan gives them.
            ids, columns = getattr(batch, "ids", None), ()
    count = len(ids) if isinstance(ids, list | tuple) else getattr(ids, "size", 0)
    return _is_plain(ids) and count >= MANY_ROWS and all(map(_is_plain, columns))


def _is_plain(column: Any) -> bool:
    if isinstance(column, Mapping):
        return all(isinstance(one, _PLAIN) for one in column.values())
    return isinstance(column, _PLAIN)


def _holds_many(answer: Any) -> bool:
    records = getattr(answer, "hits", None)
    if records is None:
        records = getattr(answer, "records", None)
    return len(getattr(records, "ids", ())) >= MANY_HITS
