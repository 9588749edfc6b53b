"""Every byte on disk, and why it is there.

Folder of a database
    vecdb.lock             flock'ed by the one process that writes; holds its pid for people
    catalog/               LMDB: which collections and aliases exist; `catalog-new` until it is durable
    collections/<token>/   one LMDB environment a collection, with its index files beside it
    quarantine/            damaged files that a repair has put others in the place of, each with a list of the
                           rows that are lost; folders of collections that were marked as litter when the names
                           could not all be read; removed by hand only
    restoring              empty: marks a database that `vecdb.restore` makes, under the name that it will have and
                           `.restoring-` and 8 hex digits, until it has that name. The next restore to this name
                           removes what is left of one that was interrupted. It says nothing elsewhere.

A collection has an environment of its own because LMDB has one writer and one map limit per
environment: so collections never wait for each other, and dropping one gives its space back at once.
The catalog points to a folder only after the folder is complete, and a folder is removed only after
the catalog has forgotten it: a crash leaves litter, never a hole. Litter carries an empty file
`unnamed`, which stands in a folder before it is named and before its name is taken away; a folder that
nobody names and that has no such file is somebody's data, and is left alone, unless it is empty and called by a token.
While a collection has a name, only files with names of ours are removed in its folder; a link itself is removed, not
what it leads to. Tokens, not names, name folders, so a rename is one small commit and no name can escape to the file
system.

Tables of the catalog
    meta         b"format" -> CATALOG_FORMAT as ASCII digits
                 b"sum:c:" and a name, b"sum:a:" and an alias -> CRC-32 of both and the token, 4 bytes
                 b"sums"   -> CATALOG_SUMS and its CRC-32: the transaction that has left them so, the CRC-32 of the
                              format. A version that knows none passes them over; what it has written is taken
                              as it is, and gets checksums when the catalog is opened for writing.
                 b"changes" -> the newest changes that their callers gave an id, and the CRC-32 of them, see
                              `vecdb.store.changes`; absent while there was none
    collections  name -> token
    aliases      alias -> token (of the collection; so aliases follow a rename)

Tables of a collection. Rows are numbers that only grow; a row, once written, never changes. A row
that died at or before the horizon may be purged: nothing is left of it but its number.
    meta         b"format"   -> COLLECTION_FORMAT as ASCII digits
                 b"settings" -> JSON, see `vecdb.collection_info`
                 b"state"    -> STATE: sequence, next row, live records
                 b"index"    -> JSON record of the saved index, absent while there is none; b"index:2"
                                for that of named vector 2
                 b"horizon"  -> SEQUENCE_VALUE: no moment before it can be read any more; absent for 0
                 b"repairs"  -> JSON list of what repairs have lost, absent while nothing was
                 b"keyed"    -> KEYED and an id, see `keys`; absent when `keys` holds every row
                 b"sums"     -> SUMS: checksums of what has none of its own, see `vecdb.store.meta_sums`: each
                                value of SUMMED, the newest entries of the log, the table `requests`. Of the
                                commit that it names: a version that does not know it goes on without, and what
                                it has changed is taken as it is when this one writes again.
                 b"epochs"   -> EPOCH, one behind the other, and their CRC-32: the first commit of each opening for
                                writing, the newest 4,096, and a random name, see `vecdb.store.epochs`. A version that
                                does not know it passes it over; absent before the first commit, and after a repair.
                 b"log:" and 12 digits -> LOG_SUM: the checksum of the LOG of commits 256*n .. 256*n + 255,
                                once there are that many, as far as their entries are still there
    vectors      VECTOR_KEY (field, block) -> the vectors of rows block*R .. block*R + R - 1, row-major,
                 little-endian, no header; the last block may be short. Many vectors share a value since
                 one of 4 KB would take 8 KB of pages. Field 0 is the vector of every record; further
                 numbers are for named vectors. A block leaves out the rows that lack the vector or are
                 purged: it is shorter by them, and is not there when it would be empty.
    absent       VECTOR_KEY (field, block of 256 rows) -> BITMAP of the rows without the named vector; no
                 entry where all have it
    ids          ROW (of a block) -> ids of rows block*256 .. block*256 + 255, see `pack_ids`: so all ids
                 of a collection are read at open in milliseconds. With each stands a checksum of its
                 row over id, vector, metadata, document, content, uri and the named vectors it has, in
                 this order, so that damage to any of them is found. Purged rows are left out; a block
                 of purged rows only is not there.
    keys         id (`id_key`) -> ROW_VALUE of its live row, for rows below the first number of KEYED.
                 The ids of later rows are found in memory, made from `ids`, and are put here many at a
                 time in the order of the ids: in the second number of KEYED ends the round that is under
                 way, which has come as far as the id behind it. At random ids every row would else
                 write a page of its own, which halves the rate of inserts at a million records.
    metadata     ROW -> JSON object; no entry when empty
    documents    ROW -> UTF-8
    contents     ROW -> one byte length of the media type, the media type, the bytes
    uris         ROW -> UTF-8
    dead         ROW -> SEQUENCE_VALUE of the commit that replaced or deleted the row; no entry when purged
    purged       ROW (of a block of 256 rows) -> BITMAP of the purged rows; no entry where there are none
    log          SEQUENCE -> LOG (time, first row, end row) + ROW_VALUE for each row that died; entries up
                 to the horizon may be gone, the oldest first
    requests     ROW (a number that only grows) -> REQUEST (sequence, count, time, checksum of the request)
                 and the id that the caller gave a write. The newest ones: so a write that is repeated
                 because its answer was lost is answered again and not done again. A file of format 2 may
                 lack this table: it is made when it is opened for writing, and versions that do not
                 know it pass it over.
Keys are big-endian, so that LMDB's byte order is number order and appends fill pages to the end.
Values are little-endian, so that numpy reads them in place.

Format 1 had no tables `absent` and `purged`, and all rows in `keys`. It becomes format 2 in place when it
is opened for writing: two empty tables and two entries of `meta`. Before that the LMDB file is copied to
`data.format-1.mdb` beside it, which `vecdb downgrade` puts back. The file that goes then stays as
`data.going.mdb` until the other has been opened; where a crash has left that, the next opening removes it.

A vacuum writes the tables into a file without free pages, in a folder `compacting-<token>` beside the old
one, which is renamed to `compacted` when it is complete and durable: from then on it is the truth. Its
two files are renamed over the old ones, the locks first; whoever opens for writing finishes what a crash
has left undone. So does a repair with the file that it has made. A third file in it, `copied-from`, has the
digest of the meta pages of the LMDB file that it is a copy of: every commit changes these, so a copy that is found
beside another file is not put in its place. What earlier versions have left has no such file.

A file `sync.point` stands beside the LMDB file while durability `interval` may have commits in it that are
not on the disk. It has two slots of 4 KiB, written in turn, each with SYNC_POINT and its CRC-32: a mark, the
number of the point, whether a later sync failed, the run of the kernel (`boot_id`), and of a commit that is
wholly on the disk the transaction and LMDB's meta, LMDB_META, of which we read its mark, the size of a page
and the transaction.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

CATALOG_FORMAT = 1
COLLECTION_FORMAT = 2

LOCK_FILE = "vecdb.lock"
CATALOG_FOLDER = "catalog"
CATALOG_ASIDE = "catalog-new"
COLLECTIONS_FOLDER = "collections"
TOKEN = re.compile("[0-9a-f]{16}")
"""What names the folder of a collection."""
DATA_FILE = "data.mdb"
LMDB_LOCK_FILE = "lock.mdb"
CATALOG_FILES = frozenset({DATA_FILE, LMDB_LOCK_FILE})
"""All that the two folders of a catalog have."""
UNNAMED_FILE = "unnamed"
COMPACTING_PREFIX = "compacting-"
COMPACTED_FOLDER = "compacted"
COPIED_FROM_FILE = "copied-from"
QUARANTINE_FOLDER = "quarantine"
RESTORING_FILE = "restoring"
QUARANTINED_ROWS, QUARANTINED_TOLD = "rows.jsonl", "repair.json"
SYNC_POINT_FILE = "sync.point"
KEPT_FILE = "data.format-{}.mdb"
GOING_FILE = "data.going.mdb"
BOOT_FILE = "/proc/sys/kernel/random/boot_id"

CATALOG_TABLES = ("meta", "collections", "aliases")
COLLECTION_TABLES = (
    "meta", "vectors", "ids", "keys", "metadata", "documents", "contents", "uris", "dead", "log",
    "absent", "purged", "requests",
)  # fmt: skip
LATER_TABLES = ("absent", "purged")
"""Those that format 1 lacks."""
OPTIONAL_TABLES = ("requests",)
"""Those that any file may lack until it is opened for writing."""

CATALOG_SUM_KEYS = {"collections": b"sum:c:", "aliases": b"sum:a:"}
"""Begins of the keys of checksums in the catalog's `meta`, by table."""

