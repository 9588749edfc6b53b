"""How `auto` chooses what stands for a vector in the index."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ..errors import LimitExceeded
from ..memory import must_be_mappable
from ..types import LISTS_ONLY
from . import one
from .build import build_bytes
from .calibrate import SMALL_K
from .codes import code_bytes, code_of, guide_bytes, is_fine
from .distance import Floats
from .host_lists import lists_bytes
from .main import GRAPH_BYTES_A_ROW, Main
from .makers import Job, lists_for
from .source import exact_space

ORDER = ("none", "float16", "sq8", "sq4")
"""From dearest to cheapest in memory; the first that fits is taken."""
FINE_ORDER = ("none", "sq8", "sq4")
"""The same for a graph over vectors that sq8 tells apart well: a walk over it is as quick as one over
float16, in half the memory."""
LISTS_ORDER = ("none", "pq4")
"""The same for lists, where pq4 is the fastest code of all and the smallest. See `finer_code`."""
DEVICE_ORDER = ("none", "sq8", "pq8")
"""The same for lists that a device is to hold, which has no pq4."""
SQ4_TARGET = 0.97
"""Above this target recall 4 bits a number often cannot tell vectors apart, whatever the walk (WordNet at 0.99:
no setting, so every query is answered exactly), while pq4 can, since more candidates are ranked again."""
MEMORY_SHARE = 1 / 16
"""Share of the machine's memory that the index of a collection takes at most where no limit is set: it is
rarely the only one, and a graph over sq8 alone takes a quarter of one over float32. It answers plain queries
at 0.7 of the rate and filtered ones at half of it (WordNet, one run)."""


@lru_cache(maxsize=1)
def memory_bytes() -> int:
    """What this process may use: the machine's memory, or the limit of its control group."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(found, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no control groups of version 2, or "max"
        return found


def index_bytes(kind: str, code: str, dimension: int, rows: int) -> int:
    """Memory of a main index of `rows` vectors, estimated in bytes."""
    beside = GRAPH_BYTES_A_ROW if kind == "hnsw" else 16
    codes = code_bytes(code, dimension) + guide_bytes(kind, code, dimension)
    return rows * (codes + beside + 8)


def kept_bytes(made: Main, dimension: int, replaced: int) -> int:
    """Memory that an index just made keeps beyond what was there when its build began, estimated in bytes; `replaced` as
    in `build_bytes`. A graph over float32 has taken the other rows' vectors over from the tail."""
    kept = index_bytes(made.kind, made.code, dimension, made.n)
    if made.kind == "hnsw" and made.code == "float32":
        kept -= code_bytes(made.code, dimension) * (made.n - replaced)
    return kept


def code_for(
    quantization: str,
    kind: str,
    storage: str,
    metric: str,
    dimension: int,
    rows: int,
    settings: Mapping[str, Any],
    sample: Callable[[], Floats],
) -> str:
    """The code of a main index of `rows` vectors; `sample` gives some of them, in the index's space.

    `auto`: the first of the order whose index stays within `index_memory_bytes`, the last one where none
    does. See `kind_and_code` for kind auto.
    """
    limit = memory_limit(settings)
    if quantization == "auto" and storage in ("int8", "uint8", "binary"):
        quantization = "none"
    if quantization != "auto":
        return code_of(storage, metric, quantization)
    first = code_of(storage, metric, ORDER[0])
    if index_bytes(kind, first, dimension, rows) <= limit:
        return first
    fine = kind == "hnsw" and storage == "float32" and is_fine("sq8", sample(), metric)
    order = FINE_ORDER if fine else LISTS_ORDER if kind == "ivf" else ORDER
    codes = [code_of(storage, metric, one) for one in order]
    return next((c for c in codes if index_bytes(kind, c, dimension, rows) <= limit), codes[-1])


def code_for_device(
    storage: str, metric: str, dimension: int, rows: int, settings: Mapping[str, Any], room: int
) -> str | None:
    """The code of lists of `rows` vectors that are to be copied to a device with `room` bytes: the first that stays
    within that and `index_memory_bytes`; None where none does."""
    limit, lists = memory_limit(settings), lists_for(rows)
    order = DEVICE_ORDER[:1] if storage in ("int8", "uint8") else DEVICE_ORDER
    for code in (code_of(storage, metric, quantization) for quantization in order):
        there = lists_bytes(rows, code_bytes(code, dimension), lists, dimension)
        if there <= room and index_bytes("ivf", code, dimension, rows) <= limit:
            return code
    return None


def kind_and_code(
    quantization: str,
    storage: str,
    metric: str,
    dimension: int,
    rows: int,
    target_recall: float,
    settings: Mapping[str, Any],
    sample: Callable[[], Floats],
) -> tuple[str, str]:
    """What kind `auto` makes of rows that are too many to be compared one by one: a graph, and lists of
    pq4 or pq8 where that is asked for, of pq4 where no graph that would do stays within `index_memory_bytes`."""
    if quantization in LISTS_ONLY:
        return "ivf", quantization
    code = code_for(quantization, "hnsw", storage, metric, dimension, rows, settings, sample)
    if quantization == "auto" and code == "sq4":
        limit = memory_limit(settings)
        if target_recall > SQ4_TARGET or index_bytes("hnsw", code, dimension, rows) > limit:
            return "ivf", "pq4"
    return "hnsw", code


LONG_WALK = 512
"""A graph that has to walk this wide for its target is compared with lists. Vectors in many tight clusters do
that: walks end in a wrong cluster, since links from one to another are few. 1,000,000 rows in 1,000 clusters:
recall@10 of 0.78 at efSearch 64, 0.94 at 512, 0.95 at 1,024, whatever the codes."""


