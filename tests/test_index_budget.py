"""What a build takes in truth is what it says that it will take, so `build_memory_bytes` is kept."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
from index_rows import DIMENSION, Rows, build, filled, make_index, small_steps

from vecdb.errors import LimitExceeded
from vecdb.index import choice
from vecdb.index.build import Build, build_bytes
from vecdb.index.calibrate import Curve, Point

ROOT = Path(__file__).resolve().parent.parent
STATUS = Path("/proc/self/status")
MEASURE = """
import json, os, sys, threading, time
import numpy as np
sys.path[:0] = [{tests!r}]
from index_rows import Rows, build, clustered, make_index
from vecdb.index import give_memory_back
from vecdb.index import choice
from vecdb.index.build import build_bytes

kind, quantization, path, n, dimension = {kind!r}, {quantization!r}, {path!r}, {n}, {dimension}
rows = Rows(0, dimension=dimension)
made = clustered(np.random.default_rng(5), n, dimension, 300).astype(np.float32)
made.tofile(path)
del made
rows.vectors = np.memmap(path, np.float32, "r").reshape(n, dimension)  # none of ours

def anonymous():
    line = next(x for x in open("/proc/self/status") if x.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

asked, check = [], choice.check_budget

def checked(kind, code, dimension, held, fresh, replaced, settings, beside=0):
    asked.append(build_bytes(kind, code, dimension, held, fresh, replaced) + beside)
    check(kind, code, dimension, held, fresh, replaced, settings, beside)

choice.check_budget = checked
choice.LONG_WALK = {long_walk}
index = make_index(rows, kind, "l2", quantization, exact_max_scalars=0)
told, first = [], n * 4 // 5
for start, stop in ((0, first), (first, n)):
    index.append(rows.vectors[start:stop])
    index.publish(stop)
    give_memory_back()
    asked.clear()
    before, peak, done = anonymous(), [0], threading.Event()

    def watch():
        while not done.wait(0.002):
            peak[0] = max(peak[0], anonymous())

    watching = threading.Thread(target=watch)
    watching.start()
    built = build(index)
    done.set()
    watching.join()
    told.append((max(asked), peak[0] - before, len(asked)))
    index.install(built)
print(json.dumps(told))
"""


@pytest.mark.long
@pytest.mark.skipif(
    not STATUS.exists() or "RssAnon" not in STATUS.read_text(), reason="needs Linux"
)
@pytest.mark.parametrize(
    ("kind", "quantization", "long_walk"),
    [
        ("ivf", "pq4", 512), ("ivf", "sq8", 512), ("ivf", "none", 512), ("exact", "sq8", 512), ("hnsw", "sq8", 512),
        ("hnsw", "none", 512), ("auto", "auto", 512), ("auto", "auto", 1),
    ],
)  # fmt: skip
def test_a_build_takes_no_more_than_it_says(kind, quantization, long_walk, tmp_path):
    """The memory of a build that begins anew, and of one that grows, stays within what the budget is compared with; of
    kind auto also where lists are made beside a graph that walks too long."""
    script = MEASURE.format(
        tests=str(ROOT / "tests"), kind=kind, quantization=quantization, long_walk=long_walk,
        path=str(tmp_path / "vectors"), n=50_000, dimension=64,
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for said, taken, builds in json.loads(done.stdout):
        print(
            f"{kind} {quantization}: said {said / 1e6:.0f} MB for {builds}, took {taken / 1e6:.0f}"
        )
        # Threads and the allocator have some of their own.
        assert taken <= 1.1 * said + (8 << 20)


N = 3_000
"""Rows of the tests below, all of them fresh."""


@pytest.fixture
def both(monkeypatch):
    """Makes an index of kind auto with rows that a graph walks long for, so that lists are made as well, which are taken
    for cheaper: a function of its settings."""
    small_steps(monkeypatch)
    monkeypatch.setattr(choice, "LONG_WALK", 1)
    monkeypatch.setattr(choice, "cheaper", lambda *_: True)

    def make(**settings):
        return filled(Rows(N), "auto", "l2", exact_max_scalars=0, **settings)

    return make


def test_lists_beside_a_graph_fit_with_what_the_graph_keeps(both):
    """A budget that has room for a graph and for lists, but not for lists while the graph is there, leaves the graph, which
    reaches the target; one that has room for both gives lists."""
    graph = build_bytes("hnsw", "float32", DIMENSION, 0, N, 0)
    lists = build_bytes("ivf", "sq8", DIMENSION, 0, N, 0)
    kept = choice.index_bytes("hnsw", "float32", DIMENSION, N) - 4 * DIMENSION * N
    largest = max(graph, lists)
    assert lists + kept > largest + 1_000
    assert build(both(build_memory_bytes=largest)).kind == "hnsw"
    assert build(both(build_memory_bytes=lists + kept)).kind == "ivf"


def test_a_graph_is_made_at_once_where_lists_to_serve_meanwhile_do_not_fit(monkeypatch):
    """Many rows at once go through lists where these fit, whose training may take more than a graph; a budget that has room for the
    graph alone gives that, and one for neither is told of."""
    small_steps(monkeypatch)
    monkeypatch.setattr(choice, "_LISTS_FIRST_ROWS", N)
    monkeypatch.setattr(choice, "needs_lists", lambda *_: False)
    rows = Rows(N, dimension=64)
    graph, lists = (build_bytes(*one, 64, 0, N, 0) for one in (("hnsw", "float32"), ("ivf", "sq8")))
    assert lists > graph

    def made(limit):
        return build(filled(rows, "auto", "l2", exact_max_scalars=0, build_memory_bytes=limit)).kind

    assert (made(lists), made(graph)) == ("ivf", "hnsw")
    with pytest.raises(LimitExceeded, match="as hnsw"):
        made(graph - 1)


@pytest.mark.parametrize("first", ["hnsw", "ivf"])
def test_what_will_not_be_kept_goes_before_the_next_is_made(both, first, monkeypatch):
    """A graph that misses the target is gone before lists are made in its place, and lists that miss it, which were to serve
    until the graph is there, before that."""
    held, alive = [], []
    anew = Build.anew

    def missing(made, *given):
        alive.extend(one() is not None for one in held)
        found = anew(made, *given)
        if made.kind != first:
            return found
        held.append(weakref.ref(found.index))
        return found.with_curve(Curve((Point(16, 0.5, 0.4, 0.5, 0.4, 10.0),), found.n, 100))

    monkeypatch.setattr(Build, "anew", missing)
    if first == "ivf":
        monkeypatch.setattr(choice, "_LISTS_FIRST_ROWS", N)
        monkeypatch.setattr(choice, "needs_lists", lambda *_: False)
    built = build(both())
    assert built.kind == {"hnsw": "ivf", "ivf": "hnsw"}[first]
    assert alive == [False]


def test_a_graph_that_misses_the_target_is_built_once_where_lists_do_not_fit(monkeypatch):
    """A build that fails since a graph misses the target and lists do not fit is tried again, but the graph is made again only
    when there are more rows by `index_tail_share`; lists are made as soon as there is memory for them."""
    small_steps(monkeypatch)
    made, anew = [], Build.anew

    def counted(of, *given):
        made.append(of.kind)
        found = anew(of, *given)
        if of.kind == "ivf":
            return found
        return found.with_curve(Curve((Point(16, 0.5, 0.4, 0.5, 0.4, 10.0),), found.n, 100))

    monkeypatch.setattr(Build, "anew", counted)
    rows = Rows(N + 1_000, dimension=64)
    limit = build_bytes("hnsw", "float32", 64, 0, N + 1_000, 0)
    settings = {"exact_max_scalars": 0, "build_memory_bytes": limit, "index_tail_share": 0.1}
    index = make_index(rows, "auto", "l2", **settings)

    def grow(start, stop):
        index.append(rows.vectors[start:stop])
        index.publish(stop)

    def refused():
        with pytest.raises(
            LimitExceeded, match=r"graph of .*0\.95, and is not built again.* as ivf"
        ):
            build(index)

    grow(0, N)
    for _ in range(3):
        refused()
    assert made == ["hnsw"]
    grow(N, N + 300)
    refused()
    assert made == ["hnsw"]
    grow(N + 300, N + 1_000)
    for _ in range(2):
        refused()
    assert made == ["hnsw", "hnsw"]
    monkeypatch.setitem(index.settings, "build_memory_bytes", 0)
    assert build(index).kind == "ivf"
    assert made == ["hnsw", "hnsw", "ivf"]


def test_a_finer_code_fits_with_the_lists_that_it_is_to_replace(monkeypatch):
    """Lists of pq4 that miss the target are there until those of pq8 reach it, and count meanwhile."""
    small_steps(monkeypatch)
    rows = Rows(2_000, dimension=16, clusters=2)
    pq4, pq8 = (build_bytes("ivf", code, 16, 0, 2_000, 0) for code in ("pq4", "pq8"))
    kept = choice.index_bytes("ivf", "pq4", 16, 2_000)
    for limit, code in ((max(pq4, pq8), "pq4"), (pq8 + kept, "pq8")):
        index = filled(
            rows, "ivf", target_recall=0.99, index_memory_bytes=90_000, build_memory_bytes=limit
        )
        assert build(index).main.code == code
