"""One file of a backup as its manifest names it, and reading it as that."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

from ..errors import BackupDamaged

if TYPE_CHECKING:
    from .target import Target


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file. `first` and `end` are the rows it holds; both 0 for history."""

    name: str
    bytes: int
    sha256: str
    first: int = 0
    end: int = 0


def read_file(target: Target, backup: str, file: File) -> bytes:
    """The bytes of a file, which are those that its manifest names; else BackupDamaged."""
    data = target.read(f"{backup}/{file.name}", file.bytes)
    if len(data) != file.bytes or hashlib.sha256(data).hexdigest() != file.sha256:
        raise BackupDamaged(
            f"{backup}/{file.name} in {target.name} has {len(data):,} bytes, not the {file.bytes:,} with "
            f"SHA-256 {file.sha256[:16]}… that were written; take a new full backup",
            backup=backup,
            file=file.name,
        )
    return data
