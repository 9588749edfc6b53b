"""Lists and graphs on the card at recall 0.95 and 0.99, beside those that the CPU serves, in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from . import data
from .answers import Floats, Rows, recall, scores_of
from .backend import Placed
from .plan import Context, K
from .tables import millis, number, rate, table
from .timing import timed

TARGETS = (0.95, 0.99)
_PROBES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_ITOPK = (32, 64, 96, 128, 192, 256, 384, 512)
_EFS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_SETTINGS = {"lists": _PROBES, "graph": _ITOPK, "hnsw": _EFS}
_CANDIDATES = (2, 4, 8, 16, 32)
"""Of product quantization, as multiples of k, ranked again by float32."""
_TRAINED_A_LIST = 64
_HNSW_S = 60.0
_NEEDED_S = {"Flat": 30.0, "SQ8": 30.0, "PQ": 45.0, "graph": 60.0, "hnsw": 45.0}


@dataclass(slots=True)
class Set:
    """What the kinds are asked, and the scores of the right last answers."""

    vectors: Floats
    queries: Floats
    placed: Any  # the vectors as `arrays` holds them
    bound: Floats


def run(ctx: Context) -> None:
    sizes, backend = ctx.sizes, ctx.backend
    held = data.clustered(ctx.folder, sizes.clustered, sizes.queries, ctx.task.seed)
    placed = backend.arrays.put(held.vectors)
    bound = backend.arrays.best(held.queries, placed, K)[0][:, -1]
    asked = Set(held.vectors, held.queries, placed, bound)
    for spec in ("Flat", "SQ8", f"PQ{sizes.pq}"):
        name = f"IVF-{spec}"
        if _fits(ctx, name, "PQ" if spec.startswith("PQ") else spec):
            with ctx.attempt(name):
                _lists(ctx, asked, name, spec)
    if not backend.graphs:
        ctx.put("left out", name="CAGRA", why="this FAISS has no cuVS (extra gpu-cuvs)")
    elif _fits(ctx, "CAGRA", "graph"):
        with ctx.attempt("CAGRA"):
            _graphs(ctx, asked)
    if _fits(ctx, "HNSW", "hnsw"):
        with ctx.attempt("HNSW"):
            _hnsw(ctx, asked)


def _fits(ctx: Context, name: str, kind: str) -> bool:
    return ctx.fits(name, 0.5 if ctx.task.tiny else _NEEDED_S[kind])


def _lists(ctx: Context, asked: Set, name: str, spec: str) -> None:
    lists = ctx.sizes.lists
    index = ctx.backend.lists(asked.vectors.shape[1], spec, lists)
    step = max(1, len(asked.vectors) // (lists * _TRAINED_A_LIST))
    begun_s = time.perf_counter()
    index.train(asked.vectors[::step])
    trained_s = time.perf_counter()
    index.add(asked.vectors)
    done_s = time.perf_counter()
    about = {
        "index": f"{name}, {lists:,} lists", "where": "card", "rows": index.rows,
        "train_s": trained_s - begun_s, "add_s": done_s - trained_s,
    }  # fmt: skip
    _asked(ctx, asked, index, about, _CANDIDATES if spec.startswith("PQ") else (1,))
    if spec == "Flat":
        begun_s = time.perf_counter()
        on_cpu = ctx.backend.on_cpu(index)
        about = {
            "index": f"{name}, the same lists", "where": "CPU", "rows": on_cpu.rows,
            "copy_s": time.perf_counter() - begun_s,
        }  # fmt: skip
        _asked(ctx, asked, on_cpu, about)


def _graphs(ctx: Context, asked: Set) -> None:
    begun_s = time.perf_counter()
    graph = ctx.backend.graph(asked.vectors)
    built_s = time.perf_counter() - begun_s
    name = "CAGRA" if graph.kind == "graph" else "HNSW in place of CAGRA"
    about = {"index": name, "where": "card", "rows": graph.rows, "add_s": built_s}
    _asked(ctx, asked, graph, about)
    begun_s = time.perf_counter()
    served = ctx.backend.as_hnsw(graph)
    copied_s = time.perf_counter() - begun_s
    about = {
        "index": f"{name} served as HNSW",
        "where": "CPU",
        "rows": served.rows,
        "copy_s": copied_s,
    }
    _asked(ctx, asked, served, about)


def _hnsw(ctx: Context, asked: Set) -> None:
    limit_s = min(_HNSW_S, ctx.left_s - 15)
    index = ctx.backend.hnsw(asked.vectors.shape[1])
    built_s = grown(index.add, asked.vectors, ctx.sizes.hnsw, limit_s)
    bound = asked.bound
    if index.rows < len(asked.vectors):
        bound = ctx.backend.arrays.best(asked.queries, asked.placed[: index.rows], K)[0][:, -1]
    about = {
        "index": "HNSW, M = 16, efConstruction = 100", "where": "CPU", "rows": index.rows, "add_s": built_s,
    }  # fmt: skip
    _asked(ctx, Set(asked.vectors, asked.queries, asked.placed, bound), index, about)


def grown(add: Callable[[Floats], None], vectors: Floats, some: int, limit_s: float) -> float:
    """Adds `some` rows, and the others only if all would be in after `limit_s` seconds; the seconds taken."""
    begun_s = time.perf_counter()
    add(vectors[:some])
    taken_s = time.perf_counter() - begun_s
    # A row costs more the more there are: a quarter for five times as many.
    if len(vectors) > some and taken_s * len(vectors) / some * 1.25 <= limit_s:
        add(vectors[some:])
        taken_s = time.perf_counter() - begun_s
    return taken_s


def _asked(
    ctx: Context, asked: Set, index: Placed, about: dict[str, Any], factors: Sequence[int] = (1,)
) -> None:
    """One line a target and batch: of the settings that reach the target, that with most queries a second."""
    arrays = ctx.backend.arrays

    def search(queries: Floats, setting: int, factor: int) -> Rows:
        found = index.search(queries, K * factor, setting)[1]
        return found if factor == 1 else arrays.rerank(queries, asked.placed, found, K)

    def reached(setting: int, factor: int) -> float:
        found = search(asked.queries, setting, factor)
        scores = scores_of(asked.queries, found, lambda rows: asked.vectors[rows])
        return recall(found, scores, asked.bound, K)

    settings = [s for s in _SETTINGS[index.kind] if index.kind != "lists" or s <= ctx.sizes.lists]
    recalls: dict[tuple[int, int], float] = {}
    for factor in factors:
        for setting in settings:
            recalls[setting, factor] = reached(setting, factor)
            if recalls[setting, factor] >= TARGETS[-1] or _hopeless(recalls, setting, factor):
                break
    for target in TARGETS:
        turns = _lowest(recalls, target)
        name = f"{about['index']} ({about['where']}) at {target}"
        if not turns:
            best = max(recalls.values())
            ctx.put(case=name, target=target, batch=0, best_recall=best, **about)
        for batch in ctx.sizes.batches if turns else ():
            parts = [asked.queries[i : i + batch] for i in range(0, len(asked.queries), batch)]

            def call(turn: int, setting: int, factor: int, parts: list[Floats] = parts) -> object:
                return search(parts[turn % len(parts)], setting, factor)

            tried = []
            for setting, factor in turns:
                seconds = ctx.sizes.cell_s / 2 / len(turns)
                rounds = ctx.task.rounds
                cell = timed(
                    lambda n, s=setting, f=factor: call(n, s, f),  # type: ignore[misc]
                    batch, rounds, seconds,
                )  # fmt: skip
                tried.append({"setting": setting, "candidates": K * factor, **cell})
            best_cell = max(tried, key=lambda one: one["queries_per_s"])
            got = recalls[best_cell["setting"], best_cell["candidates"] // K]
            ctx.put(
                case=f"{name} by {batch}",
                target=target,
                batch=batch,
                recall=got,
                **about,
                **best_cell,
            )


def _hopeless(recalls: dict[tuple[int, int], float], setting: int, factor: int) -> bool:
    """Whether more of the setting gives nothing more: what codes lost, only more candidates bring back."""
    own = [one for (_, f), one in recalls.items() if f == factor]
    return len(own) > 3 and own[-1] - own[-4] < 5e-4 and setting >= 16


def _lowest(recalls: dict[tuple[int, int], float], target: float) -> list[tuple[int, int]]:
    """Of each number of candidates the lowest setting that reaches the target."""
    found: dict[int, int] = {}
    for (setting, factor), reached in recalls.items():
        if reached >= target:
            found[factor] = min(setting, found.get(factor, setting))
    return [(setting, factor) for factor, setting in found.items()]


def page(cases: list[dict[str, Any]], card: dict[str, Any]) -> list[str]:
    rows = max((case["rows"] for case in cases), default=0)
    parts = [
        f"## Lists and graphs\n\n{rows:,} clustered rows of 384, k = {K}; for each kind the lowest setting that reaches"
        " the recall, of product quantization the fastest pair of lists probed and candidates that are ranked again"
        " by float32. One caller; the CPU's kinds use all cores for a batch and one for a single query. A row count"
        " below the others means that a graph of all rows would have taken the CPU over a minute.\n"
    ]
    built: dict[tuple[str, str], dict[str, Any]] = {}
    for case in cases:
        built.setdefault((case["index"], case["where"]), case)
    parts.append(
        table(
            ("build", "served by", "rows", "train", "add or build", "copied to the CPU"),
            [
                (kind, where, f"{one['rows']:,}", *(_seconds(one, key) for key in ("train_s", "add_s", "copy_s")))
                for (kind, where), one in built.items()
            ],
        )
    )  # fmt: skip
    for target in TARGETS:
        lines = [_line(case) for case in cases if case["target"] == target]
        header = (
            f"recall {target}", "served by", "batch", "queries/s", "p50", "p99", "recall", "setting",
        )  # fmt: skip
        parts.append(table(header, lines))
    return parts


def _seconds(case: dict[str, Any], key: str) -> str:
    return f"{case[key]:.2f} s" if key in case else ""


def _line(case: dict[str, Any]) -> tuple[str, ...]:
    if case["batch"] == 0:
        said = f"not reached (best {number(case['best_recall'], 3)})"
        return (case["index"], case["where"], "", said, "", "", "", "")
    setting = f"{case['setting']}"
    if case["candidates"] > K:
        setting += f", {case['candidates']} candidates"
    return (
        case["index"],
        case["where"],
        str(case["batch"]),
        rate(case),
        millis(case["p50_ms"]),
        millis(case["p99_ms"]),
        number(case["recall"], 4),
        setting,
    )
