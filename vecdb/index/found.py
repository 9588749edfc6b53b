"""What a search of an index found."""

from __future__ import annotations

from dataclasses import dataclass

from .distance import Floats, Rows


@dataclass(frozen=True, slots=True)
class Found:
    """Answers to q queries, nearest first; ties in distance by row number.

    `distances` float32 (q, k) is padded with NaN, `rows` int64 (q, k) with -1. Distances are those of
    the stored vectors. `exact` means that every row that was allowed has been compared. `plan` is
    one word for how.
    """

    distances: Floats
    rows: Rows
    exact: bool
    plan: str
