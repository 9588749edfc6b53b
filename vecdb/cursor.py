"""Cursors: where a page ended and which moment the pages show, as a text the caller keeps."""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
import zlib
from dataclasses import dataclass

from .errors import InvalidCursor

_FORM = struct.Struct("<B8sQQQ")
_CRC = struct.Struct("<I")
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Cursor:
    """`sequence` and `n_rows` pin the moment; `position` is the next row, or the next rank when
    ordered. `purpose` binds the cursor to one call: verb, collection, filter, order and slice."""

    purpose: bytes
    sequence: int
    n_rows: int
    position: int

    def encode(self) -> str:
        body = _FORM.pack(_VERSION, self.purpose, self.sequence, self.n_rows, self.position)
        return base64.urlsafe_b64encode(body + _CRC.pack(zlib.crc32(body))).decode().rstrip("=")

    @staticmethod
    def decode(text: str, purpose: bytes) -> Cursor:
        """Raises InvalidCursor for a damaged cursor and for one of another call."""
        try:
            raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
            version, held, sequence, n_rows, position = _FORM.unpack(raw[: _FORM.size])
            whole = _CRC.pack(zlib.crc32(raw[: _FORM.size])) == raw[_FORM.size :]
        except (ValueError, TypeError, binascii.Error, struct.error):
            whole = False
        if not whole or version != _VERSION:
            raise InvalidCursor(
                f"cursor {str(text)[:80]!r} is damaged; pass back the text of the last page unchanged"
            )
        if held != purpose:
            raise InvalidCursor(
                "the cursor belongs to another call; a cursor continues the same verb with the same "
                "collection, filter, order and slice"
            )
        return Cursor(held, sequence, n_rows, position)


def purpose(*parts: object) -> bytes:
    """Fingerprint of a call, 8 bytes."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
