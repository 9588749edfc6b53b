"""The main index: an HNSW graph, IVF lists or flat codes over the rows that were live when it was built.

Positions 0..n inside FAISS stand for the row numbers in `rows`. A main index never changes once it
is made; growing it makes another one, which may share memory with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from ..types import LISTS_ONLY
from .arena import Arena
from .blocks import Allowed, BitBlock, Block, CodeBlock, FloatBlock, ListBlock
from .calibrate import Curve
from .cells import probing
from .codes import SCALAR_TYPES, part_of, parts_of, train_scalars
from .distance import Floats, Rows
from .door import L2, faiss, faiss_metric, use_threads_for
from .filling import LateBlock
from .mapped_file import MappedFile
from .rough_guide import GuideBytes
from .signed import Walked, asked, between_bounds, has_bytes
from .walking import by_codes, finder, guide_of, refined, scale_of, walk, walk_and_compare, widened

HNSW_M = 16
EF_CONSTRUCTION = 100
"""Recall measured on 30,000 WordNet vectors, 384 dimensions, M = 16: recall@10 at efSearch 64 is 0.984
with 80, 0.988 with 100, 0.991 with 140, 0.992 with 200; recall@100 at efSearch 100 is 0.951, 0.955,
0.958 and 0.960. The step from 80 to 100 gains most. Build times were taken on a busy machine, too
noisy to compare."""

EF_SETTINGS = (
    16, 20, 24, 28, 32, 36, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 256, 384, 512, 768, 1024,
)  # fmt: skip
GRAPH_BYTES_A_ROW = 2 * HNSW_M * 4 + 16
_KEPT_SETTINGS = 4_096
_UNKNOWN = object()
SETTING_NAMES = {"hnsw": "efSearch", "ivf": "nprobe", "flat": ""}


class Main:
    """A main index. `index` is a FAISS index whose vectors `block` searches exactly by their code.

    `kind` is hnsw, ivf or flat. `rows` (n,) int64 are the row numbers of positions, in no particular
    order; all are below `high_water`. Rows below `high_water` that are not in `rows` were dead when it
    was built. Immutable; any thread may search.
    """

    def __init__(
        self,
        *,
        kind: str,
        code: str,
        index: Any,
        block: Block,
        rows: Rows,
        high_water: int,
        curve: Curve,
        lossy: bool,
        error: float,
        arena: Arena | None = None,
        sequence: int = 0,
        built_at_s: float = 0.0,
        provisional: bool = False,
        maps: tuple[MappedFile, ...] = (),
    ) -> None:
        self.kind = kind
        self.code = code
        self.index = index
        self.block = block
        self.rows = rows
        self.n = len(rows)
        self.high_water = high_water
        self.curve = curve
        self.lossy = lossy
        """Distances by the code differ from those of the stored vectors."""
        self.error = error
        """Largest Euclidean distance of a vector from its code, infinite where that is not known."""
        self.arena = arena
        self.sequence = sequence
        """The commit whose live rows it was built of, and when (seconds since 1970)."""
        self.built_at_s = built_at_s
        self.provisional = provisional
        """Lists that serve until a graph is made too and the two have been compared."""
        self.maps = maps
        """The files that parts of it are read from while it serves; none where it was built by this process."""
        self.walks: dict[tuple[float, int], int | None] = {}
        """See `plan.plain_walk`."""
        self.price = 1.0
        """What a candidate of a walk costs, as a multiple of one in a large graph; see `side.SideGraph`."""
        self.host: Main | None = None
        """Of a copy on a device: what it is a copy of, see `device_main.py`."""
        self.setting_name = SETTING_NAMES[kind]
        self.guide = guide_of(code, index)
        """Small codes that a graph over float32 is walked over; None where it walks over its vectors."""
        self._late = block if isinstance(block, LateBlock) else None
        self._refined = refined(code, index, block)
        self._find = finder(kind, code, index, self._refined)
        if self.guide is not None and has_bytes(self.guide):
            assert isinstance(block, FloatBlock)
            if block.rough is None:
                block.rough = GuideBytes(self.guide)
        self.scale = None if self._refined is not None else scale_of(kind, index)
        """Of scores of signed bytes that are its answers, see `signed.py`; None for others."""
        self._settings: dict[tuple[float, int], Any] = {}
        self._positions: Rows | None = None

    def with_curve(self, curve: Curve) -> Main:
        """The same index with another recall curve; shares all memory."""
        return self._changed(curve, self.provisional)

    def as_provisional(self, provisional: bool) -> Main:
        """The same index, provisional or not; shares all memory."""
        return self._changed(self.curve, provisional)

    def _changed(self, curve: Curve, provisional: bool) -> Main:
        return Main(
            kind=self.kind, code=self.code, index=self.index, block=self.block, rows=self.rows,
            high_water=self.high_water, curve=curve, lossy=self.lossy, error=self.error,
            arena=self.arena, sequence=self.sequence, built_at_s=self.built_at_s,
            provisional=provisional, maps=self.maps,
        )  # fmt: skip

    @property
    def is_whole(self) -> bool:
        """Whether the files behind it are as long as they were; else it must not be read. 0.3 us a file."""
        for mapped in self.maps:  # noqa: SIM110  a third of the time of `all`
            if not mapped.is_whole:
                return False
        return True

    @property
    def walked(self) -> Walked | None:
        """Walks over signed bytes whose candidates are compared by vectors; None where it is not searched so."""
        return self._refined if isinstance(self._refined, Walked) else None

    @property
    def by_codes(self) -> bool:
        """Vectors other than the codes are in the store alone, for ever (`lossy`) or until they have been read."""
        return self.lossy or self.is_late

    @property
    def tells(self) -> bool:
        """Whether its codes stand for its vectors: not where float16 cannot hold a number of any, which is infinite then."""
        return not self.lossy or self.code in LISTS_ONLY or math.isfinite(self.error)

    @property
    def is_late(self) -> bool:
        """The float32 vectors are on their way into memory."""
        return self._late is not None and not self._late.there

    @property
    def nbytes(self) -> int:
        graph = self.n * GRAPH_BYTES_A_ROW if self.kind == "hnsw" else 0
        guide = 0 if self.guide is None else self.n * int(self.guide.code_size)
        return self.block.nbytes + graph + guide + self.rows.nbytes

    def setting(self, target_recall: float, k: int) -> int | None:
        """`Curve.setting`, remembered: it is asked for by every query."""
        known = self._settings.get((target_recall, k), _UNKNOWN)
        if known is _UNKNOWN:
            known = self.curve.setting(target_recall, k)
            if len(self._settings) > _KEPT_SETTINGS:
                self._settings = {}
            self._settings[target_recall, k] = known
        return cast("int | None", known)

    def position_of_row(self) -> Rows:
        """Position of each row below the high-water mark, -1 for rows that are not in this index.

        8 bytes a row, made when first asked for; read only.
        """
        if self._positions is None:
            positions = np.full(self.high_water, -1, np.int64)
            positions[self.rows] = np.arange(self.n)
            self._positions = positions
        return self._positions

    def positions_of(self, rows: Rows) -> Rows:
        """Positions, ascending, of those of the ascending `rows` that are in this index."""
        found = self.position_of_row()[rows[: np.searchsorted(rows, self.high_water)]]
        found = found[found >= 0]
        if not (found[1:] > found[:-1]).all():
            found.sort()
        return found

    def search(self, queries: Any, k: int, setting: int) -> tuple[Floats, Rows]:
        """Approximate answers: keys and positions (q, k) ascending; inf and -1 where there is none.

        `queries` float32 (q, d), C-contiguous (bits: uint8); k <= n; `setting` is efSearch or nprobe.
        """
        if self._late is not None and not self._late.there:
            use_threads_for(len(queries))
            return self._from_store(self._late, queries, k, setting)
        return self._find(queries, k, setting)

    def _from_store(
        self, late: LateBlock, queries: Any, k: int, setting: int
    ) -> tuple[Floats, Rows]:
        """As `_refined` answers, by the same candidates."""
        ef_search, factor = widened(k, setting, int(self.index.ntotal))
        walked = asked(queries)[0] if has_bytes(self.guide) else queries
        found = self.index.search(walked, int(k * factor), params=walk(ef_search))
        return late.nearest_of(queries, found[1], k)

    def gives(self, k: int, setting: int) -> bool:
        """Whether `search` answers so many candidates at this setting; the host always does."""
        return True

    def nearest(self, queries: Any, k: int, setting: int) -> tuple[Floats, Rows] | None:
        """`search` of a graph or lists for queries (q, d), as FAISS's scores and positions (q, k); None
        when it found fewer than k for any of them."""
        index = self.index
        if self._late is not None and not self._late.there:
            keys, positions = self._from_store(self._late, queries, k, setting)
            if positions.min() < 0:
                return None
            return (keys if int(index.metric_type) == L2 else -keys), positions
        if self._refined is not None:
            found = walk_and_compare(self._refined, queries, k, setting, self.n)
        elif self.kind == "ivf":
            found = by_codes(*probing(index, setting, len(queries)), queries, k, self.scale)
        else:
            found = by_codes(index, walk(max(setting, k)), queries, k, self.scale)
        return found if found[1][:, -1].min() >= 0 else None

    def exact(self, queries: Any, k: int, allowed: Allowed | None) -> tuple[Floats, Rows]:
        """Answers among all (allowed) positions, exact by the code; keys and positions (q, <= k)."""
        return self.block.search(queries, k, allowed)


def copied(main: Main | None) -> Main | None:
    """The main index of which a device holds a copy; None where it holds the vectors themselves: there is no index, or it
    has flat codes, which are compared one by one as vectors are."""
    return None if main is None or main.kind == "flat" else main


@dataclass(frozen=True, slots=True)
class BuiltIndex:
    """A main index that is ready to be saved and installed."""

    main: Main

    @property
    def kind(self) -> str:
        return self.main.kind

    @property
    def high_water(self) -> int:
        """Rows below this number are in the index, or were dead when it was built."""
        return self.main.high_water

    @property
    def rows(self) -> int:
        return self.main.n

    @property
    def curve(self) -> Curve:
        return self.main.curve


_PQ8_ROUNDS = 8
"""Of k-means, for each part of a vector. On WordNet (48 parts, 16,384 rows) the 20, 40 and 80 nearest by codes held as many
of the ten true neighbours as after FAISS's 25 rounds, to 0.004, in 0.4 of the time."""


