"""Queries once more in plain numpy, written as the definitions read, to compare the engine with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


def distances(queries: NDArray[Any], vectors: NDArray[Any], metric: str) -> Doubles:
    """(q, n) distances in float64; for hamming both are packed bits."""
    if metric == "hamming":
        q, v = np.unpackbits(queries, axis=1), np.unpackbits(vectors, axis=1)
        return (q[:, None, :] != v[None, :, :]).sum(axis=2).astype(np.float64)
    q, v = queries.astype(np.float64), vectors.astype(np.float64)
    if metric == "l2":
        return ((q[:, None, :] - v[None, :, :]) ** 2).sum(axis=2)
    if metric == "cosine":
        q = q / np.linalg.norm(q, axis=1, keepdims=True)
        v = v / np.linalg.norm(v, axis=1, keepdims=True)
    return 1 - q @ v.T


def groups_of(value: Any) -> list[Any]:
    """The groups of a record whose metadata has this value: a list is in that of each element once."""
    found: list[Any] = []
    for one in value if isinstance(value, list) else [value]:
        if one is not None and not any(same(one, other) for other in found):
            found.append(one)
    return found


def same(a: Any, b: Any) -> bool:
    """Equal as filters see it: types never mix, but 1 and 1.0 are one number."""
    numbers = isinstance(a, int | float) and isinstance(b, int | float)
    kinds = numbers and isinstance(a, bool) == isinstance(b, bool)
    return bool((kinds or type(a) is type(b)) and a == b)


def best_groups(
    near: Doubles, values: Sequence[Any], k: int, size: int
) -> list[tuple[Any, list[int]]]:
    """The best k groups of one query, each with its best `size` records; infinite ones left out."""
    found: list[tuple[Any, list[int]]] = []
    for record in np.argsort(near, kind="stable").tolist():
        if not np.isfinite(near[record]):
            break
        for value in groups_of(values[record]):
            held = next((own for group, own in found if same(group, value)), None)
            if held is None:
                found.append((value, [record]))
            else:
                held.append(record)
    return [(value, own[:size]) for value, own in found[:k]]


def most_relevant(
    near: Doubles, vectors: NDArray[Any], metric: str, k: int, share: float, candidates: int
) -> list[int]:
    """Records picked by maximal marginal relevance, in their order (Carbonell and Goldstein 1998)."""
    left = [
        r for r in np.argsort(near, kind="stable")[:candidates].tolist() if np.isfinite(near[r])
    ]
    between = distances(vectors, vectors, metric)
    picked: list[int] = []
    while left and len(picked) < k:
        scores = [
            share * -near[r]
            - (1 - share) * (max(-between[r, p] for p in picked) if picked else 0.0)
            for r in left
        ]
        picked.append(left.pop(int(np.argmax(scores))))
    return picked
