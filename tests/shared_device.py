"""One device for all tests of a run: a worker with a context of CUDA takes seconds to start.

What a database holds would be placed behind, and a short test be over before. So here each query has placed first
whatever the engine wants on the device, and each search that the CPU answers all the same must say why, by one of `REASONS`.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from vecdb.builder import Builder
from vecdb.collection import Collection
from vecdb.core import Core
from vecdb.database import Database
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
    """Of one database: places before each query what the engine wants placed, and notes searches that the CPU answers without a
    reason. It is put before the objects of that database, never before their classes, which other databases have too."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self._asked: Counter[str] = Counter()
        """Searches by the device that answered, or the reason of the CPU."""
        self._indexes: weakref.WeakSet[Index] = weakref.WeakSet()

    def look_after(self, core: Core) -> None:
        """Before anything of the collection can be placed."""
        for field in core.all_fields:
            if field.index not in self._indexes:
                self._indexes.add(field.index)
                self._in_turn(field.index)

    def _in_turn(self, index: Index) -> None:
        """One thread at a time may place: the builder's, and those that ask."""
        held = weakref.ref(index)

        def placed(*, cancel: threading.Event) -> int:
            there = held()
            assert there is not None
            with _placing:
                return Index.place(there, cancel=cancel) if there.wants_placing() else 0

        index.place = placed  # type: ignore[method-assign]

    def ready(self, core: Core) -> None:
        """Before a query: places what is to be placed, and watches the searches of what serves now."""
        self.look_after(core)
        for field in core.all_fields:
            index = field.index
            try:
                while index.wants_placing():
                    if not index.place(cancel=threading.Event()):
                        break
            except VecdbError as error:
                self.wrong.append(f"placing failed: {error.message}")
            view = index.view
            if "search" not in vars(view):
                self._watch(view)

    def _watch(self, view: View) -> None:
        held = weakref.ref(view)

        def watched(queries: Any, k: int, **words: Any) -> Any:
            seen = held()
            assert seen is not None
            trace = words.pop("trace", None) or Trace()
            found = View.search(seen, queries, k, trace=trace, **words)
            self._judge(seen, trace)
            return found

        view.search = watched  # type: ignore[method-assign]

    def check(self) -> None:
        """AssertionError where a search was the CPU's without a reason, or all were that a device could answer."""
        assert not self.wrong, self.wrong
        could = [one for one in self._asked if not any(why in one for why in _NEVER)]
        assert not could or "gpu:0" in self._asked, self._asked

    def _judge(self, view: View, trace: Trace) -> None:
        if view.reasons is None or not view.n_live:
            return  # the collection is the CPU's, or there is nothing to find
        self._asked[trace.device_note or trace.device] += 1
        if trace.device != "cpu" or any(why in trace.device_note for why in REASONS):
            return
        # What another thread has built or dropped since the query began is not placed yet, and the engine knows.
        if any(one.view is view and not one.wants_placing() for one in list(self._indexes)):
            self.wrong.append(f"the CPU answered, and says {trace.device_note!r}")


class _WatchedCollection(Collection):
    """A collection whose queries are watched."""

    def __init__(self, core: Core, builder: Builder, watched: _Watched) -> None:
        super().__init__(core, builder)
        self._watched = watched

    def query(self, *args: Any, **words: Any) -> Any:
        self._watched.ready(self._core)
        return super().query(*args, **words)


class WatchedDatabase(Database):
    """A database on the device of this run. `watched.check` says in the end what is wrong with its searches."""

    def __init__(self, folder: Path, device: Device, settings: Mapping[str, Any]) -> None:
        def given(options: Mapping[str, Any]) -> SharedDevices | None:
            return None if parse(str(options["device"])).kind == "cpu" else SharedDevices(device)

        self.watched = _Watched()
        super().__init__(folder, read_only=False, settings=settings, devices=given)
        attend = self._builder.attend

        def attended(core: Core) -> None:
            self.watched.look_after(core)
            attend(core)

        self._builder.attend = attended  # type: ignore[method-assign]

    def _collection(self, name: str, token: str, *, making: bool = False) -> Collection:
        core = self._core(name, token, making=making)
        return _WatchedCollection(core, self._builder, self.watched)


@contextmanager
def opened(kind: str, folder: Path, settings: Mapping[str, Any]) -> Iterator[Database]:
    """A database on the device of this run, "gpu" or "stand-in", which is asked also for filters that leave some rows; closed in the end,
    with what `_Watched.check` says of it."""
    device = device_of(kind)
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(chosen, "FEW_ROWS", FEW_ROWS))
        # Some thousand rows would be compared by the CPU instead of asking a device for its lists or graph.
        stack.enter_context(mock.patch.object(plan, "DEVICE_CALL", 1.0))
        stack.enter_context(mock.patch.object(plan, "ON_DEVICE", 1e-3))
        database = stack.enter_context(WatchedDatabase(folder, device, {**SETTINGS, **settings}))
        yield database
    database.watched.check()
