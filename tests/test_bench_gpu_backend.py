"""What the measurement of a card stands on: right answers, array libraries, and how FAISS is called."""

from __future__ import annotations

import importlib
import importlib.util
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.gpu import (
    answers,
    arrays,
    backend,
    exact,
    filters,
    insert,
    kinds,
    kmeans,
    limits,
    made,
    own,
    plan,
    probe,
    tiled,
)

CARD_K = 2048


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 60),
    k=st.integers(1, 12),
    share=st.floats(0, 1),
    first=st.integers(1, 20),
    most=st.integers(12, 40),
)
def test_overfetch_proves_what_it_says(
    seed: int, rows: int, k: int, share: float, first: int, most: int
) -> None:
    """What is called complete is the k best allowed rows; no row that is not allowed ever comes back."""
    rng = np.random.default_rng(seed)
    scores = rng.permutation(rows).astype(np.float32)[None] + np.zeros((3, 1), np.float32)
    allowed = rng.random(rows) < share

    def search(queries: answers.Floats, wanted: int) -> answers.Rows:
        order = np.argsort(-scores[: len(queries)], axis=1)[:, :wanted]
        return np.pad(order, ((0, 0), (0, wanted - order.shape[1])), constant_values=-1)

    queries = np.zeros((3, 2), np.float32)
    found, complete, asked = answers.overfetch(search, queries, allowed, k, first, most)
    assert found.shape == (3, k)
    assert asked <= max(most, k)
    assert answers.forbidden(found, allowed) == 0
    best = [row for row in np.argsort(-scores[0]) if allowed[row]][:k]
    for line, whole in zip(found, complete, strict=True):
        kept = [row for row in line.tolist() if row >= 0]
        assert kept == best[: len(kept)]
        if whole:
            assert kept == best


