"""What the worker of a device needs of a card: the one interface behind which a GPU, or what stands in
for one, is found.

A card holds *placements*: numbered sets of vectors that can be searched. It knows nothing of rows, ids
or filters: an answer is positions 0..n within a placement. No selector is ever passed to it, because GPU
indexes ignore them without an error.

One thread makes the card and calls it. `CardFull` means that this call only has failed, for want of
memory. `CardRefused` means that the card does not offer what was asked, or not so much of it; nothing was
tried. Whatever else a card raises ends its worker on purpose: after another fault of the card nothing it
says can be trusted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

MOST_ITOPK = 1_024
"""Candidates that the search of a graph keeps at most: its k is no larger than these."""
SCAN_DIMENSIONS = 12_288
"""Vectors of more dimensions are searched without masks, and up to `Limits.k`: a query has to lie in the 48 KiB of fast
memory that every GPU gives a block."""

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
Bits = NDArray[np.uint8]


class CardFull(Exception):
    """Not enough memory on the device for this call. Never leaves the worker as it is: see `link.py`."""


class CardRefused(Exception):
    """Beyond a limit of the card, or nothing it offers."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call may ask for at most."""

    k: int = 2048
    nprobe: int = 2048
    scan_k: int = 2048
    """k of flat vectors; more than `k` where the card has `masks`."""


@dataclass(frozen=True, slots=True)
class CardInfo:
    """A card as it was when its worker started."""

    name: str
    total_bytes: int
    free_bytes: int
    limits: Limits
    graphs: bool
    """Graphs (CAGRA) can be built and searched."""
    masks: bool = False
    """Searches of flat vectors obey masks."""


class Card(Protocol):
    """Arrays are C-contiguous. `handle` is a number that the caller has not used before on this card.

    `metric` is "l2" (scores are squared distances, smaller is nearer) or "ip" (inner products, larger is
    nearer; cosine is "ip" of unit vectors). A search answers with scores float32 and positions int64, both
    (q, k), best first; where there are fewer than k, position -1 and score inf ("l2") or -inf ("ip").
    """

    def info(self) -> CardInfo: ...

    def flat(self, handle: int, dimension: int, metric: str, code: str, rows: int) -> None:
        """An empty placement of flat vectors with room for `rows`; `code` "float32" or "float16"."""

    def add(self, handle: int, vectors: Floats) -> None:
        """Append (n, d) to a flat placement. They are copied."""

    def lists(self, handle: int, data: memoryview, code: str) -> None:
        """A FAISS IVF index as serialised by the CPU: IVFFlat, IVF-SQ8, IVF-PQ of 8 bits; `code` is the
        engine's word for it. Copied to the device."""

    def graph(self, handle: int, source: int, degree: int) -> None:
        """A CAGRA graph over the flat placement `source`, which is kept while the graph lives. It knows the
        vectors that are there now, and none that are added later."""

    def mask(self, handle: int, number: int, bits: Bits) -> None:
        """Remember which positions of a flat placement may answer, under a number that is new to it. `bits` uint8,
        a bit for each position, least significant first; of a graph, for the vectors beneath it. CardRefused where there are
        no masks."""

    def unmask(self, handle: int, number: int) -> None:
        """Forget a mask; nothing for one that is not known."""

    def search(
        self, handle: int, queries: Floats, k: int, setting: int, mask: int = 0
    ) -> tuple[Floats, Rows]:
        """The k nearest of each of (q, d). `setting` is nprobe of lists, itopk of a graph, 0 for flat; `mask`
        the number of one, 0 for none. With 0 for a graph the vectors beneath it are compared, as flat ones are."""

    def compare(self, queries: Floats, vectors: Floats, k: int, metric: str) -> tuple[Floats, Rows]:
        """The k nearest of host `vectors` (n, d) that are not placed, exactly."""

    def kmeans(
        self,
        sample: Floats,
        lists: int,
        rounds: int,
        spherical: bool,
        seed: int,
        start: Floats | None = None,
    ) -> Floats:
        """Centroids (lists, d) of `sample` (n, d) after `rounds` of Lloyd's algorithm, begun at `start`, or
        at rows chosen by `seed`."""

    def links(self, handle: int) -> NDArray[np.int32]:
        """The neighbours (n, degree) of each position of a graph, -1 behind the last where there are fewer:
        the lowest level of a graph that the CPU is to walk."""

    def drop(self, handle: int) -> None:
        """Give the memory of a placement back; nothing for one that is not known."""

    def used_bytes(self, handle: int) -> int:
        """Memory of the device that a placement takes, with vectors that it keeps although they were dropped;
        0 for one that is not known."""


def check_graph(metric: str, code: str, rows: int, degree: int) -> None:
    """CardRefused for a graph over flat vectors that is beyond what cuVS makes."""
    if code == "float16" and metric == "ip":
        raise CardRefused("a graph over inner products needs float32 vectors")
    if not 8 <= degree <= 256 or rows <= 2 * degree:
        raise CardRefused(f"a graph of degree {degree} over {rows} rows")


def check_walk(k: int, itopk: int) -> None:
    """CardRefused for the search of a graph that is beyond its limits."""
    if not k <= itopk <= MOST_ITOPK:
        raise CardRefused(
            f"itopk of a graph is at least k and at most {MOST_ITOPK}, given {itopk} and k {k}"
        )


def padding(metric: str) -> float:
    """The score where there is no answer: worse than any."""
    return float("inf") if metric == "l2" else float("-inf")