def new_ivf(dimension: int, metric: str, code: str, centroids: Floats, sample: Floats) -> Any:
    """Empty lists around `centroids` (nlist, d); codes are trained on `sample` (n, d)."""
    quantizer = faiss.IndexFlat(dimension, faiss_metric(metric))
    quantizer.add(centroids)
    lists = len(centroids)
    if code == "float32":
        index = faiss.IndexIVFFlat(quantizer, dimension, lists, faiss_metric(metric))
    elif code == "pq4":
        parts = dimension // part_of(dimension)
        index = faiss.IndexIVFPQFastScan(
            quantizer, dimension, lists, parts, 4, faiss_metric(metric)
        )
        index.train(sample)
    elif code == "pq8":
        parts = parts_of(dimension)
        index = faiss.IndexIVFPQ(quantizer, dimension, lists, parts, 8, faiss_metric(metric))
        index.use_precomputed_table = -1  # see `door.READ_FLAGS`
        index.pq.cp.min_points_per_centroid = 1
        index.pq.cp.niter = _PQ8_ROUNDS
        index.train(sample)
    else:
        index = faiss.IndexIVFScalarQuantizer(
            quantizer, dimension, lists, SCALAR_TYPES[code], faiss_metric(metric), False
        )
        if code in ("sq8", "sq4"):
            train_scalars(index.sq, code, metric, sample)
    quantizer.this.disown()
    index.own_fields = True
    index.is_trained = True
    return index


