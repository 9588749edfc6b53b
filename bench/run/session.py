"""One system in its turn: a child with the system in it, and lines about what it does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .. import measure
from ..children import Child, ChildFailed, Ended
from ..peers.base import Unsupported
from ..sources import Condition, Source, State
from .asking import Case
from .lines import Lines
from .plan import PATIENCE, Entry, K
from .tree import Watch

_LONG = {"load", "ready", "load_and_ask", "upsert", "delete", "mix", "many", "close"}


_UNSUPPORTED = f"{Unsupported.__module__}.{Unsupported.__qualname__}: "


class Recorded(Exception):
    """A session is over, and the file says why."""


class Session:
    """A child process that ends with the context, with all that it has started."""

    def __init__(
        self,
        name: str,
        entry: Entry,
        source: Source,
        lines: Lines,
        turn: int,
        patience: tuple[float, float] = PATIENCE,
    ) -> None:
        self.name, self.source, self.lines, self.turn = name, source, lines, turn
        self._child = Child(
            "bench.run.host:Host", source, entry.module, dict(entry.options), group=True
        )
        self._patience = patience
        self.about: dict[str, Any] = {}
        self.outside = False
        """Its processes and files are not ours: neither is measured."""

    def __enter__(self) -> Self:
        try:
            self.about = self.call("describe")
            self.outside = bool(self.about.pop("outside"))
        except BaseException:
            self._child.close()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.call("close")
        finally:
            self._child.close()

    def call(self, method: str, *arguments: Any) -> Any:
        self._child.limit_s = self._patience[method in _LONG]
        return self._child.call(method, *arguments)

    def memory(self) -> int:
        with Watch(self._child.pid) as watch:
            pass
        return int(watch.figures["memory_bytes"])

    def watched(self, method: str, *arguments: Any) -> tuple[Any, dict[str, Any]]:
        """Result, and what the process tree took meanwhile."""
        with Watch(self._child.pid) as watch:
            result = self.call(method, *arguments)
        return result, {} if self.outside else watch.figures

    def disk(self, folder: Path, raw_bytes: int | None = None) -> dict[str, Any]:
        """Bytes on disk, and their ratio to the float32 vectors alone, by default of all rows."""
        if self.outside:
            return {}
        size = measure.folder_bytes(folder)
        return {"disk_bytes": size, "disk_to_raw": size / (raw_bytes or self.source.raw_bytes)}

    def sample(self, workload: str, case: str, **values: Any) -> None:
        rounded = {
            name: round(value, 6) if isinstance(value, float) else value
            for name, value in values.items()
            if value is not None
        }
        self.lines.write(
            "sample", system=self.name, workload=workload, case=case, round=self.turn, **rounded
        )

    def failed(self, workload: str, case: str, reason: str) -> None:
        self.lines.write(
            "failed", system=self.name, workload=workload, case=case, round=self.turn, reason=reason
        )

    @contextmanager
    def attempt(self, workload: str, case: str = "") -> Iterator[None]:
        """What a system cannot is a line "skipped", what goes wrong a line "failed"; the rest goes on."""
        try:
            yield
        except ChildFailed as error:
            if _last(error).startswith(_UNSUPPORTED):
                self.lines.skip(self.name, workload, reason(error))
                return
            self.failed(workload, case, reason(error))
            if isinstance(error, Ended):
                raise Recorded from error

    def asked(
        self,
        case: Case,
        condition: Condition | None = None,
        state: State | None = None,
    ) -> dict[str, Any]:
        """One pass: its figures, what the process took, and recall of what was found."""
        self.call("tune", case.setting)  # a change of it may start a server anew
        (figures, found), took = self.watched("ask", case)
        truth = self.source.truth(K, condition, state)
        recall = self.source.recall(_within(found, self.source.rows), truth)
        return {**figures, **took, "recall": recall, "setting": case.setting}


def reason(error: ChildFailed) -> str:
    """What was raised, without the traceback that a child gives."""
    return _last(error).removeprefix(_UNSUPPORTED)[:500]


def _last(error: ChildFailed) -> str:
    return str(error).strip().splitlines()[-1]


def _within(found: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    """A row that there is not was not found."""
    return np.where(found < rows, found, -1)


def drop_cache(folder: Path) -> bool:
    """Writes a folder's files out and has the kernel forget their pages; False where that is not possible."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            opened = os.open(path, os.O_RDONLY)
            try:
                os.fsync(opened)
                os.posix_fadvise(opened, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(opened)
    return True
