"""Checks vectors: shape, numbers, range and direction, by storage and metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidBatch, InvalidVector, VecdbError
from .layout import VECTOR_DTYPES, vector_width
from .types import CollectionInfo, VectorSettings

Space = CollectionInfo | VectorSettings
"""What says how vectors are measured and stored: a collection, or one of its named vector fields."""
Place = Callable[[int], str]
"""Names row i of a matrix in messages."""
NamedColumn = tuple[NDArray[Any], NDArray[np.bool_]]
"""Vectors of a named field, (n, width) in stored dtype, and who has one, (n,); zeros where none."""

_FLOAT32 = np.dtype(np.float32)
SMALLEST_SQUARED_NORM = 1e-36
"""Below it a float32 vector has lost its direction: squares of its parts are denormal."""
LARGEST_SQUARED_NORM = float(np.finfo(np.float32).max) / 4
"""Two vectors of this length are at most float32's largest number apart, squared."""


def to_matrix(vectors: Any, what: str) -> NDArray[Any]:
    """Anything numpy can view as numbers, as a 2-d array; one vector becomes one row."""
    try:
        matrix = np.asarray(vectors)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidVector(f"{what} are ragged or not numbers ({error})") from None
    if matrix.dtype.kind not in "fiu":
        raise InvalidVector(
            f"{what} have dtype {matrix.dtype}; expected rows of equal length holding numbers "
            "(float16, float32, float64 or integers; bits are packed with numpy.packbits)"
        )
    if matrix.ndim == 1:
        matrix = matrix[np.newaxis, :]
    if matrix.ndim != 2:
        raise InvalidVector(f"{what} have shape {matrix.shape}; expected (n, dimension)")
    return matrix


def width_of(space: Space) -> int:
    """Columns of a matrix of vectors: the dimension, or bytes of 8 bits each."""
    return vector_width(space.dimension, space.storage)


def check_vectors(space: Space, vectors: Any, n: int, place: Place) -> NDArray[Any]:
    """(n, width) in stored dtype, C-contiguous, for the store; see `check_matrix`."""
    matrix = to_matrix(vectors, "vectors")
    if len(matrix) != n:
        raise InvalidBatch(f"{n} ids and {len(matrix)} vectors were given; give one an id")
    return check_matrix(space, matrix, place, VECTOR_DTYPES[space.storage])


def check_queries(space: Space, vectors: Any, what: str = "query vector") -> NDArray[Any]:
    """Vectors to search with: (q, dimension) float32, for binary (q, dimension / 8) uint8."""
    matrix = to_matrix(vectors, f"{what}s")
    return check_matrix(space, matrix, lambda i: f"{what} {i}", _FLOAT32)


def check_named(
    fields: Mapping[str, VectorSettings], named: Any, n: int, place: Place
) -> dict[int, NamedColumn]:
    """Checked vectors by number of the field, counted from 1; fields that no record has are left out.

    `named` maps names to arrays of n vectors, or to lists with None for a record without one.
    """
    if named is None:
        return {}
    if not isinstance(named, Mapping):
        raise InvalidBatch(
            "named_vectors must map names of vector fields to vectors, given "
            f"{type(named).__name__}"
        )
    numbers = {name: number for number, name in enumerate(fields, 1)}
    found = {}
    for name, column in named.items():
        if name not in numbers:
            raise InvalidBatch(
                f"no vector field {name!r}; this collection has: {', '.join(fields) or 'none'}",
                field=str(name),
            )
        checked = None if column is None else _named_column(name, fields[name], column, n, place)
        if checked is not None:
            found[numbers[name]] = checked
    return dict(sorted(found.items()))


def _named_column(
    name: str, space: VectorSettings, column: Any, n: int, place: Place
) -> NamedColumn | None:
    there = np.ones(n, np.bool_)
    if isinstance(column, list | tuple) and any(entry is None for entry in column):
        if len(column) != n:
            raise _miscounted(name, len(column), n)
        there = np.array([entry is not None for entry in column])
        column = [entry for entry in column if entry is not None]
        if not column:
            return None
    rows = np.flatnonzero(there).tolist()
    matrix = to_matrix(column, f"vectors of field {name!r}")
    if len(matrix) != len(rows):
        raise _miscounted(name, len(matrix) + n - len(rows), n)
    dtype = VECTOR_DTYPES[space.storage]
    checked = check_matrix(space, matrix, lambda i: f"{place(rows[i])}, field {name!r}", dtype)
    if len(rows) == n:
        return checked, there
    spread = np.zeros((n, checked.shape[1]), dtype)
    spread[there] = checked
    return spread, there


