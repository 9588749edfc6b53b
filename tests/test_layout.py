"""The bytes on disk: sizes, order of keys, and that no two ids share a key."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecdb import layout

IDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).map(
    str.encode
)


def test_sizes_of_fixed_forms_never_change():
    """A file written today is read by the same forms tomorrow."""
    assert (layout.STATE.size, layout.ROW.size, layout.SEQUENCE.size) == (24, 8, 8)
    assert (layout.VECTOR_KEY.size, layout.LOG.size, layout.KEYED.size) == (10, 24, 16)
    assert layout.VECTOR_KEY.pack(1, 2) == b"\x00\x01" + b"\x00" * 7 + b"\x02"
    assert layout.STATE.pack(1, 2, 3)[:8] == b"\x01" + b"\x00" * 7
    assert (layout.CATALOG_FORMAT, layout.COLLECTION_FORMAT) == (1, 2)
    assert [layout.index_key(n) for n in (0, 12)] == [b"index", b"index:12"]


def test_rows_in_a_block():
    """Blocks hold a power of two of rows near 96 KiB, and at least one."""
    cases = {
        (384, "float32"): 64,
        (384, "float16"): 128,
        (768, "float32"): 32,
        (1, "float32"): 16384,
        (384, "int8"): 256,
        (384, "uint8"): 256,
        (1024, "binary"): 512,
        (8, "binary"): 65536,
        (1, "binary"): 65536,
    }
    for (dimension, storage), rows in cases.items():
        assert layout.rows_per_block(dimension, storage) == rows
    assert layout.rows_per_block(65_535, "float32") == 1
    assert layout.rows_per_block(24_576, "float32") == 1
    assert layout.rows_per_block(24_577, "float32") == 1
    assert [layout.vector_width(64, s) for s in layout.VECTOR_DTYPES] == [64, 64, 64, 64, 8]
    assert [d.itemsize for d in layout.VECTOR_DTYPES.values()] == [4, 2, 1, 1, 1]


@given(st.lists(st.integers(0, 2**63 - 1), min_size=2))
def test_row_keys_sort_like_rows(rows):
    """LMDB's byte order is the order of rows."""
    keys = layout.keys_of_rows(np.asarray(rows))
    assert sorted(keys) == layout.keys_of_rows(sorted(rows))
    assert [int.from_bytes(k, "big") for k in keys] == rows


@given(st.integers(0, 2**40), st.integers(0, 50))
def test_consecutive_row_keys(first, count):
    """`row_keys` is `keys_of_rows` of a range."""
    assert layout.row_keys(first, count) == layout.keys_of_rows(list(range(first, first + count)))


@given(IDS, IDS)
def test_different_ids_have_different_keys(one, other):
    """Short ids are their own keys, long ones are hashed; both fit LMDB and never meet."""
    for record_id in (one, other, one * 300):
        assert 1 <= len(layout.id_key(record_id)) <= layout.LMDB_MAX_KEY_BYTES
    assert (layout.id_key(one) == layout.id_key(other)) == (one == other)
    assert layout.id_key(one * 600)[:1] == b"\0"


@given(st.binary(max_size=255).map(lambda b: b.hex()[:255]), st.binary())
def test_content_round_trip(media_type, data):
    """A content comes back with its media type."""
    packed = layout.pack_content(media_type.encode(), data)
    assert layout.unpack_content(packed) == (media_type, data)


@given(st.lists(st.tuples(IDS, st.integers(0, 2**32 - 1)), max_size=300))
def test_blocks_of_ids_round_trip(rows):
    """A block gives back its ids and checksums, and a cut one is refused."""
    ids, sums = [i for i, _ in rows], [s for _, s in rows]
    packed = layout.pack_ids(ids, sums)
    assert layout.unpack_ids(packed) == (ids, sums)
    assert len(packed) == 4 + 8 * len(ids) + sum(map(len, ids))
    assert layout.id_count(packed) == len(ids)
    lengths, at = layout.id_lengths(packed)
    assert (lengths.tolist(), packed[at:]) == ([*map(len, ids)], b"".join(ids))
    if ids:
        with pytest.raises(ValueError, match="ids"):
            layout.unpack_ids(packed[:-1])


@pytest.mark.parametrize(
    "damaged", [b"\x02\0\0\0", b"\x01", b"", b"\x01" + b"\0" * 6 + b"\x09\0\0\0"]
)
def test_a_damaged_block_of_ids_is_refused(damaged):
    """Whatever its first number says, a block that does not hold it is a ValueError."""
    for read in (layout.unpack_ids, layout.id_lengths):
        with pytest.raises(ValueError, match=r"ids|buffer"):
            read(damaged)


@given(st.lists(st.booleans(), max_size=layout.BITMAP_ROWS))
def test_bitmaps_round_trip(bits):
    """A bitmap is 32 bytes, the first row in the lowest bit, and rows behind the end are not set."""
    packed = layout.pack_bitmap(np.array(bits, np.bool_))
    assert len(packed) == layout.BITMAP_ROWS // 8
    assert layout.unpack_bitmaps(packed + packed).tolist()[: len(bits)] == bits
    assert int.from_bytes(packed, "little") == sum(1 << n for n, bit in enumerate(bits) if bit)
