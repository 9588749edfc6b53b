"""`explain`: how an answer came about."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from .index import Trace, View, figures_of
from .search_note import Note
from .steps import Steps
from .types import Explain, QueryResult


def explained(
    view: View,
    note: Note,
    result: QueryResult,
    *,
    records: int,
    target_recall: float,
    filter_s: float,
    fetch_s: float,
    total_s: float,
    device_note: str = "",
) -> QueryResult:
    """`result` with its explanation. `records` are live in the collection, `note` is of its searches,
    `device_note` is that of the collection.

    Times are in seconds here, in microseconds there.
    """
    trace = note.trace or Trace()
    # Of what answered, not of the newest index, which may have come since.
    figures = figures_of(view, target_recall, memory_bytes=0, side_graphs=0)
    times = {
        "wait": note.wait_s,
        "filter": filter_s,
        "search": max(0.0, note.search_s - note.rerank_s),
        "rerank": note.rerank_s,
        "fetch": fetch_s,
        "total": total_s,
    }
    main = view.main
    told = Explain(
        plan=trace.plan,
        kind="exact" if main is None or main.kind == "flat" else main.kind,
        quantization=figures.quantization,
        setting_name=trace.setting_name,
        setting=trace.setting,
        target_recall=target_recall,
        expected_recall=trace.expected_recall,
        rows=records,
        allowed_rows=trace.allowed_rows,
        indexed_rows=0 if main is None else main.n,
        tail_rows=view.tail_rows,
        candidates=note.candidates,
        rows_compared=note.rows_compared,
        index_sequence=figures.built_at_sequence,
        index_age_s=figures.age_s,
        rows_since_index=0 if main is None else view.n_rows - main.high_water,
        batch=note.batch,
        times_us={step: 1e6 * taken for step, taken in times.items()},
        sequence=view.sequence,
        device=trace.device,
        device_note=trace.device_note or device_note,
    )
    return dataclasses.replace(result, explain=told)


def as_noted(steps: Steps) -> dict[str, Any]:
    """What was noted of a query that has just ended, by the names of `Explain`; `plan` is empty where it did not come to
    search. Without what only `explain` knows: setting, expected_recall, candidates, rows_compared, batch and what answered."""
    ended_s = time.perf_counter()
    fetch_s = ended_s - steps.fetch_at_s if steps.fetch_at_s else 0.0
    total_s = ended_s - steps.begun_s
    times = {
        "wait": steps.wait_s,
        "filter": steps.filter_s,
        "search": max(0.0, total_s - steps.wait_s - steps.filter_s - fetch_s),
        "fetch": fetch_s,
        "total": total_s,
    }
    told: dict[str, Any] = {"plan": steps.plan}
    if steps.view is not None:
        view: View = steps.view
        target = view.target_recall if steps.target_recall is None else steps.target_recall
        figures = figures_of(view, target, memory_bytes=0, side_graphs=0)
        main = view.main
        told |= {
            "kind": figures.kind,
            "quantization": figures.quantization,
            "target_recall": target,
            "rows": view.n_live,
            "allowed_rows": view.n_live if steps.allowed is None else view.count(steps.allowed),
            "indexed_rows": figures.indexed_rows,
            "tail_rows": figures.tail_rows,
            "index_sequence": figures.built_at_sequence,
            "index_age_s": figures.age_s,
            "rows_since_index": 0 if main is None else view.n_rows - main.high_water,
            "sequence": view.sequence,
        }
    return {**told, "times_us": {step: 1e6 * taken for step, taken in times.items()}}
