"""Formulas: what a search must read and compute at least, and which share of a card's limits it reached."""

from __future__ import annotations

import math
from typing import Any

BYTES = {"float32": 4, "float16": 2}
"""Bytes of one number of a vector as it is kept."""
SINGLE_GOAL, BATCH_GOAL = 0.7, 0.5
"""Single exact queries: share of the memory bandwidth; batches of 1,024: share of the arithmetic limit."""
FORMULAS = (
    "Bytes = rows x dimension x bytes a number: all vectors are read once a batch. Operations = 2 x rows x"
    " dimension x queries: a multiplication and an addition a number. Share of bandwidth = bytes / time of a"
    " batch / bandwidth. Share of arithmetic = operations / time of a batch / rate of the largest matrix products"
    " of that type. Time of a batch = batch / queries a second: the whole call, from queries in host memory to"
    " answers in host memory."
)

Limits = dict[str, float]
"""bandwidth in bytes/s, and float32, tf32, bfloat16, float16 in operations/s, as far as they were measured."""


def bytes_read(rows: int, dimension: int, code: str) -> int:
    return rows * dimension * BYTES[code]


def operations(rows: int, dimension: int, queries: int) -> int:
    return 2 * rows * dimension * queries


def share_of_bandwidth(
    rows: int, dimension: int, code: str, batch_s: float, limits: Limits
) -> float | None:
    limit = limits.get("bandwidth")
    return None if not limit else bytes_read(rows, dimension, code) / batch_s / limit


def share_of_arithmetic(
    rows: int, dimension: int, code: str, queries: int, batch_s: float, limits: Limits
) -> float | None:
    limit = limits.get(code)
    return None if not limit else operations(rows, dimension, queries) / batch_s / limit


def fused_s(rows: int, dimension: int, code: str, queries: int, limits: Limits) -> float | None:
    """Seconds of a batch for a kernel that reads the vectors once and keeps the best as it multiplies.

    Reading and multiplying go on at once, so the longer of the two counts. None without both limits.
    """
    if not limits.get("bandwidth") or not limits.get(code):
        return None
    read_s = bytes_read(rows, dimension, code) / limits["bandwidth"]
    return max(read_s, operations(rows, dimension, queries) / limits[code])


def two_pass_s(rows: int, dimension: int, code: str, queries: int, limits: Limits) -> float | None:
    """The same for a product that writes all scores as float32, and a second kernel that reads them."""
    fused = fused_s(rows, dimension, code, queries, limits)
    return None if fused is None else fused + 2 * 4 * rows * queries / limits["bandwidth"]


def first_k(k: int, selectivity: float, most: int) -> int:
    """How many nearest to ask for so that k of them are allowed, but for one query in a thousand.

    Of k' rows, m = k' x selectivity are allowed on average, with a deviation of at most sqrt(m); m is chosen
    so that m - 3 sqrt(m) = k. Never above `most`.
    """
    mean = ((3 + math.sqrt(9 + 4 * k)) / 2) ** 2
    return max(k, min(most, math.ceil(mean / max(selectivity, 1e-12))))


def limits_of(cases: list[dict[str, Any]]) -> Limits:
    """The limits among the lines of the part `limits`: the best of each that was measured."""
    limits: Limits = {}
    for case in cases:
        name = case.get("limit")
        if name:
            limits[name] = max(limits.get(name, 0.0), float(case["rate"]))
    return limits
