"""Writes that were done lately, by the id that their caller gave them: a repetition is answered, not done again.

The table `requests` is written in the very commit of a write, so after a crash a write and its entry are
both there or both not. In memory is a copy of it, some 200 bytes an entry.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, NamedTuple

from ..layout import ROW

KEPT = 100_000
"""Entries kept: more than half a minute of the quickest single writes."""
KEPT_US = 3_600 * 1_000_000
"""And an hour, whichever ends sooner."""
_DROPPED_A_WRITE = 4
_ENTRY = struct.Struct("<QQqI")
REQUEST_BYTES = _ENTRY.size
"""Of an entry, before the id of the write."""


class Remembered(NamedTuple):
    """What a write was answered, and what tells it from another write of the same id."""

    sequence: int
    records: int
    time_us: int
    fingerprint: int

    def packed(self, request_id: bytes) -> bytes:
        return _ENTRY.pack(*self) + request_id


class Requests:
    """The copy in memory. Changed by whoever commits, after the commit; asked inside one only."""

    def __init__(self, entries: Iterable[tuple[bytes, Any]] = ()) -> None:
        self._by_id: OrderedDict[bytes, Remembered] = OrderedDict()
        self.first = self.next = 0
        """Numbers of the oldest entry, and of the one to come."""
        for key, value in entries:
            (number,) = ROW.unpack(key)
            if not self._by_id:
                self.first = number
            raw = bytes(value)
            self._by_id[raw[_ENTRY.size :]] = Remembered(*_ENTRY.unpack_from(raw))
            self.next = number + 1

    def __len__(self) -> int:
        return len(self._by_id)

    def find(self, request_id: bytes) -> Remembered | None:
        return self._by_id.get(request_id)

    def too_old(self, now_us: int, dropped: int) -> int:
        """How many behind the `dropped` oldest, which its commit drops already, a write should drop: a few."""
        count = 0
        for entry in islice(self._by_id.values(), dropped, dropped + _DROPPED_A_WRITE):
            surplus = len(self._by_id) - dropped - count > KEPT
            if not (surplus or entry.time_us < now_us - KEPT_US):
                break
            count += 1
        return count

    def follow(self, added: Mapping[bytes, Remembered], dropped: int) -> None:
        """Takes up what a commit has added behind the newest, and dropped of the oldest."""
        for _ in range(dropped):
            self._by_id.popitem(last=False)
        self.first += dropped
        self._by_id.update(added)
        self.next += len(added)
