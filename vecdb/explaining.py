"""`explain`: how an answer came about."""

from __future__ import annotations

import dataclasses

from .field import Field
from .index import Trace, View
from .search_lane import Note
from .types import Explain, QueryResult


def explained(
    field: Field,
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
    figures = field.index.stats()
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
