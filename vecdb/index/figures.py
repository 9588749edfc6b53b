"""The numbers of an index at one moment."""

from __future__ import annotations

import time
from dataclasses import dataclass

from .calibrate import Curve
from .codes import own_code
from .door import device
from .main import copied
from .view import View


@dataclass(frozen=True, slots=True)
class IndexFigures:
    """The numbers of an index, named as in `vecdb.types.IndexStats`."""

    kind: str
    device: str
    quantization: str
    """What stands for a vector in the main index: none, float16, sq8, sq4, pq4 or pq8."""
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


def figures_of(
    view: View, target_recall: float, memory_bytes: int, side_graphs: int
) -> IndexFigures:
    """The numbers of the index that `view` shows."""
    main = view.main
    on = view.served if copied(main) is None else view.device_main
    tail = view.tail_rows
    indexed = 0 if main is None else main.n
    names, note = ("", "") if on is None else (on.names, on.note)
    if not names and not note and view.reasons is not None:
        note = view.reasons.of_serving(view)
    own = own_code(view.storage)
    code = own if main is None else main.code
    return IndexFigures(
        kind="exact" if main is None or main.kind == "flat" else main.kind,
        device=names or device(),
        quantization="none" if code == own else code,
        indexed_rows=indexed,
        tail_rows=tail,
        dead_rows=indexed + tail - view.n_live,
        memory_bytes=memory_bytes,
        side_graphs=side_graphs,
        measured_recall=1.0 if main is None else main.curve.measured(target_recall),
        curve=Curve((), 0, 0) if main is None else main.curve,
        built_at_sequence=0 if main is None else main.sequence,
        device_bytes=0 if on is None else on.device_bytes,
        device_note=note,
        age_s=0.0 if main is None else max(0.0, time.time() - main.built_at_s),
    )
