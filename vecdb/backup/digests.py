"""Digests of the files of backups: BLAKE3, 4.2 GB/s on a core with AVX-512, where SHA-256 makes 0.4 without
instructions of the processor for it. All are in hexadecimal. The interpreter lock is given up while much is hashed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import blake3

__all__ = ["Blake3", "blake3_of", "sha256_of"]

Blake3 = blake3.blake3
"""Takes buffers by `update`, gives `hexdigest`."""


def blake3_of(parts: Iterable[Any]) -> str:
    """The BLAKE3 of buffers one behind the other."""
    digest = Blake3()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def sha256_of(data: Any) -> str:
    """The SHA-256 of a buffer: of manifests, and of files whose manifest has format 1."""
    return hashlib.sha256(data).hexdigest()
