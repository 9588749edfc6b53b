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
from .asking import Case, figures
from .lines import Lines
from .plan import PATIENCE, Entry, K
from .tree import Watch

_LONG = {"load", "ready", "load_and_ask", "upsert", "delete", "mix", "many", "close"}


_UNSUPPORTED = f"{Unsupported.__module__}.{Unsupported.__qualname__}: "


_CALLERS = {
    "processes": "a process each, with a blocking client and a connection of its own",
    "threads": "threads of one process",
    "asyncio": "tasks of asyncio in one process",
}


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
        apart: bool = True,
    ) -> None:
        self.name, self.source, self.lines, self.turn = name, source, lines, turn
        self._child = Child(
            "bench.run.host:Host", source, entry.module, dict(entry.options), group=True
        )
        self._patience = patience
        self._module, self._wishes_apart = entry.module, apart
        self._callers: Child | None = None
        self.about: dict[str, Any] = {}
        self.outside = False
        """Its processes and files are not ours: neither is measured."""
        self.apart = False
        """Several callers have a process each."""
        self._folder: Path | None = None

    def __enter__(self) -> Self:
        try:
            self.about = self.call("describe")
            self.outside = bool(self.about.pop("outside"))
            self.apart = bool(self.about.pop("apart")) and self._wishes_apart
            words = _CALLERS["processes" if self.apart else self.about.pop("callers")]
            self.about.pop("callers", None)
            self.about["settings"] = {**self.about["settings"], "several callers": words}
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
            if self._callers is not None:
                self._callers.close()

    def open(self, folder: Path) -> None:
        """Makes the system anew in a folder, whose bytes are told from then on."""
        self._folder = folder
        self.call("open", folder, True)

    def reopen(self, folder: Path, setting: float) -> tuple[Any, dict[str, Any]]:
        """Opens what is there, to the first answer; as `watched`."""
        self._folder = folder
        return self.watched("reopen", folder, setting)

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

    def disk(self, folder: Path | None = None, raw_bytes: int | None = None) -> dict[str, Any]:
        """Bytes on disk, by default of what is open, and their ratio to the float32 vectors alone, by default of all
        rows."""
        folder = folder or self._folder
        if self.outside or folder is None:
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
        if case.callers > 1 and self.apart:
            figures, found, took = self._from_processes(case)
        else:
            (figures, found), took = self.watched("ask", case)
        truth = self.source.truth(K, condition, state)
        recall = self.source.recall(_within(found, self.source.rows), truth)
        return {**figures, **took, **self.disk(), "recall": recall, "setting": case.setting}

    def _from_processes(
        self, case: Case
    ) -> tuple[dict[str, Any], NDArray[np.int64], dict[str, Any]]:
        self.begin_callers(case.callers, case)
        with self.watch() as watch:
            asked, used_s = self.callers("ask", case)
        found = self.call("rows", asked.answers)
        return figures(asked.taken_s, asked.took_s), found, self.took(watch, used_s)

    def begin_callers(self, count: int, case: Case) -> None:
        """So many callers in processes of their own are connected to what is open now."""
        if self._callers is None:
            self._callers = Child(
                "bench.run.callers:Callers", self.source, self._module, group=True
            )
        self.callers("begin", count, self.call("link"), case)

    def callers(self, method: str, *arguments: Any) -> Any:
        """As `call`, of the process that the callers belong to."""
        assert self._callers is not None
        self._callers.limit_s = self._patience[method in _LONG]
        return self._callers.call(method, *arguments)

    def took(self, watch: Watch, callers_s: float) -> dict[str, Any]:
        """What the system took, and the CPU seconds of callers in processes of their own, which are in neither its memory
        nor its CPU seconds otherwise."""
        if self.outside:
            return {}
        whole_s = round(watch.figures["cpu_s"] + callers_s, 3)
        return {**watch.figures, "cpu_s": whole_s, "cpu_callers_s": round(callers_s, 3)}

    def watch(self) -> Watch:
        return Watch(self._child.pid)


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
