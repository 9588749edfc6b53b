"""What lies on which device: budgets, eviction, shards, and answers put together.

A *placement* is named by a key of the caller (a collection, a field, an index of it), and lies on one device,
or in shards of contiguous rows on all of them when none has room for the whole. When there is no room, what was
searched longest ago goes; never what is being searched, and what was searched within the last `keep_s`
seconds only when nothing else is left, so that two that do not fit together do not chase each other out with
every query.

Placements of a worker that died are gone: the key is then unknown, and the caller places it again.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..errors import DeviceFull, DeviceLost
from ..tally import SIZES, Tally
from ..turns import PATIENT, Wait
from .card import Floats, Rows
from .link import Device, collected
from .merging import merged
from .placing import Placed
from .queue import Waiting

Make = Callable[[Device, int, int], Placed]
"""(device, start, stop): places rows start..stop there. Called without any lock, by whoever calls `place`."""
KEEP_S = 10.0


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows start..stop of a placement on one device."""

    device: Device
    placed: Placed
    start: int
    stop: int


@dataclass(slots=True, eq=False)
class Placement:
    """`shards` in the order of their rows. Searched by way of `Placements.search`, or within `Placements.using`."""

    key: Hashable
    shards: tuple[Shard, ...]
    used_s: float
    """When it was last searched, by the clock of `Placements`."""
    searching: int = 0
    """Searches that run: it is not evicted meanwhile."""
    searches: int = 0

    @property
    def rows(self) -> int:
        return self.shards[-1].stop

    @property
    def bytes(self) -> int:
        return sum(shard.placed.bytes for shard in self.shards)

    @property
    def names(self) -> str:
        """The devices it lies on, as in `gpu:0,1`."""
        return "gpu:" + ",".join(s.device.name.removeprefix("gpu:") for s in self.shards)

    @property
    def current(self) -> bool:
        """Whether all workers that hold it still live."""
        return all(s.device.up and s.device.generation == s.placed.generation for s in self.shards)


@dataclass(frozen=True, slots=True)
class PlacementFigures:
    """A placement in `stats`."""

    key: Hashable
    devices: tuple[str, ...]
    rows: int
    bytes: int
    searches: int
    idle_s: float


@dataclass(slots=True)
class _Share:
    """Rows that are to be placed on a device, with the memory set aside for them."""

    device: Device
    start: int
    stop: int
    wanted: int
    evicted: list[Placement] = field(default_factory=list)


