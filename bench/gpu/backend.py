"""The few things of FAISS that are measured, on the card, or on the CPU as a dry run of the same parts.

Metric is the inner product of unit vectors everywhere. FAISS counts on right shapes and dtypes: vectors and
queries are C-contiguous float32 (n, d).
"""

from __future__ import annotations

import importlib
import os
import time
from typing import Any, Protocol

import numpy as np

from .answers import Flags, Floats, Rows
from .arrays import Arrays, arrays_named
from .own import Own

_CARD_K = 2048
_SAMPLINGS = 64
"""Random vectors among which each beginning of a walk is the nearest: with one of them walks do not find into the
right of 1,000 clusters."""
CODES = ("float16", "float32")


class NoCard(Exception):
    """There is no card that FAISS can use; says what is missing."""


class Placed:
    """An index that can be searched: `kind` flat | graph | hnsw says what its setting is.

    The setting is itopk of a CAGRA graph, efSearch of a CPU graph, nothing for flat vectors.
    """

    def __init__(self, faiss: Any, index: Any, kind: str, keep: Any = None) -> None:
        self._faiss = faiss
        self.index = index
        self.kind = kind
        self._keep = keep  # resources of the card must outlive the index

    @property
    def rows(self) -> int:
        return int(self.index.ntotal)

    def add(self, vectors: Floats) -> None:
        self.index.add(np.ascontiguousarray(vectors, np.float32))

    def add_made(self, arrays: Arrays, array: Any) -> None:
        """Adds what `arrays` made, without a way through host memory where it lies on the card."""
        pointer = arrays.pointer(array)
        if pointer is None:
            self.add(arrays.host(array))
        else:
            self.index.add_c(len(array), self._faiss.cast_integer_to_float_ptr(pointer))

    def search(
        self, queries: Floats, k: int, setting: int = 0, allowed: Any = None
    ) -> tuple[Floats, Rows]:
        """Scores and rows (q, k), best first, -1 for none. `allowed`: a selector, see `Backend.selector`."""
        scores, rows = self.index.search(queries, k, params=self._params(setting, allowed))
        return scores, rows

    def _params(self, setting: int, allowed: Any) -> Any:
        faiss = self._faiss
        kinds = {
            "hnsw": lambda: faiss.SearchParametersHNSW(efSearch=setting),
            "graph": lambda: faiss.SearchParametersCagra(),
        }
        if self.kind == "flat" and allowed is None:
            return None
        params = kinds.get(self.kind, faiss.SearchParameters)()
        if self.kind == "graph":
            params.itopk_size = setting
            params.num_random_samplings = _SAMPLINGS
        if allowed is not None:
            params.sel = allowed
        return params


class Backend(Protocol):
    name: str
    arrays: Arrays
    bitsets: bool  # searches honour a selector
    graphs: bool  # graphs can be built on the card
    most_k: int

    def about(self) -> dict[str, Any]: ...
    def flat(self, dimension: int, code: str, bitsets: bool = False) -> Placed: ...
    def own(self) -> Own:
        """The engine's own card: made once, as it holds scratch memory."""

    def graph(self, vectors: Floats) -> Placed: ...
    def compare(self, queries: Floats, vectors: Floats, k: int) -> Rows:
        """The k best of host vectors that are not placed, exactly."""

    def kmeans(
        self, sample: Floats, lists: int, rounds: int, seed: int, cpu: bool = False
    ) -> tuple[float, float]:
        """Seconds, and the objective: the sum of products of rows with their centroids."""

    def selector(self, flags: Flags) -> Any:
        """To be kept alive during the search."""