META_FORMAT = b"format"
META_CHANGES = b"changes"
META_SETTINGS = b"settings"
META_STATE = b"state"
META_INDEX = b"index"
META_HORIZON = b"horizon"
META_KEYED = b"keyed"
META_REPAIRS = b"repairs"
META_SUMS = b"sums"
META_EPOCHS = b"epochs"
META_LOG_SUM = b"log:"
SUMMED = (META_FORMAT, META_SETTINGS, META_HORIZON, META_KEYED, META_REPAIRS)
"""What stands in `meta` and has neither a checksum of its own nor anything that it must agree with."""

_MOST_FORMAT_DIGITS = 9

STATE = struct.Struct("<QQQ")
ROW = struct.Struct(">Q")
ROW_VALUE = struct.Struct("<Q")
SEQUENCE = struct.Struct(">Q")
SEQUENCE_VALUE = struct.Struct("<Q")
VECTOR_KEY = struct.Struct(">HQ")
LOG = struct.Struct("<qQQ")
KEYED = struct.Struct("<QQ")
SUMS = struct.Struct("<5IQQIIQI")
LOG_SUM = struct.Struct("<QII")
SUM = struct.Struct("<I")
EPOCH = struct.Struct("<Q8s")
CATALOG_SUMS = struct.Struct("<QI")
LOG_SUM_COMMITS = 256
"""Commits of the log that share a checksum: a flipped bit among them can still be told by it."""
LMDB_META = struct.Struct("<II16xI92xQQ")
SYNC_POINT_MAGIC = b"vecdbsyn"
SYNC_POINT = struct.Struct("<8sQ?40sQ136s")

