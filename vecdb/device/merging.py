"""Answers from several parts of the rows put together: shards on several devices, or tiles of a large one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .card import Floats, Rows, padding


def merged(parts: Sequence[tuple[Floats, Rows]], k: int, metric: str) -> tuple[Floats, Rows]:
    """The k best of several answers to the same q queries, best first, ties by the lower position.

    Each part is scores float32 and positions int64 (q, any), as a card gives them, with positions of the
    whole, so that no two parts share one. Returns (q, k), padded with -1 and the worst score. NaN scores,
    which only vectors that overflow give, come last. Any thread.
    """
    scores = np.concatenate([part[0] for part in parts], axis=1)
    positions = np.concatenate([part[1] for part in parts], axis=1)
    keys = scores if metric == "l2" else -scores
    missing = positions < 0
    if missing.any():
        keys = np.where(missing, np.float32(np.inf), keys)
    # A missing answer comes behind a real one whose score has overflown to the same.
    last = np.where(missing, np.iinfo(np.int64).max, positions)
    width = keys.shape[1]
    if width > 4 * k:
        # Sorting all would cost more. Ties at the border must all stay, for the lower position to win.
        border = np.partition(keys, k - 1, axis=1)[:, k - 1 : k]
        kept = int((keys <= border).sum(axis=1).max(initial=0))
        if k <= kept < width:
            near = np.argpartition(keys, kept - 1, axis=1)[:, :kept]
            keys, last = (np.take_along_axis(a, near, axis=1) for a in (keys, last))
            scores, positions = (np.take_along_axis(a, near, axis=1) for a in (scores, positions))
    order = np.lexsort((last, keys), axis=1)[:, :k]
    scores = np.take_along_axis(scores, order, axis=1)
    positions = np.take_along_axis(positions, order, axis=1)
    return padded(scores, positions, k, metric)


def padded(scores: Floats, positions: Rows, k: int, metric: str) -> tuple[Floats, Rows]:
    """(q, w) answers as (q, k), w <= k: -1 and the worst score where there is none."""
    worst = np.float32(padding(metric))
    if scores.shape[1] < k:
        wide, at = (
            np.full((len(scores), k), worst, np.float32),
            np.full((len(scores), k), -1, np.int64),
        )
        wide[:, : scores.shape[1]], at[:, : scores.shape[1]] = scores, positions
        scores, positions = wide, at
    missing = positions < 0
    if missing.any():
        scores = np.where(missing, worst, scores)
    return scores, positions
