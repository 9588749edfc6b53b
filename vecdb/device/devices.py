"""The devices that an open database has, and which of them a collection gets."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import DeviceLost, DeviceNotFound, InvalidSetting
from ..types import DeviceStats
from .choice import STAND_IN, Chosen, choose, parse, start
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
        """Those of them that may be used, at least one, by number. They stay the same while the database
        is open, whatever becomes of a device."""

    def stats(self) -> tuple[DeviceStats, ...]:
        """One for each that was chosen, in the order of their names, also where none was needed yet."""

    def close(self) -> None:
        """Ends their workers, unless another database uses them too. May be called again."""


Source = Callable[[Mapping[str, Any]], Devices | None]
"""Where a database has its devices from: called once, when it is opened, with all its settings. What it gives is closed with the
database; None where the CPU is to serve alone. `open_devices` for the GPUs of this machine, else whatever a caller
of `Database` gives."""


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


_Key = tuple[Any, ...]


class _Workers:
    """Devices that databases of this process share, so that their placements keep to one budget for each GPU
    and make room for each other."""

    def __init__(
        self,
        key: _Key,
        chosen: Sequence[Chosen],
        options: Mapping[str, Any],
        environment: Mapping[str, str],
    ) -> None:
        self.key = key
        self.chosen = tuple(chosen)
        self._environment = environment
        self.users = 0
        self.placements = Placements(self._start)
        self._options = options
        self._started: tuple[Device, ...] = ()
        self._unstarted = "idle"
        """The state of those that are not among these."""
        self._failed: dict[str, str] = {}
        """Why those did not start that were to."""

    def _start(self) -> tuple[Device, ...]:
        """A worker for each; DeviceLost where one that is asked for by name does not start."""
        insisted = parse(str(self._options["device"])).kind != "auto"
        self._unstarted = "starting"
        started: list[Device] = []
        try:
            for one in self.chosen:
                try:
                    started.append(
                        start(
                            one,
                            budget_bytes=int(self._options["device_memory_bytes"]),
                            queue_limit=int(self._options["device_queue"]),
                            timeout_s=float(self._options["device_timeout_s"]),
                            environment=self._environment,
                        )
                    )
                except DeviceLost as error:
                    if insisted:
                        raise
                    log.warning("%s is not used: %s", one.name, error.message)
                    self._failed[one.name] = error.message
        except BaseException:
            for device in started:
                device.close()
            self._unstarted = "idle"
            raise
        self._started = tuple(started)
        return self._started

    @property
    def started(self) -> tuple[Device, ...]:
        """Those that were needed so far."""
        return self._started

    def stats(self) -> tuple[DeviceStats, ...]:
        """One for each that was chosen."""
        started = {device.name: device for device in self._started}
        return tuple(
            started[one.name].stats() if one.name in started else self._of_unstarted(one.name)
            for one in self.chosen
        )

    def _of_unstarted(self, name: str) -> DeviceStats:
        why = self._failed.get(name, "")
        state = "down" if why else self._unstarted
        return DeviceStats(name, "", state, 0, 0, 0, 0, 0, 0, 0, 0, why)

    def close(self) -> None:
        for device in self._started:
            device.close()


_shared: dict[_Key, _Workers] = {}
_sharing = threading.Lock()
if hasattr(os, "register_at_fork"):
    # A child must not use what its parent started.
    os.register_at_fork(after_in_child=_shared.clear)


class OpenDevices:
    """`Devices` with a worker process each, started when a collection first needs them."""

    def __init__(self, workers: _Workers) -> None:
        self._workers: _Workers | None = workers
        self.found = self.names = tuple(one.name for one in workers.chosen)
        self.placements = workers.placements

    def stats(self) -> tuple[DeviceStats, ...]:
        workers = self._workers
        return () if workers is None else workers.stats()

    def close(self) -> None:
        with _sharing:
            workers, self._workers = self._workers, None
            if workers is None:
                return
            workers.users -= 1
            last = not workers.users
            if last and _shared.get(workers.key) is workers:
                del _shared[workers.key]
        if last:
            workers.close()


def open_devices(
    options: Mapping[str, Any],
    count: Callable[[], int],
    environment: Mapping[str, str] | None = None,
) -> OpenDevices | None:
    """The devices that the setting `device` names; None where the CPU is to serve alone.

    Called once, when a database is opened. `count` says how many there are; `environment`, by default that of the process, may pretend
    others (`choice.py`). DeviceNotFound where GPUs are asked
    for and not there; DeviceLost where one that is asked for cannot be started. With `auto` they are started
    later, when a collection is large enough for them, and such a one is left out with a warning. Databases of one
    process that were opened with equal settings of devices share them. The log has a line with the choice, unless it is cpu.
    """
    setting = str(options["device"])
    known = dict(os.environ if environment is None else environment)
    chosen = choose(setting, count, known)
    if not chosen:
        if parse(setting).kind == "auto":
            log.info("device is auto, and no GPU is used: the CPU searches")
        return None
    log.info("device is %s: %s", setting, ", ".join(one.name for one in chosen))
    names = ("device", "device_memory_bytes", "device_queue", "device_timeout_s")
    pretended = (known.get(name) for name in STAND_IN)
    key = (chosen, *(options[name] for name in names), *pretended)
    with _sharing:
        workers = _shared.get(key)
        if workers is None or any(one.down for one in workers.started):
            workers = _shared[key] = _Workers(key, chosen, options, known)
        workers.users += 1
    made = OpenDevices(workers)
    if parse(setting).kind != "auto":
        try:
            _ = made.placements.devices
        except BaseException:
            made.close()
            raise
    return made


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


def asked_for(device: str, setting: str) -> bool:
    """Whether GPUs were asked for by a collection that says `device` or, where that is auto, by the setting that its
    database was opened with; False where `auto` has found them."""
    kind = parse(device).kind
    return kind == "gpu" or (kind == "auto" and parse(setting).kind == "gpu")


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
