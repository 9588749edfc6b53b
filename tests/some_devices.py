"""Devices that answer nothing: what a database knows of GPUs, for tests of all that is said about them."""

from __future__ import annotations

from vecdb.types import DeviceStats

STATS = (
    DeviceStats(
        "gpu:0", "NVIDIA H200", "up", 150 << 30, 135 << 30, 7 << 30, 3, 5, 100, 3_000, 1, "SIGKILL",
        evictions=17,
    ),
    DeviceStats("gpu:1", "NVIDIA H200", "starting", 150 << 30, 135 << 30, 0, 0, 0, 0, 0, 0),
)  # fmt: skip


class SomeDevices:
    """gpu:0 and gpu:1 in use, of three that were found."""

    found = ("gpu:0", "gpu:1", "gpu:2")
    names = ("gpu:0", "gpu:1")
    placements = None

    def __init__(self) -> None:
        self.closed = 0

    def stats(self) -> tuple[DeviceStats, ...]:
        return STATS

    def close(self) -> None:
        self.closed += 1
