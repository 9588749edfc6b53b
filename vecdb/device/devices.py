"""The devices that an open database has, and which of them a collection gets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import DeviceLost, DeviceNotFound, InvalidSetting
from ..types import DeviceStats
from .choice import choose, parse, start
from .link import Device
from .placement import Placements

log = logging.getLogger("vecdb")


class Devices(Protocol):
    """All devices of an open database. Any thread may call."""

    @property
    def placements(self) -> Placements | None:
        """What lies on them; None where nothing ever will."""

    @property
    def found(self) -> tuple[str, ...]:
        """The GPUs that were chosen when the database was opened: "gpu:0", "gpu:1"."""

    @property
    def names(self) -> tuple[str, ...]:
        """Those of them that are in use, at least one, by number. They stay the same while the database
        is open, whatever becomes of a device."""

    def stats(self) -> tuple[DeviceStats, ...]:
        """One for each name, in their order."""

    def close(self) -> None:
        """Ends their workers. May be called again."""


@dataclass(frozen=True, slots=True)
class Assigned:
    """What a collection gets of the devices."""

    names: tuple[str, ...]
    """Those that serve it; empty: the CPU."""
    note: str = ""
    """Why not the ones that it asks for; empty where it gets them."""


def checked(device: Any) -> str:
    """The `device` of a collection as it is stored: auto, cpu, gpu, or GPUs by rising number, as "gpu:0,1".
    InvalidSetting for everything else. Whether such devices are there is not asked here."""
    if not isinstance(device, str):
        raise InvalidSetting(
            f"device must be a text: auto, cpu, gpu, or gpu with numbers, as in gpu:0,1; given {device!r:.80}",
            setting="device",
        )
    choice = parse(device)
    if choice.numbers is None:
        return choice.kind
    return f"{choice.kind}:{','.join(map(str, sorted(choice.numbers)))}"


class OpenDevices:
    """`Devices` with a worker process each."""

    def __init__(self, devices: Sequence[Device], found: tuple[str, ...]) -> None:
        self._devices = tuple(devices)
        self.found = found
        self.names = tuple(device.name for device in devices)
        self.placements = Placements(devices)

    def stats(self) -> tuple[DeviceStats, ...]:
        return tuple(device.stats() for device in self._devices)

    def close(self) -> None:
        for device in self._devices:
            device.close()


def open_devices(options: Mapping[str, Any], count: Callable[[], int]) -> OpenDevices | None:
    """The devices that the setting `device` names; None where the CPU is to serve alone.

    Called once, when a database is opened; takes some seconds where there is a GPU. `count` says how many
    there are. DeviceNotFound where GPUs are asked for and not there; DeviceLost where one that is asked for
    cannot be started. With `auto` such a one is left out with a warning.
    """
    setting = str(options["device"])
    chosen = choose(setting, count)
    started: list[Device] = []
    try:
        for one in chosen:
            try:
                started.append(
                    start(
                        one,
                        budget_bytes=int(options["device_memory_bytes"]),
                        queue_limit=int(options["device_queue"]),
                        timeout_s=float(options["device_timeout_s"]),
                    )
                )
            except DeviceLost as error:
                if parse(setting).kind != "auto":
                    raise
                log.warning("%s is not used: %s", one.name, error.message)
    except BaseException:
        for device in started:
            device.close()
        raise
    return OpenDevices(started, tuple(one.name for one in chosen)) if started else None


def assigned(device: str, devices: Devices | None) -> Assigned:
    """What a collection that says `device` is served by. Never fails: what is stored must stay readable
    on a machine without its device, so others serve in its place, and the note says so."""
    choice = parse(device)
    there = () if devices is None else devices.names
    if choice.kind == "cpu":
        return Assigned(())
    if choice.kind == "auto":
        return Assigned(there)
    wanted = there if choice.numbers is None else tuple(f"gpu:{n}" for n in sorted(choice.numbers))
    missing = [name for name in wanted if name not in there] if wanted else ["gpu"]
    if not missing:
        return Assigned(wanted)
    left = tuple(name for name in wanted if name in there)
    verb = "is" if len(missing) == 1 else "are"
    return Assigned(
        left, f"{', '.join(missing)} {verb} not there; answered by {', '.join(left) or 'the CPU'}"
    )


def must_be_there(name: str, device: str, devices: Devices | None, setting: str) -> None:
    """DeviceNotFound unless the new collection `name` gets the devices that it asks for. `setting` is what
    the database was opened with."""
    if assigned(device, devices).note:
        there = () if devices is None else devices.names
        raise DeviceNotFound(
            f"collection {name!r} asks for device {device}, and this database, opened with device="
            f"{setting!r}, uses {', '.join(there) or 'no GPU'}; make the collection with device auto or "
            "cpu, or open the database where and so that the GPU can be used",
            device=device,
            there=list(there),
        )
