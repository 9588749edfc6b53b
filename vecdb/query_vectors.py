"""What a query searches with: vectors as given, those of stored records, or the mean of examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .batch import check_ids
from .core import Core
from .errors import InvalidQuery
from .fetching import must_show
from .field import Field
from .index import View
from .query_spec import Query
from .vectors import Space, check_matrix, check_queries, to_matrix
from .writes import not_stored

Rows = NDArray[np.int64]

_FLOAT32 = np.dtype(np.float32)
_NO_DIRECTION = 1e-6
"""Length of a mean of unit vectors below which only rounding decides where it points."""


@dataclass(frozen=True, slots=True)
class Targets:
    """`vectors` (q, width) to search with, float32, for binary storage uint8.

    `left_out` (q, m) are rows that each query must not answer with, -1 for none; None for m = 0.
    """

    vectors: NDArray[Any]
    left_out: Rows | None


def find_targets(core: Core, field: Field, view: View, query: Query) -> Targets:
    """What `query` searches with. InvalidQuery, InvalidVector, RecordNotFound say what is wrong."""
    if query.positive is not None:
        return _mean_of_examples(core, field, view, query.positive, query.negative)
    if query.ids is not None:
        vectors, rows = _stored(core, field, view, check_ids(query.ids))
        return Targets(vectors, rows[:, np.newaxis])
    vectors = check_queries(field.settings, query.vectors)
    if not len(vectors):
        raise InvalidQuery("no query vectors were given; give at least one")
    return Targets(vectors, None)


def _stored(
    core: Core, field: Field, view: View, names: Sequence[bytes]
) -> tuple[NDArray[Any], Rows]:
    """Vectors of stored records, and the row of each that the view shows (-1 where it shows none)."""
    with core.read() as reader:
        if core.read_only:
            must_show(reader, view.sequence)
        rows = core.rows_shown(reader, view, names)
        absent = [n.decode() for n, row in zip(names, rows.tolist(), strict=True) if row < 0]
        if absent:
            raise not_stored(absent, "queries by ids and examples take stored records")
        vectors = reader.vectors(rows, field.number)
        if field.number:
            lacking = np.flatnonzero(~reader.present(rows, field.number))
            if len(lacking):
                name = names[int(lacking[0])].decode()
                raise InvalidQuery(
                    f"record {name!r} has no vector in field {field.name!r}, so nothing can be near "
                    "it there; leave it out, or query by another field",
                    ids=[name],
                )
    if vectors.dtype != np.uint8 or field.settings.storage != "binary":
        vectors = vectors.astype(np.float32, copy=False)
    return vectors, rows


def _mean_of_examples(
    core: Core, field: Field, view: View, positive: Sequence[Any], negative: Sequence[Any]
) -> Targets:
    """One vector: mean(positive), and as far beyond it again as it lies from mean(negative)."""
    space = field.settings
    if space.storage == "binary":
        raise InvalidQuery("examples have no mean where vectors are bits; query by ids or vectors")
    names = list(dict.fromkeys(e for e in (*positive, *negative) if isinstance(e, str)))
    stored, rows = np.empty((0, space.dimension), np.float32), np.empty(0, np.int64)
    if names:
        stored, rows = _stored(core, field, view, check_ids(names))
    place = {name: n for n, name in enumerate(names)}

    def mean(kind: str, examples: Sequence[Any]) -> NDArray[np.float64]:
        vectors = np.empty((len(examples), space.dimension))
        for i, example in enumerate(examples):
            if isinstance(example, str):
                vectors[i] = stored[place[example]]
            else:
                vectors[i] = _example(space, example, f"{kind} example {i}")
        if space.metric == "cosine":
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        found: NDArray[np.float64] = vectors.mean(axis=0)
        return found

    target = mean("positive", positive)
    if negative:
        target = 2.0 * target - mean("negative", negative)
    if space.metric == "cosine" and np.linalg.norm(target) < _NO_DIRECTION:
        raise InvalidQuery("the examples cancel each other out: their mean has no direction")
    vectors = check_matrix(space, target[np.newaxis, :], lambda _: "mean of the examples", _FLOAT32)
    return Targets(vectors, rows[np.newaxis, :] if len(rows) else None)


def _example(space: Space, given: Any, where: str) -> NDArray[Any]:
    matrix = to_matrix(given, where)
    if len(matrix) != 1:
        raise InvalidQuery(f"{where} has {len(matrix)} vectors; each example is one")
    found: NDArray[Any] = check_matrix(space, matrix, lambda _: where, _FLOAT32)[0]
    return found
