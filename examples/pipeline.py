"""A data pipeline: a stream of batches in, all records back out in slices, side by side.

    vecdb serve --data ./data
    python examples/pipeline.py [HOST:PORT]

`ingest` keeps a few batches under way and takes the next one from the generator only when the server
has room, so a source of any size needs little memory. `scan` gives every worker a slice of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import sample

from vecdb_client import Collection, connect

BATCH = 250
SLICES = 4


def batches() -> Iterator[dict[str, Any]]:
    """What a source such as a queue or a directory of files would yield."""
    rows = sample.rows()
    for start in range(0, len(rows.ids), BATCH):
        stop = start + BATCH
        yield {
            "ids": rows.ids[start:stop],
            "vectors": rows.vectors[start:stop],
            "metadata": rows.metadata[start:stop],
            "documents": rows.texts[start:stop],
        }


def read_slice(collection: Collection, index: int) -> tuple[int, Any]:
    """One worker's share: how many records, and the sum of their vectors."""
    count = 0
    total = np.zeros(collection.info.dimension)
    for page in collection.scan(slice_index=index, slices=SLICES, include=("vector",)):
        assert page.vectors is not None
        count += len(page)
        total += page.vectors.sum(axis=0)
    return count, total


def main(target: str) -> None:
    with connect(target) as db:
        words = db.create_collection("pipeline", dimension=384, exist_ok=True)
        stored = 0
        for acknowledged in words.ingest(batches(), upsert=True):
            # Durable: a pipeline would move its own mark here.
            stored += acknowledged.count
        print(f"{stored:,} records stored")

        with ThreadPoolExecutor(SLICES) as pool:
            slices = list(pool.map(lambda index: read_slice(words, index), range(SLICES)))
        counts = [count for count, _ in slices]
        mean = sum(total for _, total in slices) / sum(counts)
        print(f"{sum(counts):,} records read in {SLICES} slices of {counts}")
        print(f"length of the mean vector: {np.linalg.norm(mean):.4f}")
        if sum(counts) != words.count():
            sys.exit("the slices do not add up to the collection")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7700")
