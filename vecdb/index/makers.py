"""What grows while a build reads its rows: a graph, lists or flat codes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..types import LISTS_ONLY
from .arena import Arena
from .blocks import Block, CodeBlock, FloatBlock
from .cells import align_centroids
from .codes import fine_codes, is_guide, like, new_codes, typical_error
from .distance import Floats, Rows
from .door import READ_FLAGS, add_to_lists, faiss, flat_over, give_memory_back, reserve
from .main import HNSW_M, Main, attach, block_of, empty_graph, new_ivf, whole
from .signed import LANES, as_added, emptied, scale_between
from .source import READ_ROWS, VectorSource

_TRAIN_ROWS_A_LIST = 40
_TRAIN_ROUNDS = 10
_ROUGH, _LEAST_ROUGH_ROWS = 4, 8
_ROUGH_ROUNDS, _FULL_ROUNDS = 5, 3
"""The first rounds look at every 4th row of the sample, where these are 8 a list: centroids move far then. WordNet's lists
held at 32 probed 0.933 of the ten nearest, after two full rounds more 0.935, after ten full ones alone 0.932."""
_CODES_SAMPLE = 32_768
"""Rows that the codes in lists are trained on, at least where there are as many."""
_SAMPLE_AMONG, _ADD_AMONG = 16_384, 1_024
EF_AMONG = 60
"""efConstruction of a graph for a filter. 19,707 WordNet vectors over sq8, one thread: 100 takes 2.46 s, 60 1.58, 40
1.03; recall@10 at efSearch 32 / 48 0.953 / 0.975, 0.945 / 0.970 and 0.931 / 0.959. Queries wait for it to be there, and
with 60 it takes them a tenth more of the walk, 4 us."""
SEED = 7_700
_OUTGROWN = 2.0
"""Codes whose bounds were trained on other data err more than new ones would; by this factor at most."""


class Outgrown(Exception):
    """Raised when fresh vectors do not fit the codes of the index that was to grow."""


class Joining(Protocol):
    """What joins the rows of graphs in place of the CPU; see `joined.Joiner`."""

    joined: int
    missed: bool

    def takes(self, rows: int) -> bool: ...

    def links(
        self, rows: int, slices: Callable[[], Iterable[Floats]], check: Callable[[], None]
    ) -> NDArray[np.int32]: ...


class Trainer(Protocol):
    """What does some of a build faster than the CPU. It may be unable to at any time, and gives None then."""

    @property
    def room(self) -> int:
        """Bytes that lists may take there to be searched there too."""

    @property
    def joiner(self) -> Joining | None:
        """What joins the rows of graphs; None where nothing will."""

    def kmeans(
        self,
        sample: Floats,
        lists: int,
        rounds: int,
        spherical: bool,
        seed: int,
        check: Callable[[], None],
    ) -> Floats | None:
        """Centroids (lists, d) of `sample` (n, d). `check` is called now and then, and may raise."""

    def nearest(self, centroids: Floats) -> AbstractContextManager[Callable[[Floats], Rows | None]]:
        """Within a `with` a function: vectors (n, d) -> the nearest of `centroids` (lists, d) to each, (n,)."""


class Job(Protocol):
    """What a build needs to know about its collection."""

    dimension: int
    metric: str
    storage: str
    target_recall: float
    source: VectorSource

    @property
    def on_device(self) -> Trainer | None:
        """What helps with lists and graphs; None for the CPU alone."""


class Making(Protocol):
    """What makers need of the build they belong to."""

    job: Job
    code: str
    lossy: bool
    rng: np.random.Generator
    progress: Callable[[float], None]
    hand_over: Callable[[Rows, Arena, int, int], None]

    def check(self) -> None:
        """Raises when the build was cancelled."""

    def sample(self, rows: Rows) -> Floats:
        """Vectors from all over `rows`, as many as training codes needs."""

    def gather(self, rows: Rows) -> Any:
        """A copy of these rows (ascending) in the index's space."""

    def each(self, rows: Rows, use: Callable[[int, Any], None]) -> None:
        """Reads these rows (ascending) and calls use(index of the first one, vectors) in order."""


class Maker(Protocol):
    """What grows while the rows of a build are read."""

    base: float
    arena: Arena | None
    quantizer: Any
    """A FAISS index that encodes as the codes are, None where nothing is lost or it is not known."""

    def add(self, part: Any, rows: Rows, through: int) -> None:
        """Take (n, d) vectors; `rows` are theirs, and all live rows below `through` have been given.
        No rows: vectors that were kept back."""

    def serving(self) -> tuple[Any, Block]:
        """The FAISS index and the block of all that has been added, as they will serve."""


