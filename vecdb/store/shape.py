"""What one needs to know to read a vector: its numbers, and how many vectors share a value."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..layout import VECTOR_DTYPES, rows_per_block, vector_width


@dataclass(frozen=True)
class FieldShape:
    """One vector field. `dimension` counts bits where `storage` is binary."""

    dimension: int
    storage: str

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        return VECTOR_DTYPES[self.storage]

    @cached_property
    def width(self) -> int:
        """Numbers stored for one vector."""
        return vector_width(self.dimension, self.storage)

    @cached_property
    def row_bytes(self) -> int:
        return self.width * self.dtype.itemsize

    @cached_property
    def rows_per_block(self) -> int:
        return rows_per_block(self.dimension, self.storage)


@dataclass(frozen=True)
class Shape:
    """All vector fields of a collection: a record's own vector, and those with names."""

    dimension: int
    storage: str
    named: tuple[FieldShape, ...] = ()
    """Fields 1, 2 and so on, in the order in which the collection names them."""

    @cached_property
    def fields(self) -> tuple[FieldShape, ...]:
        """By number; field 0 is the record's own vector."""
        return (FieldShape(self.dimension, self.storage), *self.named)
