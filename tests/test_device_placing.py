"""What takes a device several requests: placing, comparing, k-means, graphs and their links."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import faiss
import numpy as np
import pytest
from device_here import D, ask, assert_same, device, device_of, place, vectors

from vecdb.device import Device
from vecdb.device.stand_in import nearest
from vecdb.errors import FailedPrecondition, Internal


@pytest.fixture(scope="module", params=["stand-in", pytest.param("gpu", marks=pytest.mark.gpu)])
def shared(request: Any) -> Iterator[Device]:
    """One device for the tests that leave it as it was."""
    with closing(device_of(request.param)) as one:
        yield one


def test_placing_is_undone_when_it_fails(shared: Device) -> None:
    """Too few rows, a slice that raises, a check that raises: nothing stays on the card."""
    before = shared.stats()

    def broken() -> Iterator[Any]:
        yield vectors(5)
        raise KeyError("slice")

    def cancelled() -> None:
        raise KeyError("check")

    with pytest.raises(Internal, match="10 rows were to be placed, 5 were given"):
        shared.place_flat(D, "l2", "float32", 10, [vectors(5)])
    with pytest.raises(KeyError, match="slice"):
        shared.place_flat(D, "l2", "float32", 10, broken())
    with pytest.raises(KeyError, match="check"):
        shared.place_flat(D, "l2", "float32", 10, [vectors(10)], cancelled)
    with pytest.raises(FailedPrecondition):
        shared.place_flat(D, "l2", "float32", 10, [vectors(11)])
    assert shared.stats().used_bytes == before.used_bytes


def test_searches_get_between_the_slices_of_a_placing(shared: Device) -> None:
    """While something is placed slice by slice, searches of others are answered."""
    y = vectors(20)
    placed, answered = place(shared, y), []

    def slices() -> Iterator[Any]:
        for i in range(5):
            answered.append(ask(shared, placed, vectors(1, i)))
            yield vectors(100, i)

    other = shared.place_flat(D, "ip", "float16", 500, slices())
    assert len(answered) == 5
    for one in (placed, other):
        shared.drop(one.handle, one.generation)


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_vectors_of_the_host_are_compared_in_tiles(metric: str) -> None:
    """More vectors and queries than fit the shared memory are compared exactly, ties by position."""
    y = np.round(vectors(3_000, 4) * 2)  # many ties
    x = np.round(vectors(70, 5) * 2)
    with closing(device(memory_bytes=65_536)) as one:
        assert_same(one.compare(x, y, 12, metric), x, y, 12, metric)
        scores, positions = one.compare(x, y[:0], 12, metric)
        assert (positions == -1).all()
        assert np.isinf(scores).all()


def test_kmeans_goes_round_by_round(shared: Device) -> None:
    """Centroids of well separated clusters are found; `check` may stop it between rounds."""
    true = vectors(4, 7) * 10
    sample = np.repeat(true, 100, axis=0) + 0.1 * vectors(400, 8)
    found = min(
        (shared.kmeans(sample, 4, 8, False, seed) for seed in range(4)),
        key=lambda c: ((true[:, None] - c[None]) ** 2).sum(axis=2).min(axis=1).sum(),
    )
    assert (((true[:, None] - found[None]) ** 2).sum(axis=2).min(axis=1) < 1).all()
    rounds = []

    def check() -> None:
        rounds.append(1)
        if len(rounds) == 4:
            raise KeyError

    with pytest.raises(KeyError):
        shared.kmeans(sample, 4, 100, False, 1, check)


def test_lists_and_graphs_are_placed(shared: Device) -> None:
    """A serialised IVF index is searched with nprobe, a graph with itopk, and its links come back."""
    y, x = vectors(2_000), vectors(10, 3)
    host = faiss.index_factory(D, "IVF8,Flat")
    host.train(y)
    host.add(y)
    lists = shared.place_lists(faiss.serialize_index(host), "float32")
    found = shared.search(lists.handle, lists.generation, x, 5, 8)
    assert_same(found[:2], x, y, 5)
    shared.drop(lists.handle, lists.generation)
    if not shared.info.graphs:
        return
    flat = place(shared, y)
    graph = shared.place_graph(flat, 32)
    positions = shared.search(graph.handle, graph.generation, x, 5, 64)[1]
    wanted = nearest(x, y, 5, "l2", "float32")[1]
    assert np.mean([len(set(a) & set(b)) for a, b in zip(positions, wanted, strict=True)]) > 4.5
    links = shared.links(graph, 32)
    assert links.shape == (2_000, 32)
    assert links.max() < 2_000
    both = shared.place_graph(flat, 32, takes_over=True)
    # What was taken over is counted with the graph, and goes with it.
    assert both.bytes == graph.bytes + flat.bytes
    shared.drop(graph.handle, graph.generation)
    assert shared.used_bytes == both.bytes
    shared.drop(both.handle, both.generation)


def test_vectors_are_appended_where_there_is_room(shared: Device) -> None:
    """They are found from then on, but not by a graph that was made before."""
    y, x = vectors(900), vectors(10, 3)
    flat = shared.place_flat(D, "l2", "float32", 800, [y[:800]], room=100)
    if shared.info.graphs:
        before = shared.place_graph(flat, 32)
    assert shared.append(flat, [y[800:850], y[850:]]) == 100
    assert_same(ask(shared, flat, x)[:2], x, y, 3)
    with pytest.raises(FailedPrecondition, match="room"):
        shared.append(flat, [y[:1]])
    if shared.info.graphs:
        found = shared.search(before.handle, before.generation, y[800:], 1, 64)[1]
        assert found.max() < 800
        shared.drop(before.handle, before.generation)
    shared.drop(flat.handle, flat.generation)


def test_lists_that_are_none_are_refused(shared: Device) -> None:
    """What is no IVF index is a failed precondition, and leaves nothing."""
    with pytest.raises(FailedPrecondition, match="lists are wanted"):
        shared.place_lists(faiss.serialize_index(faiss.IndexFlat(4)), "float32")
    assert shared.used_bytes == 0
