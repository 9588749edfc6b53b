"""Who is measured when: one system after another, A B A B, each in processes of its own."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

from ..children import ChildFailed, Missing
from ..sources import Source
from . import queries, writes
from .asking import Case
from .changes import Changes
from .lines import Lines
from .plan import ASKING, CHANGING, LOADED, SYSTEMS, WRITING, Plan
from .queries import Chosen
from .session import Recorded, Session, drop_cache, reason


class Turns:
    """One run. Folders of the systems lie below `plan.folder`."""

    def __init__(self, plan: Plan, source: Source, lines: Lines) -> None:
        self._plan, self._source, self._lines = plan, source, lines
        self._chosen: dict[str, Chosen] = {}
        self._ready: list[str] = []

    def run(self) -> None:
        self._systems = self._described()
        plan, wanted = self._plan, self._plan.workloads
        # What is only asked needs one load.
        for turn in range((plan.loads if wanted & WRITING else 1) if wanted & LOADED else 0):
            self._each(self._systems, turn, "load", self._load)
            if turn == 0 and wanted & ASKING:
                for asked in range(plan.rounds):
                    self._each(self._ready, asked, "single", self._ask)
            if wanted & CHANGING:
                self._each(self._ready, turn, "update", self._change)
        for name in self._ready:
            shutil.rmtree(plan.folder / name, ignore_errors=True)
        if "load_query" in wanted:
            source = self._source.first(min(plan.load_query_rows, self._source.rows))
            for turn in range(plan.loads):
                self._each(
                    self._systems, turn, "load_query", self._aside(writes.load_query), source
                )
        for name, what in (("many", writes.many), ("growth", writes.growth)):
            for turn in range(plan.long_rounds if name in wanted else 0):
                self._each(self._systems, turn, name, self._aside(what))

    def _session(self, name: str, source: Source, turn: int) -> Session:
        plan = self._plan
        return Session(name, SYSTEMS[name], source, self._lines, turn, plan.patience, plan.apart)

    def _described(self) -> list[str]:
        there = []
        for name in self._plan.systems:
            try:
                with self._session(name, self._source, 0) as session:
                    about = session.about
                    self._lines.write(
                        "system", system=name, memory_base_bytes=session.memory(), **about
                    )
            except Missing as error:
                self._skip(name, str(error).strip())
            except ChildFailed as error:
                self._skip(name, reason(error))
            else:
                there.append(name)
                self._chosen[name] = {}
        return there

    def _skip(self, name: str, reason: str) -> None:
        _say(f"{name}: skipped, {reason}")
        self._lines.write("skipped", system=name, reason=reason)

    def _each(
        self,
        names: list[str],
        turn: int,
        workload: str,
        what: Callable[[Session], None],
        source: Source | None = None,
    ) -> None:
        """`what` with each system in turn; one that fails is named and the others go on."""
        for name in list(names):
            begun_s = time.perf_counter()
            try:
                with self._session(name, source or self._source, turn) as session:
                    what(session)
            except Missing as error:
                self._skip(name, str(error).strip())
                names.remove(name)
            except ChildFailed as error:
                _say(f"{name}: {error}")
                values: dict[str, Any] = {"workload": workload, "case": "", "round": turn}
                self._lines.write("failed", system=name, reason=reason(error), **values)
            except Recorded as error:
                _say(f"{name}: {error.__cause__}")
            _say(f"{workload} {turn}: {name}, {time.perf_counter() - begun_s:.0f} s")

    def _load(self, session: Session) -> None:
        folder = self._plan.folder / session.name / "data"
        shutil.rmtree(folder.parent, ignore_errors=True)
        folder.parent.mkdir(parents=True)
        if session.name in self._ready:
            self._ready.remove(session.name)
        if writes.load(session, self._plan, folder):
            self._ready.append(session.name)

    def _ask(self, session: Session) -> None:
        plan, chosen = self._plan, self._chosen[session.name]
        wanted = plan.workloads
        self._open(session, sampled="open" in wanted)
        for name, workload in (
            ("single", queries.single),
            ("batch", queries.batch),
            ("filter", queries.filters),
        ):
            if name in wanted:
                with session.attempt(name):
                    workload(session, plan, chosen)

    def _open(self, session: Session, *, sampled: bool) -> None:
        """From nothing in memory to the first answer: its server, its files, its first query."""
        folder = self._plan.folder / session.name / "data"
        size = session.disk(folder)
        dropped = drop_cache(folder)
        setting = queries.usual(session, self._chosen[session.name])
        (opened_s, first_s), took = session.reopen(folder, setting)
        if sampled and session.outside:
            session.lines.skip(session.name, "open", "its server runs already")
        elif sampled:
            settled = session.watched("settle", setting)[1]
            took |= {name: value for name, value in settled.items() if "memory" in name}
            # After memory was looked at: to judge answers takes some of it.
            case = Case(setting, budget_s=self._plan.seconds / 2, least=100)
            recall = session.asked(case)["recall"]
            session.sample(
                "open",
                "",
                seconds=opened_s + first_s,
                open_s=opened_s,
                recall=recall,
                note="page cache dropped"
                if dropped
                else "page cache kept: it cannot be dropped here",
                **took,
                **size,
            )

    def _change(self, session: Session) -> None:
        self._open(session, sampled=False)
        plan, chosen, changes = self._plan, self._chosen[session.name], Changes()
        if "update" in plan.workloads:
            writes.update(session, plan, chosen, changes)
        if "rag" in plan.workloads:
            writes.rag(session, plan, chosen, changes)

    def _aside(self, what: Callable[..., None]) -> Callable[[Session], None]:
        """`what` in a folder of its own, which is removed afterwards."""

        def run(session: Session) -> None:
            folder = self._plan.folder / f"{session.name}-aside" / "data"
            shutil.rmtree(folder.parent, ignore_errors=True)
            folder.parent.mkdir(parents=True)
            try:
                with session.attempt(what.__name__):
                    what(session, self._plan, folder)
            finally:
                shutil.rmtree(folder.parent, ignore_errors=True)

        return run


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
