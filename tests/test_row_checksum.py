"""The checksum of rows has one value, with the package `isal` and without it."""

from __future__ import annotations

import importlib
import sys
import zlib

import numpy as np
import pytest
from seeds import RUN_SEED

from vecdb import crc

LENGTHS = (*range(130), 255, 256, 257, 1_535, 1_536, 1_537, 4_096, 65_536, 1 << 20)


def test_the_accelerated_checksum_is_that_of_zlib() -> None:
    """Any bytes of any length, at any alignment and after any start, have the CRC-32 that zlib gives."""
    isal_zlib = pytest.importorskip("isal.isal_zlib")
    rng = np.random.default_rng(RUN_SEED)
    held = memoryview(rng.bytes(max(LENGTHS) + 64))
    for length in LENGTHS:
        at, start = int(rng.integers(64)), int(rng.integers(1 << 32))
        piece = held[at : at + length]
        assert isal_zlib.crc32(piece) == zlib.crc32(piece), (RUN_SEED, length)
        assert isal_zlib.crc32(piece, start) == zlib.crc32(piece, start), (RUN_SEED, length, start)
        assert isal_zlib.crc32(bytes(piece)) == zlib.crc32(piece), (RUN_SEED, length)


def test_zlib_serves_where_isal_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package the engine takes the checksum of zlib, and the values are the standard's."""
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "isal", None)
        without.setitem(sys.modules, "isal.isal_zlib", None)
        try:
            assert importlib.reload(crc).crc32 is zlib.crc32
        finally:
            without.undo()
            importlib.reload(crc)
    assert crc.crc32(b"123456789") == 0xCBF43926
