"""What every card promises: on the stand-in; on FAISS's GPU classes and our kernels over a GPU on paper, and on one whose
driver is too old for the kernels; and on a GPU."""

from __future__ import annotations

import functools
import threading
from typing import Any

import faiss
import numpy as np
import pytest
from cards_here import KINDS, MEMORY, D, assert_nearest, plain, some_card, vectors
from paper_gpu import PaperCuda, PaperFaiss

from vecdb.device import CardFull, CardRefused, Limits, StandInCard
from vecdb.device.stand_in import Faults, nearest
from vecdb.index import card as card_module
from vecdb.index import flat_there, host_lists
from vecdb.index.card import FaissCard, count_gpus
from vecdb.index.door import use_threads
from vecdb.index.driver import Driver
from vecdb.index.flat_there import is_full


@pytest.fixture(params=KINDS)
def card(request: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    return some_card(request.param, monkeypatch)


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("code", ["float32", "float16"])
@pytest.mark.parametrize(("n", "k"), [(1_000, 10), (1_000, 1), (5, 10), (2_500, 2_048)])
def test_flat_search_is_exact(card: Any, metric: str, code: str, n: int, k: int) -> None:
    """Flat vectors that came in pieces are searched exactly by their code, padded where k is more."""
    y, x = vectors(n), vectors(7, 2)
    card.flat(1, D, metric, code, n)
    for start in range(0, n, 301):
        card.add(1, y[start : start + 301])
    stored = y.astype(np.float16) if code == "float16" else y
    asked = x.astype(np.float16) if code == "float16" else x
    if not isinstance(card, StandInCard) and card.info().masks:
        asked = x  # the kernels meet few queries in float32
    found = card.search(1, x, k, 0)
    assert_nearest(found, asked, stored, k, metric, 2e-3)


def test_a_flat_placement_takes_what_it_says(card: Any) -> None:
    """Its memory is counted when it is made, and free again when it is dropped."""
    before = card.info().free_bytes
    card.flat(1, D, "l2", "float32", 10_000)
    assert 4 * D * 10_000 <= card.used_bytes(1) <= 4 * (D + 1) * 10_000
    assert card.info().free_bytes <= before
    card.drop(1)
    card.drop(1)
    assert card.used_bytes(1) == 0
    assert card.info().free_bytes >= before - (4 << 20)  # a driver gives back in pieces


def test_limits_are_refused_before_the_call(card: Any) -> None:
    """k beyond the limit, wrong widths, unknown placements and codes, and one row too many are refused."""
    card.flat(1, D, "l2", "float32", 10)
    card.add(1, vectors(10))
    info = card.info()
    limit = info.limits.k
    assert limit == 2_048
    flat_limit = info.limits.scan_k if info.masks else limit
    x = vectors(1)
    for call in (
        lambda: card.search(1, x, flat_limit + 1, 0),
        lambda: card.search(1, x, 1, 0, 9),
        lambda: card.mask(1, 9, np.zeros(1, np.uint8)),
        lambda: card.mask(2, 9, np.zeros(2, np.uint8)),
        lambda: card.search(1, x, 0, 0),
        lambda: card.search(2, x, 1, 0),
        lambda: card.search(1, vectors(1, 1, D + 1), 1, 0),
        lambda: card.compare(x, vectors(9, 1, D + 1), 1, "l2"),
        lambda: card.compare(x, vectors(3_000), limit + 1, "l2"),
        lambda: card.add(1, vectors(1)),
        lambda: card.add(9, vectors(1)),
        lambda: card.flat(3, D, "cosine", "float32", 10),
        lambda: card.flat(3, D, "l2", "sq8", 10),
        lambda: card.kmeans(vectors(5), 6, 1, False, 1),
        lambda: card.links(1),
        lambda: card.lists(4, memoryview(bytes(faiss.serialize_index(faiss.IndexFlat(D)))), "x"),
    ):
        with pytest.raises(CardRefused):
            call()
    assert card.search(1, x, 3, 0)[1].shape == (1, 3)


def test_out_of_memory_fails_one_call_only(card: Any) -> None:
    """A placement that does not fit is CardFull, and the card goes on."""
    with pytest.raises(CardFull):
        card.flat(1, D, "l2", "float32", 1 << 40)
    assert card.used_bytes(1) == 0
    card.flat(2, D, "ip", "float32", 5)
    card.add(2, vectors(5))
    assert_nearest(card.search(2, vectors(2, 3), 5, 0), vectors(2, 3), vectors(5), 5, "ip", 1e-3)


@functools.cache
def lists_bytes(spec: str, metric: int, n: int = 2_000) -> tuple[Any, memoryview]:
    use_threads(1)  # training of little with several threads mostly waits where others are busy
    index = faiss.index_factory(D, spec, metric)
    index.train(vectors(n))
    index.add(vectors(n))
    return index, memoryview(faiss.serialize_index(index))


@pytest.mark.parametrize("metric", [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT])
@pytest.mark.parametrize("spec", ["IVF16,Flat", "IVF16,SQ8", "IVF16,SQfp16", "IVF16,PQ4x8np"])
def test_lists_answer_as_on_the_cpu(card: Any, spec: str, metric: int) -> None:
    """Lists of the CPU give the CPU's answers, also where more lists are asked for than there are."""
    host, data = lists_bytes(spec, metric)
    card.lists(1, data, "any")
    assert card.used_bytes(1) >= host.ntotal * host.code_size
    x = vectors(20, 5)
    for nprobe in (4, 100):
        scores, positions = card.search(1, x, 10, nprobe)
        wanted = host.search(x, 10, params=faiss.SearchParametersIVF(nprobe=min(16, nprobe)))
        np.testing.assert_allclose(scores, wanted[0], rtol=1e-2, atol=1e-2)
        same = [len(set(a) & set(b)) for a, b in zip(positions, wanted[1], strict=True)]
        assert np.mean(same) >= 9.8
    for nprobe in (0, 2_049):
        with pytest.raises(CardRefused):
            card.search(1, x, 10, nprobe)


@pytest.mark.long
@pytest.mark.parametrize(
    "spec", ["IVF16,PQ12x4fs", "IVF16,PQ12x4", "IVF16,SQ6", "IVF16,PQ6x8np", "IVF16_HNSW8,Flat"]
)
def test_lists_that_a_gpu_cannot_hold_are_refused(card: Any, spec: str) -> None:
    """Codes that have no GPU kernel, and centroids that are no plain vectors, are refused."""
    index, data = lists_bytes(spec, faiss.METRIC_L2)
    if spec == "IVF16,PQ6x8np":
        index = faiss.clone_index(index)
        index.by_residual = False
        data = memoryview(faiss.serialize_index(index))
    with pytest.raises(CardRefused):
        card.lists(1, data, "any")


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_compare_needs_no_placement(card: Any, metric: str) -> None:
    """Vectors on the host are compared exactly, none and fewer than k of them too."""
    x = vectors(9, 4)
    for n in (0, 3, 900):
        y = vectors(max(n, 1), 6)[:n]
        assert_nearest(card.compare(x, y, 12, metric), x, y, 12, metric, 2e-3)


@pytest.mark.parametrize("spherical", [False, True])
def test_kmeans_finds_what_is_there(card: Any, spherical: bool) -> None:
    """Centroids end where the clusters are, the same ones for the same seed, going on from a start."""
    rng = np.random.default_rng(8)
    true = vectors(6, 9)
    true /= np.linalg.norm(true, axis=1, keepdims=True)
    sample = np.repeat(true, 50, axis=0) + 0.01 * rng.standard_normal((300, D)).astype(np.float32)
    start = np.ascontiguousarray(true + 0.05)
    found = card.kmeans(sample, 6, 5, spherical, 7, start)
    assert found.dtype == np.float32
    near = ((found[:, None] - true[None]) ** 2).sum(axis=2)
    assert (near.min(axis=1) < 0.01).all()
    again = [card.kmeans(sample, 6, 3, spherical, 7) for _ in range(2)]
    np.testing.assert_allclose(*again, atol=1e-4)


def graphs_or_skip(card: Any) -> None:
    if not card.info().graphs:
        with pytest.raises(CardRefused):
            card.graph(2, 1, 32)
        pytest.skip("this FAISS was made without cuVS; that graphs are refused was tested")


@pytest.mark.parametrize(
    ("metric", "code"), [("l2", "float32"), ("l2", "float16"), ("ip", "float32")]
)
def test_a_graph_finds_what_is_near(card: Any, metric: str, code: str) -> None:
    """A graph over flat vectors finds nearly all neighbours, outlives its source, and says its links."""
    y, x = vectors(2_000), vectors(30, 3)
    card.flat(1, D, metric, code, len(y))
    card.add(1, y)
    graphs_or_skip(card)
    card.graph(2, 1, 32)
    card.drop(1)
    with pytest.raises(CardRefused):
        card.search(2, x, 10, 9)
    scores, positions = card.search(2, x, 10, 64)
    wanted = faiss.knn(x, y, 10, metric=faiss.METRIC_L2 if metric == "l2" else 0)[1]
    assert np.mean([len(set(a) & set(b)) for a, b in zip(positions, wanted, strict=True)]) > 9
    assert (np.diff(scores if metric == "l2" else -scores, axis=1) >= 0).all()
    links = card.links(2)
    assert links.shape == (len(y), 32)
    assert links.dtype == np.int32
    assert links.min() >= -1
    assert links.max() < len(y)
    # They join what is near: rows to some of their nearest neighbours.
    near = faiss.knn(y[:50], y, 9, metric=faiss.METRIC_L2 if metric == "l2" else 0)[1]
    found = [len(set(a) & set(b[b >= 0])) for a, b in zip(near, links[:50], strict=True)]
    assert np.mean(found) > 3


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_the_vectors_beneath_a_graph_are_compared(card: Any, metric: str) -> None:
    """Asked without itopk a graph compares all of its vectors, at any k and under masks; not while there are newer ones."""
    y, x = vectors(2_000), vectors(12, 3)
    card.flat(1, D, metric, "float32", len(y) + 10)
    card.add(1, y)
    graphs_or_skip(card)
    card.graph(2, 1, 32)
    card.add(1, vectors(10, 4))
    with pytest.raises(CardRefused, match="after graph 2"):
        card.search(2, x, 10, 0)
    y = np.concatenate([y, vectors(10, 4)])
    card.graph(3, 1, 32)
    card.drop(1)
    for k in (1, 10, 1_500):
        scores, positions = card.search(3, x, k, 0)
        best, every = plain(x, y, k, metric)
        np.testing.assert_allclose(scores, best, atol=1e-3)
        np.testing.assert_allclose(np.take_along_axis(every, positions, 1), best, atol=1e-3)
    if not card.info().masks:
        with pytest.raises(CardRefused, match="masks"):
            card.mask(3, 5, np.zeros(252, np.uint8))
        return
    allowed = np.arange(len(y)) % 7 == 0
    card.mask(3, 5, np.packbits(allowed, bitorder="little"))
    positions = card.search(3, x, 20, 0, 5)[1]
    assert allowed[positions].all()
    with pytest.raises(CardRefused, match="flat vectors"):
        card.search(3, x, 10, 64, 5)
    card.unmask(3, 5)
    with pytest.raises(CardRefused, match="not known"):
        card.search(3, x, 20, 0, 5)


def test_a_stand_in_without_cuvs_refuses_graphs() -> None:
    """Without the wheel that has them graphs are refused."""
    card = StandInCard(graphs=False)
    card.flat(1, D, "l2", "float32", 5)
    with pytest.raises(CardRefused, match="cuvs"):
        card.graph(2, 1, 16)


def test_a_stand_in_belongs_to_one_thread() -> None:
    """A second thread is a bug that a GPU would not forgive, and the stand-in does not either."""
    card = StandInCard()
    card.flat(1, D, "l2", "float32", 5)
    seen: list[BaseException] = []

    def other() -> None:
        try:
            card.search(1, vectors(1), 1, 0)
        except RuntimeError as error:
            seen.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert "two threads" in str(seen[0])


def test_a_stand_in_has_the_limits_it_was_given() -> None:
    """Smaller limits can be tried."""
    for masks, most in ((False, 5), (True, 7)):
        card = StandInCard(limits=Limits(k=5, scan_k=7), masks=masks)
        card.flat(1, D, "l2", "float32", 9)
        with pytest.raises(CardRefused, match=f"from 1 to {most}"):
            card.search(1, vectors(1), most + 1, 0)


def test_ties_go_to_the_lower_position() -> None:
    """Among equal vectors the stand-in gives those with the lowest positions, in order."""
    y = np.zeros((500, 3), np.float32)
    for metric in ("l2", "ip"):
        scores, positions = nearest(np.ones((2, 3), np.float32), y, 4, metric, "float32")
        assert positions.tolist() == [[0, 1, 2, 3]] * 2
        assert (scores == scores[0, 0]).all()


def test_faults_are_read_and_strike_once(tmp_path: Any) -> None:
    """Faults come as text; with a path only the first of them happens."""
    path = tmp_path / "struck"
    faults = Faults.parse(f"die_at_search=3,search_s=0.5,once={path}")
    assert (faults.die_at_search, faults.search_s) == (3, 0.5)
    assert faults.strike()
    assert not faults.strike()
    with pytest.raises(ValueError, match="unknown fault"):
        Faults.parse("explode=1")


# --- FAISS and the driver, where no GPU is needed


def paper(monkeypatch: pytest.MonkeyPatch) -> tuple[FaissCard, PaperFaiss, PaperCuda]:
    made, cuda = PaperFaiss(), PaperCuda(MEMORY, old=True)
    monkeypatch.setattr(card_module, "faiss", made)
    monkeypatch.setattr(flat_there, "faiss", made)
    return FaissCard(Driver(0, cuda)), made, cuda


def test_what_faiss_says_when_memory_is_short() -> None:
    """Out of memory is told by its text; an allocation that fails for another reason is not that."""
    alloc = "StandardGpuResources: alloc fail type FlatData dev 0 space Device size 1024 bytes (cudaMalloc error {} [{}])\n"
    assert is_full(RuntimeError(alloc.format("out of memory", 2)))
    assert is_full(RuntimeError("CUDA memory allocation error"))
    assert is_full(RuntimeError("C++ exception std::bad_alloc: out_of_memory: RMM failure"))
    assert is_full(MemoryError("std::bad_alloc"))
    assert not is_full(RuntimeError(alloc.format("an illegal memory access was encountered", 700)))
    assert not is_full(RuntimeError("GPU index only supports min/max-K selection up to 2048"))


def test_other_exceptions_of_faiss_come_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search without memory is CardFull; any other failure is passed on, and ends a worker."""
    card, made, _ = paper(monkeypatch)
    card.flat(1, D, "l2", "float32", 5)
    card.add(1, vectors(5))
    made.fail = RuntimeError("alloc fail (cudaMalloc error out of memory [2])")
    with pytest.raises(CardFull):
        card.search(1, vectors(1), 1, 0)
    made.fail = RuntimeError("something else")
    with pytest.raises(RuntimeError, match="something else"):
        card.search(1, vectors(1), 1, 0)


def test_errors_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only CUDA's error 2 is a lack of memory; after any other the card cannot go on."""
    card, _, cuda = paper(monkeypatch)
    card.flat(1, D, "ip", "float32", 5)
    cuda.broken = 700
    with pytest.raises(RuntimeError, match="700: an illegal memory access"):
        card.add(1, vectors(5))


def test_nothing_is_left_when_the_second_piece_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Vectors fit, their squares do not: both are given back."""
    card, _, cuda = paper(monkeypatch)
    rows = MEMORY // (4 * D)
    with pytest.raises(CardFull):
        card.flat(1, D, "l2", "float32", rows)
    assert not cuda.pieces


def test_copies_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver may return before a copy is done, and FAISS's streams do not wait for it."""
    card, _, cuda = paper(monkeypatch)
    card.flat(1, D, "l2", "float32", 5)
    card.add(1, vectors(5))
    assert cuda.synchronized == 2


def test_a_graph_keeps_the_vectors_of_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory of the source goes with the graph, not before."""
    card, _, cuda = paper(monkeypatch)
    card.flat(1, D, "ip", "float32", 100)
    card.add(1, vectors(100))
    card.graph(2, 1, 16)
    card.drop(1)
    assert cuda.pieces
    card.drop(2)
    assert not cuda.pieces
    card.flat(3, D, "ip", "float16", 100)
    card.add(3, vectors(100))
    with pytest.raises(CardRefused, match="float32"):
        card.graph(4, 3, 16)


def test_lists_do_not_keep_their_copy_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAISS's wrapper would hold the host's index as long as the card's."""
    card, _, _ = paper(monkeypatch)
    card.lists(1, lists_bytes("IVF16,Flat", faiss.METRIC_L2)[1], "float32")
    placed: Any = card._placed[1]
    assert placed.index.referenced_objects == [card._resources]


def test_tables_of_float16_only_where_they_must() -> None:
    """Product quantization of up to 48 parts has float32 tables, which cannot overflow."""
    for parts, wanted in ((48, False), (64, True)):
        index = faiss.IndexIVFPQ(faiss.IndexFlatL2(192), 192, 4, parts, 8)
        assert host_lists.float16_tables(index) == wanted


def test_the_paper_is_like_faiss() -> None:
    """Whatever `FaissCard` sets or calls, the wheel for GPUs has; no GPU is needed to see that."""
    if not hasattr(faiss, "StandardGpuResources"):
        pytest.skip("this FAISS is one for the CPU")
    names = [name for name in vars(PaperFaiss) if not name.startswith("_")]
    if not hasattr(faiss, "GpuIndexCagra"):
        names = [n for n in names if "Cagra" not in n and not n.startswith("graph_")]
    for name in names:
        ours, theirs = getattr(PaperFaiss, name), getattr(faiss, name)
        if isinstance(ours, int):
            assert ours == theirs, name
        for field in getattr(ours, "__slots__", ()):
            assert hasattr(theirs(), field), (name, field)
    for method in (
        "setTempMemory",
        "setPinnedMemory",
        "syncDefaultStreamCurrentDevice",
        "getMemoryInfo",
    ):
        assert hasattr(faiss.StandardGpuResources, method)
    call = faiss.GpuDistanceParams()
    x = np.zeros((1, 2), np.float16)
    call.vectors = faiss.cast_integer_to_void_ptr(4_096)
    call.vectorNorms = faiss.cast_integer_to_float_ptr(4_096)
    call.queries, call.outIndices = faiss.swig_ptr(x), faiss.swig_ptr(np.zeros((1, 1), np.int64))
    config = faiss.GpuIndexIVFFlatConfig()
    config.flatConfig.use_cuvs, config.flatConfig.device = False, 3
    assert (config.flatConfig.use_cuvs, config.flatConfig.device) == (False, 3)


def test_counting_gpus_by_a_process() -> None:
    """With a wheel for GPUs another process counts them, and its end is not ours."""
    if not hasattr(faiss, "StandardGpuResources"):
        pytest.skip("this FAISS is one for the CPU")
    assert count_gpus() == card_module.gpus_here()


def test_counting_gpus_without_a_wheel_for_them() -> None:
    """With a wheel for the CPU no process is started, and there are none."""
    if hasattr(faiss, "StandardGpuResources"):
        pytest.skip("this FAISS knows GPUs")
    assert count_gpus() == 0
    assert card_module.gpus_here() == 0
