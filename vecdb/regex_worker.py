"""The process that searches long texts for patterns, started by the engine, never by people; and how a pattern is compiled.

See `long_texts.py` for why there is one, and for what is said between the two. It knows nothing else of the engine, so that it
starts in some 30 ms and takes 15 MiB."""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections.abc import Callable

import re2

HEADER_BYTES = 16
"""Two lengths, of a pattern and of a text, 8 bytes each, little-endian; both follow."""
FOUND, NOT_FOUND = b"1", b"0"
_MEMORY_BYTES = 1 << 20
IDLE_S = 60.0
"""Ends after so long without work."""
_LOOK_S = 0.5
_LOW_PRIORITY = 10
"""It cannot rest when queries wait, as the thread that it works for would."""

Search = Callable[..., object]
"""Of a text as bytes, and the places where to begin and end in it: None where there is no match in between. What is
before and after counts for ^, $ and borders of words."""


def compiled(pattern: bytes) -> tuple[Search, int]:
    """The search for a pattern, and how many instructions it is; ValueError, with RE2's words, if it is none."""
    options = re2.Options()
    options.max_mem = _MEMORY_BYTES
    options.log_errors = False
    options.never_capture = True  # Only whether it matches is asked; groups cost time.
    try:
        found = re2.compile(pattern, options)
    except re2.error as error:
        words = error.args[0] if error.args else "not understood"
        raise ValueError(
            words.decode(errors="replace") if isinstance(words, bytes) else str(words)
        ) from None
    return found.search, found.programsize


def main() -> None:
    """The process: answers one text after the other, until there is no more, or none has come for a minute."""
    os.nice(_LOW_PRIORITY)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    pattern, search = b"", compiled(b"")[0]
    while select.select([0], [], [], IDLE_S)[0]:
        header = _read(HEADER_BYTES)
        given = _read(int.from_bytes(header[:8], "little"))
        text = _read(int.from_bytes(header[8:], "little"))
        if given != pattern:
            re2.purge()  # it would remember 128, of a MiB each
            pattern, search = given, compiled(given)[0]
        sys.stdout.buffer.write(NOT_FOUND if search(text) is None else FOUND)
        sys.stdout.buffer.flush()


def _read(size: int) -> bytes:
    """So many bytes of what is asked; ends the process where there are no more."""
    parts = []
    while size:
        part = os.read(0, min(size, 1 << 20))
        if not part:
            os._exit(0)
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _end_with(parent: int) -> None:
    """Ends this process soon after the one that started it, also in the middle of a search."""
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(0)
