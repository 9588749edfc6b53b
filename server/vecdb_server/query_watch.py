"""Queries that took long, told to the log with how they were answered; and the steps of those that are traced.

`explain` costs a query some 70 us, so it is not made for all of them: each notes how it is answered (`vecdb/steps.py`, a
microsecond), and of a slow one that is told. A collection that had one is looked at: for a minute all its queries
are explained, and the slow ones among them are logged with all of it.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping
from typing import Any

import vecdb
from vecdb import steps
from vecdb.explaining import as_noted

from .fair_pool import queued_s
from .metrics import Metrics
from .slow_calls import MAX_FILTER_CHARS, MAX_INCLUDES, MAX_NAME_CHARS
from .tracing import Tracing

log = logging.getLogger("vecdb.server")

_LOOK_S = 60.0


class QueryWatch:
    """Any thread may call. Of `settings` `slow_query_s` is read at each query; 0: none is slow."""

    def __init__(
        self, settings: Mapping[str, Any], metrics: Metrics, tracing: Tracing | None = None
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._tracing = tracing
        self._looked_at: dict[str, float] = {}

    def query(self, collection: vecdb.Collection, request: Any, given: dict[str, Any]) -> Any:
        """`collection.query(**given)`, watched. `explain` is in the answer only where it is asked for."""
        name = collection.name
        asked = bool(given.get("explain"))
        traced = self._tracing is not None and self._tracing.is_traced()
        if traced or self._looked_at.get(name, 0.0) > time.monotonic():
            given["explain"] = True
        began_ns = time.time_ns() if traced else 0
        began_s = time.perf_counter()
        result = None
        slow_s = self._settings["slow_query_s"]
        noted = steps.begin() if slow_s else None
        try:
            result = collection.query(**given)
        finally:
            steps.end()
            # The slowest are those that were not done in time.
            took_s = time.perf_counter() - began_s
            if noted is not None and took_s + queued_s() >= slow_s:
                self._tell(name, request, took_s, result, noted)
        if traced and self._tracing is not None and result.explain is not None:
            self._tracing.query(name, began_ns, result.explain.times_us)
        if result.explain is not None and not asked:
            result = dataclasses.replace(result, explain=None)
        return result

    def _tell(
        self, name: str, request: Any, took_s: float, result: Any, noted: steps.Steps
    ) -> None:
        self._metrics.slow_queries += 1
        now = time.monotonic()
        # Made anew, so that names of collections that have gone do not stay.
        looked_at = {other: end for other, end in self._looked_at.copy().items() if end > now}
        self._looked_at = {**looked_at, name: now + _LOOK_S}
        log.warning(
            "slow query",
            extra={
                "collection": name,
                "ms": round(1_000 * took_s, 1),
                "queued_ms": round(1_000 * queued_s(), 1),
                "queries": None if result is None else len(result.ids),
                "k": request.k,
                "filter": request.filter[:MAX_FILTER_CHARS],
                "vector_name": request.vector_name[:MAX_NAME_CHARS],
                "include": list(request.include[:MAX_INCLUDES]),
                "explain": _said(None if result is None else result.explain, noted),
            },
        )


def _said(explain: Any, noted: steps.Steps) -> dict[str, Any]:
    """`explain` as plain values; what was noted where this query was not explained, or failed."""
    if explain is None:
        return as_noted(noted)
    return {
        field.name: dict(value) if isinstance(value, Mapping) else value
        for field in dataclasses.fields(explain)
        for value in [getattr(explain, field.name)]
    }