class Cpu:
    """faiss-cpu; a graph is HNSW. It proves the parts, and measures nothing of a card."""

    name = "cpu"
    bitsets = graphs = True
    most_k = _CARD_K

    def __init__(self, arrays: str) -> None:
        self.faiss: Any = importlib.import_module("faiss")
        self.arrays = arrays_named(arrays, card=False)
        self.metric = self.faiss.METRIC_INNER_PRODUCT
        self._own: Own | None = None

    def about(self) -> dict[str, Any]:
        return {
            "device": "none: faiss-cpu in place of a card",
            "faiss": self.faiss.__version__,
            "options": str(self.faiss.get_compile_options()).strip(),
            "arrays": self.arrays.name,
            "arrays_on_card": self.arrays.on_card,
            "graphs": self.graphs,
            "bitsets": self.bitsets,
        }

    def flat(self, dimension: int, code: str, bitsets: bool = False) -> Placed:
        faiss = self.faiss
        if code == "float16":
            kind = faiss.ScalarQuantizer.QT_fp16
            return Placed(faiss, faiss.IndexScalarQuantizer(dimension, kind, self.metric), "flat")
        return Placed(faiss, faiss.IndexFlat(dimension, self.metric), "flat")

    def own(self) -> Own:
        if self._own is None:
            self._own = Own(gpu=self.name == "gpu")
        return self._own

    def graph(self, vectors: Floats) -> Placed:
        index = self.faiss.IndexHNSWFlat(vectors.shape[1], 16, self.metric)
        index.hnsw.efConstruction = 100
        index.add(vectors)
        return Placed(self.faiss, index, "hnsw")

    def compare(self, queries: Floats, vectors: Floats, k: int) -> Rows:
        rows: Rows = self.faiss.knn(queries, vectors, k, metric=self.metric)[1]
        return rows

    def _clustering(self, gpu: int | bool) -> dict[str, Any]:
        return {"gpu": gpu, "spherical": True, "max_points_per_centroid": 1 << 30}

    def kmeans(
        self, sample: Floats, lists: int, rounds: int, seed: int, cpu: bool = False
    ) -> tuple[float, float]:
        options = self._clustering(gpu=False if cpu or self.name == "cpu" else 1)
        clustering = self.faiss.Kmeans(
            sample.shape[1], lists, niter=rounds, seed=seed, min_points_per_centroid=1, **options
        )
        begun_s = time.perf_counter()
        clustering.train(sample)
        return time.perf_counter() - begun_s, float(clustering.obj[-1])

    def selector(self, flags: Flags) -> Any:
        return self.faiss.IDSelectorBitmap(np.packbits(flags, bitorder="little"))


class Gpu(Cpu):
    """faiss-gpu or faiss-gpu-cuvs on card 0. Raises NoCard without one."""

    name = "gpu"

    def __init__(self, arrays: str) -> None:
        # torch first: it opens the machine's own CUDA libraries, and FAISS then finds them open.
        chosen = arrays_named(arrays, card=True)
        super().__init__("numpy")
        self.arrays = chosen
        faiss = self.faiss
        faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))  # for the CPU's kinds
        options = str(faiss.get_compile_options())
        if not hasattr(faiss, "StandardGpuResources"):
            raise NoCard("this FAISS is built for the CPU; install vecdb[gpu] or vecdb[gpu-cuvs]")
        # Asked before anything else: some calls without a card end the process.
        if faiss.get_num_gpus() < 1:
            raise NoCard("FAISS sees no card; is there an NVIDIA driver, and CUDA_VISIBLE_DEVICES?")
        self.bitsets = self.graphs = "CUVS" in options and hasattr(faiss, "GpuIndexCagra")
        self.resources = faiss.StandardGpuResources()

    def about(self) -> dict[str, Any]:
        return {**super().about(), "device": "card 0"}

    def _placed(self, index: Any, kind: str) -> Placed:
        return Placed(self.faiss, index, kind, self.resources)

    def flat(self, dimension: int, code: str, bitsets: bool = False) -> Placed:
        config = self.faiss.GpuIndexFlatConfig()
        config.device = 0
        config.useFloat16 = code == "float16"
        config.use_cuvs = bitsets
        index = self.faiss.GpuIndexFlat(self.resources, dimension, self.metric, config)
        return self._placed(index, "flat")

    def graph(self, vectors: Floats) -> Placed:
        """By L2, which has the same order as the inner product of unit vectors."""
        config = self.faiss.GpuIndexCagraConfig()
        config.device = 0
        config.graph_degree, config.intermediate_graph_degree = 64, 128
        config.build_algo = self.faiss.graph_build_algo_NN_DESCENT
        dimension = vectors.shape[1]
        metric = self.faiss.METRIC_L2
        index = self.faiss.GpuIndexCagra(self.resources, dimension, metric, config)
        index.train(np.ascontiguousarray(vectors, np.float32))
        return self._placed(index, "graph")

    def compare(self, queries: Floats, vectors: Floats, k: int) -> Rows:
        rows: Rows = self.faiss.knn_gpu(
            self.resources, queries, vectors, k, metric=self.metric, device=0
        )[1]
        return rows


def backend_named(name: str, arrays: str) -> Backend:
    return Gpu(arrays) if name == "gpu" else Cpu(arrays)
