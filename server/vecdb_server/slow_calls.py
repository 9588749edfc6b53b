"""Calls that took long, but for queries (`query_watch.py`) and those that are there to last, told to the log with what they did."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import grpc

from .fair_pool import queued_s

log = logging.getLogger("vecdb.server")

_OTHERS = frozenset(
    ("Query", "Check", "BuildIndex", "Compact",
     "BackupDatabase", "ListBackups", "VerifyBackups", "RestoreBackup", "PruneBackups")
)  # fmt: skip
MAX_FILTER_CHARS = 1_000
MAX_NAME_CHARS = 128
MAX_INCLUDES = 16
"""What of a request goes into a line of the log: a client could fill the disk otherwise."""


class SlowCalls:
    """Any thread may call. Of `settings` `slow_query_s` is read at each call; 0: none is slow."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings

    def is_slow(self, method: str, request: Any, took_s: float) -> bool:
        """Whether a call that is over, and has worked for `took_s`, is to be told. None is whose `request` is None, as it has
        not come: it has done nothing, and there may be many. Asked of each call: below a microsecond."""
        slow_s = self._settings["slow_query_s"]
        slow = bool(slow_s) and took_s + queued_s() >= slow_s
        return slow and request is not None and method not in _OTHERS

    def tell(
        self, method: str, request: Any, answer: Any, code: grpc.StatusCode, took_s: float
    ) -> None:
        """Logs it. `answer` is that of a call, of a stream how many rows it has given; None where there is none."""
        rows = answer if answer is None or isinstance(answer, int) else rows_of(answer)
        log.warning(
            "slow call",
            extra={
                "method": method,
                "collection": named(request),
                "ms": round(1_000 * took_s, 1),
                "queued_ms": round(1_000 * queued_s(), 1),
                "rows": rows,
                "filter": getattr(request, "filter", "")[:MAX_FILTER_CHARS],
                "ids": _given_ids(request),
                "order_by": getattr(request, "order_by", "")[:MAX_NAME_CHARS],
                "include": [*getattr(request, "include", ())[:MAX_INCLUDES]],
                "code": code.name,
            },
        )


def named(request: Any) -> str:
    """The collection that a request is about, by the name that it gives; empty where it gives none."""
    for field in ("collection", "name", "alias"):
        found = getattr(request, field, "")
        found = getattr(found, "name", found)
        if found:
            return str(found)[:MAX_NAME_CHARS]
    return ""


def _given_ids(request: Any) -> int:
    """How many ids, or records, a request names."""
    records = getattr(request, "records", request)
    return len(getattr(records, "ids", ()))


def rows_of(answer: Any) -> int | None:
    """How many records an answer holds or counts; None where it has to do with none."""
    if hasattr(answer, "count"):
        return int(answer.count)
    ids = getattr(getattr(answer, "records", None), "ids", None)
    return None if ids is None else len(ids)
