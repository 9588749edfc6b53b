"""Lists and graphs on the card at recall 0.95 and 0.99, beside those that the CPU serves, in the same run: all of them made,
placed and searched by the engine's own code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import data
from .answers import Floats, Rows, recall, scores_of
from .plan import Context, K, Sizes
from .tables import millis, number, rate, table
from .timing import timed

if TYPE_CHECKING:
    from .made import Made, Maker

TARGETS = (0.95, 0.99)
_PROBES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_ITOPK = (32, 64, 96, 128, 192, 256, 384, 512)
_EFS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_SETTINGS = {"lists": _PROBES, "graph": _ITOPK, "hnsw": _EFS}
_CANDIDATES = {"float32": (1,), "sq8": (1, 2), "pq8": (2, 4, 8, 16, 32)}
"""As multiples of k, by the code of lists; those of lossy ones are ranked again by float32, as the engine does."""
_NEEDED_S = {
    "float32": 30.0,
    "sq8": 30.0,
    "pq8": 40.0,
    "CAGRA": 20.0,
    "joined": 45.0,
    "HNSW": 55.0,
}


@dataclass(slots=True)
class Set:
    """What the kinds are asked, and the scores of the right last answers."""

    vectors: Floats
    queries: Floats
    bound: Floats
    maker: Maker


def needs(sizes: Sizes, rounds: int) -> list[tuple[str, float]]:
    """The cases in their order, each with the seconds that it is thought to take; CAGRA and joining need cuVS."""
    return list(_NEEDED_S.items())


def run(ctx: Context) -> None:
    # Here, since other parts do without the engine, which takes its time to load.
    from .made import Maker

    sizes, backend = ctx.sizes, ctx.backend
    held = data.clustered(ctx.folder, sizes.clustered, sizes.queries, ctx.task.seed)
    placed = backend.arrays.put(held.vectors)
    bound = backend.arrays.best(held.queries, placed, K)[0][:, -1]
    del placed
    asked = Set(held.vectors, held.queries, bound, Maker(backend.own(), held.vectors))
    for code in _CANDIDATES:
        if _fits(ctx, code):
            with ctx.attempt(f"lists, {code}"):
                _lists(ctx, asked, code)
    if not backend.own().card.info().graphs:
        ctx.put("left out", name="CAGRA", why="this FAISS has no cuVS (extra gpu-cuvs)")
    else:
        for name, work in (("CAGRA", _walked), ("joined", _joined)):
            if _fits(ctx, name):
                with ctx.attempt(name):
                    work(ctx, asked)
    if _fits(ctx, "HNSW"):
        with ctx.attempt("HNSW"):
            made = asked.maker.graph(joined=False)[1]
            _asked(ctx, asked, made, "graph of the CPU", "CPU")


def _fits(ctx: Context, kind: str) -> bool:
    return ctx.fits(kind, 0.5 if ctx.task.tiny else _NEEDED_S[kind])


def _walked(ctx: Context, asked: Set) -> None:
    made = asked.maker.graph_there()
    _asked(ctx, asked, made, "CAGRA", "card")
    made.drop()


def _joined(ctx: Context, asked: Set) -> None:
    made = asked.maker.graph(joined=True)[1]
    _asked(ctx, asked, made, "graph joined by the card", "CPU")


def _lists(ctx: Context, asked: Set, code: str) -> None:
    main, made = asked.maker.lists(code)
    there = asked.maker.lists_there(main)
    there.seconds = {**made.seconds, **there.seconds}
    name = f"{made.lists:,} lists, {code}"
    _asked(ctx, asked, there, name, "card", _CANDIDATES[code])
    there.drop()
    _asked(ctx, asked, made, name, "CPU", _CANDIDATES[code])


def _asked(
    ctx: Context,
    asked: Set,
    index: Made,
    name: str,
    where: str,
    factors: Sequence[int] = (1,),
) -> None:
    """One line a target and batch: of the settings that reach the target, that with most queries a second."""
    about: dict[str, Any] = {"index": name, "where": where, "rows": index.rows, **index.seconds}
    lossy = len(factors) > 1

    def search(queries: Floats, setting: int, factor: int) -> Rows:
        found = index.search(queries, K * factor, setting)
        return asked.maker.ranked(queries, found, K) if lossy else found

    def reached(setting: int, factor: int) -> float:
        found = search(asked.queries, setting, factor)
        scores = scores_of(asked.queries, found, lambda rows: asked.vectors[rows])
        return recall(found, scores, asked.bound, K)

    settings = [s for s in _SETTINGS[index.kind] if index.kind != "lists" or s <= index.lists]
    recalls: dict[tuple[int, int], float] = {}
    for factor in factors:
        for setting in settings:
            recalls[setting, factor] = reached(setting, factor)
            if recalls[setting, factor] >= TARGETS[-1] or _hopeless(recalls, setting, factor):
                break
    for target in TARGETS:
        turns = _lowest(recalls, target)
        title = f"{name} ({where}) at {target}"
        if not turns:
            best = max(recalls.values())
            ctx.put(case=title, target=target, batch=0, best_recall=best, **about)
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
                case=f"{title} by {batch}",
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
        " the recall, of lossy codes the fastest pair of lists probed and candidates that the host ranks again by"
        " float32. One caller. All are made and asked by the engine's code, without store, worker and calibration:"
        " the card trains and assigns all lists; a graph of the CPU walks over sq8 where these are fine. The CPU's"
        " kinds use all cores for a batch and one for a single query.\n"
    ]
    built: dict[tuple[str, str], dict[str, Any]] = {}
    for case in cases:
        built.setdefault((case["index"], case["where"]), case)
    parts.append(
        table(
            ("build", "served by", "rows", "train and assign", "add or build", "placed"),
            [
                (kind, where, f"{one['rows']:,}", *(_seconds(one, key) for key in ("train_s", "add_s", "place_s")))
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
