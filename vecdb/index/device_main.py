"""A main index of which a copy lies on a device: the host's rows, curve and block, and searches that the
device answers.

To `plan.py` it is a main index as any other, so what sifts, widens and ranks again on the host does so here: a
device knows no filters and no deaths. What it does not offer, or cannot do at the moment, is `Unanswered`, and whoever
asked asks `host` instead, which shares all else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any

from ..device import Device, Limits, Placed, Placements
from ..device.card import CardRefused
from ..errors import Cancelled, Closed, DeviceFull, DeviceLost, FailedPrecondition
from .blocks import as_keys
from .calibrate import Curve
from .distance import Floats, Rows
from .door import L2
from .host_lists import centroid_bytes, checked_lists, device_bytes, most_k, part_of, serialized
from .main import Main
from .plan import wanted_with
from .served import Served
from .there import There

GONE = "what lay on the device had to go, or its worker died"


class Unanswered(Exception):
    """The device cannot give this answer, so the host has to; the text says why."""


class DeviceMain(There, Main):
    """`host` with its searches answered by what lies under `key`. Any thread may search.

    `curve` speaks for the copy, whose settings are called `setting_name`; `limits` are the most candidates
    of one search, and the largest setting. `gone` is called by searches that find the copy to be gone. Immutable but for
    `note`.
    """

    host: Main

    def __init__(
        self,
        host: Main,
        placements: Placements,
        key: Hashable,
        limits: Limits,
        gone: Callable[[], None],
        curve: Curve,
        setting_name: str,
    ) -> None:
        There.__init__(self, placements, key)
        Main.__init__(
            self, kind=host.kind, code=host.code, index=host.index, block=host.block, rows=host.rows,
            high_water=host.high_water, curve=curve, lossy=host.lossy, error=host.error,
            arena=host.arena, sequence=host.sequence, built_at_s=host.built_at_s,
            provisional=host.provisional,
        )  # fmt: skip
        self.host = host
        self.setting_name = setting_name
        self.beneath: Served | None = None
        """The vectors that the device has beneath a graph, where these are the stored ones or as near as float16."""
        self.limits = limits
        self._gone = gone
        self._metric = int(host.index.metric_type)

    def of(self, host: Main) -> DeviceMain:
        """The same copy for another main index with the same positions: one that knows another curve, say."""
        curve = host.curve if self.curve is self.host.curve else self.curve
        return DeviceMain(
            host, self.placements, self.key, self.limits, self._gone, curve, self.setting_name
        )

    def goes_as_far(self, k: int, share: float) -> bool:
        """Whether what k answers among this share of the rows need is within what the device gives."""
        width = self.curve.ranked_again(k) if self.lossy else k
        return wanted_with(width, share) <= self.limits.k

    def position_of_row(self) -> Rows:
        return self.host.position_of_row()

    def gives(self, k: int, setting: int) -> bool:
        return k <= self.limits.k and self._within(k, setting) <= self.limits.nprobe

    def _within(self, k: int, setting: int) -> int:
        """The setting that a search asks the device for."""
        return min(setting, int(self.index.nlist)) if self.kind == "ivf" else max(setting, k)

    def search(self, queries: Any, k: int, setting: int) -> tuple[Floats, Rows]:
        """`Main.search` by the device. Unanswered where the host has to; LimitExceeded when too many wait for
        the device."""
        if not self.gives(k, setting):
            device = self.names or "the device"
            if k > self.limits.k:
                raise Unanswered(
                    f"{k:,} candidates are more than {device} gives ({self.limits.k:,})"
                )
            raise Unanswered(
                f"{self.setting_name} {self._within(k, setting):,} is more than {device} takes "
                f"({self.limits.nprobe:,})"
            )
        metric = "l2" if self._metric == L2 else "ip"
        try:
            answer = self.ask(queries, k, self._within(k, setting), metric)
        except Closed:
            raise
        except (DeviceLost, DeviceFull, FailedPrecondition) as error:
            raise Unanswered(self.failed(error.message, len(queries))) from error
        if answer is None:
            self._gone()
            raise Unanswered(self.failed(GONE, len(queries)))
        self.note = ""
        return self._keys(answer[0], answer[1])

    def _keys(self, scores: Floats, positions: Rows) -> tuple[Floats, Rows]:
        return as_keys(scores, positions, self._metric)


def why_not(main: Main, graphs: bool) -> str:
    """What a device cannot search of `main`; empty where it can hold a copy. `graphs`: it has CAGRA."""
    if main.kind == "hnsw" and main.code != "binary":
        return "" if graphs else "a graph without cuVS"
    if main.kind == "hnsw":
        return f"a graph of {main.code}"
    try:
        checked_lists(main.index)
    except CardRefused:
        return f"lists of {main.code}"
    return ""


def place_lists(
    main: Main,
    placements: Placements,
    names: tuple[str, ...],
    key: Hashable,
    gone: Callable[[], None],
    cancel: threading.Event,
) -> DeviceMain | None:
    """Copies the lists of `main` to one of these devices, or parts of each list to all where none has room for the whole;
    None when cancelled. DeviceFull, DeviceLost.

    Meanwhile the host holds their bytes once more; a part's, up to three times.
    """

    def check() -> None:
        if cancel.is_set():
            raise Cancelled("placing on a device was cancelled")

    def make(device: Device, start: int, stop: int) -> Placed:
        whole = stop - start == main.n
        data = serialized(main.index if whole else part_of(main.index, start, stop))
        return device.place_lists(data, main.code, check)

    try:
        placed = placements.place(
            key,
            device_bytes(main.index),
            main.n,
            make,
            among=names,
            each=centroid_bytes(main.index),
        )
    except Cancelled:
        return None
    known = [shard.device.info.limits for shard in placed.shards]
    most = min(one.k for one in known)
    limits = Limits(most_k(main.index, most), min(one.nprobe for one in known))
    return DeviceMain(main, placements, key, limits, gone, main.curve, main.setting_name)
