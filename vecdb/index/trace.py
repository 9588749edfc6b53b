"""What a search did, for those who ask how an answer came about."""

from __future__ import annotations

from dataclasses import dataclass

FEW = "few rows are allowed"
"""A reason for the CPU to answer what a device could."""


@dataclass(slots=True)
class Trace:
    """Filled by `View.search` when it is given; one thread at a time. Counts are for one query on
    average where several were searched together."""

    plan: str = "exact"
    setting_name: str = ""
    """efSearch or nprobe; empty where every allowed row was compared."""
    setting: int = 0
    expected_recall: float = 1.0
    allowed_rows: int = 0
    candidates: int = 0
    """Answers that the main index was asked for."""
    main_rows_compared: int = 0
    """Rows of the main index compared with the query: all allowed ones where each is, those of the lists that are
    probed at `setting`, and those ranked again. Rows that the walk of a graph passes are not counted."""
    tail_rows_compared: int = 0
    rerank_us: float = 0.0
    """Time spent on ranking candidates again by stored vectors."""
    device: str = "cpu"
    """What searched the main part: "cpu", or the GPUs, as "gpu:0" or "gpu:0,1"."""
    device_note: str = ""
    """Why another device searched than the one asked for: "not placed on gpu:0 yet; answered by the CPU". Empty
    where that one did."""
    why_cpu: str = ""
    """Why the CPU was the better one for this search; told as the note where a device was asked for."""
