"""What a build takes in truth is what it says that it will take, so `build_memory_bytes` is kept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STATUS = Path("/proc/self/status")
MEASURE = """
import json, os, sys, threading, time
import numpy as np
sys.path[:0] = [{tests!r}]
from index_rows import Rows, build, clustered, make_index
from vecdb.index import give_memory_back
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

index = make_index(rows, kind, "l2", quantization)
told, first = [], n * 4 // 5
for start, stop in ((0, first), (first, n)):
    index.append(rows.vectors[start:stop])
    index.publish(stop)
    give_memory_back()
    before, peak, done = anonymous(), [0], threading.Event()

    def watch():
        while not done.wait(0.002):
            peak[0] = max(peak[0], anonymous())

    watching = threading.Thread(target=watch)
    watching.start()
    built = build(index)
    done.set()
    watching.join()
    told.append((build_bytes(kind, built.main.code, dimension, start, stop - start, 0), peak[0] - before))
    index.install(built)
print(json.dumps(told))
"""


@pytest.mark.long
@pytest.mark.skipif(
    not STATUS.exists() or "RssAnon" not in STATUS.read_text(), reason="needs Linux"
)
@pytest.mark.parametrize(
    ("kind", "quantization"),
    [("ivf", "pq4"), ("ivf", "sq8"), ("ivf", "none"), ("exact", "sq8"), ("hnsw", "sq8")],
)
def test_a_build_takes_no_more_than_it_says(kind, quantization, tmp_path):
    """The memory of a build that begins anew, and of one that grows, stays within what the budget is compared with."""
    script = MEASURE.format(
        tests=str(ROOT / "tests"), kind=kind, quantization=quantization,
        path=str(tmp_path / "vectors"), n=50_000, dimension=64,
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for said, taken in json.loads(done.stdout):
        print(f"{kind} {quantization}: said {said / 1e6:.0f} MB, took {taken / 1e6:.0f}")
        # Threads and the allocator have some of their own.
        assert taken <= 1.1 * said + (8 << 20)
