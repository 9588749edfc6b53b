"""What kind `auto` makes: codes by memory, lists where no graph fits or does, lists until a graph is made."""

from __future__ import annotations

import numpy as np
import pytest
from index_rows import Rows, build, check_index, filled, make_index, small_steps

import vecdb
from vecdb.index import IndexRecord, choice, plan
from vecdb.index import index as index_module
from vecdb.index.calibrate import Curve, Point


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    small_steps(monkeypatch)
    monkeypatch.setattr(index_module, "LEAST_FRESH_ROWS", 1_000)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
@pytest.mark.parametrize("storage", ["float32", "float16", "int8", "binary"])
def test_auto_quantization_stays_below_the_memory_limit(kind, storage):
    """`auto` takes the first code whose index fits index_memory_bytes; stored integers stay as they are."""
    if (kind, storage) == ("ivf", "binary"):
        pytest.skip("bits are searched by graphs only")
    rows = Rows(2_000, storage=storage, dimension=64)
    metric = "hamming" if storage == "binary" else "l2"
    seen = []
    for limit in (0, 1 << 40, 700_000, 600_000, 450_000, 1):
        index = filled(rows, kind, metric, index_memory_bytes=limit)
        built = build(index)
        index.install(built)
        seen.append(index.stats().quantization)
        predicted = choice.index_bytes(kind, built.main.code, 64, 2_000)
        assert built.main.nbytes == pytest.approx(predicted, rel=0.1)
        if limit > 1 and storage.startswith("float"):
            assert limit == 0 or predicted <= limit
        check_index(index, rows, np.ones(2_000, np.bool_))
    if storage in ("int8", "binary"):
        assert seen == ["none"] * 6
        return
    assert seen[0] == seen[1] == "none"
    every = choice.LISTS_ORDER if kind == "ivf" else choice.ORDER
    order = [every.index(one) for one in seen]
    assert order == sorted(order)
    assert seen[-1] == every[-1]
    assert len(set(seen)) >= (3 if storage == "float32" and kind == "hnsw" else 2)


@pytest.mark.parametrize(
    ("target", "limit", "expected"),
    [
        (0.95, 1 << 40, ("hnsw", "none")),
        (0.95, 400_000, ("hnsw", "sq4")),
        (0.99, 400_000, ("ivf", "pq4")),
        (0.95, 250_000, ("ivf", "pq4")),
        (0.95, 1, ("ivf", "pq4")),
    ],
)
def test_auto_goes_over_to_lists_where_no_graph_fits(target, limit, expected):
    """Kind auto makes lists of pq4 below the memory that a graph takes, and where sq4 is too coarse."""
    rows = Rows(2_000, dimension=64)
    index = make_index(
        rows, "auto", target_recall=target, index_memory_bytes=limit, exact_max_scalars=0
    )
    index.append(rows.vectors)
    index.publish(1)
    index.install(build(index))
    assert (index.stats().kind, index.stats().quantization) == expected
    assert build(index) is None, "nothing has changed"
    check_index(index, rows, np.ones(2_000, np.bool_))


@pytest.mark.long
@pytest.mark.parametrize("kind", ["auto", "ivf"])
@pytest.mark.parametrize(("limit", "expected"), [(90_000, "pq8"), (50_000, "pq4")])
def test_lists_take_a_finer_code_where_the_smallest_misses_the_target(kind, limit, expected):
    """Where vectors have so few numbers that pq4 tells them not apart, `auto` makes lists of pq8, which reach the target
    and grow as they are; where these do not fit, pq4 stays."""
    rows = Rows(2_400, dimension=16, clusters=2)
    index = make_index(
        rows, kind, target_recall=0.99, index_memory_bytes=limit, exact_max_scalars=0
    )
    live = np.ones(2_400, np.bool_)
    for step, stop in enumerate((2_000, 2_400), 1):
        index.append(rows.vectors[len(index.view.live_mask()) : stop])
        index.publish(step)
        index.install(build(index))
        stats = index.stats()
        assert (stats.kind, stats.quantization) == ("ivf", expected)
        reached = index.view.main.setting(0.99, 10)
        assert (reached is not None) == (expected == "pq8")
        check_index(index, rows, live[:stop])
        assert build(index) is None