DEFAULT_FIELD = 0
ID_BLOCK_ROWS = 256
"""Rows in one value of the table `ids`: some 8 KiB, little to write again for a commit of one row."""

BITMAP_ROWS = 256
"""Rows of one bitmap, one bit a row, the lowest bit of the first byte for the first row."""

VECTOR_DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "int8": np.dtype("<i1"),
    "uint8": np.dtype("<u1"),
    "binary": np.dtype("<u1"),
}
"""How a number of a vector is stored, by storage; `binary` holds 8 dimensions in each."""

_BLOCK_BYTES = 98_304
"""Target size of a block of vectors. Measured at d = 384, float32, batches of 1,000 rows: 64 rows
(96 KiB) a block write 480,000 rows/s into 1.04 x the raw bytes and read back at 2.7 million rows/s;
one row a block 176,000 rows/s, 1.34 x, 0.2 million; 256 rows gain nothing more and make a commit of
one row rewrite four times as much."""

LMDB_MAX_KEY_BYTES = 511
_LONG_ID_MARK = b"\x00"


def vector_width(dimension: int, storage: str) -> int:
    """Numbers stored for one vector: its dimension, or its bytes where a dimension is one bit."""
    return -(-dimension // 8) if storage == "binary" else dimension


def rows_per_block(dimension: int, storage: str) -> int:
    """R: rows in one value of the table `vectors`; a power of two, at least 1."""
    vector_bytes = vector_width(dimension, storage) * VECTOR_DTYPES[storage].itemsize
    return 1 << max(0, (_BLOCK_BYTES // vector_bytes).bit_length() - 1)


def index_key(field: int) -> bytes:
    """Key in `meta` of a field's saved index."""
    return META_INDEX + b":%d" % field if field else META_INDEX


def id_key(record_id: bytes) -> bytes:
    """Key of an id. Ids hold no NUL, so the hashed form of a long one never meets a short one."""
    if len(record_id) <= LMDB_MAX_KEY_BYTES:
        return record_id
    return _LONG_ID_MARK + hashlib.blake2b(record_id, digest_size=32).digest()


def format_number(raw: bytes) -> int | None:
    """The number that an entry META_FORMAT says, or None when it says none: damage may leave more digits than Python
    takes for a number."""
    return int(raw) if len(raw) <= _MOST_FORMAT_DIGITS and raw.isdigit() else None


def id_keys(ids: Sequence[bytes]) -> Sequence[bytes]:
    """`id_key` of each of them; 10 ns an id where none is long."""
    if max(map(len, ids), default=0) <= LMDB_MAX_KEY_BYTES:
        return ids
    return [id_key(i) for i in ids]


def row_keys(first_row: int, count: int) -> list[bytes]:
    """ROW keys of `count` consecutive rows."""
    return split_words(np.arange(first_row, first_row + count, dtype=">u8"))


def keys_of_rows(rows: NDArray[np.int64] | Sequence[int]) -> list[bytes]:
    """ROW keys of any rows, in their order."""
    return split_words(np.asarray(rows, dtype=">u8"))


def split_words(words: NDArray[Any]) -> list[bytes]:
    """The bytes of each number of a 1-d array; 20 ns each."""
    # Void is what numpy calls bytes that it does not look into: they are cut in one call.
    pieces: list[bytes] = words.view(f"V{words.itemsize}").tolist()
    return pieces


def pack_ids(ids: Sequence[bytes], checksums: Sequence[int]) -> bytes:
    """A block of ids: n, n checksums, n ends of ids, all uint32; then the ids one behind the other."""
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    return pack_id_texts(lengths, np.array(checksums, np.uint32), b"".join(ids))


def pack_id_texts(lengths: NDArray[Any], checksums: NDArray[Any], texts: bytes) -> bytes:
    """The same of ids that lie one behind the other; some us, however many."""
    n = len(lengths)
    head = np.empty(1 + 2 * n, "<u4")
    head[0] = n
    head[1 : 1 + n] = checksums
    np.cumsum(lengths, out=head[1 + n :])
    return head.tobytes() + texts


def id_head_bytes(n: int) -> int:
    """Bytes before the texts in a block of n ids."""
    return 4 + 8 * n


def lengths_of_heads(heads: bytes, text_bytes: Sequence[int]) -> NDArray[np.int64] | None:
    """Bytes of each id of whole blocks of ID_BLOCK_ROWS, of which `heads` are one behind the other, and
    `text_bytes` what follows each; None where one of them is of fewer ids, or its lengths disagree."""
    n = ID_BLOCK_ROWS
    words = np.frombuffer(heads, "<u4").reshape(-1, 1 + 2 * n)
    ends = words[:, n:].astype(np.int64)
    ends[:, 0] = 0
    lengths = ends[:, 1:] - ends[:, :-1]
    if (words[:, 0] != n).any() or (lengths < 0).any() or (ends[:, -1] != text_bytes).any():
        return None
    return lengths.reshape(-1)


def id_count(value: Any) -> int:
    """Ids in a block; ValueError when it has no room for them."""
    n = int(np.frombuffer(value, "<u4", 1)[0])
    if len(value) < 4 + 8 * n:
        raise ValueError(f"a block of {n} ids has only {len(value)} bytes")
    return n


def id_lengths(value: Any) -> tuple[NDArray[np.int64], int]:
    """(bytes of each id, where the texts begin) of a block; ValueError when its lengths disagree."""
    n = id_count(value)
    ends = np.frombuffer(value, "<u4", n, 4 + 4 * n).astype(np.int64)
    lengths = np.diff(ends, prepend=0)
    at, last = 4 + 8 * n, int(ends[-1]) if n else 0
    if at + last != len(value) or (lengths < 0).any():
        raise ValueError(
            f"a block of {n} ids has {len(value) - at} bytes of text, its ends say {last}"
        )
    return lengths, at


def unpack_id_texts(value: Any) -> tuple[NDArray[np.int64], NDArray[np.uint32], bytes]:
    """What `pack_id_texts` was given. ValueError when the lengths do not agree."""
    lengths, at = id_lengths(value)
    return lengths, np.frombuffer(value, "<u4", len(lengths), 4), bytes(value[at:])


def unpack_ids(value: Any) -> tuple[list[bytes], list[int]]:
    """(ids, checksums) of a block. ValueError when its lengths do not agree."""
    lengths, sums, texts = unpack_id_texts(value)
    n = len(lengths)
    ends = np.frombuffer(value, "<u4", n, 4 + 4 * n).tolist()
    return [texts[a:b] for a, b in zip([0, *ends[:-1]][:n], ends, strict=True)], sums.tolist()


def pack_bitmap(mask: NDArray[np.bool_]) -> bytes:
    """32 bytes for up to 256 rows; those beyond the end of `mask` are not set."""
    return np.packbits(mask, bitorder="little").tobytes().ljust(BITMAP_ROWS // 8, b"\0")


def unpack_bitmaps(bitmaps: bytes | bytearray) -> NDArray[np.bool_]:
    """Mask of the rows of consecutive bitmaps."""
    return np.unpackbits(np.frombuffer(bitmaps, np.uint8), bitorder="little").view(np.bool_)


def pack_content(media_type: bytes, data: bytes) -> bytes:
    return bytes((len(media_type),)) + media_type + data


def unpack_content(value: bytes) -> tuple[str, bytes]:
    """(media type, bytes) of a value of the table `contents`."""
    end = 1 + value[0]
    return value[1:end].decode(), value[end:]
