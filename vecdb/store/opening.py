"""Opening an LMDB file: looked over before LMDB trusts it, then its tables."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import lmdb

from ..errors import FormatMismatch
from ..layout import DATA_FILE
from . import page_faults, vacuum
from .faults import format_told, in_our_words, refuse_damaged
from .own_pages import own_pages

MAX_READERS = 1_024
"""Read transactions of all processes at once."""


def open_tables(
    folder: Path,
    names: Sequence[str],
    *,
    may_lack: Collection[str],
    create: bool,
    known: bool = False,
    read_only: bool,
    map_bytes: int,
    sync: bool,
) -> tuple[Any, dict[str, Any]]:
    """(environment, handles of its tables) of a folder; without those of `may_lack` that it lacks.

    Pages of a file that is `known`, because this process had it open and nobody else could write since, are not
    looked over. The map is `map_bytes` large, or as large as the file. Without `sync` commits do not wait for the disk.
    Corrupted for damaged pages, FormatMismatch where a table is missing, else as `in_our_words`.
    """
    size = map_bytes
    if (folder / DATA_FILE).is_file():
        size = max(size, (folder / DATA_FILE).stat().st_size)
        if not create:
            refuse_damaged(folder, page_faults.bounds_faults(folder / DATA_FILE))
    with in_our_words(folder):
        vacuum.reserve_locks(folder, MAX_READERS, read_only=read_only)
        with own_pages():
            env = lmdb.open(
                str(folder),
                map_size=size,
                max_dbs=len(names),
                max_readers=MAX_READERS,
                readonly=read_only,
                create=create,
                sync=sync,
                meminit=False,
                # The kernel's read-ahead doubles the memory of random reads of single records.
                readahead=False,
            )
        tables = {}
        try:
            # A reader that was killed keeps its slot, and LMDB the pages it saw, until someone
            # looks.
            env.reader_check()
            if not create and not known:
                # LMDB trusts its pages: a damaged one would end the process, or read what is elsewhere.
                with env.begin() as seen:
                    refuse_damaged(folder, page_faults.file_faults(folder / DATA_FILE, seen.id()))
            if create:
                vacuum.make_tables(env, names, folder, "tables")
            for name in names:
                try:
                    tables[name] = env.open_db(name.encode(), create=False)
                except lmdb.NotFoundError:
                    if name not in may_lack:
                        raise FormatMismatch(
                            f"{folder / DATA_FILE} is not a file of this version of vecdb: it has no "
                            f"table {name!r}{format_told(env)}. Open it with the version that wrote it"
                        ) from None
        except BaseException:
            env.close()
            raise
    return env, tables
