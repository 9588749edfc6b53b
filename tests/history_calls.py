"""Calls of a collection with when they were made and what came back, and who records them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from history_order import WRITES


@dataclass
class Call:
    """One call: what was asked of which verb, when, and what came back."""

    thread: str
    verb: str
    asked: dict[str, Any]
    start: float
    end: float
    answer: Any
    sequence: int | None
    """The commit that the answer names."""
    refusal: str = ""
    """Name of the error's class; then `answer` holds its details."""
    number: int = -1
    """Place among all calls, by start; set by `check`."""

    def __str__(self) -> str:
        answer = f"refused: {self.refusal} {_short(self.answer)}" if self.refusal else self.shown
        asked = ", ".join(
            f"{k}={_short(v, 2 if k == 'metadata' else 8)}"
            for k, v in self.asked.items()
            if k not in ("documents", "named_vectors")
        )
        return (
            f"call {self.number} of {self.thread}, {self.start:.6f} to {self.end:.6f}: "
            f"{self.verb}({asked}) -> {answer}"
        )

    @property
    def shown(self) -> str:
        if self.verb in WRITES:
            return f"commit {self.sequence}, count {self.answer.count}"
        held = self.answer if isinstance(self.answer, int) else _ids_of(self.answer)
        return f"commit {self.sequence}: {_short(held)}"


class Recorder:
    """The verbs of a collection for one thread. `calls` may be shared: appending is atomic.

    `refusals` names the classes of errors that are answers too, as when an id exists already.
    """

    def __init__(
        self, collection: Any, calls: list[Call], thread: str = "", refusals: Sequence[str] = ()
    ) -> None:
        self.collection = collection
        self.calls = calls
        self.thread = thread or threading.current_thread().name
        self.refusals = refusals
        self.last: Call | None = None
        """The newest call of this recorder."""

    def call(self, verb: str, **asked: Any) -> Any:
        """Calls a verb with these keywords and records it; the answer, None where it was refused.

        `pages` is `get` page by page to the end; `scan` gives a list of all its batches.
        """
        run = _RUNS.get(verb, _one)
        start = time.monotonic()
        try:
            answer, sequence = run(self.collection, verb, asked)
            refusal = ""
        except Exception as error:
            refusal = type(error).__name__
            if refusal not in self.refusals:
                raise
            answer, sequence = dict(getattr(error, "details", {})), None
        end = time.monotonic()
        self.last = Call(self.thread, verb, asked, start, end, answer, sequence, refusal=refusal)
        self.calls.append(self.last)
        return None if refusal else answer


def _one(collection: Any, verb: str, asked: Mapping[str, Any]) -> tuple[Any, int]:
    answer = getattr(collection, verb)(**asked)
    return answer, answer.sequence


def _count(collection: Any, _: str, asked: Mapping[str, Any]) -> tuple[int, int | None]:
    if hasattr(collection, "count_at"):
        counted: tuple[int, int] = collection.count_at(**asked)
        return counted
    return collection.count(**asked), None


def _stats(collection: Any, _: str, asked: Mapping[str, Any]) -> tuple[int, int]:
    stats = collection.stats(**asked)
    return stats.count, stats.sequence


def _scan(collection: Any, _: str, asked: Mapping[str, Any]) -> tuple[list[Any], int]:
    batches = list(collection.scan(**asked))
    return batches, batches[0].sequence


def _pages(collection: Any, _: str, asked: Mapping[str, Any]) -> tuple[list[Any], int]:
    pages = [collection.get(**asked)]
    while pages[-1].cursor is not None:
        pages.append(collection.get(**asked, cursor=pages[-1].cursor))
    return pages, pages[0].sequence


_RUNS: dict[str, Callable[..., tuple[Any, int | None]]] = {
    "count": _count, "stats": _stats, "scan": _scan, "pages": _pages,
}  # fmt: skip


def _ids_of(answer: Any) -> Any:
    parts = answer if isinstance(answer, list) else [answer]
    return [i for part in parts for i in part.ids]


def _short(value: Any, most: int = 8) -> str:
    """A value for people: long ones cut, arrays by their shape."""
    if isinstance(value, np.ndarray):
        return f"array{value.shape}"
    if isinstance(value, list) and len(value) > most:
        return f"[{', '.join(_short(v) for v in value[:most])}, ... {len(value)} in all]"
    if isinstance(value, list):
        return f"[{', '.join(_short(v) for v in value)}]"
    text = repr(value)
    return text if len(text) <= 120 else text[:120] + "..."
