"""What is measured on: WordNet, seeded clusters, or a set of the user's own, each in one folder layout."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from .. import clusters
from ..datasets import ROOT, WORDNET
from . import exact
from .base import Part, Source, encode
from .clustered import Clusters
from .errors import BadDataset
from .exact import Condition, State, Truth
from .given import Given
from .wordnet import WordNet

__all__ = [
    "CACHE",
    "DATASETS",
    "BadDataset",
    "Clusters",
    "Condition",
    "Given",
    "Part",
    "Source",
    "State",
    "Truth",
    "WordNet",
    "encode",
    "prepare",
]

DATASETS = ("wordnet", "clusters")
CACHE = ROOT / "bench" / ".cache"
"""Sets as they are measured, and their exact answers; may be removed at any time."""


def prepare(
    dataset: str,
    rows: int | None,
    queries: int,
    seed: int,
    folder: Path = CACHE,
    dimension: int = clusters.DIMENSION,
) -> Source:
    """The data set in a folder of its own below `folder`, written there if it is not yet.

    `dataset` is "wordnet", "clusters", or the path of a file; see `given` for what files may hold. `rows`
    and `queries` are at most so many; rows None takes all, and 1,000,000 of clusters. WordNet and files
    have the dimension that they have. Raises BadDataset for what cannot be read.
    """
    if dataset not in DATASETS:
        return _given(Path(dataset), rows, queries, seed, folder)
    if dimension != clusters.DIMENSION and dataset == "wordnet":
        raise BadDataset(f"WordNet has {clusters.DIMENSION} dimensions; use --dataset clusters")
    made: type[WordNet | Clusters] = WordNet if dataset == "wordnet" else Clusters
    count = rows or 1_000_000
    if dataset == "wordnet":
        available = WordNet.available()
        if not available:
            raise BadDataset(f"WordNet is not at hand in {WORDNET.name}/; use --dataset clusters")
        count = min(rows or available, available)
    place = folder / f"{dataset}-{count}-{dimension}-{queries}-{seed}"
    _put(place, seed, lambda aside: made.write(aside, count, queries, seed, dimension))
    return made(place, count)


def _given(path: Path, rows: int | None, queries: int, seed: int, folder: Path) -> Source:
    if not path.is_file():
        raise BadDataset(
            f"{path} is no file; a data set is one of {', '.join(DATASETS)}, or the path of a file"
        )
    # The digest of the file is in the name: a file that changes is another set.
    same = exact.of_file(path).hex()[:16]
    place = folder / f"{path.stem}-{same}-{rows or 'all'}-{queries}-{seed}"
    _put(place, seed, lambda aside: Given.write(aside, path, rows, queries, seed))
    return Given(place, (place / "vectors.f32").stat().st_size // Given(place, 1).row_bytes)


def _put(place: Path, seed: int, write: Callable[[Path], None]) -> None:
    """Has `write` fill a folder that is at `place` when it is whole, unless it is there."""
    if (place / "key").exists():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    aside = place.with_name(f"{place.name}.{os.getpid()}")
    for old in (aside, place):
        shutil.rmtree(old, ignore_errors=True)
    aside.mkdir()
    try:
        write(aside)
        (aside / "seed.json").write_text(json.dumps(seed))
        (aside / "key").write_text(exact.content(aside))
        aside.rename(place)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
