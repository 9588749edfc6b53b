"""The databases that this process has open, each of which is closed before the interpreter ends.

Python ends a daemon thread where it next asks for the interpreter lock, by unwinding its stack. FAISS's wrappers catch all
that passes them, and the C library then ends the process with SIGABRT: so did a script that had closed no database, where
a recall audit was under way, and one whose own daemon thread was searching.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from typing import Protocol

from .search_lane import LANE
from .stopping import end_threads

log = logging.getLogger("vecdb")

PATIENCE_S = 20.0
"""How long an ending process waits for threads that have been told to end: steps of builds, searches."""
_LEAVING_S = 0.05
_LOOK_S = 0.01

BEHIND = frozenset({
    "vecdb-audit", "vecdb-behind", "vecdb-columns", "vecdb-follow", "vecdb-index-build", "vecdb-postings",
})  # fmt: skip
"""Names of daemon threads that may outlive the database they work for. Those of clients and servers are no affair of ours:
some of them live on for a minute after the last call."""

lock = threading.Lock()
"""Held by whoever opens one."""


class Closes(Protocol):
    """A database."""

    def close(self) -> None: ...


_open: dict[str, tuple[int, Closes]] = {}
"""By real path: the process that opened it, and the database."""


def has(path: str) -> bool:
    """Whether the database with this real path is open, here or in the process that this one was forked from."""
    return path in _open


def add(path: str, database: Closes) -> None:
    """It is open from now on. With the lock."""
    _open[path] = os.getpid(), database


def remove(path: str) -> None:
    """It is closed, or was not opened in the end."""
    _open.pop(path, None)


def _renew() -> None:
    """In a forked process, where whoever was opening one does not go on, and would hold the lock for ever."""
    global lock
    lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


@atexit.register
def _close_all() -> None:
    """Closes what this process has opened, not what it was forked with, and waits for threads that work behind or search,
    also for databases that were closed before."""
    here, searched = os.getpid(), not LANE.idle
    for database in [database for pid, database in list(_open.values()) if pid == here]:
        try:
            database.close()
        except Exception:
            log.exception("a database could not be closed at the end of the process")
    end_threads()
    end_s = time.monotonic() + PATIENCE_S
    for thread in threading.enumerate():
        if thread.daemon and thread.name in BEHIND:
            thread.join(max(0.0, end_s - time.monotonic()))
    searched = searched or not LANE.idle
    while not LANE.idle and time.monotonic() < end_s:
        time.sleep(_LOOK_S)
    if searched:
        # Who has just been answered goes on in Python for a moment, or ends. CPython 3.11 was seen to crash where a thread
        # did so while the interpreter was taken apart (SIGSEGV in python itself, one run in some hundred).
        time.sleep(_LEAVING_S)
