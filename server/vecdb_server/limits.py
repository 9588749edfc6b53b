"""How much one call may ask for, before it is looked at further; each limit is a setting."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vecdb.errors import InvalidFilter, LimitExceeded, ResourceExhausted
from vecdb.parsed_filters import parsed
from vecdb.types import MAX_K

from .admission import retry_after_ms
from .settings import SERVER

_HIGHEST = {row.name: row.high or 0 for row in SERVER}
_NEW_NAMES = ("new_name", "alias")


class Limits:
    """Checks requests against the settings `max_...`. Any thread; some us a call."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._of = settings

    def check(self, method: str, request: Any) -> None:
        """LimitExceeded, or InvalidFilter, which name the limit, for a request that asks for too much."""
        if method == "QueryStream":
            for streamed in request.queries:
                self.check("Query", streamed.query)
        elif method == "Query":
            self._query(request)
        elif method == "CreateCollection":
            self._at_most("max_name_chars", len(request.collection.name), "the name")
        elif method == "RestoreBackup":
            for name in request.collections.values():
                self._at_most("max_name_chars", len(name), "the name")
        elif hasattr(request, "records"):
            self._records(request.records)
        elif method in ("Get", "Delete"):
            self._at_most("max_batch_records", len(request.ids), "ids")
        else:
            for field in _NEW_NAMES:
                if text := getattr(request, field, ""):
                    self._at_most("max_name_chars", len(text), f"the field {field}")
        if text := getattr(request, "filter", ""):
            self._filter(text)

    def _at_most(self, setting: str, given: int, what: str) -> None:
        limit = self._of[setting]
        # At its highest a limit is the engine's own, which refuses in words of its own.
        if given > limit and limit < _HIGHEST[setting]:
            raise LimitExceeded(
                f"{what}: {given:,} given, this server takes {limit:,} at most; ask for less, or raise "
                f"its setting {setting}",
                limit=limit,
                given=given,
                setting=setting,
            )

    def _query(self, request: Any) -> None:
        self._at_most("max_k", request.k, "k")
        self._at_most("max_k", request.mmr_candidates, "mmr_candidates")
        if not request.k and request.HasField("max_distance"):
            self._at_most("max_k", MAX_K, "max_distance without k asks for all, which counts as k")

    def _records(self, records: Any) -> None:
        self._at_most("max_batch_records", len(records.ids), "records of a batch")
        longest = max(map(len, records.metadata), default=0)
        self._at_most("max_metadata_bytes", longest, "bytes of metadata of a record")

    def _filter(self, text: str) -> None:
        self._at_most("max_filter_bytes", len(text.encode(errors="replace")), "bytes of the filter")
        found = parsed(text)
        assert found is not None
        for setting, given, what in (
            ("max_filter_depth", found.depth, "filters inside each other"),
            ("max_regex_patterns", found.n_patterns, "patterns of $regex"),
            ("max_regex_bytes", found.pattern_bytes, "bytes of the longest pattern of $regex"),
        ):
            if given > self._of[setting]:
                raise InvalidFilter(
                    f"{what}: {given:,} given, this server takes {self._of[setting]:,} at most; ask for "
                    f"less, or raise its setting {setting}",
                    path="$",
                    limit=self._of[setting],
                    setting=setting,
                )


class Peers:
    """Connections of each host that have calls under way. Any thread."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._hosts: dict[str, dict[str, int]] = {}

    @contextmanager
    def counted(self, peer: str) -> Iterator[None]:
        """Counts a call of `peer`, as gRPC writes it; ResourceExhausted for one connection too many."""
        host, _, port = peer.rpartition(":")
        with self._lock:
            ports = self._hosts.setdefault(host, {})
            if port not in ports and len(ports) >= self._limit:
                raise ResourceExhausted(
                    f"{len(ports)} connections of {host} have calls under way, which is all that one host "
                    "may have; share a client between threads, or raise max_connections_per_peer of "
                    "the server",
                    retry_after_ms=retry_after_ms(1.0),
                    limit=self._limit,
                )
            ports[port] = ports.get(port, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                ports[port] -= 1
                if not ports[port]:
                    del ports[port]
                    if not ports:
                        self._hosts.pop(host, None)
