"""The pages that name the tables, found without the two meta pages that should lead to them."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from .nodes import HEADER, LEAF, NODE_BYTES, SUBTREE
from .pages import TREE_BYTES, Meta, PageFile, Tree

_NOTHING = Tree(8, 0, 0, 0, 0, 0, None)


def metas_from_all_pages(file: PageFile, names: Collection[str]) -> list[Meta]:
    """A meta for each page of a file that names all of these tables, as if it led there; 0.1 s for 50,000 pages.

    LMDB writes to no page that the newest commit uses, so one of them is that of the newest, and the others are
    left from commits before. Of which commit each is, only the tables tell; which pages are free, nothing.
    """
    every = np.arange(2, file.n_pages)
    leaves = every[file.fits(every, LEAF)] if len(every) else every
    return [
        Meta(
            number=page,
            page_size=file.page_size,
            map_size=file.size,
            free=_NOTHING,
            main=Tree(0, 1, 0, 1, 0, count, page),
            last_page=file.n_pages - 1,
            transaction=0,
            faults=(),
        )
        for page in leaves.tolist()
        if (count := _tables_named(file, page, names))
    ]


def _tables_named(file: PageFile, page: int, names: Collection[str]) -> int:
    """How many tables a whole leaf names; 0 where it holds anything else, or lacks one."""
    start = page * file.page_size
    lower = HEADER.unpack_from(file.raw, start)[3]
    found = []
    for at in range(start + HEADER.size, start + lower, 2):
        node = start + int.from_bytes(file.raw[at : at + 2].tobytes(), "little")
        low, high, flags, key_size = np.frombuffer(file.raw[node : node + 8], "<u2").tolist()
        if flags != SUBTREE or low | high << 16 != TREE_BYTES:
            return 0
        key = file.raw[node + NODE_BYTES : node + NODE_BYTES + key_size].tobytes()
        found.append(key.decode(errors="replace"))
    return len(found) if set(names) <= set(found) else 0
