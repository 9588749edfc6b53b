"""What a record holds, which follows from its number and its versions: so a journal of numbers is enough."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SHAPES: dict[str, dict[str, Any]] = {
    "graph": {"dimension": 8, "metric": "l2", "index": "hnsw"},
    "lists": {"dimension": 8, "metric": "cosine", "index": "ivf", "storage": "float16"},
    "named": {
        "dimension": 6,
        "metric": "l2",
        "index": "exact",
        "vectors": {"title": {"dimension": 4, "metric": "l2", "index": "hnsw"}},
    },
}
"""Settings of the collections that the writer makes."""

TITLE_DIMENSION = 4

BACKUPS = "backups"
"""Name of the folder, beside that of the database, that the writer takes backups into."""


def vectors(ids: NDArray[Any], versions: NDArray[Any], dimension: int) -> NDArray[Any]:
    """float32 (n, dimension) in steps of 1/64, which float16 holds exactly."""
    phase = ids[:, None] * 12.9898 + versions[:, None] * 78.233 + np.arange(dimension) * 37.719
    return np.round(np.sin(phase) * 64).astype(np.float32) / np.float32(64)


def has_title(ids: NDArray[Any], versions: NDArray[Any]) -> NDArray[np.bool_]:
    """Which records bear a vector `title` in these versions."""
    return np.asarray((ids + versions) % 3 != 0)


def document(number: int, version: int) -> str:
    """Of a length that differs, so that some take pages of their own."""
    return f"{number} {version} " + "x" * (number * version % 5_000 if number % 16 == 0 else 20)


def columns(numbers: list[int], version: int, shape: str) -> dict[str, Any]:
    """The columns of a batch of records `numbers`, as `insert` and `upsert` take them."""
    ids, versions = np.array(numbers), np.full(len(numbers), version)
    given: dict[str, Any] = {
        "ids": names(numbers),
        "vectors": vectors(ids, versions, SHAPES[shape]["dimension"]),
        "metadata": metadata(numbers, version),
        "documents": [document(n, version) for n in numbers],
    }
    if "vectors" in SHAPES[shape]:
        title = vectors(ids, versions, TITLE_DIMENSION)
        present = has_title(ids, versions)
        given["named_vectors"] = {
            "title": [title[n] if present[n] else None for n in range(len(numbers))]
        }
    return given


def metadata(numbers: list[int], version: int) -> list[dict[str, Any]]:
    return [{"v": version, "n": n % 7} for n in numbers]


def names(numbers: list[int]) -> list[str]:
    return [f"r{n}" for n in numbers]
