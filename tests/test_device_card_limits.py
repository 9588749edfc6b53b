"""What a card must be asked within, and how its walks begin: limits and ways of FAISS that this engine found out."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import pytest
from cards_here import KINDS, D, assert_nearest, some_card, vectors
from test_device_card import graphs_or_skip, lists_bytes, paper

from vecdb.device import CardRefused
from vecdb.index import host_lists


@pytest.fixture(params=KINDS)
def card(request: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    return some_card(request.param, monkeypatch)


@pytest.mark.parametrize(("needed", "chosen"), [(1, 1), (3, 4), (17, 64), (1_000, 256)])
@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_walks_begin_at_so_many_that_vectors_find_themselves(
    monkeypatch: pytest.MonkeyPatch, metric: str, needed: int, chosen: int
) -> None:
    """No more random vectors than are needed, and the most that are tried where none suffices; searches use as many."""
    card, paper_faiss, _ = paper(monkeypatch)
    monkeypatch.setattr(paper_faiss.GpuIndexCagra, "needed", needed)
    y = vectors(300)
    card.flat(1, D, metric, "float32", len(y))
    card.add(1, y)
    card.graph(2, 1, 16)
    graph: Any = card._placed[2]
    assert graph.samplings == chosen
    if needed <= chosen:
        assert_nearest(card.search(2, vectors(3, 7), 5, 32), vectors(3, 7), y, 5, metric, 1e-3)


@pytest.mark.parametrize(
    ("metric", "code", "rows", "degree"),
    [("ip", "float16", 500, 32), ("l2", "float32", 64, 32), ("l2", "float32", 0, 32),
     ("l2", "float32", 500, 7), ("l2", "float32", 900, 257)],
)  # fmt: skip
def test_graphs_that_cuvs_does_not_make_are_refused(
    card: Any, metric: str, code: str, rows: int, degree: int
) -> None:
    """Few rows, degrees beyond what there is, inner products of float16: by a stand-in too, and the vectors stay."""
    card.flat(1, D, metric, code, 1_000)
    card.add(1, vectors(rows))
    graphs_or_skip(card)
    with pytest.raises(CardRefused, match="a graph"):
        card.graph(2, 1, degree)
    assert card.used_bytes(2) == 0
    assert (card.search(1, vectors(2), 3, 0)[1][:, 0] >= 0).all() == bool(rows)


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_what_a_walk_has_not_found_is_no_row(monkeypatch: pytest.MonkeyPatch, metric: str) -> None:
    """cuVS fills an answer that is short with numbers beyond all rows; a card says -1, with the worst score."""
    card, paper_faiss, _ = paper(monkeypatch)
    search = paper_faiss.GpuIndexCagra.search

    def short(graph: Any, x: Any, k: int, **named: Any) -> Any:
        scores, positions = search(graph, x, k, **named)
        positions[:, 3:5], positions[:, 5:] = 2**31 - 1, 2**32 - 1
        return scores, positions

    card.flat(1, D, metric, "float32", 300)
    card.add(1, vectors(300))
    card.graph(2, 1, 16)
    monkeypatch.setattr(paper_faiss.GpuIndexCagra, "search", short)
    scores, positions = card.search(2, vectors(4, 3), 8, 32)
    assert (positions[:, :3] >= 0).all()
    assert (positions[:, 3:] == -1).all()
    assert np.isinf(scores[:, 3:]).all()
    assert ((scores[:, 3:] > 0) == (metric == "l2")).all()


def test_a_graph_over_clusters_finds_what_is_near(card: Any) -> None:
    """Also where no links lead from one cluster to the next."""
    seed = 20_261_127
    print("seed", seed)
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((200, D)).astype(np.float32)
    y = np.repeat(centres, 60, axis=0)
    y += 0.01 * rng.standard_normal(y.shape).astype(np.float32)
    x = centres[:100] + 0.01 * rng.standard_normal((100, D)).astype(np.float32)
    card.flat(1, D, "l2", "float32", len(y))
    card.add(1, y)
    graphs_or_skip(card)
    card.graph(2, 1, 32)
    wanted = faiss.knn(x, y, 10)[1]
    for some in (slice(0, 100), slice(5, 6)):
        found = card.search(2, x[some], 10, 256)[1]
        same = [len(set(a) & set(b)) for a, b in zip(found, wanted[some], strict=True)]
        assert np.mean(same) >= 9


@pytest.mark.parametrize(("spec", "most"), [("IVF16,Flat", 2_048), ("IVF16,SQ8", 512), ("IVF16,SQ4", 512), ("IVF16,SQfp16", 2_048), ("IVF16,PQ4x8np", 2_048)])  # fmt: skip
def test_lists_give_as_many_as_a_card_has_room_for(card: Any, spec: str, most: int) -> None:
    """The largest k answers as on the CPU, and a larger one is refused: it would end the process."""
    host, data = lists_bytes(spec, faiss.METRIC_L2)
    card.lists(1, data, "any")
    x = vectors(8, 5)
    for k in (most // 2, most):
        scores = card.search(1, x, k, 16)[0]
        wanted = host.search(x, k, params=faiss.SearchParametersIVF(nprobe=16))[0]
        found = wanted < 1e30
        np.testing.assert_allclose(scores[found], wanted[found], rtol=1e-2, atol=1e-2)
    with pytest.raises(CardRefused, match=f"{most:,}|{most}"):
        card.search(1, x, most + 1, 16)


@pytest.mark.parametrize(
    ("dimension", "k"),
    [(8, 512), (3_072, 512), (3_073, 256), (4_608, 256), (5_952, 32), (5_953, 0)],
)
def test_bounds_of_scalar_codes_leave_room_for_fewer_answers(dimension: int, k: int) -> None:
    """What a block of a GPU has is shared by bounds of dimensions and the best that were found."""
    assert host_lists.scalar_k(dimension) == k
