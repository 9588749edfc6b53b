"""What a record holds, which follows from its number and its versions: so a journal of numbers is enough."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SHAPES: dict[str, dict[str, Any]] = {
    "graph": {"dimension": 8, "metric": "l2", "index": "hnsw"},
    "lists": {"dimension": 8, "metric": "cosine", "index": "ivf", "storage": "float16"},
    # Whole numbers, and with them contents and URIs, which most records of a database have not.
    "bytes": {"dimension": 8, "metric": "l2", "index": "hnsw", "storage": "int8"},
    "named": {
        "dimension": 6,
        "metric": "l2",
        "index": "exact",
        "vectors": {"title": {"dimension": 4, "metric": "l2", "index": "hnsw"}},
    },
}
"""Settings of the collections that the writer makes."""

TITLE_DIMENSION = 4

BACKUPS, BESIDE = "backups", "beside"
"""Names of the folders, beside that of the database, that the writer takes backups into, and that hold what else it
works on: databases restored from backups, and one of an older format, `old`."""
OLD = "old"


def vectors(ids: NDArray[Any], versions: NDArray[Any], dimension: int) -> NDArray[Any]:
    """float32 (n, dimension) in steps of 1/64, which float16 holds exactly, from -1 to 1 as if drawn at random: so hardly two
    are the same, among which no graph finds its way."""
    phase = ids[:, None] * 12.9898 + versions[:, None] * 78.233 + np.arange(dimension) * 37.719
    share = np.modf(np.abs(np.sin(phase)) * 43_758.5453)[0]
    return np.round(share * 128 - 64).astype(np.float32) / np.float32(64)


def stored(
    shape: str, ids: NDArray[Any], versions: NDArray[Any], *, title: bool = False
) -> NDArray[Any]:
    """The vectors of records, or their vectors `title`, as a collection of this shape gives them back."""
    settings = SHAPES[shape]
    made = vectors(ids, versions, TITLE_DIMENSION if title else settings["dimension"])
    return (made * 64).astype(np.int8) if settings.get("storage") == "int8" else made


def content(number: int, version: int) -> bytes | None:
    """The content of a record of a shape that has contents; whether it has one follows from its number alone."""
    return f"{number} {version} ".encode() * (version % 600) if number % 3 == 0 else None


def uri(number: int, version: int) -> str | None:
    return f"file:{number}/{version}" if number % 4 else None


def has_contents(shape: str) -> bool:
    return shape == "bytes"


def has_title(ids: NDArray[Any], versions: NDArray[Any]) -> NDArray[np.bool_]:
    """Which records bear a vector `title` in these versions."""
    return np.asarray((ids + versions) % 3 != 0)


def is_titled(number: int, version: int) -> bool:
    """The same of one record."""
    return (number + version) % 3 != 0


def document(number: int, version: int) -> str:
    """Of a length that differs, so that some take pages of their own."""
    return f"{number} {version} " + "x" * (number * version % 5_000 if number % 16 == 0 else 20)


def columns(numbers: list[int], version: int, shape: str) -> dict[str, Any]:
    """The columns of a batch of records `numbers`, as `insert` and `upsert` take them."""
    ids, versions = np.array(numbers), np.full(len(numbers), version)
    given: dict[str, Any] = {
        "ids": names(numbers),
        "vectors": stored(shape, ids, versions),
        "metadata": metadata(numbers, version),
        "documents": [document(n, version) for n in numbers],
    }
    if has_contents(shape):
        given["contents"] = [content(n, version) for n in numbers]
        given["uris"] = [uri(n, version) for n in numbers]
    if "vectors" in SHAPES[shape]:
        title = stored(shape, ids, versions, title=True)
        present = has_title(ids, versions)
        given["named_vectors"] = {
            "title": [title[n] if present[n] else None for n in range(len(numbers))]
        }
    return given


def changed(numbers: list[int], version: int, shape: str, what: list[str]) -> dict[str, Any]:
    """The columns of an update of these parts of records, as `update` takes them; metadata is merged. Contents and URIs go
    with documents."""
    whole = columns(numbers, version, shape)
    given: dict[str, Any] = {"ids": whole["ids"]}
    for name, column in (
        ("vectors", "vectors"),
        ("titles", "named_vectors"),
        ("documents", "documents"),
        ("documents", "contents"),
        ("documents", "uris"),
    ):
        if name in what and column in whole:
            given[column] = whole[column]
    if "metadata" in what:
        given["metadata"] = [{"v": version}] * len(numbers)
    return given


def metadata(numbers: list[int], version: int) -> list[dict[str, Any]]:
    return [{"v": version, "n": n % 7} for n in numbers]


def names(numbers: list[int]) -> list[str]:
    return [f"r{n}" for n in numbers]
