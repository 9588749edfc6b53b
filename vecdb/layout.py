"""Every byte on disk, and why it is there.

Folder of a database
    vecdb.lock             flock'ed by the one process that writes; holds its pid for people
    catalog/               LMDB: which collections and aliases exist
    collections/<token>/   one LMDB environment a collection, with its index files beside it

A collection has an environment of its own because LMDB has one writer and one map limit per
environment: so collections never wait for each other, and dropping one gives its space back at once.
The catalog points to a folder only after the folder is complete, and a folder is removed only after
the catalog has forgotten it: a crash leaves litter, never a hole. Litter carries an empty file
`unnamed`, which stands in a folder before it is named and before its name is taken away; a folder that
nobody names and that has no such file is somebody's data, and is left alone. Tokens, not names, name
folders, so a rename is one small commit and no name can escape to the file system.

Tables of the catalog
    meta         b"format" -> CATALOG_FORMAT as ASCII digits
    collections  name -> token
    aliases      alias -> token (of the collection; so aliases follow a rename)

Tables of a collection. Rows are numbers that only grow; a row, once written, never changes.
    meta         b"format"   -> COLLECTION_FORMAT as ASCII digits
                 b"settings" -> JSON, see `vecdb.database`
                 b"state"    -> STATE: sequence, next row, live records
                 b"index"    -> JSON record of the saved index, absent while there is none
    vectors      VECTOR_KEY (field, block) -> the vectors of rows block*R .. block*R + R - 1, row-major,
                 little-endian, no header; the last block may be short. Many vectors share a value since
                 one of 4 KB would take 8 KB of pages. Field 0 is the vector of every record; further
                 numbers are for named vectors.
    ids          ROW (of a block) -> ids of rows block*256 .. block*256 + 255, see `pack_ids`: so all ids
                 of a collection are read at open in milliseconds. With each stands a checksum of its
                 row over id, vector, metadata, document, content and uri, in this order, so that damage
                 to any of them is found.
    keys         id (`id_key`) -> ROW_VALUE of its live row
    metadata     ROW -> JSON object; no entry when empty
    documents    ROW -> UTF-8
    contents     ROW -> one byte length of the media type, the media type, the bytes
    uris         ROW -> UTF-8
    dead         ROW -> SEQUENCE_VALUE of the commit that replaced or deleted the row
    log          SEQUENCE -> LOG (time, first row, end row) + ROW_VALUE for each row that died
Keys are big-endian, so that LMDB's byte order is number order and appends fill pages to the end.
Values are little-endian, so that numpy reads them in place.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

CATALOG_FORMAT = 1
COLLECTION_FORMAT = 1

LOCK_FILE = "vecdb.lock"
CATALOG_FOLDER = "catalog"
COLLECTIONS_FOLDER = "collections"
DATA_FILE = "data.mdb"
LMDB_LOCK_FILE = "lock.mdb"
UNNAMED_FILE = "unnamed"

CATALOG_TABLES = ("meta", "collections", "aliases")
COLLECTION_TABLES = (
    "meta", "vectors", "ids", "keys", "metadata", "documents", "contents", "uris", "dead", "log",
)  # fmt: skip

META_FORMAT = b"format"
META_SETTINGS = b"settings"
META_STATE = b"state"
META_INDEX = b"index"

STATE = struct.Struct("<QQQ")
ROW = struct.Struct(">Q")
ROW_VALUE = struct.Struct("<Q")
SEQUENCE = struct.Struct(">Q")
SEQUENCE_VALUE = struct.Struct("<Q")
VECTOR_KEY = struct.Struct(">HQ")
LOG = struct.Struct("<qQQ")

DEFAULT_FIELD = 0
ID_BLOCK_ROWS = 256
"""Rows in one value of the table `ids`: some 8 KiB, little to write again for a commit of one row."""

VECTOR_DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}

_BLOCK_BYTES = 98_304
"""Target size of a block of vectors. Measured at d = 384, float32, batches of 1,000 rows: 64 rows
(96 KiB) a block write 480,000 rows/s into 1.04 x the raw bytes and read back at 2.7 million rows/s;
one row a block 176,000 rows/s, 1.34 x, 0.2 million; 256 rows gain nothing more and make a commit of
one row rewrite four times as much."""

LMDB_MAX_KEY_BYTES = 511
_LONG_ID_MARK = b"\x00"


def rows_per_block(dimension: int, storage: str) -> int:
    """R: rows in one value of the table `vectors`; a power of two, at least 1."""
    vector_bytes = dimension * VECTOR_DTYPES[storage].itemsize
    return 1 << max(0, (_BLOCK_BYTES // vector_bytes).bit_length() - 1)


def id_key(record_id: bytes) -> bytes:
    """Key of an id. Ids hold no NUL, so the hashed form of a long one never meets a short one."""
    if len(record_id) <= LMDB_MAX_KEY_BYTES:
        return record_id
    return _LONG_ID_MARK + hashlib.blake2b(record_id, digest_size=32).digest()


def row_keys(first_row: int, count: int) -> list[bytes]:
    """ROW keys of `count` consecutive rows."""
    packed = np.arange(first_row, first_row + count, dtype=">u8").tobytes()
    return [packed[i : i + 8] for i in range(0, 8 * count, 8)]


def keys_of_rows(rows: NDArray[np.int64] | Sequence[int]) -> list[bytes]:
    """ROW keys of any rows, in their order."""
    packed = np.asarray(rows, dtype=">u8").tobytes()
    return [packed[i : i + 8] for i in range(0, len(packed), 8)]


def pack_ids(ids: Sequence[bytes], checksums: Sequence[int]) -> bytes:
    """A block of ids: n, n checksums, n ends of ids, all uint32; then the ids one behind the other."""
    n = len(ids)
    head = np.empty(1 + 2 * n, "<u4")
    head[0] = n
    head[1 : 1 + n] = checksums
    np.cumsum([len(i) for i in ids], out=head[1 + n :])
    return head.tobytes() + b"".join(ids)


def unpack_ids(value: Any) -> tuple[list[bytes], list[int]]:
    """(ids, checksums) of a block. ValueError when its lengths do not agree."""
    n = int(np.frombuffer(value, "<u4", 1)[0])
    head = np.frombuffer(value, "<u4", 2 * n, 4)
    ends = head[n:].tolist()
    texts = bytes(value[4 + 8 * n :])
    if (ends[-1] if n else 0) != len(texts) or ends != sorted(ends):
        raise ValueError(
            f"a block of {n} ids has {len(texts)} bytes of text, its ends say {ends[-1:]}"
        )
    starts = [0, *ends][:n]
    return [texts[a:b] for a, b in zip(starts, ends, strict=True)], head[:n].tolist()


def pack_content(media_type: bytes, data: bytes) -> bytes:
    return bytes((len(media_type),)) + media_type + data


def unpack_content(value: bytes) -> tuple[str, bytes]:
    """(media type, bytes) of a value of the table `contents`."""
    end = 1 + value[0]
    return value[1:end].decode(), value[end:]
