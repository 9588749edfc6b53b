"""A filter that is asked of some rows only: those that ids name, or that came since it was asked of the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from . import metadata as meta
from .columns import ColumnBatch, Columns
from .filters import Filter, evaluate
from .stopping import Interrupt
from .store import Reader

Rows = NDArray[np.int64]


def matching_among(
    expression: Filter,
    columns: Columns,
    reader: Reader,
    rows: Rows,
    ids: Sequence[str],
    interrupt: Interrupt,
) -> NDArray[np.bool_]:
    """Whether each of some rows matches, in any order; `ids` are theirs, each one's own.

    Costs what these rows cost. `columns` are the collection's; where they do not reach so far, some are made of what
    the reader sees, 3 us a row.
    """
    order = np.argsort(rows)
    at = rows[order]
    if len(rows) and at[-1] >= columns.n_rows:
        # Newer than the columns, or these are not built yet: columns are made for the rows.
        columns, at = Columns(0), np.arange(len(rows))  # what is stored is taken beyond any limit
        texts = reader.metadata(rows[order])
        columns.extend(ColumnBatch.from_metadata([meta.decode(m) for m in texts]), 0)
    given = {int(row): int(n) for row, n in zip(at, order, strict=True)}
    place = {
        record_id: int(row) for row, record_id in zip(at, (ids[n] for n in order), strict=True)
    }

    class Given:
        def rows_of_ids(self, wanted: Sequence[str]) -> Rows:
            return np.asarray([place[i] for i in wanted if i in place], np.int64)

        def ids(self, some: Rows) -> list[str]:
            return [ids[given[row]] for row in some.tolist()]

        def documents(self, some: Rows) -> list[str | None]:
            return reader.documents([rows[given[row]] for row in some.tolist()])

    found = np.empty(len(rows), np.bool_)
    found[order] = evaluate(expression, columns, Given(), at, interrupt=interrupt)
    return found
