"""What the card can do at most: bytes moved and operations done in a second, without any search."""

from __future__ import annotations

from typing import Any

from .arrays import KINDS
from .backend import CODES, Placed
from .bounds import bytes_read, operations
from .plan import Context
from .tables import table
from .timing import timed

_TILE = 262_144
_SLICE = 100_000
_SLICES = 20


def run(ctx: Context) -> None:
    backend, sizes = ctx.backend, ctx.sizes
    if backend.name == "gpu" and not backend.arrays.on_card:
        _by_faiss(ctx)
        return
    arrays = backend.arrays
    with ctx.attempt("memory"):
        names = {"copy": "bandwidth", "read": "bandwidth"}
        for name, rate in arrays.rates(sizes.copy_bytes).items():
            ctx.put(case=name, limit=names.get(name, "upload"), rate=rate, bytes=sizes.copy_bytes)
    side = sizes.product
    for kind in KINDS:
        with ctx.attempt(f"products {kind}"):
            measured = arrays.product(kind, side, side, side)
            if measured is not None:
                ctx.put(case=f"products {kind}", limit=kind, rate=measured, shape=[side] * 3)
    batch = sizes.batches[-1]
    tile = 16 * side if ctx.task.tiny else _TILE
    for dimension in sorted({d for _, d in sizes.exact}):
        for kind in ("float32", "float16"):
            with ctx.attempt(f"products {kind} as a search makes them"):
                measured = arrays.product(kind, batch, tile, dimension)
                if measured is not None:
                    name = f"products {kind} of {batch} queries x {dimension} x {tile:,} rows"
                    ctx.put(case=name, rate=measured, shape=[batch, tile, dimension])


def _by_faiss(ctx: Context) -> None:
    """Without torch and CuPy: the best that FAISS's own searches do, so lower bounds of the limits."""
    dimension, batch = ctx.sizes.exact[-1][1], ctx.sizes.batches[-1]
    size = 1_000 if ctx.task.tiny else _SLICE
    rows = _SLICES * size
    arrays = ctx.backend.arrays
    queries = arrays.host(arrays.made(batch, dimension, ctx.task.seed, 1))
    for code in CODES:
        with ctx.attempt(f"search {code}"):
            flat = ctx.backend.flat(dimension, code)
            for number in range(_SLICES):
                flat.add_made(arrays, arrays.made(size, dimension, ctx.task.seed, 2 + number))

            def single(turn: int, flat: Placed = flat) -> object:
                return flat.search(queries[turn % batch][None], 1)

            def batched(turn: int, flat: Placed = flat) -> object:
                return flat.search(queries, 1)

            one = timed(single, 1, 3, ctx.sizes.cell_s)["queries_per_s"]
            many = timed(batched, batch, 3, ctx.sizes.cell_s)["queries_per_s"]
            read, done = bytes_read(rows, dimension, code), operations(rows, dimension, 1)
            for case, limit, rate in (
                (f"single searches {code}", "bandwidth", read * one),
                (f"batched searches {code}", code, done * many),
            ):
                ctx.put(case=case, limit=limit, rate=rate, lower_bound=True)


def page(cases: list[dict[str, Any]], card: dict[str, Any]) -> list[str]:
    if any(case.get("lower_bound") for case in cases):
        how = (
            "Neither torch nor CuPy is installed, so these are the best rates that FAISS's own searches reached:"
            " lower bounds of the limits. Shares below are shares of FAISS's best, not of the card's."
        )
    else:
        where = "on the card" if card.get("arrays_on_card") else "on the CPU"
        how = (
            f"Measured in this run with {card.get('arrays', 'no library')} {where}: the best of three rounds;"
            " a copy counts the bytes read and written, the sum the bytes read; the larger is the bandwidth."
            " Matrix products of random numbers, so large that they saturate; and of the shape of a search"
            " (the scores are written to memory, in the type of the numbers)."
        )
    return [f"## Limits\n\n{how}\n", table(("", "rate"), [(c["case"], _rate(c)) for c in cases])]


def _rate(case: dict[str, Any]) -> str:
    if case.get("limit") in ("bandwidth", "upload"):
        return f"{case['rate'] / 1e9:,.1f} GB/s"
    return f"{case['rate'] / 1e12:,.2f} TFLOP/s"