class Placements:
    """Any thread may call. Does not own `devices`, or what starts them: that is called when they are first asked for, which takes seconds."""

    def __init__(
        self,
        devices: Sequence[Device] | Callable[[], Sequence[Device]],
        *,
        keep_s: float = KEEP_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._start, self._starting = devices, threading.Lock()
        self._devices = None if callable(devices) else tuple(devices)
        self._keep_s, self._clock = keep_s, clock
        self._changed = threading.Condition()
        self._placements: dict[Hashable, Placement] = {}
        self._making: set[Hashable] = set()
        self._reserved: defaultdict[str, int] = defaultdict(int)
        self.evictions = 0
        self.taken_over = Tally(SIZES)
        """Queries that the host answered as a device failed, had lost what lay there, or was busy for long; added by who asked."""

    @property
    def started(self) -> bool:
        """Whether `devices` is at hand."""
        return self._devices is not None

    @property
    def devices(self) -> tuple[Device, ...]:
        """All that may be placed on, whether they are up or not."""
        if self._devices is None:
            with self._starting:
                if self._devices is None:
                    assert callable(self._start)
                    self._devices = tuple(self._start())
        return self._devices

    def get(self, key: Hashable) -> Placement | None:
        """The placement of a key, None when there is none (any more)."""
        with self._changed:
            found = self._placements.get(key)
            if found is None or found.current:
                return found
            del self._placements[key]
        _drop([found])
        return None

    def place(
        self,
        key: Hashable,
        bytes_needed: int,
        rows: int,
        make: Make,
        *,
        divisible: bool = True,
        among: Collection[str] | None = None,
        each: int = 0,
    ) -> Placement:
        """Places `rows` rows that take `bytes_needed` on the device with most room, or in shards on all.

        What is there under this key already is returned as it is. Two calls for one key: the second waits for the first.
        `divisible` False: in one piece or not at all. `each`: bytes of those needed that every shard takes, however few its rows. `among` names the devices that it may lie on, None means all. DeviceFull
        when it does not fit even after everything that may go is gone; DeviceLost when no device is up; whatever `make` raises, after which nothing is left.
        """
        with self._changed:
            while key in self._making:
                self._changed.wait()
            found = self._placements.get(key)
            if found is not None and found.current:
                return found
            self._making.add(key)
        try:
            while True:
                with self._changed:
                    shares = self._plan(key, bytes_needed, rows, divisible, among, each)
                    for share in shares:
                        self._reserved[share.device.name] += share.wanted
                try:
                    made = self._make(shares, make)
                except DeviceFull:
                    # The books said it fits, the card did not: memory in pieces, or somebody else's.
                    if not self._evict_one([share.device for share in shares]):
                        raise
                    continue
                finally:
                    with self._changed:
                        for share in shares:
                            self._reserved[share.device.name] -= share.wanted
                placement = Placement(key, made, self._clock())
                with self._changed:
                    self._placements[key] = placement
                return placement
        finally:
            with self._changed:
                self._making.discard(key)
                self._changed.notify_all()

    @contextmanager
    def using(self, key: Hashable) -> Iterator[Placement | None]:
        """The placement of a key, which stays while the block runs; None when there is none."""
        placement = self.get(key)
        if placement is None:
            yield None
            return
        with self._changed:
            placement.searching += 1
            placement.searches += 1
        try:
            yield placement
        finally:
            with self._changed:
                placement.searching -= 1
                placement.used_s = self._clock()

    def search(
        self,
        key: Hashable,
        queries: Floats,
        k: int,
        setting: int,
        metric: str,
        wait: Wait = PATIENT,
        mask: int = 0,
    ) -> tuple[Floats, Rows, int] | None:
        """The k nearest by `Device.search`, with positions of the whole; None when there is no placement.

        `mask` is one that `mask` was given. Shards are asked at the same time, and the better scores win, ties by the
        lower position. Raises what `Device.search` raises.
        """
        with self.using(key) as placement:
            if placement is None:
                return None

            def begin(one: Shard) -> Waiting:
                held = one.placed
                return one.device.begin(
                    held.handle, held.generation, queries, k, setting, wait, mask
                )

            return _searched(placement.shards, begin, k, metric)

    def mask(
        self, key: Hashable, number: int, flags: NDArray[np.bool_], wait: Wait = PATIENT
    ) -> bool:
        """Lets searches with this number, new to the key, find only positions whose flag is set, (rows,) bool.
        False when there is no placement. DeviceFull, DeviceLost, what the `wait` says."""
        with self.using(key) as placement:
            if placement is None:
                return False
            try:
                for one in placement.shards:
                    bits = np.packbits(flags[one.start : one.stop], bitorder="little")
                    one.device.mask(one.placed, number, bits, wait)
            except BaseException:
                self.unmask(key, number)
                raise
        return True

    def unmask(self, key: Hashable, number: int) -> None:
        """Forgets a mask; nothing where it is gone already."""
        with self.using(key) as placement:
            for one in () if placement is None else placement.shards:
                one.device.unmask(one.placed, number)

    def forget(self, key: Hashable) -> None:
        """Gives the memory of a key back. A search of it that waits gets DeviceLost."""
        with self._changed:
            found = self._placements.pop(key, None)
        if found is not None:
            _drop([found])

    def figures(self) -> list[PlacementFigures]:
        """All placements, the last searched first."""
        with self._changed:
            now = self._clock()
            known = sorted(self._placements.values(), key=lambda one: -one.used_s)
            return [
                PlacementFigures(
                    one.key, tuple(shard.device.name for shard in one.shards), one.rows, one.bytes,
                    one.searches, max(0.0, now - one.used_s),
                )
                for one in known
                if one.current
            ]  # fmt: skip

    def room(self, device: Device) -> int:
        """Bytes of the budget of a device that are not taken or set aside."""
        with self._changed:
            return self._room(device)

    def _room(self, device: Device) -> int:
        return device.budget_bytes - device.used_bytes - self._reserved[device.name]

    def among(self, names: Collection[str] | None) -> list[Device]:
        """The devices of these names that are up."""
        return [d for d in self.devices if d.up and (names is None or d.name in names)]

    def _plan(
        self,
        key: Hashable,
        bytes_needed: int,
        rows: int,
        divisible: bool,
        among: Collection[str] | None,
        each: int,
    ) -> list[_Share]:
        """Where it goes; evicts for that. Called with the lock."""
        up = self.among(among)
        if not up:
            known = [d.name for d in self.devices if among is None or d.name in among]
            raise DeviceLost(f"no device is up of {', '.join(known) or 'none'}", devices=known)
        best = max(up, key=self._room)
        if self._room(best) >= bytes_needed:
            return [_Share(best, 0, rows, bytes_needed)]
        for recent in (False, True):
            ways = [(device, self._going(device, bytes_needed, recent)) for device in up]
            possible = [(device, going) for device, going in ways if going is not None]
            if possible:
                device, going = min(possible, key=_last_used)
                self._evict(going)
                return [_Share(device, 0, rows, bytes_needed)]
            if not divisible or len(up) < 2 or rows < len(up):
                continue
            rooms = {d.name: max(0, self._room(d) + self._evictable(d, recent) - each) for d in up}
            if sum(rooms.values()) < bytes_needed - each:
                continue
            shares = _divided(up, rooms, rows, bytes_needed - each, each)
            for share in shares:
                self._evict(self._going(share.device, share.wanted, recent) or [])
            # An eviction frees the shards on the other devices as well, never less.
            if all(self._room(share.device) >= share.wanted for share in shares):
                return shares
        away = [d.name for d in self.devices if not d.up and not d.down]
        if divisible and (lost := [name for name in away if among is None or name in among]):
            raise DeviceLost(f"{', '.join(lost)} would be needed and is not up", devices=lost)
        figures = ", ".join(f"{d.name} {self._room(d):,} of {d.budget_bytes:,}" for d in up)
        raise DeviceFull(
            f"{key!r} takes {bytes_needed:,} bytes; free of the budgets are {figures}, and the rest is "
            "being searched or cannot make enough room; raise device_memory_bytes, or choose a "
            "quantization that takes less",
            needed_bytes=bytes_needed,
            devices=[d.name for d in up],
        )

    def _candidates(self, device: Device, recent: bool) -> list[Placement]:
        """What may be evicted from a device, the longest idle first."""
        before = self._clock() - self._keep_s
        return sorted(
            (
                one
                for one in self._placements.values()
                if not one.searching
                and (recent or one.used_s <= before)
                and any(shard.device is device for shard in one.shards)
            ),
            key=lambda one: one.used_s,
        )

    def _evictable(self, device: Device, recent: bool) -> int:
        return sum(_on(one, device) for one in self._candidates(device, recent))

    def _going(self, device: Device, wanted: int, recent: bool) -> list[Placement] | None:
        """The longest idle placements whose end makes room for `wanted`; None when none would."""
        room, going = self._room(device), []
        for one in self._candidates(device, recent):
            if room >= wanted:
                break
            room += _on(one, device)
            going.append(one)
        return going if room >= wanted else None

    def _evict(self, going: Sequence[Placement]) -> None:
        for one in going:
            if self._placements.pop(one.key, None) is not None:
                self.evictions += 1
                for shard in one.shards:
                    shard.device.evictions += 1
        _drop(going)

    def _evict_one(self, devices: Sequence[Device]) -> bool:
        with self._changed:
            for device in devices:
                for one in self._candidates(device, True)[:1]:
                    self._evict([one])
                    return True
        return False

    def _make(self, shares: Sequence[_Share], make: Make) -> tuple[Shard, ...]:
        made: list[Shard] = []
        try:
            for share in shares:
                placed = make(share.device, share.start, share.stop)
                made.append(Shard(share.device, placed, share.start, share.stop))
        except BaseException:
            for shard in made:
                shard.device.drop(shard.placed.handle, shard.placed.generation)
            raise
        return tuple(made)


def _searched(
    shards: Sequence[Shard], begin: Callable[[Shard], Waiting], k: int, metric: str
) -> tuple[Floats, Rows, int]:
    """Scores and positions (q, k) of all shards together, and the queries that shared the call."""
    if len(shards) == 1:
        return collected(begin(shards[0]).result())
    waiting: list[Waiting] = []
    try:
        waiting.extend(begin(one) for one in shards)
        parts, together = [], 0
        for one, asked in zip(shards, waiting, strict=True):
            scores, positions, shared = collected(asked.result())
            positions[positions >= 0] += one.start
            parts.append((scores, positions))
            together = max(together, shared)
    except BaseException:
        for asked in waiting:
            asked.cancel()
        raise
    return (*merged(parts, k, metric), together)


def _divided(
    devices: Sequence[Device], rooms: dict[str, int], rows: int, bytes_needed: int, each: int
) -> list[_Share]:
    """Contiguous rows for each device, as many as its share of all the room; at least one where there is any."""
    devices = [device for device in devices if rooms[device.name]]
    total, shares, start, sum_room = sum(rooms.values()), [], 0, 0
    for at, device in enumerate(devices):
        sum_room += rooms[device.name]
        left = len(devices) - at - 1
        stop = rows if not left else min(rows - left, max(start + 1, rows * sum_room // total))
        shares.append(_Share(device, start, stop, each - -bytes_needed * (stop - start) // rows))
        start = stop
    return shares


def _last_used(way: tuple[Device, list[Placement]]) -> float:
    """When the last of those that would go was searched."""
    return max((one.used_s for one in way[1]), default=0.0)


def _on(placement: Placement, device: Device) -> int:
    return sum(s.placed.bytes for s in placement.shards if s.device is device)


def _drop(placements: Sequence[Placement]) -> None:
    for one in placements:
        for shard in one.shards:
            shard.device.drop(shard.placed.handle, shard.placed.generation)
