"""Checksums of index files: nothing reaches FAISS, which trusts what it reads, before they have been compared.

They find what a disk, a copy or a hand has changed by accident; whoever can write the files can write the
record too. Opening a million rows waits for 0.4 to 0.5 GB of them: CRC-32 takes 0.36 s/GB in a thread by zlib, 0.11 by
isal, SHA-256 0.6 where the processor computes it itself, and 5 where it does not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..crc import crc32
from ..stopping import Interrupt
from .door import CORES

FORM = "crc32/64K:"
"""How checksums begin that are written now."""
_EARLIER_FORM = "sha256/16M:"
_PIECE_BYTES, _PART_BYTES = 64 << 10, 16 << 20
_READ_BYTES = 1 << 20


def checksum(path: Path, size: int, form: str = FORM, interrupt: Interrupt = lambda: None) -> str:
    """Of a file of `size` bytes, in hexadecimal behind the form that it has. OSError.

    `crc32/64K:` is the SHA-256 of the CRC-32 of each 64 KiB (4 bytes, lowest first), one behind the other, and of
    the size (8 bytes). Earlier versions wrote `sha256/16M:`, the SHA-256 of the SHA-256 of each 16 MiB, and before that, without
    a form, the BLAKE2b-256 of the whole. By as many threads as there are cores. `interrupt` is called between
    pieces of some milliseconds, and may raise.
    """
    if form == FORM:
        sums = [*_of_parts(path, size, _crcs, interrupt), size.to_bytes(8, "little")]
    elif form == _EARLIER_FORM:
        sums = _of_parts(path, size, _sha256, interrupt)
    else:
        digest = hashlib.blake2b(digest_size=32)
        for chunk in _chunks(path, 0, size):
            interrupt()
            digest.update(chunk)
        return digest.hexdigest()
    return form + hashlib.sha256(b"".join(sums)).hexdigest()


def form_of(written: str) -> str:
    """The form of a checksum that stands in a record."""
    return written[: written.find(":") + 1]


def _of_parts(
    path: Path, size: int, of_part: Callable[[Path, int], bytes], interrupt: Interrupt
) -> list[bytes]:
    starts = range(0, max(size, 1), _PART_BYTES)
    if len(starts) == 1:
        return [of_part(path, 0)]
    with ThreadPoolExecutor(CORES, thread_name_prefix="vecdb-checksum") as threads:
        sums = []
        try:
            for one in threads.map(lambda start: of_part(path, start), starts):
                interrupt()
                sums.append(one)
        except BaseException:
            # Or the threads would read what is left before the caller hears of it.
            threads.shutdown(wait=False, cancel_futures=True)
            raise
        return sums


def _crcs(path: Path, start: int) -> bytes:
    sums = bytearray()
    for chunk in _chunks(path, start, _PART_BYTES):
        view = memoryview(chunk)
        for at in range(0, len(chunk), _PIECE_BYTES):
            sums += crc32(view[at : at + _PIECE_BYTES]).to_bytes(4, "little")
    return bytes(sums)


def _sha256(path: Path, start: int) -> bytes:
    digest = hashlib.sha256()
    for chunk in _chunks(path, start, _PART_BYTES):
        digest.update(chunk)
    return digest.digest()


def _chunks(path: Path, start: int, most: int) -> Iterator[bytes]:
    """What a file holds from `start` on, at most so many bytes; whole pieces, as long as there are."""
    with open(path, "rb") as file:
        file.seek(start)
        while most and (chunk := file.read(min(most, _READ_BYTES))):
            yield chunk
            most -= len(chunk)
