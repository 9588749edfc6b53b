"""Checksums of index files: nothing reaches FAISS, which trusts what it reads, before they have been compared.

They find what a disk, a copy or a hand has changed by accident; whoever can write the files can write the
record too. Opening a million rows waits for 0.4 to 0.5 GB of them: CRC-32 takes 0.36 s/GB in a thread by zlib, 0.11 by
isal, SHA-256 0.6 where the processor computes it itself, and 5 where it does not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..crc import crc32
from .door import CORES

FORM = "crc32/64K:"
"""How checksums begin that are written now."""
_EARLIER_FORM = "sha256/16M:"
_PIECE_BYTES, _PART_BYTES = 64 << 10, 16 << 20
_READ_BYTES = 1 << 20


def checksum(path: Path, size: int, form: str = FORM) -> str:
    """Of a file of `size` bytes, in hexadecimal behind the form that it has. OSError.

    `crc32/64K:` is the SHA-256 of the CRC-32 of each 64 KiB (4 bytes, lowest first), one behind the other, and of
    the size (8 bytes). Earlier versions wrote `sha256/16M:`, the SHA-256 of the SHA-256 of each 16 MiB, and before that, without
    a form, the BLAKE2b-256 of the whole. By as many threads as there are cores.
    """
    if form == FORM:
        sums = [*_of_parts(path, size, _crcs), size.to_bytes(8, "little")]
    elif form == _EARLIER_FORM:
        sums = _of_parts(path, size, _sha256)
    else:
        digest = hashlib.blake2b(digest_size=32)
        with open(path, "rb") as file:
            while chunk := file.read(_READ_BYTES):
                digest.update(chunk)
        return digest.hexdigest()
    return form + hashlib.sha256(b"".join(sums)).hexdigest()


def form_of(written: str) -> str:
    """The form of a checksum that stands in a record."""
    return written[: written.find(":") + 1]


def _of_parts(path: Path, size: int, of_part: Callable[[Path, int], bytes]) -> list[bytes]:
    starts = range(0, max(size, 1), _PART_BYTES)
    if len(starts) == 1:
        return [of_part(path, 0)]
    with ThreadPoolExecutor(CORES, thread_name_prefix="vecdb-checksum") as threads:
        return list(threads.map(lambda start: of_part(path, start), starts))


def _crcs(path: Path, start: int) -> bytes:
    sums = bytearray()
    with open(path, "rb") as file:
        file.seek(start)
        left = _PART_BYTES
        while left and (chunk := file.read(min(left, _READ_BYTES))):
            view = memoryview(chunk)
            for at in range(0, len(chunk), _PIECE_BYTES):
                sums += crc32(view[at : at + _PIECE_BYTES]).to_bytes(4, "little")
            left -= len(chunk)
    return bytes(sums)


def _sha256(path: Path, start: int) -> bytes:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(start)
        left = _PART_BYTES
        while left and (chunk := file.read(min(left, _READ_BYTES))):
            digest.update(chunk)
            left -= len(chunk)
    return digest.digest()
