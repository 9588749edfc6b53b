"""How `auto` chooses what stands for a vector in the index."""

from __future__ import annotations

from .codes import code_bytes, code_of
from .main import GRAPH_BYTES_A_ROW

ORDER = ("none", "float16", "sq8", "sq4")
"""From dearest to cheapest in memory. Each loses speed to ranking candidates again by the stored
vectors, so the first that fits is taken."""


def index_bytes(kind: str, code: str, dimension: int, rows: int) -> int:
    """Memory of a main index of `rows` vectors, estimated in bytes."""
    beside = GRAPH_BYTES_A_ROW if kind == "hnsw" else 16
    return rows * (code_bytes(code, dimension) + beside + 8)


def quantization_for(
    kind: str, storage: str, metric: str, dimension: int, rows: int, limit_bytes: int
) -> str:
    """The quantization of `auto`: the first of `ORDER` whose index stays within `limit_bytes` (0: any).

    The last one where none does.
    """
    if not limit_bytes or storage in ("int8", "uint8", "binary"):
        return "none"
    for quantization in ORDER:
        code = code_of(storage, metric, quantization)
        if index_bytes(kind, code, dimension, rows) <= limit_bytes:
            return quantization
    return ORDER[-1]
