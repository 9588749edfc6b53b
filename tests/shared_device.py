"""One device for all tests of a run: a worker with a context of CUDA takes seconds to start.

What a database holds would be placed behind, and a short test be over before. So here each query has placed first
whatever the engine wants on the device, and each search that the CPU answers all the same must say why, by one of `REASONS`.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import pytest

from vecdb import database
from vecdb.collection import Collection
from vecdb.device import Chosen, Device, Placements, parse, start
from vecdb.errors import VecdbError
from vecdb.index import Index, View, chosen, plan
from vecdb.index.card import count_gpus
from vecdb.index.reasons import NO_QUERY
from vecdb.index.trace import FEW, Trace
from vecdb.types import DeviceStats

SETTINGS = {"device": "gpu", "exact_max_scalars": 0}
"""Of the engine: a collection of any size is searched there."""
FEW_ROWS = 4
"""The engine compares as few rows as a filter leaves itself; otherwise these are thousands."""
REASONS = (
    FEW, NO_QUERY, "comparing the rows takes the CPU less time", "candidates are more than", "is more than gpu:0 takes",
    "all rows are compared, and gpu:0 holds an index", "no row that may answer lies on gpu:0", "gpu:0 cannot search",
    "there is no index yet", "does not reach a recall", "do not fit gpu:0",
)  # fmt: skip
"""Why the CPU may answer what the plan does not send to a device; what was not placed, or failed, is no such reason."""
_NEVER = ("gpu:0 cannot search", "there is no index yet", "all rows are compared")
"""Of these, what a database may say of all its searches."""
_UP_S = 60.0

gpu_is_pretended = False
"""`--device=stand-in`: what is called the GPU is one of numpy too."""
_devices: dict[bool, Device] = {}
_placing = threading.Lock()


class SharedDevices:
    """`Devices` of one database over the device of all: closing it takes away what this database has placed."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.found = self.names = (device.name,)
        self.placements = Placements([device])

    def stats(self) -> tuple[DeviceStats, ...]:
        return (self._device.stats(),)

    def close(self) -> None:
        for one in self.placements.figures():
            self.placements.forget(one.key)


def device_of(kind: str) -> Device:
    """The device of this run, "gpu" or "stand-in"; skips the test where there is no GPU."""
    pretended = kind == "stand-in" or gpu_is_pretended
    if pretended not in _devices:
        if not pretended and not count_gpus():
            pytest.skip("FAISS sees no GPU here; --device=stand-in pretends one")
        _devices[pretended] = start(Chosen("gpu:0", 0, pretended))
    device = _devices[pretended]
    end_s = time.monotonic() + _UP_S
    while not device.up:  # a test before may have ended its worker
        assert time.monotonic() < end_s, "the shared device does not come up again"
        time.sleep(0.01)
    return device


def close_devices() -> None:
    while _devices:
        _devices.popitem()[1].close()


class _Watched:
    """Places before each query what the engine wants placed, and notes searches that the CPU answers without a reason."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self._asked: Counter[str] = Counter()
        """Searches by the device that answered, or the reason of the CPU."""
        self._indexes: weakref.WeakSet[Index] = weakref.WeakSet()
        self._place, self._query, self._search = Index.place, Collection.query, View.search

    def patches(self) -> list[Any]:
        """To be entered while databases are open."""
        watched = self

        def place(index: Index, *, cancel: threading.Event) -> int:
            # One thread at a time may place: the builder's, and those that ask.
            with _placing:
                return watched._place(index, cancel=cancel) if index.wants_placing() else 0

        def query(collection: Any, *args: Any, **words: Any) -> Any:
            for field in collection._core.all_fields:
                watched._placed(field.index)
            return watched._query(collection, *args, **words)

        def search(view: View, queries: Any, k: int, **words: Any) -> Any:
            trace = words.pop("trace", None) or Trace()
            found = watched._search(view, queries, k, trace=trace, **words)
            watched._judge(view, trace)
            return found

        return [
            mock.patch.object(Index, "place", place),
            mock.patch.object(Collection, "query", query),
            mock.patch.object(View, "search", search),
        ]

    def check(self) -> None:
        """AssertionError where a search was the CPU's without a reason, or all were that a device could answer."""
        assert not self.wrong, self.wrong
        could = [one for one in self._asked if not any(why in one for why in _NEVER)]
        assert not could or "gpu:0" in self._asked, self._asked

    def _placed(self, index: Index) -> None:
        self._indexes.add(index)
        try:
            while index.wants_placing():
                if not index.place(cancel=threading.Event()):
                    break
        except VecdbError as error:
            self.wrong.append(f"placing failed: {error.message}")

    def _judge(self, view: View, trace: Trace) -> None:
        if view.reasons is None or not view.n_live:
            return  # the collection is the CPU's, or there is nothing to find
        self._asked[trace.device_note or trace.device] += 1
        if trace.device != "cpu" or any(why in trace.device_note for why in REASONS):
            return
        # What another thread has built or dropped since the query began is not placed yet, and the engine knows.
        if any(one.view is view and not one.wants_placing() for one in list(self._indexes)):
            self.wrong.append(f"the CPU answered, and says {trace.device_note!r}")


@contextmanager
def shared(kind: str) -> Iterator[None]:
    """Databases that are opened meanwhile use the device of this run, also for filters that leave some rows. In the end
    what `_Watched.check` says of them."""
    device, watched = device_of(kind), _Watched()

    def opened(options: Any, count: Any) -> SharedDevices | None:
        return None if parse(str(options["device"])).kind == "cpu" else SharedDevices(device)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(database, "open_devices", opened))
        stack.enter_context(mock.patch.object(chosen, "FEW_ROWS", FEW_ROWS))
        # Some thousand rows would be compared by the CPU instead of asking a device for its lists or graph.
        stack.enter_context(mock.patch.object(plan, "DEVICE_CALL", 1.0))
        stack.enter_context(mock.patch.object(plan, "ON_DEVICE", 1e-3))
        for patch in watched.patches():
            stack.enter_context(patch)
        yield
    watched.check()
