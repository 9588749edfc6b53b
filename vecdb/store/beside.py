"""What lies beside the file of a collection and may be needed some day: files of older formats, the sync point."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import Corrupted, FormatMismatch
from ..layout import DATA_FILE
from . import page_faults, sync_point
from .check import problems
from .collection_store import CollectionStore
from .kept import kept
from .repair import ShapeOf

_MOST = 100


def beside_faults(folder: Path, shape_of: ShapeOf, options: Mapping[str, Any]) -> list[str]:
    """One sentence for each file that is damaged, and what to do; reads kept files as a whole.

    Others may write meanwhile.
    """
    found = []
    for number, path in kept(folder).items():
        faults = kept_faults(path, number, shape_of, options)
        if faults:
            more = f", and {len(faults) - 1} faults more" if len(faults) > 1 else ""
            found.append(
                f"{path}, kept for going back to format {number}, is damaged: {faults[0]}{more}. `vecdb downgrade` refuses it; "
                "`vecdb downgrade --discard` removes it, where a way back is not wanted any more"
            )
    return found + sync_point.faults(folder)


def kept_faults(
    path: Path, old_format: int, shape_of: ShapeOf, options: Mapping[str, Any]
) -> list[str]:
    """What is wrong with a kept file: pages, rows against their checksums, tables against each other, at most 100.

    About 3 us a record, as `check`. Nothing is written but a folder for LMDB's locks, in that of temporary files.
    """
    try:
        faults = page_faults.file_faults(path)
    except OSError as error:
        return [f"it cannot be read: {error}"]
    if faults:
        return faults[:_MOST]
    with tempfile.TemporaryDirectory(prefix="vecdb-kept-") as made:
        aside = Path(made)
        (aside / DATA_FILE).symlink_to(path.absolute())  # LMDB knows it by this name only
        try:
            store = CollectionStore.open(aside, shape_of, options, read_only=True)
            try:
                with store.read() as reader:
                    if reader.format() != old_format:
                        return [f"it says that its format is {reader.format()}"]
                    faults = list(islice(problems(reader), _MOST))
            finally:
                store.close()
        except (Corrupted, FormatMismatch) as error:
            faults = [error.message]
        return [fault.replace(str(aside / DATA_FILE), str(path)) for fault in faults]
