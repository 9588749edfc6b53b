"""Embeddings of WordNet's synsets, each with its text and four fields."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from .. import clusters
from ..datasets import WORDNET
from . import lines
from .exact import Condition


class WordNet(lines.Lines):
    name = "wordnet"

    @property
    def structure(self) -> str:
        return (
            "real embeddings of WordNet's synsets (float16, scaled to unit length) with text, part of speech,"
            " category, lemma and number of lemmas; held-out queries"
        )

    def conditions(self) -> tuple[Condition, ...]:
        return (
            Condition("category", "=", "verb.weather"),
            Condition("category", "=", "noun.quantity"),
            Condition("category", "=", "noun.artifact"),
            Condition("n_lemmas", ">=", 3),
            Condition("pos", "=", "noun"),
        )

    @staticmethod
    def write(folder: Path, rows: int, queries: int, seed: int, dimension: int) -> None:
        with gzip.open(WORDNET / "rows.jsonl.gz", "rb") as file:
            records = file.read().splitlines()
        vectors = np.load(WORDNET / "vectors.f16.npy", mmap_mode="r")
        if rows < len(records):
            chosen = np.sort(np.random.default_rng(seed).choice(len(records), rows, replace=False))
            records = [records[row] for row in chosen]
            vectors = vectors[chosen]
        clusters.unit(vectors.astype(np.float32)).tofile(folder / "vectors.f32")
        asked = np.load(WORDNET / "queries.f16.npy")[:queries]
        np.save(folder / "queries.npy", clusters.unit(asked.astype(np.float32)))
        lines.write(folder, [records])

    @staticmethod
    def available() -> int:
        """How many rows there are; 0 where the set is not at hand."""
        path = WORDNET / "vectors.f16.npy"
        return len(np.load(path, mmap_mode="r")) if path.exists() else 0
