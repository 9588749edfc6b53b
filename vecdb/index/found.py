"""What a search answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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


def joined(parts: list[Found]) -> Found:
    """The answers to the queries of several parts, in order; the plan is that of the first."""
    if len(parts) == 1:
        return parts[0]
    return Found(
        np.concatenate([part.distances for part in parts]),
        np.concatenate([part.rows for part in parts]),
        all(part.exact for part in parts),
        parts[0].plan,
    )