def whole(lists: Any) -> Any:
    """An IVF index that FAISS has read, with what it forgets there.

    FAISS 1.15 leaves `fine_quantizer` of fast-scan lists empty, and crashes when asked for a vector.
    """
    if isinstance(lists, faiss.IndexIVFPQFastScan):
        lists.fine_quantizer = lists.pq
    return lists


def attach(graph: Any, storage: Any) -> None:
    """Let a graph compare the vectors of `storage`, which is kept alive with it."""
    if graph.own_fields:
        # It was made with an empty storage of its own, which goes here. Not by way of `thisown`: that
        # takes a reference from SWIG's table of types that was never given, and in the end the table.
        empty = graph.storage
        graph.own_fields = False
        type(empty).__swig_destroy__(empty)
    graph.storage = storage
    storage.thisown = True  # the wrapper takes what is assigned for given away, and would leak it
    graph.referenced_objects = [storage]


def empty_graph(dimension: int, metric: str) -> Any:
    """A graph without storage; see `attach`."""
    if metric == "hamming":
        graph = faiss.IndexBinaryHNSW(dimension, HNSW_M)
    else:
        graph = faiss.IndexHNSWFlat(dimension, HNSW_M, faiss_metric(metric))
    graph.hnsw.efConstruction = EF_CONSTRUCTION
    return graph


def block_of(kind: str, code: str, index: Any, storage: Any) -> Block:
    """The exact side of a filled main index; `storage` is the FAISS storage of a graph or codes."""
    if kind == "ivf":
        return ListBlock(index)
    if code == "binary":
        n, width = int(storage.ntotal), int(storage.d) // 8
        bits = faiss.rev_swig_ptr(storage.xb.data(), n * width).reshape(n, width)
        return BitBlock(bits, owner=index)
    if code != "float32":
        return CodeBlock(between_bounds(storage), owner=index)
    n, d = int(storage.ntotal), int(storage.d)
    if not n:
        return FloatBlock(np.empty((0, d), np.float32), int(storage.metric_type), owner=index)
    vectors = faiss.rev_swig_ptr(storage.get_xb(), n * d).reshape(n, d)
    return FloatBlock(vectors, int(storage.metric_type), owner=index)
