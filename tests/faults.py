"""Real faults for tests: a small disk, a mount that may not be written, limits of a process, lost permissions."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

DISK_BYTES = 24 << 20
_FILL = "fill"
_CAPABILITIES_3 = 0x20080522
_NO_DAC = ~(1 << 1 | 1 << 2)
"""Without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH root is held to the modes of files as others are."""


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A disk of 24 MiB at `folder`; skips where none may be mounted."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


def fill(disk: Path, but: int = 0) -> None:
    """Takes the last byte of a disk, or leaves so many."""
    with open(disk / _FILL, "wb", buffering=0) as file:
        for size in (1 << 20, 4_096, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass
        os.truncate(file.fileno(), max(0, file.tell() - but))


def free(disk: Path) -> None:
    (disk / _FILL).unlink()


@contextmanager
def no_more_files(but: int = 0) -> Iterator[None]:
    """This process can open no more files, or only so many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(but):
            os.close(held.pop())
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def obey_modes() -> None:
    """Holds this thread, and threads it starts from now on, to the modes of files, also when it is root's."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0)
    sets = (ctypes.c_uint32 * 6)()
    assert not libc.capget(header, sets), os.strerror(ctypes.get_errno())
    sets[0] &= _NO_DAC & 0xFFFFFFFF
    assert not libc.capset(header, sets), os.strerror(ctypes.get_errno())
