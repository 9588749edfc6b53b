"""Codes of few bits in IVF lists, FAISS alone: which of them an engine should offer.

All codes share centroids, and candidates are ranked again by float32 in memory, so that only the codes differ.
For each, lists probed and candidates an answer are swept; shown is the fastest pair that reaches a recall.
One thread, single queries and batches of 100, in turns.
"""

from __future__ import annotations

import importlib
import math
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import curves, measure
from ..sources import Truth
from ..worker import QUERY_BATCH, K
from .plan import Plan
from .tables import number, rate, table

_ROWS_A_LIST = 40
_PROBES = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024)
"""Or all lists, where there are not so many."""
_CANDIDATES = (1, 2, 4, 8, 16, 32)
"""As multiples of k."""
_SHOWN = (0.95, 0.99)
_LEAST, _ENOUGH = 0.93, 0.998
_TRAINED_ON = 60_000


def run(plan: Plan) -> dict[str, Any]:
    faiss: Any = importlib.import_module("faiss")
    faiss.omp_set_num_threads(_cores())
    source = plan.source
    vectors = source.vectors(0, source.rows)
    lists = int(min(4 * math.sqrt(len(vectors)), len(vectors) // _ROWS_A_LIST))
    some = vectors[:: max(1, len(vectors) // _TRAINED_ON)]
    centres = faiss.Kmeans(
        source.dimension, lists, niter=10, spherical=True, seed=1, max_points_per_centroid=len(some)
    )
    centres.train(some)
    truth = source.truth(K)
    found: dict[str, Any] = {}
    for name, make in _codes(faiss, source.dimension, lists):
        quantizer = faiss.IndexFlatIP(source.dimension)
        quantizer.add(centres.centroids)
        index = make(quantizer)
        started_s = time.perf_counter()
        index.train(some)
        index.add(vectors)
        build_s = time.perf_counter() - started_s
        flat = faiss.IndexFlatIP(source.dimension)
        flat.add(vectors)
        both = faiss.IndexRefine(index, flat)
        found[name] = {
            "bytes_a_row": int(index.code_size),
            "build_s": build_s,
            **_swept(faiss, plan, both, lists, truth),
        }
        plan.say(f"  {name}: {index.code_size} bytes a row, built in {build_s:.1f} s")
    return {"lists": lists, "codes": found}


def _codes(faiss: Any, dimension: int, lists: int) -> list[tuple[str, Callable[[Any], Any]]]:
    ip, d = faiss.METRIC_INNER_PRODUCT, dimension
    kinds = {"SQ8": faiss.ScalarQuantizer.QT_8bit, "SQ4": faiss.ScalarQuantizer.QT_4bit}
    made: list[tuple[str, Callable[[Any], Any]]] = [
        (name, lambda q, kind=kind: faiss.IndexIVFScalarQuantizer(q, d, lists, kind, ip, False))  # type: ignore[misc]
        for name, kind in kinds.items()
    ]
    made.append(("RaBitQ", lambda q: faiss.IndexIVFRaBitQ(q, d, lists, ip)))
    made.append(("RaBitQ fast-scan", lambda q: faiss.IndexIVFRaBitQFastScan(q, d, lists, ip)))
    made += [
        (f"PQ{d // part}x4 fast-scan", lambda q, m=d // part: faiss.IndexIVFPQFastScan(q, d, lists, m, 4, ip))  # type: ignore[misc]
        for part in (2, 4)
        if d % part == 0
    ]  # fmt: skip
    return made


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _swept(faiss: Any, plan: Plan, index: Any, nlist: int, truth: Truth) -> dict[str, Any]:
    """Points of single queries and batches over all pairs that may reach a recall that is shown."""
    queries = np.ascontiguousarray(plan.source.queries)
    lines: dict[str, list[curves.Point]] = {"single": [], "batch": []}
    for probes in dict.fromkeys(min(probes, nlist) for probes in _PROBES):
        for factor in _CANDIDATES:
            params = faiss.IndexRefineSearchParameters(
                k_factor=float(factor), base_index_params=faiss.SearchParametersIVF(nprobe=probes)
            )
            faiss.omp_set_num_threads(_cores())
            recall = plan.source.recall(index.search(queries, K, params=params)[1], truth)
            if recall < _LEAST:
                continue
            faiss.omp_set_num_threads(1)
            for shape, size in (("single", 1), ("batch", QUERY_BATCH)):
                parts = [queries[i : i + size] for i in range(0, len(queries), size)]

                def call(n: int, parts: list[Any] = parts, params: Any = params) -> object:
                    return index.search(parts[n], K, params=params)

                rounds = [
                    measure.rate(call, len(parts), weight=size, budget_s=0.5)
                    for _ in range(plan.rounds)
                ]
                point = curves.point(probes, recall, rounds)
                lines[shape].append({**point, "candidates": factor * K})
            if recall > _ENOUGH:
                break
    return lines


def page(found: dict[str, Any]) -> list[str]:
    rows = []
    for name, one in found["codes"].items():
        line = [name, str(one["bytes_a_row"]), f"{one['build_s']:.1f} s"]
        for shape in ("single", "batch"):
            for target in _SHOWN:
                point = curves.reaching(one[shape], target)
                where = "" if point is None else (
                    f", {number(point['recall'], 3)} at {point['setting']:.0f}/{point['candidates']}"
                )  # fmt: skip
                line.append(rate(point) + where)
        rows.append(line)
    header = (
        "code", "bytes a row", "encoded in", "single at 0.95", "single at 0.99", "batch at 0.95", "batch at 0.99",
    )  # fmt: skip
    return [
        f"## Codes of few bits\n\nFAISS alone, {found['lists']:,} lists around the same centroids, candidates ranked"
        " again by float32 in memory; one thread, queries/s; behind it recall at lists probed / candidates.\n",
        table(header, rows),
    ]
