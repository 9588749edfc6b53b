"""Searches written as their definitions read, in float64 numpy, to compare the engine with."""

from __future__ import annotations

from typing import Any

import numpy as np


def plain_distances(queries: Any, vectors: Any, metric: str) -> Any:
    """(q, n) float64 distances of all vectors to all queries; hamming takes packed bits."""
    if metric == "hamming":
        differing = np.asarray(queries)[:, None, :] ^ np.asarray(vectors)[None, :, :]
        return np.unpackbits(differing, axis=2).sum(axis=2).astype(np.float64)
    q, v = np.asarray(queries, np.float64), np.asarray(vectors, np.float64)
    if metric == "l2":
        return ((q[:, None, :] - v[None, :, :]) ** 2).sum(axis=2)
    if metric == "cosine":
        q = q / np.linalg.norm(q, axis=1, keepdims=True)
        v = v / np.linalg.norm(v, axis=1, keepdims=True)
    return 1 - q @ v.T


def plain_groups(near: Any, values: list[list[Any]], k: int, size: int) -> list[tuple[int, Any]]:
    """(row, group) of the best `size` rows of each of the best k groups, best group first.

    `near` holds the distances of the rows, infinity where one does not match; `values[row]` the
    groups that a row is in.
    """
    groups: dict[Any, list[int]] = {}
    for row in np.argsort(near, kind="stable").tolist():
        if np.isfinite(near[row]):
            for value in values[row]:
                groups.setdefault(value, []).append(row)
    best = list(groups.items())[:k]
    return [(row, value) for value, rows in best for row in rows[:size]]


def plain_mmr(near: Any, vectors: Any, metric: str, k: int, share: float, pool: int) -> list[int]:
    """Rows picked one by one from the `pool` nearest, by maximal marginal relevance."""
    candidates = np.argsort(near, kind="stable")[:pool].tolist()
    between = plain_distances(vectors[candidates], vectors[candidates], metric)
    left = list(range(len(candidates)))
    chosen: list[int] = []
    while left and len(chosen) < k:

        def gain(i: int) -> float:
            likeness = max((-between[i, j] for j in chosen), default=0.0)
            return float(share * -near[candidates[i]] - (1 - share) * likeness)

        chosen.append(max(left, key=gain))
        left.remove(chosen[-1])
    return [candidates[i] for i in chosen]


def plain_target(positive: Any, negative: Any, metric: str) -> Any:
    """The query vector that examples stand for."""

    def mean(examples: Any) -> Any:
        rows = np.asarray(examples, np.float64)
        if metric == "cosine":
            rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return rows.mean(axis=0)

    return mean(positive) if not len(negative) else 2 * mean(positive) - mean(negative)


def expect(found: Any, near: Any, k: int, tolerance: float = 1e-4) -> None:
    """`found` holds the k smallest of each row of `near` in order, ties and rounding aside; ids are
    `r` and the row, and infinity in `near` is no answer."""
    for i, row in enumerate(near):
        order = np.argsort(row, kind="stable")
        order = order[np.isfinite(row[order])][:k]
        got = [int(name[1:]) for name in found.ids[i]]
        assert len(got) == len(order)
        assert len(set(got)) == len(got)
        scale = max(1.0, float(np.abs(row[np.isfinite(row)]).max(initial=0)))
        assert np.allclose(row[got], row[order], atol=tolerance * scale)
        assert np.allclose(found.distances[i, : len(got)], row[order], atol=tolerance * scale)
        assert np.isnan(found.distances[i, len(got) :]).all()
