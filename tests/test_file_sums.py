"""Checksums of index files: of every byte and of the length, in the form of any version."""

from __future__ import annotations

import hashlib
import zlib

import numpy as np
import pytest

from vecdb.index import file_sums


@pytest.mark.parametrize("size", [0, 1, 1 << 10, (1 << 10) + 1, 5 << 10])
def test_a_file_of_many_parts_has_one_checksum(size, tmp_path, monkeypatch):
    """It depends on every byte and on the length, whichever part they fall into, and is what its form says."""
    monkeypatch.setattr(file_sums, "_PART_BYTES", 1 << 10)
    monkeypatch.setattr(file_sums, "_PIECE_BYTES", 1 << 8)
    path = tmp_path / "some"
    content = np.random.default_rng(size).bytes(size)
    path.write_bytes(content)
    right = file_sums.checksum(path, size)
    pieces = [content[i : i + 256] for i in range(0, size, 256)]
    sums = b"".join(zlib.crc32(piece).to_bytes(4, "little") for piece in pieces)
    whole = sums + size.to_bytes(8, "little")
    assert right == "crc32/64K:" + hashlib.sha256(whole).hexdigest()
    parts = [content[i : i + 1_024] for i in range(0, max(size, 1), 1_024)]
    whole = b"".join(hashlib.sha256(part).digest() for part in parts)
    earlier = file_sums.checksum(path, size, "sha256/16M:")
    assert earlier == "sha256/16M:" + hashlib.sha256(whole).hexdigest()
    for at in {0, size // 2, size - 1} if size else ():
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        for one in (right, earlier):
            assert file_sums.checksum(path, size, file_sums.form_of(one)) != one
