"""What a process and everything it has started take: CPU time and memory, looked at from outside; Linux."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any, Self

from ..children import members, resident

_LOOK_S = 0.1
_PACE = 20
"""A look is followed by a pause of so many times what it took, so that looking takes a twentieth of a core at most."""
_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_s(pids: list[int]) -> float:
    """CPU seconds of these processes and of the children that they have seen end."""
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    return total / _TICKS


def memory(pids: list[int]) -> tuple[int, int]:
    """Resident bytes in all, and those not backed by a file.

    A page that two share counts twice, but for processes that share memory by intent, as a server that has one for
    each connection: of their pages each has its share, so that a buffer counts once whatever the number of callers.
    """
    looked = {pid: resident(pid) for pid in pids}
    sharing = [pid for pid, one in looked.items() if one["shared"]]
    if len(sharing) > 1:
        looked |= {pid: _proportional(pid) or looked[pid] for pid in sharing}
    total = sum(one["total"] for one in looked.values())
    return total, sum(one["anonymous"] for one in looked.values())


def _proportional(pid: int) -> dict[str, int] | None:
    """As `resident`, of each page the part that falls to this process; slower. None where it cannot be told."""
    found = {"Pss": 0, "Pss_Anon": 0}
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name = line.partition(":")[0]
        if name in found:
            found[name] = int(line.split()[1]) * 1024
    return {"total": found["Pss"], "anonymous": found["Pss_Anon"]}


class Watch:
    """CPU seconds and memory of a process tree while the context lasts."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._peak = 0

    def __enter__(self) -> Self:
        self._begun_s = self._used()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        ended_s = self._used()
        everyone = members(self._pid)
        total, anonymous = memory(everyone)
        self.figures: dict[str, Any] = {
            "cpu_s": round(ended_s[0] - self._begun_s[0], 3),
            "memory_bytes": total,
            "memory_anonymous_bytes": anonymous,
            "memory_peak_bytes": max(self._peak, total),
        }
        if everyone[1:]:
            # The load process is the root; what it has started is the system.
            server = memory(everyone[1:])
            self.figures["cpu_server_s"] = round(ended_s[1] - self._begun_s[1], 3)
            self.figures["memory_server_bytes"] = server[0]
            self.figures["memory_server_anonymous_bytes"] = server[1]

    def _used(self) -> tuple[float, float]:
        everyone = members(self._pid)
        return cpu_s(everyone), cpu_s(everyone[1:])

    def _watch(self) -> None:
        pause_s = _LOOK_S
        while not self._over.wait(pause_s):
            begun_s = time.perf_counter()
            self._peak = max(self._peak, memory(members(self._pid))[0])
            pause_s = max(_LOOK_S, _PACE * (time.perf_counter() - begun_s))
