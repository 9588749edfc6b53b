"""Filters of five selectivities for sets of any origin: of their own fields where these have them, else of
columns drawn by a seed.

The seeded columns know nothing of the vectors: rows that a filter on them allows lie anywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..clusters import hashed
from .exact import Condition

SHARES = (0.001, 0.01, 0.1, 0.2, 0.7)
"""What the five filters allow, or come near to."""
_NEAR = 3
"""A filter stands for a share if what it allows is at most so many times more or less."""
_DISTINCT = 50_000
"""A field with more values is no field to filter by equality."""

GROUP, NUMBER, FLAG = "seeded_group", "seeded_number", "seeded_flag"
FIELDS = (GROUP, NUMBER, FLAG)
CONDITIONS = (
    Condition(GROUP, "=", "a"),
    Condition(GROUP, "=", "b"),
    Condition(GROUP, "=", "c"),
    Condition(NUMBER, ">=", 80),
    Condition(FLAG, "=", "yes"),
)
_GROUPS = np.array(["a", "b", "c", "d"])
_GROUP_ENDS = np.cumsum(SHARES[:3])
WORDS = (
    f"{GROUP} is a in 0.1 %, b in 1 %, c in 10 % and d in the rest of the rows, {NUMBER} one of 0 to 99,"
    f" {FLAG} yes in 70 %, all drawn by the seed, apart from the vectors"
)


def column(field: str, rows: NDArray[np.int64], seed: int) -> NDArray[Any]:
    """One seeded field of these rows; the same in parts of any size."""
    salt = ((seed % 2**20) << 40) + (FIELDS.index(field) << 36)
    drawn = hashed(rows, salt)
    if field == GROUP:
        return _GROUPS[np.searchsorted(_GROUP_ENDS, drawn, side="right")]
    if field == NUMBER:
        return (drawn * 100).astype(np.int64)
    return np.where(drawn < SHARES[4], "yes", "no")


class Tally:
    """Counts the values of fields as they go by, to choose filters from."""

    def __init__(self) -> None:
        self._rows = 0
        self._values: dict[str, Counter[Any]] = {}
        self._numbers: dict[str, list[NDArray[np.float64]]] = {}

    def add(self, metadata: Sequence[Mapping[str, Any]]) -> None:
        self._rows += len(metadata)
        columns: dict[str, list[Any]] = {}
        for record in metadata:
            for name, value in record.items():
                columns.setdefault(name, []).append(value)
        for name, values in columns.items():
            counts = self._values.setdefault(name, Counter())
            if len(counts) <= _DISTINCT:
                counts.update(one for one in values if not isinstance(one, float))
            if all(type(one) in (int, float) for one in values):
                self._numbers.setdefault(name, []).append(np.array(values, np.float64))

    def conditions(self) -> tuple[Condition, ...]:
        """One filter for each of SHARES, the nearest that the fields have, or a seeded one."""
        chosen: list[Condition] = []
        for share, fallback in zip(SHARES, CONDITIONS, strict=True):
            offers = [
                (abs(np.log(found / share)), str(condition), condition)
                for condition, found in self._offers(share)
                if found and condition not in chosen
            ]
            apart, _, condition = min(offers, default=(np.inf, "", fallback))
            chosen.append(condition if apart <= np.log(_NEAR) else fallback)
        return tuple(chosen)

    def _offers(self, share: float) -> Iterable[tuple[Condition, float]]:
        for name, counts in self._values.items():
            if counts and len(counts) <= _DISTINCT:
                value = min(counts, key=lambda one: abs(np.log(counts[one] / self._rows / share)))
                yield Condition(name, "=", value), counts[value] / self._rows
        for name, parts in self._numbers.items():
            values = np.concatenate(parts)
            if len(values) < self._rows * share:
                continue
            bound = np.quantile(values, 1 - self._rows * share / len(values), method="higher")
            found = float((values >= bound).sum()) / self._rows
            if found < 1:
                value = int(bound) if bound.is_integer() else float(bound)
                yield Condition(name, ">=", value), found
