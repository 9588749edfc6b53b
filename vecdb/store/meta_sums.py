"""Checksums of what has none of its own in the file of a collection: values of `meta`, the log, the requests.

They stand in one record of `meta`, which every commit writes anyway. A checksum is made of what is written,
never of what is found: so damage is not taken for right by the next write. Only where there is no record, or
one that a version without them has left behind, all is taken as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from struct import Struct
from typing import Any

from ..crc import crc32, flipped_bit
from ..errors import Corrupted
from ..layout import (
    LOG,
    LOG_SUM,
    LOG_SUM_COMMITS,
    META_HORIZON,
    META_KEYED,
    META_LOG_SUM,
    META_SETTINGS,
    META_SUMS,
    SEQUENCE,
    SUM,
    SUMMED,
    SUMS,
)
from ..stopping import Interrupt, asking
from .environment import Environment
from .tables import Tables

BEFORE_READING = (META_SETTINGS, META_HORIZON, META_KEYED)
"""What would give wrong answers: compared when a collection is opened."""


@dataclass(slots=True)
class Stretch:
    """Consecutive entries of the log, and the CRC-32 of the LOG of each, one behind the other."""

    first: int
    count: int = 0
    crc: int = 0

    def add(self, head: Any) -> None:
        self.crc = crc32(head[: LOG.size], self.crc)
        self.count += 1

    @property
    def end(self) -> int:
        """The commit behind the last."""
        return self.first + self.count

    @property
    def block(self) -> int:
        return self.first // LOG_SUM_COMMITS


@dataclass(slots=True)
class Sums:
    """The record. Without arguments that of an empty collection."""

    sequence: int = 0
    """The newest commit when it was written."""
    values: list[int] = field(default_factory=lambda: [value_sum(key, None) for key in SUMMED])
    """Of each of SUMMED."""
    newest: Stretch = field(default_factory=lambda: Stretch(1))
    """The entries of the log that no record of their own stands for yet."""
    n_requests: int = 0
    requests: int = 0
    """The checksums of all entries of the table, by exclusive or: so the order of their coming and going is
    all the same."""

    def packed(self) -> bytes:
        newest = self.newest
        return sealed(
            META_SUMS,
            SUMS.pack(
                *self.values, self.sequence, newest.first, newest.count, newest.crc,
                self.n_requests, self.requests,
            ),
        )  # fmt: skip

    @classmethod
    def parse(cls, raw: Any) -> Sums:
        """ValueError when the record fails its own checksum, or is that of another file."""
        *values, sequence, first, count, crc, n_requests, requests = unpacked(
            SUMS, unsealed(META_SUMS, raw)
        )
        return cls(sequence, values, Stretch(first, count, crc), n_requests, requests)


def value_sum(key: bytes, value: Any) -> int:
    """Of an entry of `meta`; None stands for one that is not there."""
    return crc32(key + b"\0") if value is None else crc32(value, crc32(key + b"\1"))


def mended_value(key: bytes, value: Any, expected: int) -> bytes | None:
    """The value with one bit flipped that has this checksum, None where there is none."""
    if value is None:
        return None
    head = key + b"\1"
    raw = bytearray(head + value)
    bit = flipped_bit(raw, expected, len(head))
    if bit is None:
        return None
    raw[bit // 8] ^= 1 << bit % 8
    return bytes(raw[len(head) :])


def entry_sum(key: Any, value: Any) -> int:
    """Of an entry of the table `requests`."""
    return crc32(value, crc32(key))


def sealed(key: bytes, body: bytes) -> bytes:
    return body + SUM.pack(crc32(key + body))


def unsealed(key: bytes, raw: Any) -> bytes:
    """What was sealed; ValueError when it fails its checksum."""
    body = bytes(raw[: -SUM.size])
    if sealed(key, body) != bytes(raw):
        raise ValueError("fails its own checksum")
    return body


def unpacked(layout: Struct, body: bytes) -> tuple[Any, ...]:
    """What was packed; ValueError when it cannot have been by this layout."""
    if len(body) != layout.size:
        raise ValueError(f"has {len(body)} bytes instead of {layout.size}")
    return layout.unpack(body)


def log_sum_key(block: int) -> bytes:
    return META_LOG_SUM + b"%012d" % block


def parse_log_sum(key: bytes, raw: Any) -> Stretch:
    """ValueError when the record fails its own checksum, or is none of these."""
    return Stretch(*unpacked(LOG_SUM, unsealed(key, raw)))


def stretches(log: Iterable[tuple[Any, Any]]) -> Iterator[Stretch]:
    """Those that entries (key, value) of the log are in, in their order; a gap ends one."""
    now: Stretch | None = None
    for key, value in log:
        sequence = SEQUENCE.unpack(key)[0]
        if now is not None and (now.end != sequence or not sequence % LOG_SUM_COMMITS):
            yield now
            now = None
        now = now or Stretch(sequence)
        now.add(value)
    if now is not None:
        yield now


class Keeper:
    """Keeps the record in step with what one transaction writes, and writes it once, in `finish`."""

    def __init__(self, environment: Environment, transaction: Any, sequence: int) -> None:
        """`sequence` is the newest commit before this transaction. Corrupted when the record is damaged."""
        self._env, self._txn = environment, transaction
        self._meta = environment.table("meta")
        self._changed = False
        raw = transaction.get(META_SUMS, db=self._meta)
        try:
            sums = None if raw is None else Sums.parse(raw)
        except ValueError as error:
            raise _damaged(environment, f"the record of checksums {error}") from None
        if sums is None or sums.sequence != sequence:
            self.renew(sequence)
        else:
            self._sums = sums

    def put(self, key: bytes, value: bytes) -> None:
        """Writes an entry of `meta`, with its checksum."""
        self._txn.put(key, value, db=self._meta)
        self._sums.values[SUMMED.index(key)] = value_sum(key, value)
        self._changed = True

    def commit(self, sequence: int, head: bytes) -> None:
        """The log has the entry `head` for this commit, the newest."""
        sums = self._sums
        if not sums.newest.count:
            sums.newest = Stretch(sequence)
        elif sequence // LOG_SUM_COMMITS != sums.newest.block:
            self._write_stretch(sums.newest)
            sums.newest = Stretch(sequence)
        sums.newest.add(head)
        sums.sequence = sequence
        self._changed = True

    def request(self, key: bytes, value: Any, *, added: bool) -> None:
        """The table `requests` has an entry more, or less."""
        self._sums.n_requests += 1 if added else -1
        self._sums.requests ^= entry_sum(key, value)
        self._changed = True

    def before_cutting(self, first: int) -> None:
        """Corrupted when the stretch that commit `first` is in, and that is summed anew behind a cut, is damaged."""
        held = self._stretch_of(first)
        if held is None or held.first >= first:
            return
        found = Stretch(held.first)
        for key, value in self._log(held.first):
            if SEQUENCE.unpack(key)[0] >= held.end:
                break
            found.add(value)
        if found != held:
            raise _damaged(self._env, f"the {_told(held)}")

    def cut(self, first: int) -> None:
        """The log begins at commit `first` now, or ends before it."""
        cursor = self._txn.cursor(db=self._meta)
        least = log_sum_key(first // LOG_SUM_COMMITS)
        more = cursor.set_range(META_LOG_SUM)
        while more and META_LOG_SUM <= bytes(cursor.key()) < least:
            more = cursor.delete()
        held = self._stretch_of(first)
        if held is not None and held.first < first:
            left = Stretch(first)
            for key, value in self._log(first):
                if SEQUENCE.unpack(key)[0] >= held.end:
                    break
                left.add(value)
            if held is self._sums.newest:
                self._sums.newest = left
            else:
                self._write_stretch(left)
        elif first > self._sums.sequence:
            self._sums.newest = Stretch(first)
        self._changed = True

    def renew(self, sequence: int) -> None:
        """Takes all as it is; 1 us a commit of the log and a write with an id."""
        txn, meta = self._txn, self._meta
        cursor = txn.cursor(db=meta)
        more = cursor.set_range(META_LOG_SUM)
        while more and bytes(cursor.key()).startswith(META_LOG_SUM):
            more = cursor.delete()
        sums = Sums(sequence, newest=Stretch(sequence + 1))
        sums.values = [value_sum(key, txn.get(key, db=meta)) for key in SUMMED]
        for stretch in stretches(self._log(0)):
            if sums.newest.count:
                self._write_stretch(sums.newest)
            sums.newest = stretch
        table = self._env.table("requests")
        for key, value in txn.cursor(db=table) if table is not None else ():
            sums.n_requests += 1
            sums.requests ^= entry_sum(key, value)
        self._sums = sums
        self._changed = True

    def _stretch_of(self, sequence: int) -> Stretch | None:
        newest = self._sums.newest
        if newest.count and newest.block == sequence // LOG_SUM_COMMITS:
            return newest
        key = log_sum_key(sequence // LOG_SUM_COMMITS)
        raw = self._txn.get(key, db=self._meta)
        try:
            return None if raw is None else parse_log_sum(key, raw)
        except ValueError as error:
            raise _damaged(self._env, f"a checksum of the log {error}") from None

    def _log(self, first: int) -> Iterator[tuple[Any, Any]]:
        cursor = self._txn.cursor(db=self._env.table("log"))
        if cursor.set_range(SEQUENCE.pack(first)):
            yield from cursor

    def _write_stretch(self, stretch: Stretch) -> None:
        key = log_sum_key(stretch.block)
        body = LOG_SUM.pack(stretch.first, stretch.count, stretch.crc)
        self._txn.put(key, sealed(key, body), db=self._meta)

    def finish(self) -> None:
        """Writes the record, if it has changed; the last call before the commit."""
        if self._changed:
            self._txn.put(META_SUMS, self._sums.packed(), db=self._meta)


def sums_of_meta(tables: Tables) -> Sums | None:
    """The record of a moment; None where there is none, or a version that knows none has written since.
    ValueError when it is damaged."""
    raw = tables.meta_value(META_SUMS)
    sums = None if raw is None else Sums.parse(raw)
    return sums if sums is not None and sums.sequence == tables.state().sequence else None


def must_hold(tables: Tables, environment: Environment) -> None:
    """Corrupted when something fails its checksum that answers depend on; 5 us."""
    try:
        sums = sums_of_meta(tables)
    except ValueError as error:
        raise _damaged(environment, f"the record of checksums {error}") from None
    if sums is not None:
        for key in BEFORE_READING:
            if value_sum(key, tables.meta_value(key)) != sums.values[SUMMED.index(key)]:
                raise _damaged(environment, _fails(key))


def faults(tables: Tables, interrupt: Interrupt = lambda: None) -> Iterator[str]:
    """One sentence for each checksum that does not hold but those of the log, see `log_faults`. `interrupt` is
    called every few milliseconds, and may raise."""
    try:
        sums = sums_of_meta(tables)
    except ValueError as error:
        yield f"the record of checksums {error}"
        return
    if sums is None:
        return
    for key, expected in zip(SUMMED, sums.values, strict=True):
        if value_sum(key, tables.meta_value(key)) != expected:
            yield _fails(key)
    n_requests = requests = 0
    for request, value in tables.items("requests"):
        n_requests += 1
        requests ^= entry_sum(request, value)
    if (n_requests, requests) != (sums.n_requests, sums.requests):
        yield "the table requests fails its checksum"


def log_faults(
    tables: Tables, interrupt: Interrupt = lambda: None, after: int = 0
) -> Iterator[str]:
    """The same for the checksums of the log, of all stretches that commits behind `after` are in; 1 us a commit."""
    try:
        sums = sums_of_meta(tables)
    except ValueError:
        return  # `faults` tells of it
    if sums is None:
        return
    begin = (after + 1) // LOG_SUM_COMMITS
    held = [sums.newest] if sums.newest.count else []
    for key, raw in tables.items("meta", log_sum_key(begin)):
        if not key.startswith(META_LOG_SUM):
            break
        try:
            held.append(parse_log_sum(key, raw))
        except ValueError as error:
            yield f"checksum {key.decode(errors='replace')!r} of the log {error}"
    log = asking(tables.items("log", SEQUENCE.pack(begin * LOG_SUM_COMMITS)), interrupt)
    found = {stretch.first: stretch for stretch in stretches(log)}
    for stretch in held:
        if stretch.end > after + 1 and found.get(stretch.first) != stretch:
            yield f"the {_told(stretch)}"


def _fails(key: bytes) -> str:
    return f"entry {key.decode()!r} of the table meta fails its checksum"


def _told(stretch: Stretch) -> str:
    return f"log of commits {stretch.first} to {stretch.end - 1} fails its checksum"


def _damaged(environment: Environment, what: str) -> Corrupted:
    return Corrupted(
        f"{environment.folder}: {what}. Run `vecdb check --repair` when no process has the database open, or "
        "restore a backup"
    )