def _miscounted(name: str, given: int, n: int) -> InvalidBatch:
    return InvalidBatch(
        f"{n} ids and {given} vectors of field {name!r} were given; give one an id, or None for a "
        "record without",
        field=name,
    )


def check_matrix(
    space: Space, matrix: NDArray[Any], place: Place, dtype: np.dtype[Any]
) -> NDArray[Any]:
    """The matrix in `dtype`, C-contiguous, each row found to be a vector of `space`.

    float dtypes: finite, not zero under cosine, no larger than float32 can measure. Integer dtypes:
    every number a whole one within range. Binary: always uint8, 8 bits in each.
    """
    if matrix.shape[1] != width_of(space):
        raise _wrong_width(space, matrix.shape[1], place(0))
    if space.storage == "binary":
        dtype = VECTOR_DTYPES["binary"]
    if dtype.kind != "f":
        return _whole(space, matrix, place, dtype)
    if matrix.dtype == dtype:
        out = np.ascontiguousarray(matrix)
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            out = np.ascontiguousarray(matrix, dtype=dtype)
    wide = out if dtype.itemsize == 4 else out.astype(np.float32)
    squared = np.einsum("ij,ij->i", wide, wide)
    # One pass finds everything: NaN and infinity carry over into the squared norm, and NaN into max.
    least = SMALLEST_SQUARED_NORM if space.metric == "cosine" else 0.0
    if len(out) and not (squared.max() <= LARGEST_SQUARED_NORM and squared.min() >= least):
        bad = ~((squared <= LARGEST_SQUARED_NORM) & (squared >= least))
        row = int(np.flatnonzero(bad)[0])
        raise _float_fault(space, matrix[row], place(row), row, dtype)
    return out


def _whole(space: Space, matrix: NDArray[Any], place: Place, dtype: np.dtype[Any]) -> NDArray[Any]:
    if matrix.dtype == dtype:
        out = np.ascontiguousarray(matrix)
    else:
        with np.errstate(invalid="ignore"):
            out = np.ascontiguousarray(matrix, dtype=dtype)
        # What does not come back as it was is a fraction, NaN, or out of range.
        changed = (out != matrix).any(axis=1)
        if changed.any():
            row = int(np.flatnonzero(changed)[0])
            column = int(np.flatnonzero(out[row] != matrix[row])[0])
            bounds = np.iinfo(dtype)
            raise InvalidVector(
                f"{place(row)}: vector has {matrix[row, column]} at dimension {column}; storage "
                f"{space.storage} takes whole numbers from {bounds.min} to {bounds.max}",
                position=row,
            )
    if space.metric == "cosine" and len(out):
        empty = ~out.any(axis=1)
        if empty.any():
            row = int(np.flatnonzero(empty)[0])
            raise _float_fault(space, matrix[row], place(row), row, dtype)
    return out


def _wrong_width(space: Space, given: int, place: str) -> InvalidVector:
    owner = f"collection {space.name!r}" if isinstance(space, CollectionInfo) else "the field"
    if space.storage == "binary":
        return InvalidVector(
            f"{place}: vector has {given} bytes, {owner} has {space.dimension // 8}: {space.dimension} "
            "bits, 8 in each byte as numpy.packbits makes them",
            given=given,
            expected=space.dimension // 8,
        )
    return InvalidVector(
        f"{place}: vector has {given} dimensions, {owner} has {space.dimension}",
        given=given,
        expected=space.dimension,
    )


def _float_fault(
    space: Space, vector: NDArray[Any], place: str, row: int, dtype: np.dtype[Any]
) -> VecdbError:
    if np.isnan(vector).any():
        fault = f"NaN at dimension {int(np.flatnonzero(np.isnan(vector))[0])}"
    elif np.isinf(vector).any():
        fault = f"infinity at dimension {int(np.flatnonzero(np.isinf(vector))[0])}"
    elif space.metric == "cosine" and np.abs(vector).max() < 1:
        fault = (
            "a length of zero, or too near zero to have a direction, which cosine cannot compare"
        )
    else:
        fault = f"values too large for {dtype.name}, or for their squares to be added in float32"
    return InvalidVector(f"{place}: vector has {fault}", position=row)
