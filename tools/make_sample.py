"""Makes examples/wordnet from the full set of WordNet embeddings.

    python tools/make_sample.py --source ../shared/data/wordnet

The same source and seed give the same bytes. The sample holds, for each chosen query, its ten
nearest rows of the full set, so that answers make sense; the other rows are spread over the
categories evenly, as far as each category reaches.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEED = 20260131
ROWS = 4_000
QUERIES = 50
NEAREST = 10
TARGET = Path(__file__).resolve().parent.parent / "examples" / "wordnet"


def read_rows(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    # No time and no name in the header: the same rows give the same bytes.
    path.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))


def choose(
    categories: Sequence[str], wanted: set[int], count: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Sorted row numbers, `count` of them: `wanted`, then the categories in turn."""
    chosen = set(wanted)
    names = sorted(set(categories))
    members: dict[str, list[int]] = {name: [] for name in names}
    for row in rng.permutation(len(categories)).tolist():
        if row not in chosen:
            members[categories[row]].append(row)
    while len(chosen) < count:
        for name in names:
            if members[name] and len(chosen) < count:
                chosen.add(members[name].pop())
    return np.array(sorted(chosen), np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--source", type=Path, required=True, help="folder of the full set")
    parser.add_argument("--target", type=Path, default=TARGET)
    args = parser.parse_args()
    source: Path = args.source
    target: Path = args.target

    rng = np.random.default_rng(SEED)
    rows = read_rows(source / "rows.jsonl.gz")
    queries = read_rows(source / "queries.jsonl.gz")
    vectors = np.load(source / "vectors.f16.npy", mmap_mode="r")
    query_vectors = np.load(source / "queries.f16.npy")
    nearest = np.load(source / "neighbors.i32.npy")

    picked = np.sort(rng.choice(len(queries), QUERIES, replace=False))
    wanted = {int(row) for row in nearest[picked, :NEAREST].ravel()}
    chosen = choose([row["category"] for row in rows], wanted, ROWS, rng)

    target.mkdir(parents=True, exist_ok=True)
    np.save(target / "vectors.f16.npy", np.ascontiguousarray(vectors[chosen]))
    np.save(target / "queries.f16.npy", np.ascontiguousarray(query_vectors[picked]))
    write_rows(target / "rows.jsonl.gz", [rows[i] for i in chosen])
    write_rows(target / "queries.jsonl.gz", [queries[i] for i in picked])
    print(f"{len(chosen):,} rows and {len(picked)} queries (seed {SEED}) in {target}")


if __name__ == "__main__":
    main()
