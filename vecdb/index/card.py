"""A GPU by FAISS: see `vecdb.device.card.Card`. Lives in a worker process, one thread of it.

What FAISS does by itself, and what is done about it (read in the sources of 1.15):

- An error of CUDA other than "out of memory" aborts the process; asking for more than a limit throws, or
  aborts deeper down. So every limit and shape is checked before the call, and only an exception that says
  "out of memory" is taken for one.
- Each index takes `use_cuvs` from a default that depends on the wheel. It is set to False everywhere but for
  graphs, so that limits (k and nprobe of 2,048) and results are those of the classic kernels.
- Flat vectors lie in memory of ours, and most searches of them are for kernels of ours: see `flat_there.py`.
- `index_cpu_to_gpu` leaks what it has allocated when it runs out of memory half-way (a raw pointer), the
  constructors of the GPU classes do not. So lists are made by these.
- A flat search of 512 queries and more wants two buffers of 512 MiB for float32, beside its temporary
  answers: that is what `TEMPORARY_BYTES` is for. What does not fit is allocated for the call, which is slow.
- `faiss.Kmeans(gpu=n)` takes the first n GPUs with new resources of 1.5 GiB each. `Clustering` takes an index.
- The deadlock that FAISS's own test skips (inner product with float16 in CAGRA) is refused.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..device.card import (
    Bits,
    CardFull,
    CardInfo,
    CardRefused,
    Floats,
    Rows,
    check_graph,
    check_walk,
)
from ..device.merging import padded
from .door import L2, faiss, faiss_metric
from .driver import Driver
from .flat_there import Flat, FlatSearch, or_full
from .host_lists import (
    check_k,
    checked_lists,
    deserialized,
    device_bytes,
    float16_tables,
    most_k,
)

TEMPORARY_BYTES = 1536 << 20
"""Scratch memory of FAISS on the card: its largest, but at most a sixteenth of the card."""
PINNED_BYTES = 64 << 20
"""For queries beyond 256 MiB in a call, which only k-means has."""
TILE_BYTES = 256 << 20
_ITOPK_STEP = 32
_SAMPLINGS = (1, 4, 16, 64, 256)
"""Among how many random vectors each beginning of a walk is the nearest: see `_samplings`."""
_FIND_THEMSELVES = 0.95
_ASKED, _ASKED_ITOPK = 200, 64
"""Vectors that search for themselves: fewer than make a card change to its way for many queries, which finds more."""
_COUNT_TIMEOUT_S = 60.0


def gpus_here() -> int:
    """GPUs that FAISS sees from this process. A driver that is broken aborts it: see `count_gpus`."""
    if not hasattr(faiss, "StandardGpuResources"):
        return 0
    return int(faiss.get_num_gpus())


def has_graphs() -> bool:
    """Whether this FAISS was made with cuVS, whose graphs are CAGRA."""
    return hasattr(faiss, "GpuIndexCagra")


@functools.lru_cache(maxsize=1)
def count_gpus() -> int:
    """GPUs that FAISS sees, asked once, in a process of its own: every unexpected answer of the driver
    aborts whoever asks, and who has asked holds a context that a fork breaks. RuntimeError when that process
    fails. 0 at once with a wheel for the CPU."""
    if not hasattr(faiss, "StandardGpuResources"):
        return 0
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "vecdb.gpu_worker", "--count"],
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COUNT_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"counting GPUs took more than {_COUNT_TIMEOUT_S:g} s") from None
    words = done.stdout.split()
    if done.returncode or not words or not words[-1].isdigit():
        raise RuntimeError(
            f"counting GPUs ended with status {done.returncode}: {done.stderr.strip()[-300:]}"
        )
    return int(words[-1])


class _Lists:
    def __init__(self, index: Any, device_bytes: int, most_k: int) -> None:
        self.index = index
        self.most_k = most_k
        self.dimension = int(index.d)
        self.metric = "l2" if int(index.metric_type) == L2 else "ip"
        self.device_bytes = device_bytes


class _Graph:
    def __init__(self, index: Any, source: Flat, degree: int) -> None:
        self.index = index
        self.source = source  # its vectors are not copied
        self.rows = source.used
        self.dimension = source.dimension
        self.metric = source.metric
        a_row = source.dimension * source.kind.itemsize
        # cuVS wants rows of whole 16 bytes, and copies vectors whose rows are not.
        copied = 0 if a_row % 16 == 0 else self.rows * (-(-a_row // 16) * 16)
        self.device_bytes = 4 * degree * self.rows + copied
        self.samplings = 1


class FaissCard:
    """See above. `driver` is given by tests."""

    def __init__(self, driver: Driver | None = None) -> None:
        self._driver = Driver(0) if driver is None else driver
        total = self._driver.memory()[1]
        self._resources = faiss.StandardGpuResources()
        self._resources.setTempMemory(min(TEMPORARY_BYTES, total // 16))
        self._resources.setPinnedMemory(PINNED_BYTES)
        self._resources.syncDefaultStreamCurrentDevice()  # takes all that now, not in the first search
        self._graphs = has_graphs()
        self._flats = FlatSearch(self._driver, self._resources)
        self._limits = self._flats.limits
        self._placed: dict[int, Flat | _Lists | _Graph] = {}

    def info(self) -> CardInfo:
        free, total = self._driver.memory()
        masks = self._flats.masks
        return CardInfo(self._driver.name, total, free, self._limits, self._graphs, masks)

    def flat(self, handle: int, dimension: int, metric: str, code: str, rows: int) -> None:
        if metric not in ("l2", "ip") or code not in ("float32", "float16"):
            raise CardRefused(
                f"flat vectors are l2 or ip in float32 or float16, not {metric} {code}"
            )
        self._placed[handle] = Flat(self._driver, dimension, metric, code, rows)

    def add(self, handle: int, vectors: Floats) -> None:
        flat = self._flat(handle)
        _check_width(vectors, flat.dimension)
        if flat.used + len(vectors) > flat.rows:
            raise CardRefused(f"placement {handle} has room for {flat.rows} rows")
        flat.add(vectors)

    def lists(self, handle: int, data: memoryview, code: str) -> None:
        host = deserialized(data)
        kind = checked_lists(host)
        wanted, free = device_bytes(host), self._driver.memory()[0]
        if wanted > free:
            raise CardFull(f"lists of {wanted} bytes, {free} bytes are free")
        before = self._lists_bytes()
        index = or_full(self._made_lists, host, kind)
        taken = max(0, self._lists_bytes() - before)
        self._placed[handle] = _Lists(index, taken, most_k(host, self._limits.k))

    def graph(self, handle: int, source: int, degree: int) -> None:
        if not self._graphs:
            raise CardRefused("graphs need the faiss-gpu-cuvs wheel")
        flat = self._flat(source)
        check_graph(flat.metric, flat.code, flat.used, degree)
        config = faiss.GpuIndexCagraConfig()
        config.device = 0
        config.graph_degree = degree
        config.intermediate_graph_degree = 2 * degree
        # On an H200 1,000,000 x 384 take 7 s so and 37 s by IVF_PQ, and walks over both find the same.
        config.build_algo = faiss.graph_build_algo_NN_DESCENT
        index = faiss.GpuIndexCagra(
            self._resources, flat.dimension, faiss_metric(flat.metric), config
        )
        kind = faiss.Float16 if flat.kind == np.float16 else faiss.Float32
        at = faiss.cast_integer_to_void_ptr(flat.vectors.address)
        or_full(index.train_ex, flat.used, at, kind)
        graph = _Graph(index, flat, degree)
        graph.samplings = self._samplings(graph)
        self._placed[handle] = graph

    def mask(self, handle: int, number: int, bits: Bits) -> None:
        flat = self._beneath(handle)
        if not self._flats.masks:
            raise CardRefused("masks need the kernels of scan.cu")
        if bits.size != -(-flat.rows // 8):
            raise CardRefused(f"a mask of {flat.rows} rows has {bits.size} bytes")
        held = self._driver.zeros(-(-bits.size // 4) * 4)
        held.write(0, bits)
        flat.masks[number] = held

    def unmask(self, handle: int, number: int) -> None:
        placed = self._placed.get(handle)
        if isinstance(placed, _Graph):
            placed = placed.source
        if isinstance(placed, Flat):
            placed.masks.pop(number, None)

    def search(
        self, handle: int, queries: Floats, k: int, setting: int, mask: int = 0
    ) -> tuple[Floats, Rows]:
        placed = self._placed.get(handle)
        if placed is None:
            raise CardRefused(f"placement {handle} is not known")
        _check_width(queries, placed.dimension)
        if isinstance(placed, _Graph) and setting == 0:
            placed = self._beneath(handle)
        if isinstance(placed, Flat):
            return self._flats.search(placed, queries, k, mask)
        if mask:
            raise CardRefused("only flat vectors are searched under a mask")
        self._within(k)
        if isinstance(placed, _Lists):
            check_k(k, placed.most_k)
            if not 1 <= setting <= self._limits.nprobe:
                raise CardRefused(
                    f"nprobe must be from 1 to {self._limits.nprobe}, given {setting}"
                )
            params = _probing(min(setting, int(placed.index.nlist)))
            found = or_full(placed.index.search, queries, k, params=params)
        else:
            check_walk(k, setting)
            found = or_full(self._search_graph, placed, queries, k, setting)
        return padded(found[0], found[1], k, placed.metric)

    def compare(self, queries: Floats, vectors: Floats, k: int, metric: str) -> tuple[Floats, Rows]:
        self._within(k)
        _check_width(queries, vectors.shape[1])
        width = min(k, len(vectors))
        if not width or not len(queries):
            nothing = np.empty((len(queries), 0), np.float32)
            return padded(nothing, np.empty(nothing.shape, np.int64), k, metric)
        # A tile of fewer vectors than k would number its missing answers like real ones.
        tile = max(TILE_BYTES, 4 * vectors.shape[1] * width)
        scores, positions = or_full(
            faiss.knn_gpu, self._resources, queries, vectors, width,
            metric=faiss_metric(metric), device=0, use_cuvs=False,
            vectorsMemoryLimit=tile, queriesMemoryLimit=TILE_BYTES,
        )  # fmt: skip
        return padded(scores, positions, k, metric)

    def kmeans(
        self,
        sample: Floats,
        lists: int,
        rounds: int,
        spherical: bool,
        seed: int,
        start: Floats | None = None,
    ) -> Floats:
        n, d = sample.shape
        if not 1 <= lists <= n:
            raise CardRefused(f"{n} rows make no {lists} lists")
        settings = faiss.ClusteringParameters()
        settings.niter, settings.seed, settings.spherical = rounds, seed, spherical
        settings.min_points_per_centroid, settings.max_points_per_centroid = 1, n
        config = faiss.GpuIndexFlatConfig()
        config.device, config.use_cuvs = 0, False
        near = faiss.GpuIndexFlat(
            self._resources, d, faiss_metric("ip" if spherical else "l2"), config
        )
        clusters = faiss.Clustering(d, lists, settings)
        if start is not None:
            faiss.copy_array_to_vector(np.ascontiguousarray(start).reshape(-1), clusters.centroids)
        or_full(clusters.train, sample, near)
        return np.array(faiss.vector_to_array(clusters.centroids).reshape(lists, d), np.float32)

    def links(self, handle: int) -> NDArray[np.int32]:
        graph = self._placed.get(handle)
        if not isinstance(graph, _Graph):
            raise CardRefused(f"placement {handle} is no graph")
        # Not `copyTo`, which copies all vectors to the host and makes upper levels over them.
        found = faiss.vector_to_array(or_full(graph.index.get_knngraph))
        links: NDArray[np.int32] = found.reshape(graph.rows, -1).astype(np.int32)
        return links

    def drop(self, handle: int) -> None:
        # Memory of flat vectors goes with the last who knows them: a graph may.
        self._placed.pop(handle, None)

    def used_bytes(self, handle: int) -> int:
        placed = self._placed.get(handle)
        if placed is None:
            return 0
        kept = 0
        if isinstance(placed, _Graph) and placed.source not in self._placed.values():
            kept = placed.source.device_bytes
        return placed.device_bytes + kept

    def _search_graph(
        self, graph: _Graph, queries: Floats, k: int, itopk: int
    ) -> tuple[Floats, Rows]:
        params = faiss.SearchParametersCagra()
        params.itopk_size = -(-itopk // _ITOPK_STEP) * _ITOPK_STEP
        params.num_random_samplings = graph.samplings
        kind = faiss.Float16 if graph.source.kind == np.float16 else faiss.Float32
        asked = queries.astype(graph.source.kind, copy=False)
        scores, positions = graph.index.search(asked, k, params=params, numeric_type=kind)
        # A walk that finds fewer than k: cuVS numbers the rest by 2^31 - 1 or 2^32 - 1, and not each FAISS makes these -1.
        return scores, np.where(positions < graph.rows, positions, -1)

    def _samplings(self, graph: _Graph) -> int:
        """The fewest with which vectors of the graph find themselves.

        A walk begins at random vectors and follows links. Where vectors lie in clusters, none may lead into that of the
        query: over 1,000,000 x 384 in 1,000 clusters walks of itopk 64 came to a recall of 0.26, and to 0.97 where each
        beginning is the nearest of 64 random vectors, at 0.4 times the rate.
        """
        rows = np.unique(np.linspace(0, graph.rows - 1, min(_ASKED, graph.rows)).astype(np.int64))
        asked = graph.source.taken(rows)
        own = np.einsum("nd,nd->n", asked, asked)
        for samplings in _SAMPLINGS:
            graph.samplings = samplings
            best = or_full(self._search_graph, graph, asked, 1, _ASKED_ITOPK)[0][:, 0]
            near = best <= 1e-3 * own if graph.metric == "l2" else best >= (1 - 1e-3) * own
            if near.mean() >= _FIND_THEMSELVES:
                break
        return graph.samplings

    def _made_lists(self, host: Any, kind: str) -> Any:
        if kind == "flat":
            make, config = faiss.GpuIndexIVFFlat, faiss.GpuIndexIVFFlatConfig()
        elif kind == "sq":
            make = faiss.GpuIndexIVFScalarQuantizer
            config = faiss.GpuIndexIVFScalarQuantizerConfig()
        else:
            make, config = faiss.GpuIndexIVFPQ, faiss.GpuIndexIVFPQConfig()
            config.useFloat16LookupTables = float16_tables(host)
        config.device, config.use_cuvs = 0, False
        config.flatConfig.device, config.flatConfig.use_cuvs = 0, False
        small = int(host.ntotal) < 1 << 31
        config.indicesOptions = faiss.INDICES_32_BIT if small else faiss.INDICES_64_BIT
        index = make(self._resources, host, config)
        # FAISS's wrapper would keep the lists on the host alive as long as those on the card.
        index.referenced_objects = [self._resources]
        return index

    def _lists_bytes(self) -> int:
        """What FAISS holds on the card, but for its scratch memory."""
        held = self._resources.getMemoryInfo().get(0, {})
        return sum(size for name, (_, size) in held.items() if not name.startswith("Temporary"))

    def _flat(self, handle: int) -> Flat:
        placed = self._placed.get(handle)
        if not isinstance(placed, Flat):
            raise CardRefused(f"placement {handle} is not one of flat vectors")
        return placed

    def _beneath(self, handle: int) -> Flat:
        """Flat vectors, or those of a graph, which must know all that are there."""
        placed = self._placed.get(handle)
        if not isinstance(placed, _Graph):
            return self._flat(handle)
        if placed.rows != placed.source.used:
            raise CardRefused(f"vectors came after graph {handle} was made")
        return placed.source

    def _within(self, k: int) -> None:
        if not 1 <= k <= self._limits.k:
            raise CardRefused(f"k must be from 1 to {self._limits.k}, given {k}")


@functools.lru_cache(maxsize=4_096)
def _probing(nprobe: int) -> Any:
    return faiss.SearchParametersIVF(nprobe=nprobe)


def _check_width(vectors: Floats, dimension: int) -> None:
    if vectors.ndim != 2 or vectors.shape[1] != dimension:
        raise CardRefused(f"vectors have shape {vectors.shape}, expected (n, {dimension})")
