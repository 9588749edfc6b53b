"""The measuring tools measure what they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import datasets, first, measure


def test_clusters_are_the_same_for_the_same_seed() -> None:
    """A seed gives the same rows again, another seed others; all of unit length."""
    one, same, other = (datasets.clusters(300, 10, seed, dimension=16) for seed in (1, 1, 2))
    assert np.array_equal(one.vectors, same.vectors)
    assert one.metadata == same.metadata
    assert not np.array_equal(one.vectors, other.vectors)
    assert np.allclose(np.linalg.norm(one.queries, axis=1), 1, atol=1e-5)
    assert len(set(one.ids)) == 300


def test_recall_counts_ties_and_nothing_else() -> None:
    """Equal distances are equally right; a wrong row, one named twice or one not allowed is not."""
    base = datasets.clusters(50, 1, 3, dimension=16)
    vectors = base.vectors.copy()
    order = np.argsort(1 - vectors @ base.queries[0])
    vectors[order[3]] = vectors[order[2]]
    data = datasets.Dataset("ties", base.ids, vectors, base.metadata, base.documents, base.queries)
    ids = [data.ids[row] for row in order]
    truth = data.truth(3)
    assert measure.recall(data, [ids[:3]], truth) == 1
    assert measure.recall(data, [[ids[0], ids[1], ids[3]]], truth) == 1
    assert measure.recall(data, [[ids[0], ids[1], ids[9]]], truth) == pytest.approx(2 / 3)
    assert measure.recall(data, [[ids[0], ids[0], ids[0]]], truth) == pytest.approx(1 / 3)
    allowed = np.zeros(50, np.bool_)
    allowed[order[[1, 5]]] = True
    filtered = data.truth(3, allowed)
    assert measure.recall(data, [[ids[1], ids[5]]], filtered) == 1
    assert measure.recall(data, [[ids[1], ids[0]]], filtered) == 0.5
    assert measure.recall(data, [[]], filtered) == 0


def test_the_first_measurement_runs_and_writes_its_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All cases of all systems end up in the JSON file and on the page, with recall and machine."""
    monkeypatch.setattr(datasets, "WORDNET", tmp_path / "missing")
    words = ["--rows", "600", "--queries", "20", "--rounds", "1", "--folder", str(tmp_path)]
    first.main([*words, "--results", str(tmp_path / "results")])
    (path,) = (tmp_path / "results").glob("*-first.json")
    results = json.loads(path.read_text())
    systems = {"vecdb embedded", "vecdb over gRPC", "FAISS flat", "FAISS HNSW M=16 efC=100"}
    assert set(results["insert"]) == systems
    assert set(results["query"]["single, 1 caller"]) == systems
    assert results["machine"]["cores"] >= 1
    for case, of_system in results["query"].items():
        for name, one in of_system.items():
            assert one["queries_per_s"] > 0, (case, name)
            assert one["recall"] is None or one["recall"] >= 0.95, (case, name)
    page = path.with_suffix(".md").read_text()
    assert "p99" in page
    assert "600 rows" in page
