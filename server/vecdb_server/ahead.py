"""The next step of an iterator, done while its user still works with the one before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextvars import copy_context
from queue import SimpleQueue
from typing import TypeVar, cast

from vecdb.errors import ResourceExhausted

Given = TypeVar("Given")
Made = TypeVar("Made")


def one_ahead(items: Iterator[Given], make: Callable[[Given], Made]) -> Iterator[Made]:
    """`map(make, items)` by a thread of its own, which is one item ahead; what that raises comes in its turn.

    The thread has the context variables of the first step. It ends with the items, or once what it waits for
    has come after its user has gone; a call of gRPC that has ended gives no more messages. ResourceExhausted
    where the system gives no thread.
    """
    made: SimpleQueue[tuple[Made | None, BaseException | None]] = SimpleQueue()
    room = threading.Semaphore(1)
    gone = threading.Event()

    def work() -> None:
        try:
            while room.acquire() and not gone.is_set():
                made.put((make(next(items)), None))
        except BaseException as error:
            made.put((None, error))

    thread = threading.Thread(target=copy_context().run, args=(work,), name="vecdb-ahead")
    thread.daemon = True
    try:
        thread.start()
    except RuntimeError as error:
        raise ResourceExhausted(
            "the system gives no further thread; try again with fewer streams"
        ) from error
    try:
        while True:
            item, failure = made.get()
            if isinstance(failure, StopIteration):
                return
            if failure is not None:
                raise failure
            room.release()
            yield cast("Made", item)
    finally:
        gone.set()
        room.release()
