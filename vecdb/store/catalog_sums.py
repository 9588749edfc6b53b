"""Checksums of the names in the catalog: each stands in `meta`, written and removed with its entry.

A record beside them says after which transaction they were right. Where it is of another one, or is not there, a
version that knows no checksums has written since, and the names are taken as they are.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any

from ..crc import crc32, flipped_bit
from ..errors import Corrupted
from ..layout import CATALOG_SUM_KEYS, CATALOG_SUMS, META_FORMAT, META_SUMS, SUM
from .environment import Environment
from .meta_sums import mended_value, sealed, unpacked, unsealed, value_sum

Names = dict[bytes, bytes]
"""Tokens by name, of one table."""


def _key(table: str, name: bytes) -> bytes:
    return CATALOG_SUM_KEYS[table] + name


def _sum(table: str, name: bytes, token: bytes) -> int:
    return crc32(_key(table, name) + b"\0" + token)


def put(environment: Environment, transaction: Any, table: str, name: bytes, token: bytes) -> None:
    """Writes an entry of a table of names, with its checksum."""
    transaction.put(name, token, db=environment.table(table))
    value = SUM.pack(_sum(table, name, token))
    transaction.put(_key(table, name), value, db=environment.table("meta"))


def pop(environment: Environment, transaction: Any, table: str, name: bytes) -> bytes | None:
    """Removes an entry; its token, None where there is none."""
    transaction.delete(_key(table, name), db=environment.table("meta"))
    token = transaction.pop(name, db=environment.table(table))
    return None if token is None else bytes(token)


def read(environment: Environment, transaction: Any) -> tuple[dict[str, Names], Names]:
    """(the names of each table, all of `meta`)."""

    def all_of(table: str) -> Names:
        cursor = transaction.cursor(db=environment.table(table))
        return {bytes(key): bytes(value) for key, value in cursor}

    return {table: all_of(table) for table in CATALOG_SUM_KEYS}, all_of("meta")


def begin_change(environment: Environment, transaction: Any) -> None:
    """Before a change: makes all checksums if there are none that hold for what is there. Corrupted when the
    record of them is damaged."""
    meta = environment.table("meta")
    raw = transaction.get(META_SUMS, db=meta)
    try:
        if raw is not None and _parse(raw)[0] == transaction.id() - 1:
            return
    except ValueError as error:
        raise Corrupted(
            f"{environment.folder}: the record of checksums {error}; run check"
        ) from None
    tables, found = read(environment, transaction)
    for key in filter(_is_sum, found):
        transaction.delete(key, db=meta)
    for table, names in tables.items():
        for name, token in names.items():
            put(environment, transaction, table, name, token)


def end_change(environment: Environment, transaction: Any) -> None:
    """Behind a change: its checksums are right."""
    meta = environment.table("meta")
    number = transaction.get(META_FORMAT, db=meta)
    body = CATALOG_SUMS.pack(transaction.id(), value_sum(META_FORMAT, number))
    transaction.put(META_SUMS, sealed(META_SUMS, body), db=meta)


def _parse(raw: Any) -> tuple[int, int]:
    """(transaction, checksum of the format); ValueError when the record is damaged, or that of another file."""
    transaction, number = unpacked(CATALOG_SUMS, unsealed(META_SUMS, raw))
    return transaction, number


def are_of(meta: Mapping[bytes, Any], transactions: Iterable[int]) -> bool:
    """Whether the checksums hold for what one of these transactions has left. True too where the record of them
    is damaged."""
    raw = meta.get(META_SUMS)
    try:
        return raw is not None and _parse(raw)[0] in transactions
    except ValueError:
        return True


def are_whole(meta: Mapping[bytes, Any], transaction: int) -> bool:
    """Whether they are surely those of what this transaction has left."""
    raw = meta.get(META_SUMS)
    try:
        return raw is not None and bool(_parse(raw)[0] == transaction)
    except ValueError:
        return False


def faults(tables: Mapping[str, Names], meta: Mapping[bytes, Any]) -> list[str]:
    """One sentence for each name that is not as it was written; for checksums that hold for what is there."""
    found = []
    try:
        if value_sum(META_FORMAT, meta.get(META_FORMAT)) != _parse(meta[META_SUMS])[1]:
            found.append("the number of the format fails its checksum")
    except ValueError as error:
        found.append(f"the record of checksums {error}")
    for table, names in tables.items():
        sums = _sums(table, meta)
        what = _what(table)
        for name, token in names.items():
            if name not in sums:
                found.append(f"{what} {_text(name)} has no checksum")
            elif sums[name] != _sum(table, name, token):
                found.append(f"{what} {_text(name)} of folder {_text(token)} fails its checksum")
        found += [f"{what} {_text(name)} is missing" for name in sums if name not in names]
    return found


def right_format(meta: Mapping[bytes, Any]) -> bytes | None:
    """The number of the format, put right by its checksum if need be; None where there is none."""
    value = meta.get(META_FORMAT)
    try:
        found = mended_value(META_FORMAT, value, _parse(meta[META_SUMS])[1])
    except (KeyError, ValueError):
        found = None
    return value if found is None else found


def mend(
    tables: Mapping[str, Names],
    meta: Mapping[bytes, Any],
    folders: Iterable[bytes],
    *,
    older: Container[str] = (),
) -> tuple[dict[str, Names], list[str]]:
    """(the names with flipped bits put right, what was done or cannot be, one sentence each).

    `folders` are the tokens that there are: a name that is missing belongs to the one that fits its checksum. Tables in
    `older` may have names of the change before the newest, whose own all have their checksums in `meta`.
    """
    tokens = list(folders)
    told: list[str] = []
    mended = {
        table: _mended(table, names, _sums(table, meta), tokens, told, table in older)
        for table, names in tables.items()
    }
    return mended, told


def _mended(
    table: str,
    names: Names,
    sums: dict[bytes, int],
    tokens: list[bytes],
    told: list[str],
    older: bool,
) -> Names:
    what = _what(table)
    right: Names = {}
    missing = {name: expected for name, expected in sums.items() if name not in names}
    for name, token in names.items():
        expected = sums.get(name)
        if expected is not None:
            was = _mended_token(table, name, token, expected)
            if was != token:
                told.append(f"{what} {_text(name)} is of folder {_text(was)}, not {_text(token)}")
            elif (_sum(table, name, token) ^ expected).bit_count() > 1:
                told.append(f"{what} {_text(name)} of folder {_text(token)} fails its checksum")
            right[name] = was
            continue
        near = [
            m for m in missing if changed_bits(m, name) == 1 and missing[m] == _sum(table, m, token)
        ]
        if near:
            told.append(f"{what} {_text(near[0])} had become {_text(name)}")
            del missing[near[0]]
        elif older:
            told.append(
                f"{what} {_text(name)} of folder {_text(token)} is of the change before the newest, and is left out"
            )
            continue
        right[near[0] if near else name] = token
    for name, expected in missing.items():
        owner = next((t for t in tokens if _sum(table, name, t) == expected), None)
        if owner is not None:
            told.append(
                f"{what} {_text(name)} of folder {_text(owner)} was missing, and is there again"
            )
            right[name] = owner
        elif not any(changed_bits(name, one) == 1 for one in right):
            told.append(f"{what} {_text(name)} is lost")
    return right


def _mended_token(table: str, name: bytes, token: bytes, expected: int) -> bytes:
    head = _key(table, name) + b"\0"
    raw = bytearray(head + token)
    bit = flipped_bit(raw, expected, len(head))
    if bit is not None:
        raw[bit // 8] ^= 1 << bit % 8
    return bytes(raw[len(head) :])


def changed_bits(one: bytes, other: bytes) -> int:
    """How many bits tell them apart; -1 where their lengths do."""
    if len(one) != len(other):
        return -1
    return sum((a ^ b).bit_count() for a, b in zip(one, other, strict=True))


def _is_sum(key: bytes) -> bool:
    return key.startswith(tuple(CATALOG_SUM_KEYS.values()))


def _sums(table: str, meta: Mapping[bytes, Any]) -> dict[bytes, int]:
    prefix = CATALOG_SUM_KEYS[table]
    return {
        key[len(prefix) :]: int.from_bytes(value, "little")
        for key, value in meta.items()
        if key.startswith(prefix)
    }


def _what(table: str) -> str:
    return "alias" if table == "aliases" else "the name"


def _text(name: bytes) -> str:
    return repr(name.decode(errors="replace"))