def test_recall_counts_ties_and_nothing_twice() -> None:
    """Rows as near as the last right one count; a row named twice, a missing and a farther one do not."""
    scores = np.array([[0.9, 0.8, 0.8, 0.1]], np.float32)
    bound = np.array([0.8], np.float32)

    def of(*rows: int) -> float:
        found = np.array([rows])
        held = np.where(found >= 0, scores[:, np.maximum(found[0], 0)], -np.inf).astype(np.float32)
        return answers.recall(found, held, bound, len(rows))

    assert of(0, 1) == of(0, 2) == 1
    assert of(0, 0) == of(0, 3) == of(0, -1) == 0.5
    assert answers.first_of_each(np.array([[3, 1, 3, 1]])).tolist() == [[True, True, False, False]]
    assert answers.forbidden(np.array([[0, -1, 2]]), np.array([True, True, False])) == 1


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_arrays_make_the_same_rows_and_right_answers(library: str) -> None:
    """A seed gives the same unit rows again; the best, the re-ranked and the gathered are those of numpy."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    made_by = arrays.arrays_named(library, card=False)
    held = made_by.made(3_000, 32, 7, 0)
    vectors = made_by.host(held)
    assert np.array_equal(vectors, made_by.host(made_by.made(3_000, 32, 7, 0)))
    queries = made_by.host(made_by.made(20, 32, 7, 1))
    assert not np.array_equal(vectors[:20], queries)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    right = -np.sort(-(queries @ vectors.T), axis=1)[:, :5]
    scores, rows = made_by.best(queries, held, 5)
    assert np.allclose(scores, right, atol=1e-5)
    assert np.allclose(np.take_along_axis(queries @ vectors.T, rows, 1), right, atol=1e-5)
    padded = np.concatenate([rows[:, ::-1], np.full((20, 3), -1)], axis=1)
    assert np.array_equal(made_by.rerank(queries, held, padded, 5), rows)
    some = np.array([4, 0, 2_999])
    assert np.allclose(made_by.host(made_by.take(held, some)), vectors[some])
    assert made_by.pointer(held) is None


class Faiss:
    """FAISS as the cuVS wheel has it, on the CPU: the names of its classes for cards, and their limits.

    A selector without cuVS, k above 2,048, a foreign thread and an attribute that FAISS does not have fail.
    """

    def __init__(self, options: str) -> None:
        self._faiss: Any = importlib.import_module("faiss")
        self._options = options
        self._thread = threading.get_ident()
        if "CUVS" in options:
            self.GpuIndexCagra = self._cagra

    def __getattr__(self, name: str) -> Any:
        return getattr(self._faiss, name)

    def get_compile_options(self) -> str:
        return self._options

    def get_num_gpus(self) -> int:
        return 1

    def omp_set_num_threads(self, threads: int) -> None:
        """One is enough here: on a busy machine threads that wait for each other take seconds."""
        assert threads >= 1

    class StandardGpuResources:
        pass

    class GpuIndexFlatConfig:
        __slots__ = ("device", "memorySpace", "storeTransposed", "useFloat16", "use_cuvs")

    class GpuIndexCagraConfig:
        __slots__ = (
            "build_algo",
            "device",
            "graph_degree",
            "intermediate_graph_degree",
            "use_cuvs",
        )

    class SearchParametersCagra:
        __slots__ = ("itopk_size", "num_random_samplings", "sel")

    graph_build_algo_NN_DESCENT = 1  # noqa: N815

    def GpuIndexFlat(self, resources: Any, d: int, metric: int, config: Any) -> Any:  # noqa: N802
        kind = self._faiss.ScalarQuantizer.QT_fp16
        flat = self._faiss.IndexFlat(d, metric)
        half = self._faiss.IndexScalarQuantizer(d, kind, metric)
        return Card(self, half if config.useFloat16 else flat, config.use_cuvs)

    def _cagra(self, resources: Any, d: int, metric: int, config: Any) -> Any:
        assert config.intermediate_graph_degree >= config.graph_degree
        return Card(self, self._faiss.IndexHNSWFlat(d, 16, metric), True)

    def knn_gpu(self, resources: Any, xq: Any, xb: Any, k: int, metric: int, device: int) -> Any:
        return self._faiss.knn(xq, xb, k, metric=metric)

    def Kmeans(self, d: int, k: int, gpu: int | bool, **options: Any) -> Any:  # noqa: N802
        return self._faiss.Kmeans(d, k, **options)


class Card:
    """An index "on the card"."""

    def __init__(self, faiss: Faiss, inner: Any, cuvs: bool) -> None:
        self.inner, self._faiss, self._cuvs = inner, faiss, cuvs

    def __getattr__(self, name: str) -> Any:
        assert threading.get_ident() == self._faiss._thread
        return getattr(self.inner, name)

    def train(self, vectors: Any) -> None:
        # A graph is whole after training; nothing is added to it.
        (self.inner.add if isinstance(self.inner, self._faiss.IndexHNSWFlat) else self.inner.train)(
            vectors
        )

    def search(self, queries: Any, k: int, params: Any) -> Any:
        assert k <= CARD_K
        assert self._cuvs or params is None or params.sel is None
        assert threading.get_ident() == self._faiss._thread
        if isinstance(params, Faiss.SearchParametersCagra):
            assert params.itopk_size >= k
            sel = getattr(params, "sel", None)
            params = self._faiss.SearchParametersHNSW(efSearch=params.itopk_size, sel=sel)
        return self.inner.search(queries, k, params=params)


@pytest.mark.long
@pytest.mark.parametrize("options", ["OPTIMIZE GPU", "OPTIMIZE GPU CUVS"])
def test_every_part_calls_the_card_as_faiss_spells_it(
    options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All parts run through the classes for cards, within their limits, with and without cuVS; none fails.

    Without torch and CuPy, so the limits are FAISS's own and are called lower bounds.
    """
    fake = Faiss(options)
    real = importlib.import_module

    def loaded(name: str, package: str | None = None) -> Any:
        return fake if name == "faiss" else real(name, package)

    threads = fake._faiss.omp_get_max_threads()
    fake._faiss.omp_set_num_threads(1)
    monkeypatch.setattr("bench.gpu.backend.importlib.import_module", loaded)
    # The engine's own card is tested elsewhere; a driver it would need is not pretended here.
    monkeypatch.setattr(backend, "Own", lambda gpu: own.Own(gpu=False))
    monkeypatch.setenv("VECDB_STAND_IN_DEVICES", "1")
    monkeypatch.setattr(plan, "TINY", small())
    lines = tmp_path / "lines.jsonl"
    for part in (probe, limits, exact, insert, tiled, filters, kmeans, kinds):
        name = part.__name__.rpartition(".")[2]
        path, folder = str(lines), str(tmp_path)
        task = plan.Task(name, part.__name__, "gpu", "numpy", True, 1, 1, 60.0, folder, path)
        part.run(plan.Context(task))
    fake._faiss.omp_set_num_threads(threads)
    found = plan.read(lines)
    assert [one for one in found if one["kind"] == "failed"] == []
    cases = [one for one in found if one["kind"] == "case"]
    of_limits = [one for one in cases if one["part"] == "limits"]
    assert {one["limit"] for one in of_limits} == {"bandwidth", "float32", "float16"}
    assert all(one["lower_bound"] for one in of_limits)
    assert "lower bounds of the limits" in limits.page(of_limits, {})[0]
    cuvs = "CUVS" in options
    assert any(one.get("plan") == "bitset, flat" for one in cases) == cuvs
    # The engine's own card is the stand-in here, which has graphs.
    assert any(one.get("index") == "CAGRA" for one in cases)
    assert all(one.get("forbidden", 0) == 0 for one in cases)


def small() -> plan.Sizes:
    return plan.Sizes(
        exact=((1_000, 32),),
        insert=((1_000, 32, "float16"),),
        engine=(1_000, 32),
        tiled=(1_000, 32),
        kmeans=((1_000, 8, 2),),
        clustered=2_000,
        queries=16,
        product=32,
        copy_bytes=1 << 16,
        batches=(1, 8),
        cell_s=0.001,
    )


def card_there() -> bool:
    faiss = importlib.import_module("faiss")
    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


@pytest.mark.gpu
def test_the_card_answers_as_other_libraries_do() -> None:
    """Flat vectors, lists with all of them probed and gathered rows give the right rows, on the card and on the CPU."""
    if not card_there():
        pytest.skip("FAISS sees no card")
    card = backend.backend_named("gpu", "auto")
    held = card.arrays.made(20_000, 64, 3, 0)
    vectors, queries = card.arrays.host(held), card.arrays.host(card.arrays.made(50, 64, 3, 1))
    bound = card.arrays.best(queries, held, 10)[0][:, -1]

    def reached(found: answers.Rows) -> float:
        scores = answers.scores_of(queries, found, lambda rows: vectors[rows])
        return answers.recall(found, scores, bound, 10)

    for code, least in (("float32", 0.999), ("float16", 0.97)):
        flat = card.flat(64, code)
        flat.add_made(card.arrays, held)
        assert reached(flat.search(queries, 10)[1]) >= least
    assert reached(card.compare(queries, vectors, 10)) >= 0.999
    maker = made.Maker(card.own(), vectors)
    main, host = maker.lists("float32")
    for one in (host, maker.lists_there(main)):
        assert reached(one.search(queries, 10, one.lists)) >= 0.999
