"""One device for all tests of a run: a worker with a context of CUDA takes seconds to start."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import pytest

from vecdb import database
from vecdb.device import Chosen, Device, Placements, parse, start
from vecdb.index import chosen
from vecdb.index.card import count_gpus
from vecdb.types import DeviceStats

SETTINGS = {"device": "gpu", "exact_max_scalars": 0}
"""Of the engine: a collection of any size is searched there."""
FEW_ROWS = 4
"""The engine compares as few rows as a filter leaves itself; otherwise these are thousands."""
_UP_S = 60.0

gpu_is_pretended = False
"""`--device=stand-in`: what is called the GPU is one of numpy too."""
_devices: dict[bool, Device] = {}


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


@contextmanager
def shared(kind: str) -> Iterator[None]:
    """Databases that are opened meanwhile use the device of this run, also for filters that leave some rows."""
    device = device_of(kind)

    def opened(options: Any, count: Any) -> SharedDevices | None:
        return None if parse(str(options["device"])).kind == "cpu" else SharedDevices(device)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(database, "open_devices", opened))
        stack.enter_context(mock.patch.object(chosen, "FEW_ROWS", FEW_ROWS))
        yield
