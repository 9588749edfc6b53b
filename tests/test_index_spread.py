"""Batches in parts: the same answers as in one call, in order, whatever the parts meet."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from index_rows import Rows, build, make_index

from vecdb.index import Trace, spread
from vecdb.index import view as view_module
from vecdb.index.spread import Cores


@pytest.mark.parametrize("cores", [1, 2, 3, 8])
@pytest.mark.parametrize("queries", [0, 1, 63, 64, 100, 257])
def test_parts_make_up_all_queries_in_order(cores, queries):
    """No query twice, none left out, and never more parts than cores."""
    parts = Cores(cores).spread(queries, lambda start, stop: list(range(start, stop)))
    assert [n for part in parts for n in part] == list(range(queries))
    assert len(parts) <= cores


def test_what_a_part_raises_comes_out_when_none_runs_any_more():
    """From the caller's part and from another's; afterwards batches are spread again."""
    cores, running = Cores(2), []
    for bad in (0, 50):

        def search(start, stop, bad=bad):
            running.append(start)
            if start == bad:
                raise KeyError(start)
            running.remove(start)

        running.clear()
        with pytest.raises(KeyError, match=str(bad)):
            cores.spread(100, search)
        assert running == [bad]
    assert len(cores.spread(100, lambda *_: None)) == 2


def test_a_batch_that_meets_another_is_searched_as_a_whole():
    """The cores are taken: a second batch does not wait for them."""
    cores = Cores(2)
    inner = []

    def search(start, stop):
        if not start:
            inner.append(len(cores.spread(100, lambda *_: None)))

    assert len(cores.spread(100, search)) == 2
    assert inner == [1]


def test_no_thread_to_be_had(monkeypatch):
    """Then the caller searches for all."""

    def refuse(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(spread.ThreadPoolExecutor, "submit", refuse)
    assert Cores(2).spread(100, lambda start, stop: (start, stop)) == [(0, 100)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_threads_of_its_own():
    """The pool of the parent is not waited for."""
    cores = Cores(2)
    cores.spread(100, lambda *_: None)
    child = os.fork()
    if not child:
        cores.clear()
        parts = cores.spread(100, lambda start, stop: threading.get_ident())
        os._exit(0 if len(set(parts)) == 2 else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(
    ("kind", "quantization"), [("hnsw", "none"), ("hnsw", "sq8"), ("ivf", "sq8"), ("ivf", "none")]
)
def test_a_batch_in_parts_answers_as_single_queries_do(kind, quantization, monkeypatch):
    """With fresh and dead rows, and a trace that speaks for all parts."""
    monkeypatch.setattr(view_module, "BESIDE", Cores(3))
    rows = Rows(6_000)
    index = make_index(rows, kind, "cosine", quantization)
    index.append(rows.vectors[:5_000])
    index.publish(1)
    index.install(build(index))
    index.append(rows.vectors[5_000:])
    index.kill(np.arange(0, 6_000, 7))
    view = index.publish(2)
    trace = Trace()
    together = view.search(rows.queries, 10, trace=trace)
    assert trace.allowed_rows == view.n_live
    assert trace.tail_rows_compared > 0
    assert len(together.rows) == len(rows.queries)
    assert not (together.rows % 7 == 0).any()
    same = [
        np.array_equal(view.search(rows.queries[i : i + 1], 10).rows[0], together.rows[i])
        for i in range(len(rows.queries))
    ]
    assert np.mean(same) >= 0.99
