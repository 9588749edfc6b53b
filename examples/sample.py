"""The sample that the examples work on: 4,000 WordNet glosses with their embeddings."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).resolve().parent / "wordnet"


@dataclass(frozen=True, slots=True)
class Sample:
    """Columns of equal length. `vectors` is float32, shape (rows, 384), of unit length."""

    ids: list[str]
    texts: list[str]
    metadata: list[dict[str, Any]]
    vectors: NDArray[np.float32]


def rows() -> Sample:
    return _load("rows.jsonl.gz", "vectors.f16.npy")


def queries() -> Sample:
    """50 glosses that are not among the rows; their vectors are what a model makes of a question."""
    return _load("queries.jsonl.gz", "queries.f16.npy")


def _load(rows_name: str, vectors_name: str) -> Sample:
    with gzip.open(FOLDER / rows_name, "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    vectors = np.load(FOLDER / vectors_name).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Sample(
        ids=[line.pop("id") for line in lines],
        texts=[line.pop("text") for line in lines],
        metadata=lines,
        vectors=vectors,
    )
