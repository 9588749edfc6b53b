"""One file of a backup as its manifest names it, and reading it as that."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import BackupDamaged
from .digests import blake3_of, sha256_of

if TYPE_CHECKING:
    from .target import Target


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One file. `first` and `end` are the rows it holds; both 0 for history. It has one of the two digests,
    in hexadecimal: SHA-256 in manifests of format 1."""

    name: str
    bytes: int
    first: int = 0
    end: int = 0
    blake3: str = ""
    sha256: str = ""

    def matches(self, data: Any) -> bool:
        """Whether these are the bytes that were written."""
        if len(data) != self.bytes:
            return False
        if self.blake3:
            return blake3_of([data]) == self.blake3
        return sha256_of(data) == self.sha256


def read_ahead(target: Target, backup: str, files: Sequence[File]) -> Generator[tuple[File, bytes]]:
    """Each file with its bytes, as `read_file` gives them: the next is read and hashed by a thread while the caller works
    on the one it was given. Memory: two files.

    Raises what `read_file` raises when that file's turn comes. The thread has ended when this has, or was closed.
    """
    if len(files) < 2:  # nothing to be ahead of
        yield from ((file, read_file(target, backup, file)) for file in files)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="vecdb-read-ahead") as pool:
        coming: Future[bytes] = pool.submit(read_file, target, backup, files[0])
        for n, file in enumerate(files):
            data = coming.result()
            if n + 1 < len(files):
                coming = pool.submit(read_file, target, backup, files[n + 1])
            yield file, data


def read_file(target: Target, backup: str, file: File) -> bytes:
    """The bytes of a file, which are those that its manifest names; else BackupDamaged."""
    data = target.read(f"{backup}/{file.name}", file.bytes)
    if not file.matches(data):
        raise BackupDamaged(
            f"{backup}/{file.name} in {target.name} has {len(data):,} bytes, not the {file.bytes:,} with "
            f"{'BLAKE3' if file.blake3 else 'SHA-256'} {(file.blake3 or file.sha256)[:16]}… that were written; take "
            "a new full backup",
            backup=backup,
            file=file.name,
        )
    return data
