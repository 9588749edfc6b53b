"""Which metadata fields a set has, for systems that want a schema, and which are filtered by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..sources import Condition, Source

ID, VECTOR, TEXT = "record_id", "record_vector", "record_text"
"""Columns beside the metadata; a field of these names would clash with them."""
_LOOKED_AT = 1_000
_SCALARS = (str, int, float, bool)


@dataclass(frozen=True, slots=True)
class Fields:
    """`kinds`: the type of each scalar field. `indexed`: the fields of filters, True where one asks for a range."""

    kinds: dict[str, type]
    indexed: dict[str, bool]

    @classmethod
    def of(cls, source: Source) -> Fields:
        """From the first rows of a set and its filters. Fields of other types are left out."""
        kinds: dict[str, type] = {}
        for record in source.records(0, min(_LOOKED_AT, source.rows))[1]:
            for name, value in record.items():
                if type(value) in _SCALARS:
                    known = kinds.setdefault(name, type(value))
                    if {known, type(value)} == {int, float}:
                        kinds[name] = float
        indexed: dict[str, bool] = {}
        for one in source.conditions():
            kinds.setdefault(one.field, type(one.value))
            indexed[one.field] = indexed.get(one.field, False) or one.op != "="
        return cls(kinds, indexed)

    def values(self, record: dict[str, Any]) -> dict[str, Any]:
        """Every field of a record, None where it has none."""
        return {name: record.get(name) for name in self.kinds}


def literal(condition: Condition, quote: str = "'") -> str:
    """The value as languages like SQL write it."""
    value = condition.value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return quote + value.replace("\\", "\\\\").replace(quote, "\\" + quote) + quote
    return str(value)
