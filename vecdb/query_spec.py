"""What a query asks for: checked once, at the door."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from .errors import InvalidQuery
from .fetching import check_include
from .filters import Filter
from .scalars import Refused, plain_key, shown
from .types import (
    DEFAULT_GROUP_SIZE,
    DEFAULT_K,
    MAX_GROUP_SIZE,
    MAX_K,
    MAX_MMR_CANDIDATES,
)

_LEAST_MMR_CANDIDATES = 50
_MMR_CANDIDATES_A_HIT = 4
_LARGEST_BOUND = sys.float_info.max


@dataclass(frozen=True, slots=True)
class Query:
    """A query as `Collection.query` describes it, checked except for what only the data can tell."""

    vectors: Any
    ids: Iterable[str] | None
    positive: list[Any] | None
    negative: list[Any]
    vector_name: str | None
    k: int | None
    """None where a distance bound alone says how many answers there are."""
    filter: Filter | None
    exact: bool
    max_distance: float | None
    target_recall: float | None
    group_by: str | None
    group_size: int
    mmr_lambda: float | None
    mmr_candidates: int
    explain: bool
    include: frozenset[str]
    min_sequence: int | None
    timeout_s: float | None
    raw_metadata: bool
    max_bytes: int | None

    @property
    def limit(self) -> int:
        """Answers of a query at most."""
        return (MAX_K if self.k is None else self.k) * self.group_size


def check_query(
    *,
    vectors: Any,
    ids: Iterable[str] | None,
    positive: Any,
    negative: Any,
    vector_name: str | None,
    k: int | None,
    filter: Filter | None,
    exact: bool,
    max_distance: float | None,
    target_recall: float | None,
    group_by: str | None,
    group_size: int | None,
    mmr_lambda: float | None,
    mmr_candidates: int | None,
    explain: bool,
    include: Iterable[str],
    min_sequence: int | None,
    timeout_s: float | None,
    raw_metadata: bool,
    max_bytes: int | None,
) -> Query:
    """The query that these arguments say. InvalidQuery names the one that is wrong."""
    if (vectors is not None) + (ids is not None) + (positive is not None) != 1:
        raise InvalidQuery(
            "give either vectors or ids or positive examples to query by, one of the three"
        )
    if negative is not None and positive is None:
        raise InvalidQuery("negative examples need positive ones to start from")
    limit = check_k(k, max_distance)
    _check_bound(max_distance)
    recall = check_share("target_recall", target_recall, 0.5)
    if group_by is not None:
        _check_group(group_by, mmr_lambda)
    if group_size is not None and group_by is None:
        raise InvalidQuery("group_size says how many hits a group has; give group_by with it")
    if mmr_candidates is not None and mmr_lambda is None:
        raise InvalidQuery("mmr_candidates says what mmr_lambda chooses from; give both")
    return Query(
        vectors=vectors,
        ids=ids,
        positive=None if positive is None else _examples("positive", positive),
        negative=[] if negative is None else _examples("negative", negative),
        vector_name=vector_name,
        k=None if k is None and max_distance is not None else limit,
        filter=filter,
        exact=bool(exact),
        max_distance=None if max_distance is None else float(max_distance),
        target_recall=recall,
        group_by=group_by,
        group_size=_check_count("group_size", group_size, DEFAULT_GROUP_SIZE, 1, MAX_GROUP_SIZE),
        mmr_lambda=check_share("mmr_lambda", mmr_lambda, 0.0),
        mmr_candidates=0 if mmr_lambda is None else _mmr_candidates(mmr_candidates, limit),
        explain=bool(explain),
        include=check_include(include),
        min_sequence=min_sequence,
        timeout_s=timeout_s,
        raw_metadata=raw_metadata,
        max_bytes=max_bytes,
    )


def check_k(k: int | None, max_distance: float | None) -> int:
    if type(k) is int and 1 <= k <= MAX_K:
        return k
    if k is None:
        return DEFAULT_K if max_distance is None else MAX_K
    return _check_count("k", k, DEFAULT_K, 1, MAX_K)


def _check_bound(max_distance: float | None) -> None:
    if max_distance is None:
        return
    fine = isinstance(max_distance, Real) and not isinstance(max_distance, bool)
    if not fine or abs(max_distance) > _LARGEST_BOUND or math.isnan(max_distance):
        raise InvalidQuery(
            f"max_distance must be a number within float64, given {shown(max_distance)}"
        )


def check_share(name: str, value: float | None, low: float) -> float | None:
    """A number from `low` to 1, or None where none was given."""
    if value is None or (type(value) is float and low <= value <= 1.0):
        return value
    fine = isinstance(value, Real) and not isinstance(value, bool)
    if not fine or not low <= value <= 1.0:
        raise InvalidQuery(f"{name} must be from {low} to 1.0, given {shown(value)}")
    return float(value)


def _check_count(name: str, value: int | None, default: int, low: int, high: int) -> int:
    if value is None:
        return default
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not low <= value <= high:
        raise InvalidQuery(
            f"{name} must be an integer from {low} to {high}, given {shown(value)}", limit=high
        )
    return int(value)


def _check_group(group_by: str, mmr_lambda: float | None) -> None:
    if mmr_lambda is not None:
        raise InvalidQuery(
            "group_by and mmr_lambda order hits each in its own way; give one of them"
        )
    try:
        plain_key(group_by)
    except Refused as reason:
        raise InvalidQuery(
            f"group_by takes the dotted path of a metadata field: {reason}",
            group_by=shown(group_by),
        ) from None
    if group_by == "id":
        raise InvalidQuery("group_by takes a metadata field; ids differ, each would be a group")


def _mmr_candidates(given: int | None, k: int) -> int:
    if given is None:
        return min(MAX_MMR_CANDIDATES, max(_MMR_CANDIDATES_A_HIT * k, _LEAST_MMR_CANDIDATES))
    return _check_count("mmr_candidates", given, 0, min(k, MAX_MMR_CANDIDATES), MAX_MMR_CANDIDATES)


def _examples(name: str, given: Any) -> list[Any]:
    """A list of record ids and vectors, not yet told apart."""
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise InvalidQuery(
            f"{name} takes a list of record ids and vectors, given {type(given).__name__}"
        )
    examples = list(given)
    if name == "positive" and not examples:
        raise InvalidQuery("positive is empty; give at least one record id or vector")
    if len(examples) > MAX_K:
        raise InvalidQuery(
            f"{name} has {len(examples)} examples, at most {MAX_K} are taken", limit=MAX_K
        )
    return examples
