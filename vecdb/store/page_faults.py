"""What is wrong with the pages of a file, whole: both metas, all tables, and the lists of free pages."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..stopping import Interrupt
from .pages import FREE, MAIN, Meta, PageFile, meta_of

_LOOKS = 3


def bounds_faults(path: Path) -> list[str]:
    """What is wrong with the two pages that a file begins with; reads nothing else, so it is quick.

    Beside a process that writes, both are looked at again before anything is said.
    """
    for _ in range(_LOOKS):
        faults = PageFile(path).meta_faults()
        if not faults:
            break
    return faults


def file_faults(
    path: Path, transaction: int | None = None, interrupt: Interrupt = lambda: None
) -> list[str]:
    """One sentence for each page of a file that cannot be trusted; empty when all can.

    Of the moment that commit `transaction` has left, which the caller keeps open, else of the newest.
    Values are not looked into: that is for whoever knows them. OSError when it cannot be read, and what
    `interrupt` raises, which is called every few milliseconds.
    """
    faults = bounds_faults(path)
    if faults:
        return faults
    file = PageFile(path)
    file.interrupt = interrupt
    metas = [m for m in file.metas() if transaction is None or m.transaction == transaction]
    if not metas:
        return []  # Whoever writes beside us has gone on twice; the next look is at another moment.
    return _faults_at(file, metas[0])


def faults_from(path: Path, meta: bytes) -> list[str]:
    """The same of the commit that LMDB's `meta` leads to, whatever those in the file say."""
    given = meta_of(meta)
    return _faults_at(PageFile(path, given.page_size), given)


def _faults_at(file: PageFile, meta: Meta) -> list[str]:
    free = file.walk(meta.free, FREE)
    main = file.walk(meta.main, MAIN)
    faults = free.faults + main.faults
    trees = file.subtrees(main.entries)
    for name, tree in trees.items():
        if tree.flags:
            faults.append(f"table {name} has flags that vecdb never sets")
        faults += file.walk(tree, name, keep=False).faults
    pages, wrong = file.free_pages(free.entries)
    faults += wrong
    if (pages > meta.last_page).any():
        faults.append("a list of free pages names pages that there are not")
    used = pages[(pages < file.n_pages)]
    if file.seen[used].any():
        faults.append(f"page {used[file.seen[used]][0]} is in use, and listed as free")
    known = np.flatnonzero(file.seen)
    if len(known) and known[-1] > meta.last_page:
        faults.append(f"page {known[-1]} is behind page {meta.last_page}, the last one there is")
    return faults