@pytest.mark.long
@pytest.mark.parametrize(
    ("storage", "code"),
    [("float32", "sq8"), ("float16", "sq8"), ("int8", "none"), ("binary", "none")],
)
@pytest.mark.parametrize("better", [True, False])
def test_auto_goes_over_to_lists_where_a_graph_walks_too_long(storage, code, better, monkeypatch):
    """Lists are made beside such a graph, what needs less work stays, and lists go on to grow."""
    monkeypatch.setattr(choice, "LONG_WALK", 1)
    monkeypatch.setattr(choice, "cheaper", lambda *_: better)
    rows = Rows(3_000, storage=storage)
    metric = "hamming" if storage == "binary" else "l2"
    index = make_index(rows, "auto", metric, exact_max_scalars=0)
    lists = better and storage != "binary"
    for step, stop in enumerate((2_000, 3_000), 1):
        index.append(rows.vectors[len(index.view.live_mask()) : stop])
        index.publish(step)
        index.install(build(index))
        expected = ("ivf", code) if lists else ("hnsw", "none")
        assert (index.stats().kind, index.stats().quantization) == expected
        check_index(index, rows, np.ones(stop, np.bool_))
        assert build(index) is None


@pytest.mark.long
@pytest.mark.parametrize("storage", ["float32", "int8"])
@pytest.mark.parametrize("better", [True, False])
@pytest.mark.parametrize("early", [True, False])
def test_many_rows_go_through_lists_to_a_graph(storage, better, early, tmp_path, monkeypatch):
    """Lists serve first; then the graph is made, the quicker one stays, and neither is made again. Where
    lists are as quick as a graph can be expected to be, none is made."""
    monkeypatch.setattr(choice, "_LISTS_FIRST_ROWS", 1_500)
    monkeypatch.setattr(choice, "cheaper", lambda *_: better)
    monkeypatch.setattr(choice, "keep_up", lambda *_: early)
    rows = Rows(2_300, storage=storage)
    index = make_index(rows, "auto", "l2", exact_max_scalars=0)
    index.append(rows.vectors[:2_000])
    index.publish(1)
    first = build(index)
    assert (first.kind, first.main.provisional) == ("ivf", not early)
    record = IndexRecord.from_json(index.save(first, tmp_path).to_json())
    again = make_index(rows, "auto", "l2", exact_max_scalars=0)
    again.install(again.load(record, tmp_path))  # a process later, at the same place
    again.append(rows.vectors[2_000:])
    again.publish(2)
    assert again.unfinished() == again.wants_build() == (not early)
    check_index(again, rows, np.ones(2_300, np.bool_))
    if not early:
        second = build(again)
        assert second.main.provisional is False
        assert (second.kind, second.rows) == (("ivf", 2_000) if better else ("hnsw", 2_300))
        assert again.holds(second) is better
        again.install(second)
        assert not again.unfinished()
        assert not again.wants_build()
        check_index(again, rows, np.ones(2_300, np.bool_))
    grown = build(again)
    assert grown is None or (grown.kind, grown.rows) == ("ivf", 2_300)


@pytest.mark.parametrize("fresh", [400, 900])
def test_lists_that_serve_for_a_while_grow_before_a_graph_is_made_of_many_fresh_rows(
    fresh, monkeypatch
):
    """Queries would compare those row by row for as long as that takes; of a few the graph is made at once."""
    monkeypatch.setattr(choice, "_LISTS_FIRST_ROWS", 1_500)
    monkeypatch.setattr(choice, "keep_up", lambda *_: False)
    monkeypatch.setattr(choice, "cheaper", lambda *_: False)
    rows = Rows(2_900)
    index = make_index(rows, "auto", "l2", exact_max_scalars=0)
    index.append(rows.vectors[:2_000])
    index.publish(1)
    index.install(build(index))
    assert index.view.main.provisional
    index.append(rows.vectors[2_000 : 2_000 + fresh])
    index.publish(2)
    made = []
    while index.unfinished():
        index.install(build(index))
        made.append((index.view.main.kind, index.view.main.n))
    graph = ("hnsw", 2_000 + fresh)
    assert made == ([graph] if fresh == 400 else [("ivf", 2_000 + fresh), graph])


