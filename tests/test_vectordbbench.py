"""vecdb's client for VectorDBBench, against a real server. Needs the environment of
bench/vectordbbench/requirements.txt; elsewhere only what needs no package of it is tested."""

from __future__ import annotations

import json
import os
import pickle
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import sources
from bench.peers.server import Server
from bench.sources import exact

# Their package logs into the current folder where nothing else is said, and reads that when it is imported.
os.environ.setdefault("LOG_FILE", str(Path(tempfile.gettempdir()) / "vectordb_bench.log"))
HERE = find_spec("vectordb_bench") is not None
needed = pytest.mark.skipif(not HERE, reason="vectordb-bench is not installed")
DIMENSION = 16


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a server of vecdb listens, in a process of its own."""
    folder = tmp_path_factory.mktemp("data")
    words = ["-m", "vecdb_server", "serve", "--data", str(folder), "--port", "0"]
    server = Server([sys.executable, *words], heard=True)
    yield server.first_line().split()[-1]
    server.stop()


def rows(count: int, seed: int = 1) -> Any:
    return np.random.default_rng(seed).standard_normal((count, DIMENSION)).astype(np.float32)


def client(target: str, **more: Any) -> Any:
    from bench.vectordbbench.client import Vecdb, VecdbCaseConfig, VecdbConfig

    config = VecdbConfig(target=target).to_dict()
    return Vecdb(DIMENSION, config, VecdbCaseConfig(), drop_old=True, **more)


def nearest(vectors: Any, query: Any, k: int) -> list[int]:
    apart = 1 - (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)) @ (
        query / np.linalg.norm(query)
    )
    return np.argsort(apart)[:k].tolist()


def test_the_true_neighbours_of_the_files_are_brute_force(tmp_path: Path) -> None:
    """Neighbours come nearest first, whatever block they are looked for in, of twins the first."""
    made = sources.prepare("clusters", 500, 10, 1, tmp_path, DIMENSION)
    vectors = made.vectors(0, 500)
    expected = np.argsort(1 - made.queries @ vectors.T, axis=1, kind="stable")[:, :7]
    for block in (1, 3, 100, 20_000):
        found = exact.nearest(made.queries, 500, made.vectors, 7, block)
        assert np.array_equal(found, expected)
    twins = np.concatenate([vectors[:5], vectors[:5]])
    found = exact.nearest(twins[:5], 10, lambda start, stop: twins[start:stop], 2, 4)
    assert found.tolist() == [[row, row + 5] for row in range(5)]


@needed
def test_vecdb_becomes_one_of_their_databases_and_the_others_stay() -> None:
    """The member is found by name and value and answers with vecdb's classes; theirs answer as before."""
    from vectordb_bench.backend.clients import DB

    from bench.vectordbbench.client import Vecdb, VecdbCaseConfig, VecdbConfig
    from bench.vectordbbench.registry import registered

    member = registered()
    assert member is registered() is DB("vecdb") is DB["Vecdb"]
    assert list(DB).count(member) == 1
    assert (member.init_cls, member.config_cls) == (Vecdb, VecdbConfig)
    assert member.case_config_cls() is VecdbCaseConfig
    assert DB.Test.init_cls.__name__ == "Test"
    assert DB.Test.config_cls.__name__ == "TestConfig"
    assert DB.Test.case_config_cls() is not VecdbCaseConfig
    assert isinstance(member, DB)


@needed
def test_what_is_inserted_is_found_nearest_first(target: str) -> None:
    """A search gives the numbers of the nearest rows in order; sending a batch again changes nothing."""
    vectors = rows(300)
    one = client(target)
    with one.init():
        for start in (0, 100, 100, 200):
            part = vectors[start : start + 100].tolist()
            assert one.insert_embeddings(part, list(range(start, start + 100))) == (100, None)
        one.optimize(300)
        for query in rows(10, 2):
            assert one.search_embedding(query.tolist(), 5) == nearest(vectors, query, 5)


@needed
def test_their_filters_hold(target: str) -> None:
    """Number filters and label filters give the nearest of what they allow, and none gives all again."""
    from vectordb_bench.backend.filter import IntFilter, LabelFilter, NonFilter

    vectors, query = rows(200), rows(1, 3)[0]
    labels = ["label_1p" if number % 50 == 0 else "other" for number in range(200)]
    one = client(target, with_scalar_labels=True)
    with one.init():
        one.insert_embeddings(vectors.tolist(), list(range(200)), labels_data=labels)
        one.prepare_filter(IntFilter(filter_rate=0.9, int_value=180))
        assert one.search_embedding(query, 5) == [180 + i for i in nearest(vectors[180:], query, 5)]
        one.prepare_filter(LabelFilter(label_percentage=0.01))
        assert sorted(one.search_embedding(query, 10)) == [0, 50, 100, 150]
        one.prepare_filter(NonFilter())
        assert one.search_embedding(query, 5) == nearest(vectors, query, 5)


@needed
def test_a_client_goes_into_processes_and_threads(target: str) -> None:
    """A pickled client finds the same collection; threads share its connection."""
    vectors = rows(100)
    one = client(target)
    with one.init():
        one.insert_embeddings(vectors.tolist(), list(range(100)))
    other = pickle.loads(pickle.dumps(one))
    with other.init(), ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda query: other.search_embedding(query, 1), vectors))
    assert found == [[number] for number in range(100)]


@needed
def test_mistakes_are_told_in_their_way(target: str) -> None:
    """A batch that cannot be is returned as an error not to be repeated; nothing works unopened; short loads fail."""
    from vectordb_bench.backend.clients.api import MetricType

    from bench.vectordbbench.client import VecdbCaseConfig

    one = client(target)
    with pytest.raises(RuntimeError, match="no connection"):
        one.search_embedding(rows(1)[0], 1)
    with one.init():
        count, error = one.insert_embeddings([[1.0, 2.0]], [1])
        assert count == 0
        assert error.non_retryable
        one.insert_embeddings(rows(3).tolist(), [0, 1, 2])
        with pytest.raises(RuntimeError, match="3 records are there, 4"):
            one.optimize(4)
    with pytest.raises(ValueError, match="no metric"):
        VecdbCaseConfig(metric_type=MetricType.JACCARD).index_param()
    again = client(target)
    with again.init():
        assert again.search_embedding(rows(1)[0], 5) == []


@needed
def test_their_case_runs_over_a_set_of_ones_own(tmp_path: Path) -> None:
    """One command loads, indexes, asks and writes a result with recall, as JSON and as a page."""
    from bench.vectordbbench import main

    words = ["--dataset", "clusters", "--rows", "1500", "--queries", "20", "--k", "10"]
    words += ["--seconds", "1", "--callers", "1", "2"]
    words += ["--cache", str(tmp_path), "--results", str(tmp_path / "results")]
    assert main(words) == 0
    (path,) = (tmp_path / "results").glob("*-vectordbbench-clusters-1500.json")
    results = json.loads(path.read_text())
    found = results["metrics"]
    assert found["inserted_count"] == 1_500
    assert found["recall"] >= 0.95
    assert found["conc_num_list"] == [1, 2]
    assert all(rate > 0 for rate in found["conc_qps_list"])
    assert str(tmp_path) not in json.dumps(results["task_config"])
    page = path.with_suffix(".md").read_text()
    assert "1,500 rows" in page
    assert f"{found['recall']:.4f}" in page