def needs_lists(graph: Main, target_recall: float, before: Main | None) -> bool:
    """Whether lists may serve better than this graph, which kind `auto` has made; `before` is the one that it
    has grown from. What was compared with lists and kept is not compared again while it reaches the target."""
    if target_recall >= 1.0 or not graph.curve.points or graph.code == "binary":
        return False
    setting = graph.setting(target_recall, SMALL_K)
    if setting is None or setting < LONG_WALK or before is None:
        return setting is None or setting >= LONG_WALK
    earlier = before.setting(target_recall, SMALL_K)
    return earlier is None or earlier < LONG_WALK


def finer_code(lists: Main, job: Job, quantization: str, settings: Mapping[str, Any]) -> str | None:
    """What `auto` makes lists of in place of pq4 that misses the target, if it stays in memory.

    4 bits for 4 numbers tell too little apart where a vector has few of them. 100,000 x 96 (clusters): at 0.99 no setting
    of pq4 was enough, so every query was answered exactly, 96 a second; pq8 7,100, in 5 MiB instead of 3.
    """
    if quantization != "auto" or lists.code != "pq4" or job.target_recall >= 1.0:
        return None
    if lists.setting(job.target_recall, SMALL_K) is not None:
        return None
    fits = index_bytes("ivf", "pq8", job.dimension, lists.n) <= memory_limit(settings)
    return "pq8" if fits else None


def lists_code(storage: str, graph_code: str) -> str:
    """The code of lists in place of a graph: small enough that building them takes less memory than the graph
    did."""
    if storage in ("int8", "uint8"):
        return graph_code
    return "pq4" if graph_code == "sq4" else "sq8"


_LISTS_FIRST_ROWS, _LISTS_FIRST_GROWTH = 200_000, 1
"""Fresh rows, and as a multiple of those there are, from which lists serve until the graph is made: it would take
a minute or more, in which every query compares them all. (By 4 times as many 1,000,000 rows that came at once were indexed
after 60 or 250 s, by how far a graph of the first of them had come.)"""
_TIMED = 64
_SMALL_GRAPH = 10_000
"""Rows from which a graph tells what a larger one will take."""


def goes_through_lists(graph_code: str, held: int, rows: int, target_recall: float) -> bool:
    """Whether lists of all `rows` are to serve while a graph is made of them; an index has `held` of them."""
    fresh = rows - held
    many = fresh >= max(_LISTS_FIRST_ROWS, _LISTS_FIRST_GROWTH * held)
    return many and graph_code != "binary" and target_recall < 1.0


def cheaper(lists: Main, graph: Main, job: Job) -> bool:
    """Whether single queries take lists no longer than a graph; a target that is not reached takes for ever."""
    return single_us(lists, job) <= single_us(graph, job)


def keep_up(lists: Main, before: Main | None, job: Job) -> bool:
    """Whether lists answer as fast as a graph of their rows would, by what the graph `before` of fewer rows
    takes: its time grows with the logarithm of the rows."""
    if before is None or before.kind != "hnsw" or before.n < _SMALL_GRAPH:
        return False
    grown = math.log(lists.n) / math.log(before.n)
    return single_us(lists, job) <= grown * single_us(before, job)


def single_us(main: Main, job: Job) -> float:
    """What a single query takes at the target recall, ranking by stored vectors included: the median of 64,
    each the better of two times, so that what is read for the first time does not count. Infinite where
    the target is not reached."""
    at = np.linspace(0, main.n - 1, _TIMED).astype(np.int64)
    queries = exact_space(job.source.rows(main.rows[at]), job.metric)
    took: list[float] = []
    for query in queries[:, None]:
        best_s = math.inf
        for _ in range(2):
            started = time.perf_counter()
            found = one.nearest(main, query, SMALL_K, job.target_recall, job.source, job.metric)
            best_s = min(best_s, time.perf_counter() - started)
        if found is None:
            return math.inf
        took.append(best_s)
    return 1e6 * median(took)


def memory_limit(settings: Mapping[str, Any]) -> int:
    """Bytes that `auto` keeps the index of a collection below."""
    return int(settings["index_memory_bytes"]) or int(MEMORY_SHARE * memory_bytes())


_THREADS_BYTES = 256 << 20
"""Address space that threads take for stacks and for memory of their own, most of which is never touched."""


def check_budget(
    kind: str,
    code: str,
    dimension: int,
    held: int,
    fresh: int,
    replaced: int,
    settings: Mapping[str, Any],
    beside: int = 0,
) -> None:
    """LimitExceeded when a build would need more than `build_memory_bytes`; see `build_bytes`. `beside`: bytes of what the
    same step has made before and still holds, see `kept_bytes`. Also when the process may not map so much more, and what
    FAISS's threads need beside."""
    limit = int(settings["build_memory_bytes"])
    needed = build_bytes(kind, code, dimension, held, fresh, replaced)
    try:
        must_be_mappable(needed + _THREADS_BYTES)
    except MemoryError as error:
        raise LimitExceeded(
            f"a build of {held + fresh:,} rows as {kind} with {code} codes needs about {needed:,} bytes beside what is "
            f"in use, and its threads {_THREADS_BYTES:,} of address space, which the limit of this process does not "
            "leave (ulimit -v); lift it, or choose a quantization with smaller codes",
            needed=needed,
        ) from error
    needed += beside  # which is mapped already
    if limit and needed > limit:
        raise LimitExceeded(
            f"a build of {held + fresh:,} rows as {kind} with {code} codes needs about "
            f"{needed:,} bytes beside what is in use, build_memory_bytes allows {limit:,}; raise "
            "it, or choose a quantization with smaller codes",
            needed=needed,
            limit=limit,
        )