def test_what_a_graph_may_not_take_lists_keep(monkeypatch):
    """The budget of a build allows lists but no graph: they stay."""
    monkeypatch.setattr(choice, "_LISTS_FIRST_ROWS", 1_500)
    rows = Rows(2_000)
    index = make_index(rows, "auto", "l2", exact_max_scalars=0)
    index.append(rows.vectors)
    index.publish(1)
    index.install(build(index))
    assert index.unfinished()
    index.settings = {**index.settings, "build_memory_bytes": 1}
    settled = build(index)
    assert (settled.kind, settled.main.provisional) == ("ivf", False)


@pytest.mark.parametrize(
    ("held", "fresh", "expected"),
    [
        (0, 199_999, False),
        (100_000, 200_000, True),
        (300_000, 299_999, False),
        (300_000, 300_000, True),
    ],
)
def test_lists_come_first_only_for_many_fresh_rows(held, fresh, expected):
    """Not where a graph is there to grow, nor where nothing but comparing all would do."""
    rows = held + fresh
    assert choice.goes_through_lists("sq8", held, rows, 0.95) is expected
    assert not choice.goes_through_lists("binary", held, rows, 0.95)
    assert not choice.goes_through_lists("sq8", held, rows, 1.0)


def test_what_single_queries_take_is_measured(monkeypatch):
    """Some time for what reaches its target, for ever where that is not reached; a small graph tells nothing."""
    monkeypatch.setattr(plan, "exact_cost", lambda *_: np.inf)
    rows = Rows(3_000)
    mains = []
    for kind in ("hnsw", "ivf"):
        index = make_index(rows, kind, "l2", "sq8")
        index.append(rows.vectors)
        index.publish(1)
        index.install(build(index))
        mains.append(index.view.main)
        assert 1.0 < choice.single_us(mains[-1], index) < 1e5
    graph, lists = mains
    never = graph.with_curve(Curve((), 3_000, 0))
    assert choice.single_us(never, index) == np.inf
    assert choice.cheaper(lists, never, index)
    assert not choice.cheaper(never, lists, index)
    assert not choice.keep_up(lists, graph, index), "too few rows to tell"
    assert not choice.keep_up(lists, None, index)


def test_a_graph_that_never_reaches_its_target_gives_way_to_lists():
    """By what was measured: a curve without the target costs more than any other."""
    point = Point(16, 0.5, 0.4, 0.5, 0.4, 10.0)
    short = Curve((point,), 1_000, 100)
    assert short.cost_us(short.setting(0.95, 10)) == np.inf
    good = Curve((point, Point(64, 0.99, 0.98, 0.99, 0.98, 30.0)), 1_000, 100)
    assert 10.0 < good.cost_us(good.setting(0.95, 10)) < 30.0
    assert good.cost_us(64) == 30.0


def test_build_index_waits_until_nothing_is_left_to_build(tmp_path, monkeypatch):
    """Through the builder: lists, then the graph; the files of what was replaced go, and what stays is opened."""
    monkeypatch.setattr(choice, "_LISTS_FIRST_ROWS", 1_500)
    seen = []
    made = choice.cheaper

    def cheaper(lists, graph, job):
        seen.append((lists.kind, graph.kind))
        return made(lists, graph, job)

    monkeypatch.setattr(choice, "cheaper", cheaper)
    rows = Rows(3_000)
    settings = {"exact_max_scalars": 0, "audit_share": 0.0}
    with vecdb.open(tmp_path, **settings) as db:
        docs = db.create_collection("docs", dimension=rows.vectors.shape[1], metric="l2")
        docs.insert([str(n) for n in range(3_000)], rows.vectors)
        docs.build_index(wait=True, timeout_s=120)
        assert seen == [("ivf", "hnsw")]
        index = docs.stats().index
        assert (index.indexed_rows, index.building) == (3_000, False)
        kind, files = index.kind, {path.name for path in tmp_path.rglob("index-*")}
    assert len({name.split(".")[0] for name in files}) == 1
    with vecdb.open(tmp_path, **settings) as db:
        docs = db.get_collection("docs")
        docs.build_index(wait=True, timeout_s=120)
        assert docs.stats().index.kind == kind
    assert {path.name for path in tmp_path.rglob("index-*")} == files, "nothing was built again"
