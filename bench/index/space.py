"""Opening, and what a collection takes on the disk before and after it was changed and compacted."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from .. import clusters, measure
from ..children import Child
from ..peers import engine
from ..sources import Source
from ..worker import BATCH, K
from .plan import WORKER, Plan
from .tables import mib, number, table

_UPDATED, _DELETED = 0.2, 0.1
_STORE_FILES = "*.mdb"


def run_open(plan: Plan) -> dict[str, Any]:
    """Fresh processes, imports done, file cache warm: until `open` returns, until the first answer."""
    made = plan.collection()
    truth = plan.source.truth(K)
    opened_s, answered_s, recalls = [], [], []
    for _ in range(max(plan.rounds, 3)):
        with Child(WORKER, plan.source) as child:
            child.call("load", "engine")
            opened_s.append(child.call("open", "it", "engine", made.folder, False, {}))
            taken_s, answer = child.call("first", "it")
            answered_s.append(opened_s[-1] + taken_s)
            recalls.append(plan.source.recall(answer, truth))
            child.call("close", "it")
    return {
        "index": f"{made.kind}/{made.quantization}",
        "open_s": median(opened_s),
        "first_answer_s": median(answered_s),
        "first_answer_s_low": min(answered_s),
        "first_answer_s_high": max(answered_s),
        "recall_of_first": float(np.mean(recalls)),
    }


def page_open(found: dict[str, Any]) -> list[str]:
    return [
        f"## Open\n\n{found['index']}, file cache warm, imports done: open in {found['open_s']:.2f} s,"
        f" first answer after {found['first_answer_s']:.2f} s"
        f" ({found['first_answer_s_low']:.2f}-{found['first_answer_s_high']:.2f}), of recall@10"
        f" {found['recall_of_first']:.2f}.\n"
    ]


class Changer:
    """Runs in a child: fills a collection without an index, changes it, compacts it."""

    def __init__(self, source: Source, folder: Path) -> None:
        self._source = source
        self._folder = folder
        # Nobody reads the past here, so it need not be kept for the default hour.
        options: dict[str, Any] = {"auto_build": False, "history_s": 0.0}
        self._system = engine.System(source, folder, create=True, index="exact", **options)

    def load(self) -> dict[str, int]:
        for start in range(0, self._source.rows, BATCH):
            stop = min(start + BATCH, self._source.rows)
            self._system.insert(start, self._source.part(start, stop))
        return self._bytes()

    def change(self) -> dict[str, int]:
        """Replaces 20 % of the records with new vectors, deletes 10 % of the others."""
        chosen = np.random.default_rng(1).permutation(self._source.rows)
        updated = np.sort(chosen[: int(len(chosen) * _UPDATED)])
        deleted = np.sort(chosen[len(updated) :][: int(len(chosen) * _DELETED)])
        rng = np.random.default_rng(2)
        collection = self._system.collection
        for start in range(0, len(updated), BATCH):
            rows = updated[start : start + BATCH].tolist()
            records = [self._source.records(row, row + 1) for row in rows]
            shape = (len(rows), self._source.dimension)
            collection.upsert(
                [ids[0] for ids, _, _ in records],
                clusters.unit(rng.standard_normal(shape, np.float32)),
                metadata=[metadata[0] for _, metadata, _ in records],
                documents=[documents[0] for _, _, documents in records],
            )
        for start in range(0, len(deleted), BATCH):
            rows = deleted[start : start + BATCH].tolist()
            collection.delete([self._source.records(row, row + 1)[0][0] for row in rows])
        return self._bytes()

    def compact(self) -> dict[str, Any]:
        started_s = time.perf_counter()
        self._system.collection.compact()
        return {"seconds": time.perf_counter() - started_s, **self._bytes()}

    def close(self) -> dict[str, int]:
        self._system.close()
        return self._bytes()

    def _bytes(self) -> dict[str, int]:
        everything = measure.folder_bytes(self._folder)
        store = sum(path.stat().st_blocks * 512 for path in self._folder.rglob(_STORE_FILES))
        return {"store_bytes": store, "all_bytes": everything}


def run_disk(plan: Plan) -> dict[str, Any]:
    folder = plan.folder / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    with Child("bench.index.space:Changer", plan.source, folder) as child:
        loaded = child.call("load")
        changed = child.call("change")
        compacted = child.call("compact")
        closed = child.call("close")
    indexed = plan.collection()
    return {
        "content_bytes": plan.source.raw_bytes + plan.source.encoded_bytes,
        "live_share": 1 - _DELETED,
        "loaded": loaded,
        "changed": changed,
        "compacted": compacted,
        "closed": closed,
        "index_file_bytes": indexed.figures["index"]["file_bytes"],
    }


def page_disk(found: dict[str, Any]) -> list[str]:
    full = found["content_bytes"]
    live = full * found["live_share"]
    steps = [
        ("after loading", found["loaded"], full),
        ("after 20 % replaced, 10 % deleted", found["changed"], live),
        ("after compact()", found["compacted"], live),
    ]
    rows = [
        (name, mib(one["store_bytes"]), mib(content), number(one["store_bytes"] / content))
        for name, one, content in steps
    ]
    return [
        "## Disk\n\nStore files against raw vectors + metadata as compact JSON + documents of the live"
        " records, before index files.\n",
        table(("", "store", "content", "ratio"), rows),
        f"compact() took {found['compacted']['seconds']:.1f} s.\n",
        f"The index file of the collection beside it takes {mib(found['index_file_bytes'])}.\n",
    ]