class GraphMaker:
    """An HNSW graph. It is built over small codes where these are fine enough, and served over others.

    float32 serves from an arena: neither the build nor the old index holds a second copy. It goes on to be
    walked over sq8, where that was fine enough to build it.
    """

    def __init__(self, build: Making, old: Main | None, fresh: Rows) -> None:
        self.build = build
        self.base = 0.02 if old is not None else 0.0
        self.arena: Arena | None = None
        self.quantizer: Any = None
        job, code = build.job, build.code
        held = 0 if old is None else old.n
        total = held + fresh.size
        if old is None:
            self.graph = empty_graph(job.dimension, job.metric)
        else:
            # A graph that is mapped from a file must not be added to (FAISS aborts), and a clone of it
            # is a view of the same map: a copy through bytes owns its memory whatever the source is.
            self.graph = _copied(old.index)
        if code == "binary":
            self.walk = faiss.IndexBinaryFlat(job.dimension)
            reserve(self.walk.xb, total * (job.dimension // 8))
        else:
            sample = build.sample(fresh)
            if old is not None:
                if build.lossy:
                    self._refuse_outgrown(old, sample)
                some = build.rng.choice(old.n, min(old.n, len(sample)), replace=False)
                sample = np.concatenate([sample, old.block.take(np.sort(some))])
            self.walk = _walk_codes(build, old, sample)
            reserve(self.walk.codes, total * int(self.walk.code_size))
        self.codes = self.walk
        if code == "float32":
            self.arena = self._room(old, fresh.size)
        elif code == "sq4":
            self.codes = (
                new_codes("sq4", job.dimension, job.metric, sample)
                if old is None
                else like(old.block.index)  # type: ignore[attr-defined]
            )
            reserve(self.codes.codes, total * int(self.codes.code_size))
        if build.lossy:
            self.quantizer = self.codes
        for start in range(0, held, READ_ROWS):
            build.check()
            assert old is not None
            vectors = old.block.take(np.arange(start, min(held, start + READ_ROWS)))
            self.walk.add(as_added(self.walk, vectors))
            if self.codes is not self.walk:
                self.codes.add(vectors)
        attach(self.graph, self.walk)

    def _refuse_outgrown(self, old: Main, sample: Floats) -> None:
        job, code = self.build.job, self.build.code
        trained = old.block.index  # type: ignore[attr-defined]
        same = code == "sq8" and scale_between(trained.sq) is not None
        fitting = new_codes(code, job.dimension, job.metric, sample, shared=same)
        if typical_error(trained, sample) > _OUTGROWN * typical_error(fitting, sample):
            raise Outgrown

    def _room(self, old: Main | None, fresh: int) -> Arena:
        """The arena of the old index where it has room behind it, else a new one with its vectors."""
        serves = None if old is None else old.arena
        if (
            old is not None
            and serves is not None
            and serves.used == old.n
            and serves.has_room(fresh)
        ):
            return serves
        held = 0 if old is None else old.n
        arena = Arena(self.build.job.dimension, held + fresh)
        for start in range(0, held, READ_ROWS):
            self.build.check()
            assert old is not None
            arena.put(old.block.take(np.arange(start, min(held, start + READ_ROWS))))
        return arena

    def add(self, part: Any, rows: Rows, through: int) -> None:
        if not len(part):
            return
        attach(self.graph, self.walk)
        self.graph.add(as_added(self.walk, part))
        if self.arena is not None:
            start = self.arena.put(part)
            if rows.size:
                self.build.hand_over(rows, self.arena, start, through)
        elif self.codes is not self.walk:
            self.codes.add(part)

    def serving(self) -> tuple[Any, Block]:
        if self.arena is not None:
            vectors = self.arena.vectors[: self.arena.used]
            metric = int(self.graph.metric_type)
            if is_guide(self.walk):
                attach(self.graph, self.walk)
                return self.graph, FloatBlock(vectors, metric)
            storage = flat_over(vectors, metric)
            attach(self.graph, storage)
        else:
            attach(self.graph, self.codes)
            storage = self.codes
        return self.graph, block_of("hnsw", self.build.code, self.graph, storage)


def _walk_codes(build: Making, old: Main | None, sample: Floats) -> Any:
    """Empty codes to build over: the serving ones, or sq8 or float16 where they are fine, and are compared sooner than vectors."""
    job, code = build.job, build.code
    if code not in ("float32", "sq4"):
        if old is not None and isinstance(old.block, CodeBlock):
            return emptied(like(old.block.index))
        return emptied(new_codes(code, job.dimension, job.metric, sample))
    smaller = () if code == "float32" and job.dimension % LANES else ("sq8", "float16")
    for fine in (fine_codes(small, sample, job.metric) for small in smaller):
        if fine is not None:
            return emptied(fine)
    return new_codes("float32", job.dimension, job.metric)


def graph_among(build: Making, main: Main, positions: Rows) -> Any:
    """An HNSW graph that joins only `positions` (ascending) of `main`, and looks at its vectors.

    It is built as a graph of so many vectors, and then its nodes get the numbers that they have in
    `main`, so it finds positions of `main` and no vector is copied to serve. Beside the links it takes
    12 bytes a row of `main`; while it is built, the codes of its rows.
    """
    job = build.job
    graph = empty_graph(job.dimension, job.metric)
    graph.hnsw.efConstruction = EF_AMONG
    some = build.rng.choice(positions, min(positions.size, _SAMPLE_AMONG), replace=False)
    walk = _walk_codes(build, main, main.block.take(np.sort(some)))
    reserve(walk.codes, positions.size * int(walk.code_size))
    attach(graph, walk)
    for start in range(0, positions.size, _ADD_AMONG):
        build.check()
        graph.add(as_added(walk, main.block.take(positions[start : start + _ADD_AMONG])))
    hnsw = graph.hnsw
    links = faiss.rev_swig_ptr(hnsw.neighbors.data(), hnsw.neighbors.size())
    return joined_among(
        main, positions, faiss.vector_to_array(hnsw.levels),
        np.where(links < 0, -1, positions[links]), int(positions[hnsw.entry_point]),
    )  # fmt: skip


def joined_among(main: Main, positions: Rows, levels: Any, links: Any, entry: int) -> Any:
    """A graph of `positions` (ascending) of `main` from its links: `levels` (n,) of them, as FAISS counts them,
    `links` (m,) by position of `main`, -1 where there is none, and the position where walks begin."""
    graph = faiss.IndexHNSWFlat(int(main.index.d), HNSW_M, int(main.index.metric_type))
    hnsw = graph.hnsw
    # Positions ascend, so lists of links stay in their order; rows that are not joined have none.
    all_levels = np.zeros(main.n, np.int32)
    all_levels[positions] = levels
    ends = np.zeros(main.n + 1, np.uint64)
    ends[positions + 1] = faiss.vector_to_array(hnsw.cum_nneighbor_per_level)[levels]
    faiss.copy_array_to_vector(all_levels, hnsw.levels)
    faiss.copy_array_to_vector(np.cumsum(ends, dtype=np.uint64), hnsw.offsets)
    hnsw.neighbors.resize(len(links))
    faiss.rev_swig_ptr(hnsw.neighbors.data(), len(links))[:] = links
    hnsw.entry_point = entry
    hnsw.max_level = int(levels.max()) - 1
    graph.ntotal = main.n
    attach(graph, main.index.referenced_objects[0])
    return graph


def _copied(graph: Any) -> Any:
    if isinstance(graph, faiss.IndexBinary):
        # Binary graphs cannot be written without their bits, so these are copied as well.
        return faiss.deserialize_index_binary(faiss.serialize_index_binary(graph))
    return faiss.deserialize_index(faiss.serialize_index(graph, faiss.IO_FLAG_SKIP_STORAGE))


class CodesMaker:
    """Flat codes that are all compared: kind `exact` with a quantization."""

    base = 0.0
    arena: Arena | None = None

    def __init__(self, build: Making, fresh: Rows) -> None:
        job, sample = build.job, build.sample(fresh)
        self.codes = new_codes(build.code, job.dimension, job.metric, sample, shared=False)
        self.quantizer = self.codes
        reserve(self.codes.codes, fresh.size * int(self.codes.code_size))

    def add(self, part: Any, rows: Rows, through: int) -> None:
        if len(part):
            self.codes.add(part)

    def serving(self) -> tuple[Any, Block]:
        return self.codes, CodeBlock(self.codes)


def _nobody(vectors: Floats) -> Rows | None:
    """`Trainer.nearest` where there is only the CPU."""
    return None


def lists_for(rows: int) -> int:
    """Lists of an IVF index of so many rows."""
    return max(1, min(int(4 * math.sqrt(rows)), rows // _TRAIN_ROWS_A_LIST))


def sampled_rows(rows: int) -> int:
    """Rows that the centroids of so many rows are trained on."""
    return min(rows, lists_for(rows) * _TRAIN_ROWS_A_LIST)


class ListsMaker:
    """IVF lists around k-means centroids. Those of an index that grows stay, and so do its codes' bounds."""

    arena: Arena | None = None

    def __init__(self, build: Making, old: Main | None, fresh: Rows) -> None:
        self.build = build
        job = build.job
        self.base = 0.6 if old is None else 0.02
        self.quantizer: Any = None
        self._fresh = fresh
        self._lists: NDArray[np.int32] | None = None
        """The list of each fresh row, where that was found out before."""
        if old is None:
            centroids, sample = self._train(fresh)
            # FAISS copies what it trains 8-bit codes on.
            few = np.ascontiguousarray(sample[:: max(1, len(sample) // _CODES_SAMPLE)])
            self.index = new_ivf(job.dimension, job.metric, build.code, centroids, few)
            del few
            # The sample goes before the lists get their memory.
            sample = sample[:1].copy()
            give_memory_back()
            self._assign(fresh)
        else:
            # A mapped index must not be added to; a copy through bytes owns its memory.
            self.index = whole(
                faiss.deserialize_index(faiss.serialize_index(old.index), READ_FLAGS)
            )
            self.index.make_direct_map(False)
            sample = np.zeros((1, job.dimension), np.float32)
        if build.lossy and build.code not in LISTS_ONLY:
            self.quantizer = new_codes(build.code, job.dimension, job.metric, sample[:1])
            self.quantizer.sq = self.index.sq

    def add(self, part: Any, rows: Rows, through: int) -> None:
        if not len(part):
            return
        if self._lists is None or not rows.size:
            self.index.add(part)
            return
        into = self._lists[np.searchsorted(self._fresh, rows)].astype(np.int64)
        add_to_lists(self.index, np.ascontiguousarray(part), into)

    def _assign(self, fresh: Rows) -> None:
        """Finds the list of each row, and gives each list the memory that it will take and no more: one that
        grows doubles, which at 1,000,000 x 384 took 0.1 times the vectors more. The vectors are read twice for
        it, and compared with the centroids once."""
        lists = faiss.downcast_InvertedLists(self.index.invlists)
        if not isinstance(lists, faiss.ArrayInvertedLists):
            return
        build, job = self.build, self.build.job
        found = np.empty(fresh.size, np.int32)
        centroids = self.index.quantizer.reconstruct_n(0, int(lists.nlist))
        helper = job.on_device
        with nullcontext(_nobody) if helper is None else helper.nearest(centroids) as nearest:

            def assign(at: int, part: Any) -> None:
                into = nearest(part)
                if into is None:
                    into = self.index.quantizer.assign(part, 1).ravel()
                found[at : at + len(part)] = into
                build.progress(self.base * (1.0 + at / fresh.size) / 2)

            build.each(fresh, assign)
        for number, size in enumerate(np.bincount(found, minlength=int(lists.nlist)).tolist()):
            lists.resize(number, size)
            lists.resize(number, 0)  # keeps the room
        self._lists = found

    def serving(self) -> tuple[Any, Block]:
        self.index.make_direct_map(True)
        align_centroids(self.index)
        return self.index, block_of("ivf", self.build.code, self.index, None)

    def _train(self, rows: Rows) -> tuple[Floats, Floats]:
        """Centroids and the sample they come from."""
        build, job = self.build, self.build.job
        lists, size = lists_for(rows.size), sampled_rows(rows.size)
        sample = build.gather(np.sort(build.rng.choice(rows, size, replace=False)))
        if job.on_device is not None:
            spherical = job.metric == "cosine"
            made = job.on_device.kmeans(sample, lists, _TRAIN_ROUNDS, spherical, SEED, build.check)
            if made is not None:
                build.progress(self.base / 2)
                return made, sample
        return self._by_the_cpu(sample, lists), sample

    def _by_the_cpu(self, sample: Floats, lists: int) -> Floats:
        """Centroids of a sample. A call a round, so that it can be cancelled."""
        build, job, size = self.build, self.build.job, len(sample)
        centroids = sample[build.rng.choice(size, lists, replace=False)].copy()
        few = np.ascontiguousarray(sample[::_ROUGH])
        rough = _ROUGH_ROUNDS if len(few) >= _LEAST_ROUGH_ROWS * lists else 0
        rounds = rough + _FULL_ROUNDS if rough else _TRAIN_ROUNDS
        for done in range(rounds):
            build.check()
            kmeans = faiss.Kmeans(
                job.dimension, lists, niter=1, seed=SEED, spherical=job.metric == "cosine",
                min_points_per_centroid=1, max_points_per_centroid=size,
            )  # fmt: skip
            kmeans.train(few if done < rough else sample, init_centroids=centroids)
            centroids = np.array(kmeans.centroids, np.float32)
            build.progress(self.base * (done + 1) / rounds / 2)
        return centroids
