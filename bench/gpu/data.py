"""The clustered rows that several parts search: made once a run, by all cores, kept in a file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import clusters
from .answers import Floats


@dataclass(frozen=True, slots=True)
class Clustered:
    vectors: Floats  # (n, d), backed by the file
    queries: Floats  # (q, d), rows of the same mixture that are not among the vectors


def clustered(folder: Path, rows: int, queries: int, seed: int) -> Clustered:
    """The set of `bench.clusters` with this seed; from the second call in a folder on, its files."""
    path = folder / f"clusters-{rows}-{seed}.f32"
    held_out = path.with_suffix(".queries.npy")
    if not held_out.exists():
        # Under another name first: a part that is killed meanwhile must leave no half of a file.
        making = path.with_suffix(f".{os.getpid()}")
        _, asked = clusters.write(making, rows, queries, seed)
        making.rename(path)
        np.save(held_out, asked)
    vectors: Any = np.memmap(path, np.float32, "r", shape=(rows, clusters.DIMENSION))
    return Clustered(vectors, np.load(held_out))
