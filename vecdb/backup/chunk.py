"""The bytes of a chunk: groups of rows or of history, each in columns, one behind the other.

    file   MAGIC, then groups
    group  HEAD: bytes of the JSON that follows, uint32; the JSON: rows [first, end) and the name and bytes
           of each section; then the sections, one behind the other

Sections of rows, one entry a held row, those without any left out:
    held             bitmap of the rows that are held; not there when all are
    sums             uint32 checksums, as `vecdb.layout` defines them
    id_lengths, ids  uint32; UTF-8
    vectors:<n>      of field n, row-major, in stored dtype; `present:<n>` before it: bitmap of the held rows
                     that have one, for n > 0
    metadata_lengths, metadata, and likewise documents, contents, uris: uint32, NO_VALUE for none; the values
                     as they are stored
Sections of history, in groups of their own:
    purged                     bitmap of rows [first, end)
    dead_rows, dead_sequences  uint64: rows, and the commits they died in
    times_us, end_rows         int64, uint64: of consecutive commits, of which `first` is the first
All little-endian. Nothing is compressed: vectors hardly get smaller, and what is not compressed cannot
explode when it is opened. Nothing is pickled.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import BackupDamaged
from ..store import EncodedRows, Shape, StoredRows
from ..store.copying import NO_VALUE, TEXT_TABLES

MAGIC = b"VECDBCK1"
HEAD = struct.Struct("<I")
MAX_GROUP_ROWS = 65_536

_MAX_HEAD_BYTES = 16_384

Buffer = Any
"""bytes, memoryview or a C-contiguous array."""


class _GroupHead(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    first: int
    end: int
    sections: list[tuple[str, int]]


class Group:
    """A group as read: sections are looks at the file's bytes."""

    def __init__(self, first: int, end: int, sections: Mapping[str, memoryview]) -> None:
        self.first = first
        self.end = end
        self._sections = sections

    def has(self, name: str) -> bool:
        return name in self._sections

    def array(self, name: str, dtype: str) -> NDArray[Any]:
        """A section as numbers, in place and read-only; empty when it is not there."""
        raw = self._sections.get(name, memoryview(b""))
        size = np.dtype(dtype).itemsize
        if len(raw) % size:
            raise BackupDamaged(f"section {name} has {len(raw)} bytes, no multiple of {size}")
        return np.frombuffer(raw, dtype) if len(raw) else np.empty(0, dtype)

    def bits(self, name: str, count: int) -> NDArray[np.bool_]:
        """A bitmap of `count` bits."""
        raw = self.array(name, "u1")
        if len(raw) != -(-count // 8):
            raise BackupDamaged(f"section {name} has {len(raw)} bytes for {count} bits")
        return np.unpackbits(raw, count=count, bitorder="little").view(np.bool_)

    def bytes(self, name: str) -> bytes:
        return bytes(self._sections.get(name, b""))

    def must_have_only(self, names: frozenset[str]) -> None:
        strange = sorted(self._sections.keys() - names)
        if strange:
            raise BackupDamaged(f"section {strange[0]!r:.80} does not belong there")


def pack(first: int, end: int, sections: Mapping[str, Buffer]) -> list[Buffer]:
    """A group as buffers; nothing of the sections is copied."""
    views = {name: memoryview(value).cast("B") for name, value in sections.items() if len(value)}
    sizes = [(name, view.nbytes) for name, view in views.items()]
    head = msgspec.json.encode(_GroupHead(first, end, sizes))
    return [HEAD.pack(len(head)) + head, *views.values()]


def groups(data: bytes) -> Iterator[Group]:
    """The groups of a file. BackupDamaged where its sizes do not agree."""
    view = memoryview(data)
    if view[: len(MAGIC)] != MAGIC:
        raise BackupDamaged("a chunk does not begin as one")
    at = len(MAGIC)
    while at < len(view):
        group, at = _group(view, at)
        yield group


def _group(view: memoryview, at: int) -> tuple[Group, int]:
    if len(view) - at < HEAD.size:
        raise BackupDamaged("a chunk ends in the middle of a group")
    (size,) = HEAD.unpack_from(view, at)
    at += HEAD.size
    if size > _MAX_HEAD_BYTES or size > len(view) - at:
        raise BackupDamaged(f"the head of a group claims {size} bytes")
    try:
        head = msgspec.json.decode(view[at : at + size], type=_GroupHead)
    except msgspec.MsgspecError as error:
        raise BackupDamaged(f"the head of a group cannot be read: {error}") from None
    at += size
    if not 0 <= head.first < head.end < 1 << 63:
        raise BackupDamaged(f"a group claims rows {head.first} to {head.end}")
    sections = {}
    for name, length in head.sections:
        if not 0 < length <= len(view) - at or name in sections:
            raise BackupDamaged(f"section {name!r:.80} of a group claims {length} bytes")
        sections[name] = view[at : at + length]
        at += length
    return Group(head.first, head.end, sections), at


# -- rows


def pack_rows(piece: StoredRows) -> list[Buffer]:
    """Rows as a group."""
    rows = piece.rows
    sections: dict[str, Buffer] = {}
    if not piece.held.all():
        sections["held"] = np.packbits(piece.held, bitorder="little")
    sections["sums"] = piece.sums.astype("<u4", copy=False)
    sections["id_lengths"] = np.fromiter(map(len, rows.ids), "<u4", len(rows.ids))
    sections["ids"] = b"".join(rows.ids)
    sections["vectors:0"] = _bytes_of(rows.vectors)
    for number, (vectors, present) in sorted(rows.named.items()):
        sections[f"present:{number}"] = np.packbits(present, bitorder="little")
        sections[f"vectors:{number}"] = _bytes_of(vectors if present.all() else vectors[present])
    for name in TEXT_TABLES:
        column = getattr(rows, name)
        if column is not None:
            sections[f"{name}_lengths"], sections[name] = _packed(column)
    return pack(piece.first, piece.end, sections)


def held_in(group: Group) -> NDArray[np.bool_]:
    """Which of its rows a group holds. BackupDamaged unless it has a checksum for each of those."""
    count = group.end - group.first
    if count > MAX_GROUP_ROWS:
        raise BackupDamaged(f"a group has {count:,} rows, at most {MAX_GROUP_ROWS:,} are taken")
    held = group.bits("held", count) if group.has("held") else np.ones(count, np.bool_)
    n, sums = int(held.sum()), len(group.array("sums", "<u4"))
    if sums != n:
        raise BackupDamaged(f"a group of {n} rows has {sums} checksums")
    return held


def unpack_rows(group: Group, shape: Shape) -> StoredRows:
    """What `pack_rows` was given, for vector fields of this shape. BackupDamaged."""
    group.must_have_only(_sections_of(shape))
    held = held_in(group)
    n = int(held.sum())
    sums = group.array("sums", "<u4")
    lengths = group.array("id_lengths", "<u4")
    if len(lengths) != n:
        raise BackupDamaged(f"a group of {n} rows has {len(lengths)} ids")
    named = {}
    for number in range(1, len(shape.fields)):
        if not group.has(f"present:{number}"):
            if group.has(f"vectors:{number}"):
                raise BackupDamaged(f"vectors of field {number} are said to be of no row")
            continue
        present = group.bits(f"present:{number}", n)
        named[number] = (_vectors(group, shape, number, present), present)
    vectors = _vectors(group, shape, 0, np.ones(n, np.bool_))
    ids = _cut(lengths, group.bytes("ids"), "ids")
    texts = {name: _column(group, name, n) for name in TEXT_TABLES}
    rows = EncodedRows(
        [i or b"" for i in ids], vectors, texts["metadata"], texts["documents"],
        texts["contents"], texts["uris"], named=named,
    )  # fmt: skip
    return StoredRows(group.first, group.end, held, rows, sums)


def _sections_of(shape: Shape) -> frozenset[str]:
    names = {"held", "sums", "id_lengths", "ids", *TEXT_TABLES}
    names |= {f"{name}_lengths" for name in TEXT_TABLES}
    for number in range(len(shape.fields)):
        names |= {f"present:{number}", f"vectors:{number}"} if number else {"vectors:0"}
    return frozenset(names)


def _bytes_of(vectors: NDArray[Any]) -> Buffer:
    return np.ascontiguousarray(vectors).reshape(-1).view(np.uint8)


def _vectors(group: Group, shape: Shape, number: int, present: NDArray[np.bool_]) -> NDArray[Any]:
    """(n, width) in stored dtype, zeros where a row has none."""
    field = shape.fields[number]
    raw = group.array(f"vectors:{number}", "u1")
    n = int(present.sum())
    if len(raw) != n * field.row_bytes:
        raise BackupDamaged(
            f"field {number} has {len(raw)} bytes of vectors, {n} of {field.row_bytes} are expected"
        )
    given = raw.view(field.dtype).reshape(n, field.width)
    if n == len(present):
        return given
    spread = np.zeros((len(present), field.width), field.dtype)
    spread[present] = given
    return spread


def _packed(values: Sequence[bytes | None]) -> tuple[Buffer, bytes]:
    texts = [value for value in values if value is not None]
    if len(texts) == len(values):
        return np.fromiter(map(len, texts), "<u4", len(texts)), b"".join(texts)
    lengths = np.fromiter((NO_VALUE if v is None else len(v) for v in values), "<u4", len(values))
    return lengths, b"".join(texts)


def _column(group: Group, name: str, n: int) -> list[bytes | None] | None:
    if not group.has(f"{name}_lengths"):
        if group.has(name):
            raise BackupDamaged(f"section {name} has no lengths")
        return None
    lengths = group.array(f"{name}_lengths", "<u4")
    if len(lengths) != n:
        raise BackupDamaged(f"{n} rows have {len(lengths)} entries in {name}")
    return _cut(lengths, group.bytes(name), name)


def _cut(lengths: NDArray[np.uint32], texts: bytes, name: str) -> list[bytes | None]:
    there = lengths != NO_VALUE
    sizes = np.where(there, lengths, 0).astype(np.int64)
    ends = np.cumsum(sizes)
    if (int(ends[-1]) if len(ends) else 0) != len(texts):
        raise BackupDamaged(f"section {name} has {len(texts)} bytes, its lengths say otherwise")
    starts = (ends - sizes).tolist()
    if there.all():
        return [texts[a:b] for a, b in zip(starts, ends.tolist(), strict=True)]
    return [
        texts[a:b] if has else None
        for a, b, has in zip(starts, ends.tolist(), there.tolist(), strict=True)
    ]
