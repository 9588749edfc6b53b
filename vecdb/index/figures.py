"""The numbers of an index at one moment."""

from __future__ import annotations

from dataclasses import dataclass

from .calibrate import Curve


@dataclass(frozen=True, slots=True)
class IndexFigures:
    """The numbers of an index, named as in `vecdb.types.IndexStats`."""

    kind: str
    device: str
    quantization: str
    """What stands for a vector in the main index: none, float16, sq8, sq4 or pq4."""
    indexed_rows: int
    """Rows in the main index, live and dead."""
    tail_rows: int
    """Rows that are kept for exact search, live and dead."""
    dead_rows: int
    """Dead rows among these two."""
    memory_bytes: int
    side_graphs: int
    """Graphs beside the main one, each for a filter that is asked often; `memory_bytes` has theirs."""
    measured_recall: float
    """Mean recall@10 on held-out rows at the setting in use; 1.0 where search is exact."""
    curve: Curve
    built_at_sequence: int
    """The commit whose rows the main index was built of; 0 while there is none."""
    age_s: float
    """Seconds since then."""
    device_bytes: int = 0
    """Memory of devices that its placements take."""
    device_note: str = ""
    """Why another device serves than the one asked for; empty where that one does."""
