"""Where the blocks of vectors lie in the file, so that many of them are asked of the disk at once.

LMDB's map is opened without the kernel's read-ahead, since single records are read at random. A block that no cache
holds would be read page by page: 219 MB (116,659 x 384) took 1.7 s, and 0.1 when they were announced before.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..layout import ROW, VECTOR_KEY
from ..selection import once
from .nodes import BIG, HEADER
from .pages import PageFile
from .tables import Rows

_TABLE = "vectors"
_LEAST_BYTES = 1 << 20
"""A smaller file is read sooner than its pages are looked at."""
_GAP_BYTES = 1 << 16
"""Blocks nearer to each other are read in one go, with what is between them."""
_advise: Any = getattr(os, "posix_fadvise", None)


class _Places(NamedTuple):
    """Where the blocks of a field lie, by number."""

    starts: Rows
    """Bytes from the begin of the file, -1 for blocks that are not known."""
    sizes: Rows
    asked: NDArray[np.bool_]
    """Blocks that were announced once."""


class ReadAhead:
    """Of one collection's file. Any thread may call.

    Places are only hints: blocks may have been purged or moved since, and then other pages are read for nothing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._fields: dict[int, _Places] | None = None

    def forget(self) -> None:
        """The file was exchanged, or has grown by much."""
        self._fields = None

    def range(self, field: int, first: int, last: int) -> None:
        """Blocks first..last are about to be read, and then most likely as many behind them."""
        places = self._places(field)
        if places is not None:
            end = min(2 * last + 2 - first, len(places.starts))
            self._announce(places, np.arange(first, end))

    def blocks(self, field: int, numbers: Rows) -> None:
        """Some blocks (ascending) are about to be read; each is announced once."""
        places = self._places(field)
        if places is not None:
            numbers = numbers[: np.searchsorted(numbers, len(places.starts))]
            fresh = numbers[~places.asked[numbers]]
            if fresh.size:
                self._announce(places, fresh)

    def _announce(self, places: _Places, numbers: Rows) -> None:
        places.asked[numbers] = True
        numbers = numbers[places.starts[numbers] >= 0]
        if not numbers.size:
            return
        order = np.argsort(places.starts[numbers], kind="stable")
        starts = places.starts[numbers][order]
        ends = starts + places.sizes[numbers][order]
        breaks = np.flatnonzero(starts[1:] - ends[:-1] > _GAP_BYTES)
        firsts, lasts = starts[np.append(0, breaks + 1)], ends[np.append(breaks, len(ends) - 1)]
        try:
            descriptor = os.open(self._path, os.O_RDONLY)
        except OSError:
            return  # whoever reads next says what is wrong
        try:
            for start, size in zip(firsts.tolist(), (lasts - firsts).tolist(), strict=True):
                _advise(descriptor, start, size, os.POSIX_FADV_WILLNEED)
        except OSError:
            pass  # a file system without
        finally:
            os.close(descriptor)

    def _places(self, field: int) -> _Places | None:
        fields = self._fields
        if fields is None:
            with self._lock:
                fields = self._fields
                if fields is None:
                    fields = self._fields = _found(self._path) if _advise is not None else {}
        return fields.get(field)


def _found(path: Path) -> dict[int, _Places]:
    """Places of all fields, by a look at the pages: a ms for 1,800 blocks."""
    try:
        file = PageFile(path)
    except OSError:
        return {}
    if file.size < _LEAST_BYTES or file.meta_faults():
        return {}
    tree = file.subtrees(file.entries_of(file.metas()[0].main)).get(_TABLE)
    if tree is None:
        return {}
    entries = file.entries_of(tree)
    entries = entries.kept((entries.flags & BIG > 0) & (entries.key_sizes == VECTOR_KEY.size))
    prefix = VECTOR_KEY.size - ROW.size
    keys = file.raw[entries.keys[:, None] + np.arange(VECTOR_KEY.size)]
    fields = np.ascontiguousarray(keys[:, :prefix]).view(">u2").ravel().astype(np.int64)
    numbers = np.ascontiguousarray(keys[:, prefix:]).view(">u8").ravel().astype(np.int64)
    found = {}
    for field in once(np.sort(fields)).tolist():
        here = fields == field
        if int(numbers[here].max()) >= file.n_pages:
            continue  # no key of ours
        starts = np.full(int(numbers[here].max()) + 1, -1, np.int64)
        sizes = np.zeros_like(starts)
        starts[numbers[here]] = entries.values[here] - HEADER.size
        sizes[numbers[here]] = entries.sizes[here] + HEADER.size
        found[field] = _Places(starts, sizes, np.zeros(len(starts), np.bool_))
    return found
