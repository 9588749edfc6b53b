"""Which rows may answer: the result of a filter, as a mask or, where they are few, as a list."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]

MOST_LISTED = 8
"""Up to an eighth of all rows a list takes no more memory than a mask."""


class Selection:
    """Rows below `n_rows` that match. Immutable; any thread may use it.

    Held as an ascending list of rows, as a mask, or as both: whichever form is asked for first is
    made from the other and kept. So a rare value costs what its rows cost, not a look at every row.
    """

    __slots__ = ("_count", "_mask", "_rows", "key", "n_rows")

    def __init__(
        self,
        n_rows: int,
        *,
        mask: Mask | None = None,
        rows: Rows | None = None,
        count: int | None = None,
        key: str | None = None,
    ) -> None:
        """`mask` is bool of shape (n_rows,), `rows` int64, ascending, without repetition. One of them.

        `count`: how many they are, where that is known. `key`: a text that always means exactly these
        of the rows there are, however many more may come; None where there is none.
        """
        assert mask is not None or rows is not None
        self.n_rows = n_rows
        self.key = key
        self._mask = mask
        self._rows = rows
        self._count = count if rows is None else int(rows.size)

    @property
    def is_list(self) -> bool:
        """Whether the rows are at hand as a list already."""
        return self._rows is not None

    def rows(self) -> Rows:
        """The rows, ascending; read only."""
        if self._rows is None:
            assert self._mask is not None
            self._rows = np.flatnonzero(self._mask)
        return self._rows

    def mask(self) -> Mask:
        """One bool a row, shape (n_rows,); read only."""
        if self._mask is None:
            assert self._rows is not None
            mask = np.zeros(self.n_rows, np.bool_)
            mask[self._rows] = True
            self._mask = mask
        return self._mask

    def count(self) -> int:
        """How many rows match, dead ones included where the selection was not cut to live ones."""
        if self._count is None:
            assert self._mask is not None
            self._count = int(np.count_nonzero(self._mask))
        return self._count

    def below(self, n_rows: int) -> Selection:
        """Those of the rows that are below `n_rows`, which is at most its own."""
        if self._rows is not None:
            rows = self._rows[: np.searchsorted(self._rows, n_rows)]
            return Selection(n_rows, rows=rows, key=self.key)
        assert self._mask is not None
        return Selection(n_rows, mask=self._mask[:n_rows], key=self.key)

    def named(self, key: str) -> Selection:
        """The same rows under a key; shares their memory."""
        return Selection(self.n_rows, mask=self._mask, rows=self._rows, count=self._count, key=key)


def once(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ascending rows without repetition; np.unique takes four times as long on what is sorted."""
    first = np.ones(len(rows), np.bool_)
    np.not_equal(rows[1:], rows[:-1], out=first[1:])
    return rows[first]
