"""Devices for tests: workers with stand-ins, and what they should answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vecdb.device import Device
from vecdb.device.stand_in import nearest
from vecdb.index.card import count_gpus
from vecdb.turns import PATIENT, Wait

D = 16


def device(faults: str = "", name: str = "gpu:0", size: int = 0, **settings: Any) -> Device:
    """A device that is up. `size` bytes of memory on it; `settings` are those of `Device`."""
    arguments = ["--card=stand-in", f"--stand-in-faults={faults}"]
    if size:
        arguments.append(f"--stand-in-bytes={size}")
    return Device(name, arguments, **settings)


def device_of(kind: str) -> Device:
    """A "stand-in", or the "gpu" that is here; skips where there is none."""
    if kind == "stand-in":
        return device()
    if not count_gpus():
        pytest.skip("FAISS sees no GPU here")
    return Device("gpu:0")


def vectors(n: int, seed: int = 1, d: int = D) -> Any:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def place(one: Device, y: Any, metric: str = "l2") -> Any:
    return one.place_flat(y.shape[1], metric, "float32", len(y), [y])


def ask(one: Device, placed: Any, x: Any, k: int = 3, wait: Wait = PATIENT) -> Any:
    return one.search(placed.handle, placed.generation, x, k, 0, wait)


def assert_same(found: Any, x: Any, y: Any, k: int, metric: str = "l2") -> None:
    wanted = nearest(x, y, k, metric, "float32")
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-4, atol=1e-4)
    assert (found[1] == wanted[1]).all()


def until(true: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Waits for something that another thread or process does."""
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
