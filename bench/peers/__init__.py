"""The systems that are measured: each one small adapter with the same verbs.

An adapter is a class `System` in a module of its own here, which imports its package when it is made, so
that a system that is not installed is left out and nothing else fails.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..datasets import Vectors
from ..sources import Condition, Part, Source

M = 16
EF_CONSTRUCTION = 100
EF_SEARCH = (
    12, 16, 20, 24, 28, 32, 36, 40, 48, 56, 64, 72, 80, 88, 96, 112, 128, 144, 160, 192, 224, 256, 320, 384, 512,
)  # fmt: skip
REFINED = 2
"""Candidates that a walk over codes gives for each answer, to be ranked again by float32."""


class System(Protocol):
    """One collection of one system, in `folder`, made anew (`create`) or opened again.

    Metric cosine. `settings` are what trades recall against speed, ascending.
    """

    settings: Sequence[float]

    def __init__(self, source: Source, folder: Path, *, create: bool, **options: Any) -> None: ...

    def insert(self, start: int, part: Part) -> None:
        """Rows from `start` on, acknowledged when it returns."""

    def ready(self) -> None:
        """Returns when all rows are indexed, at the recall that was asked for."""

    def prepare(self, queries: Vectors) -> Sequence[Any]:
        """Queries in the form that `query` takes fastest; not timed."""

    def where(self, condition: Condition) -> Any:
        """A filter in the system's own words; not timed."""

    def query(self, vector: Any, k: int, where: Any, setting: float) -> tuple[Any, Any]:
        """Ids and distances (or scores) of the k nearest; the timed call."""

    def batch(self, queries: Vectors, k: int, setting: float) -> Sequence[Any]:
        """Ids of the k nearest to each; the timed call."""

    def rows(self, ids: Any) -> Sequence[int]:
        """Row numbers of what a query returned as ids."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Peer:
    """`module` of this package, opened with `options`."""

    name: str
    module: str
    options: tuple[tuple[str, Any], ...] = ()


VECDB = Peer("vecdb", "engine")
RAW = Peer(f"FAISS HNSW M={M} efC={EF_CONSTRUCTION} float32", "raw")
RAW_SQ8 = Peer(f"FAISS HNSW M={M} efC={EF_CONSTRUCTION} SQ8, refined in float32", "raw_sq8")
RAW_LISTS = Peer("FAISS IVF SQ8, refined in float32", "raw_lists")
RAWS = (RAW, RAW_SQ8)
SAVED = Peer("FAISS, the index that vecdb saved", "saved")
SAME = {"none": RAW_SQ8, "sq8": RAW_SQ8}
"""By the quantization of vecdb's index: what is the same kind of index. A graph over float32 is walked over
SQ8 codes too, where these are fine and vectors have 64 dimensions or more."""


def same_kind(kind: str, quantization: str) -> Peer:
    """FAISS alone with an index of the kind that vecdb serves."""
    return RAW_LISTS if kind == "ivf" else SAME.get(quantization, RAW)


PEERS = (
    VECDB,
    RAW,
    RAW_SQ8,
    Peer("qdrant-edge", "qdrant"),
    Peer("zvec", "zvec"),
    # Its faster call, which a collection that can be written to refuses.
    Peer("zvec, opened read-only", "zvec", (("read_only", True),)),
)


def load(module: str) -> type[System]:
    """The adapter class. Making one raises ModuleNotFoundError where its package is missing."""
    adapter: type[System] = importlib.import_module(f"{__name__}.{module}").System
    return adapter
