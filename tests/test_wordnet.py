"""The main job at its real size: all of WordNet into a running server, and the recall it keeps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from conftest import serving

from vecdb_client import connect

ROOT = Path(__file__).resolve().parent.parent
ROWS = 116_659


def vecdb(*arguments, address, stdout=subprocess.PIPE):
    paths = os.pathsep.join(str(ROOT / p) for p in (".", "server", "clients/python"))
    done = subprocess.run(
        [sys.executable, "-m", "vecdb_server", *map(str, arguments), "--server", address],
        stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=280, check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_of_wordnet_through_the_command_line(wordnet, data_folder):
    """`vecdb import` loads 116,659 rows; recall@10 reaches the target, exact search is exact."""
    queries = np.load(wordnet / "queries.f16.npy").astype(np.float32)
    neighbours = np.load(wordnet / "neighbors.i32.npy")
    vectors = np.load(wordnet / "vectors.f16.npy").astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    with serving(data_folder) as address:
        vecdb(
            "import", "words", wordnet / "rows.jsonl.gz", "--vectors", wordnet / "vectors.f16.npy",
            "--document-field", "text", "--create", "--metric", "cosine", "--build-index",
            "--timeout-s", 250, address=address,
        )  # fmt: skip
        stats = json.loads(vecdb("stats", "words", "--json", address=address))
        assert (stats["count"], stats["rows"]) == (ROWS, ROWS)
        assert stats["index"]["kind"] == "hnsw"
        assert stats["index"]["indexed_rows"] == ROWS
        with connect(address, timeout_s=120) as db:
            words = db.get_collection("words")
            ids = [i for batch in words.scan(include=(), batch_size=10_000) for i in batch.ids]
            place = {record_id: row for row, record_id in enumerate(ids)}

            def recall(found):
                """recall@10, a hit as near as the tenth neighbour counting as well."""
                right = 0
                for i, names in enumerate(found.ids):
                    tenth = unit[i] @ vectors[neighbours[i, 9]]
                    near = vectors[[place[name] for name in names]] @ unit[i]
                    right += int((near >= tenth - 1e-6).sum())
                return right / (10 * len(found.ids))

            found = words.query(queries, k=10)
            print("recall@10", recall(found))
            assert recall(found) >= 0.95
            exact = words.query(queries[:200], k=10, exact=True)
            assert recall(exact) == 1.0
            for where in (
                {"category": "verb.weather"},
                {"category": "noun.artifact"},
                {"pos": "noun"},
            ):
                truth = words.query(queries[:100], k=10, filter=where, exact=True)
                found = words.query(queries[:100], k=10, filter=where)
                near = found.distances <= truth.distances[:, 9:10] + 1e-6
                print(where, near.mean())
                assert near.mean() >= 0.95
            assert words.count({"category": "verb.weather"}) == 81
            assert words.get(["wn-noun-00001740"]).documents[0].startswith("entity: ")
