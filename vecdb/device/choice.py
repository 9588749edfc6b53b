"""The setting `device`: what it says, and which devices that is here.

Counting GPUs needs FAISS, which only `vecdb/index/` may ask, so whoever chooses hands the counting in:
`vecdb.index.card.count_gpus`.

For tests only: where the environment has VECDB_STAND_IN_DEVICES=2, two GPUs are pretended, each a stand-in
in a worker process of its own, and the real ones are not looked for. VECDB_STAND_IN_BYTES gives each so much
memory, VECDB_STAND_IN_GRAPHS=0 and VECDB_STAND_IN_MASKS=0 take their graphs and masks away, and VECDB_STAND_IN_FAULTS
makes them fail as `stand_in.Faults` says. They answer rightly and
slowly, and nothing else about them is of use.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..errors import DeviceNotFound, InvalidSetting
from .link import Device

log = logging.getLogger("vecdb")

STAND_IN_DEVICES = "VECDB_STAND_IN_DEVICES"
STAND_IN_BYTES = "VECDB_STAND_IN_BYTES"
STAND_IN_GRAPHS = "VECDB_STAND_IN_GRAPHS"
STAND_IN_FAULTS = "VECDB_STAND_IN_FAULTS"
STAND_IN_MASKS = "VECDB_STAND_IN_MASKS"
STAND_IN = (STAND_IN_DEVICES, STAND_IN_BYTES, STAND_IN_GRAPHS, STAND_IN_MASKS, STAND_IN_FAULTS)


@dataclass(frozen=True, slots=True)
class Choice:
    """What `device` says. `kind` is auto, cpu or gpu; `numbers` are those named, None for all."""

    kind: str
    numbers: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """A device that is there: `name` is "gpu:0", `number` its place among those that CUDA shows."""

    name: str
    number: int
    stand_in: bool = False


def parse(text: str) -> Choice:
    """`auto`, `cpu`, `gpu`, `gpu:0` or `gpu:0,1`; InvalidSetting for everything else."""
    word = text.strip().lower()
    if word in ("auto", "cpu", "gpu"):
        return Choice(word)
    named = re.fullmatch(r"gpu:(\d{1,4}(?:,\d{1,4})*)", word)
    if named is not None:
        numbers = tuple(int(one) for one in named[1].split(","))
        if len(set(numbers)) == len(numbers):
            return Choice("gpu", numbers)
    raise InvalidSetting(
        f"setting 'device' must be auto, cpu, gpu, or gpu with numbers that differ, as in gpu:0,1; "
        f"given {text!r}",
        setting="device",
    )


def choose(
    text: str, count: Callable[[], int], environment: Mapping[str, str] | None = None
) -> tuple[Chosen, ...]:
    """The devices that the setting means here, none for the CPU.

    `count` says how many GPUs there are, and is not called for `cpu`; what it raises means that none can be
    used. `auto` takes what is there and never fails for want of a GPU; `gpu` raises DeviceNotFound when one that
    is asked for is not there.
    """
    choice = parse(text)
    if choice.kind == "cpu":
        return ()
    known = os.environ if environment is None else environment
    pretended = known.get(STAND_IN_DEVICES, "").strip()
    why = ""
    if pretended:
        there = int(pretended)
    else:
        try:
            there = count()
        except Exception as error:
            there, why = 0, f" ({error})"
            log.warning("GPUs cannot be used: %s", error)
    wanted = tuple(range(there)) if choice.numbers is None else choice.numbers
    if choice.kind == "gpu":
        missing = [number for number in wanted if number >= there]
        if missing or not there:
            what = f"gpu:{missing[0]}" if missing else "a GPU"
            raise DeviceNotFound(
                f"{what} is asked for by the setting device = {text!r}, and {there} GPUs are there{why}; "
                "install a wheel of FAISS for GPUs (vecdb[gpu], vecdb[gpu-cuvs]) and a driver, or set "
                "device to auto or cpu",
                setting="device",
                found=there,
            )
    return tuple(Chosen(f"gpu:{number}", number, bool(pretended)) for number in wanted)


def start(
    chosen: Chosen,
    *,
    budget_bytes: int = 0,
    queue_limit: int = 1_024,
    timeout_s: float = 30.0,
    environment: Mapping[str, str] | None = None,
) -> Device:
    """A worker for one of `choose`; DeviceLost when it does not start."""
    known = os.environ if environment is None else environment
    arguments, changed = ["--card=faiss"], {}
    if chosen.stand_in:
        arguments = ["--card=stand-in"]
        if STAND_IN_BYTES in known:
            arguments.append(f"--stand-in-bytes={int(known[STAND_IN_BYTES])}")
        if STAND_IN_MASKS in known:
            arguments.append(f"--stand-in-masks={int(known[STAND_IN_MASKS])}")
        if STAND_IN_GRAPHS in known:
            arguments.append(f"--stand-in-graphs={int(known[STAND_IN_GRAPHS])}")
        if STAND_IN_FAULTS in known:
            arguments.append(f"--stand-in-faults={known[STAND_IN_FAULTS]}")
    else:
        # The worker sees this device only, as its number 0, and cannot touch another one.
        changed["CUDA_VISIBLE_DEVICES"] = visible(chosen.number, known.get("CUDA_VISIBLE_DEVICES"))
    return Device(
        chosen.name, arguments, environment=changed, budget_bytes=budget_bytes,
        queue_limit=queue_limit, timeout_s=timeout_s,
    )  # fmt: skip


def visible(number: int, shown: str | None) -> str:
    """CUDA_VISIBLE_DEVICES for one device, where `shown` may have renumbered them already."""
    names = [] if shown is None else [name.strip() for name in shown.split(",") if name.strip()]
    return names[number] if number < len(names) else str(number)
