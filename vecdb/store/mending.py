"""What the checksums of `meta` put right in a salvaged file, and what they say is lost of it.

A checksum tells which single bit was flipped, so that one is flipped back. Where more is wrong, nothing that
fails its checksum is believed: what can be derived is derived, and the rest is named.
"""

from __future__ import annotations

from typing import NamedTuple

from ..crc import flipped_bit
from ..layout import (
    KEYED,
    LOG,
    META_FORMAT,
    META_HORIZON,
    META_KEYED,
    META_LOG_SUM,
    META_REPAIRS,
    META_SETTINGS,
    META_STATE,
    META_SUMS,
    SEQUENCE,
    STATE,
    SUMMED,
)
from .meta_sums import Stretch, Sums, entry_sum, mended_value, parse_log_sum, value_sum
from .salvage import Salvaged, Table

_SEARCHED = (
    "neither meta page of LMDB led to the tables, so they were looked for on all pages: the newest commit may be "
    "missing, or one be there that was under way and not acknowledged"
)


class Mended(NamedTuple):
    """A salvaged file in which every checksum of `meta` that can be read holds."""

    read: Salvaged
    doubts: tuple[str, ...]
    """One sentence each for what was wrong in more than one bit, and is lost or kept as it was found."""


def mend(read: Salvaged) -> Mended:
    """The same with flipped bits put right; nothing is changed where there are no checksums to go by."""
    meta = dict(read.tables["meta"])
    log, requests = dict(read.tables["log"]), read.tables["requests"]
    doubts = [_SEARCHED] if read.searched else []
    damaged = set(read.damaged)
    sums = _sums(meta, log)
    if sums is not None and "meta" not in damaged:
        for key, expected in zip(SUMMED, sums.values, strict=True):
            found = mended_value(key, meta.get(key), expected)
            if found is not None:
                meta[key] = memoryview(found)
            elif value_sum(key, meta.get(key)) != expected:
                doubts += _give_up(key, meta)
    if sums is not None and "log" not in damaged:
        held = [sums.newest] if sums.newest.count else []
        if not all(_mend_log(log, stretch) for stretch in (*held, *_log_sums(meta))):
            # Which entry is wrong is not known. No record depends on them.
            damaged.add("log")
            doubts.append("times in the log are damaged")
    if sums is not None and "requests" not in damaged:
        made = 0
        for key, value in requests.items():
            made ^= entry_sum(key, value)
        if (len(requests), made) != (sums.n_requests, sums.requests):
            requests = {}
            doubts.append(
                "which writes with a request id were done lately is not known any more: one that is repeated may be "
                "done again"
            )
    tables = read.tables | {"meta": meta, "log": log, "requests": requests}
    return Mended(read._replace(tables=tables, damaged=frozenset(damaged)), tuple(doubts))


def _sums(meta: Table, log: Table) -> Sums | None:
    """The record, if it holds and is of the newest commit that anything else tells of."""
    try:
        sums = Sums.parse(meta[META_SUMS])
    except (KeyError, ValueError):
        return None
    state = meta.get(META_STATE, b"")
    told = {SEQUENCE.unpack(key)[0] for key in list(log)[-1:] if len(key) == SEQUENCE.size}
    if len(state) == STATE.size:
        told.add(STATE.unpack(state)[0])
    return sums if sums.sequence in told else None


def _give_up(key: bytes, meta: Table) -> list[str]:
    """What is done without an entry that cannot be put right."""
    if key == META_KEYED:
        meta[key] = memoryview(KEYED.pack(0, 0))  # No row is taken for keyed; all are keyed anew.
        return []
    if key == META_HORIZON:
        meta.pop(key, None)
        return ["which moments can be read is not known any more"]
    if key == META_REPAIRS:
        return ["what is told of earlier repairs may be wrong"]
    if key == META_SETTINGS:
        return ["the settings may be wrong, and were kept as they were found"]
    return [] if key == META_FORMAT else [f"entry {key!r} of the table meta may be wrong"]


def _log_sums(meta: Table) -> list[Stretch]:
    found = []
    for key, raw in meta.items():
        if key.startswith(META_LOG_SUM):
            try:
                found.append(parse_log_sum(key, raw))
            except ValueError:
                continue  # The checksum itself is damaged: it says nothing.
    return found


def _mend_log(log: Table, stretch: Stretch) -> bool:
    """Whether the entries have their checksum, one bit put right if need be."""
    keys = [SEQUENCE.pack(sequence) for sequence in range(stretch.first, stretch.end)]
    if not all(len(log.get(key, b"")) >= LOG.size for key in keys):
        return False
    raw = b"".join(bytes(log[key][: LOG.size]) for key in keys)
    found = Stretch(stretch.first)
    for key in keys:
        found.add(log[key])
    if found == stretch:
        return True
    bit = flipped_bit(raw, stretch.crc)
    if bit is None:
        return False
    key = keys[bit // 8 // LOG.size]
    value = bytearray(log[key])
    value[bit // 8 % LOG.size] ^= 1 << bit % 8
    log[key] = memoryview(value)
    return True
