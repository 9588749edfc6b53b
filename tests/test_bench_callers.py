"""Several callers of a server have a process each: who asks, what is recorded, and how it ends when one fails."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_bench_run import Line, of, run, runs

from bench.children import Child, ChildFailed, members
from bench.run import mixture, plan
from bench.run.asking import Case
from bench.run.changes import DELETED, moved
from bench.run.mixture import Mix, play, together
from bench.run.plan import Entry
from bench.sources import Condition, Source, prepare

CALLERS = 3


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sets")


@pytest.fixture
def source(cache: Path) -> Source:
    return prepare("clusters", 300, 40, 5, cache)


def stored(source: Source, folder: Path, joined: str = "none") -> Any:
    """The link to a system that holds all rows."""
    import bench_planted_apart

    folder.mkdir(exist_ok=True)
    system = bench_planted_apart.System(source, folder, create=True, joined=joined)
    system.insert(0, source.part(0, source.rows))
    return system.link()


def test_each_caller_is_a_process_and_all_answers_are_kept(source: Source, tmp_path: Path) -> None:
    """Three ask at once, none of them who handed out the work; every query is answered, and they end with their parent."""
    link, case = stored(source, tmp_path), Case(1.0, callers=CALLERS, budget_s=0.2)
    with Child("bench.run.callers:Callers", source, "bench_planted_apart", group=True) as child:
        child.call("begin", CALLERS, link, case)
        (tmp_path / "asked").unlink()
        asked, used_s = child.call("ask", case)
        here = members(child.pid)
        assert len(here) == 1 + CALLERS
        assert set(map(int, (tmp_path / "asked").read_text().split())) == set(here[1:])
    assert not [pid for pid in here if runs(pid)]
    assert sorted(asked.answers) == list(range(40))
    near = source.queries @ source.vectors(0, source.rows).T
    for number, rows in asked.answers.items():
        assert rows.tolist() == np.argsort(-near[number])[:10].tolist()
    assert len(asked.taken_s) >= 40
    assert asked.took_s >= case.budget_s
    assert used_s > 0


def test_callers_ask_until_they_are_told_to_stop(source: Source, tmp_path: Path) -> None:
    """While something is loaded, however long that takes."""
    link, case = stored(source, tmp_path), Case(1.0)
    with Child("bench.run.callers:Callers", source, "bench_planted_apart", group=True) as child:
        child.call("begin", 1, link, case)
        child.call("start", case)
        taken_s, used_s = child.call("stop")
        assert used_s >= 0
        assert all(one > 0 for one in taken_s)
        # It can be asked on.
        asked, _ = child.call("ask", Case(1.0, budget_s=0.05))
        assert len(asked.answers) == 40


@pytest.mark.parametrize(("fault", "said"), [("raises", "no answer today"), ("ends", "has ended")])
def test_a_caller_that_fails_is_named(
    fault: str, said: str, source: Source, tmp_path: Path
) -> None:
    """An error of one, and one that is gone, are errors of the call, in words; no process is left."""
    link, case = stored(source, tmp_path, fault), Case(1.0, callers=2)
    with Child("bench.run.callers:Callers", source, "bench_planted_apart", group=True) as child:
        with pytest.raises(ChildFailed, match=said):
            child.call("begin", 2, link, case)
        # Others are made, which have the next link.
        child.call("begin", 2, stored(source, tmp_path / "sound"), case)
        assert sorted(child.call("ask", case)[0].answers) == list(range(40))
        here = members(child.pid)
    assert not [pid for pid in here if runs(pid)]


def written(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> list[Line]:
    monkeypatch.setitem(plan.SYSTEMS, "served", Entry("bench_planted_apart"))
    return run(folder, cache, "--systems", "served", "--workloads", "single", *words)


@pytest.mark.long
def test_the_file_says_how_callers_run(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process each, whose CPU seconds are told; or in one, where that is asked for."""
    for name, words in (("apart", ()), ("one", ("--callers-in", "one"))):
        found = written(tmp_path / name, cache, monkeypatch, *words)
        assert of(found, "failed") == []
        (about,) = of(found, "system")
        several = about["settings"]["several callers"]
        assert ("a process each" in several) == (name == "apart")
        assert ("threads of one process" in several) == (name == "one")
        samples = {one["case"]: one for one in of(found, "sample") if " recall=" in one["case"]}
        assert samples["callers=4 recall=0.95"]["recall"] == 1.0
        assert ("cpu_callers_s" in samples["callers=4 recall=0.95"]) == (name == "apart")
        assert "cpu_callers_s" not in samples["callers=1 recall=0.95"]


def test_the_mix_of_several_callers_changes_each_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers change rows of their own: what each did adds up, and the versions told are those that are live."""

    class Rows:
        def __init__(self) -> None:
            self.live: dict[int, Any] = {}
            self.began: dict[int, Any] = {}

        def where(self, condition: Any) -> Any:
            return condition

        def query(self, *_: Any) -> Any:
            return [], []

        def upsert(self, numbers: list[int], part: Any) -> None:
            self.put(numbers[0], part.vectors[0])

        def delete(self, numbers: list[int], ids: Any) -> None:
            self.put(numbers[0], None)

        def put(self, number: int, vector: Any) -> None:
            self.began.setdefault(number, vector)
            self.live[number] = vector

    class Few(Source):
        def __init__(self) -> None:
            self.rows = 60

        @property
        def dimension(self) -> int:
            return 4

        def vectors(self, start: int, stop: int) -> Any:
            return np.ones((stop - start, 4), np.float32)

        def records(self, start: int, stop: int) -> Any:
            return ["x"] * (stop - start), [{}] * (stop - start), [""] * (stop - start)

    # The clock counts looks at it, so that the same is played everywhere.
    looks = itertools.count()
    monkeypatch.setattr(mixture, "time", SimpleNamespace(perf_counter=lambda: float(next(looks))))
    tenants = [(Condition("a", "=", n), np.arange(n * 20, n * 20 + 20)) for n in range(3)]
    system, source = Rows(), Few()
    mix = Mix(0.95, dict.fromkeys(range(60), 2), tenants)
    given = (system, source, [0, 1, 2], mix)
    done = [play(*given, caller, 2, next(looks) + 20_000.0) for caller in (0, 1)]
    assert not set(done[0].changed) & set(done[1].changed)
    assert all(row % 2 == caller for caller in (0, 1) for row in done[caller].changed)
    found, versions = together(done, 0.1)
    assert found["calls"] == sum(len(one.queried_s) + one.upserts + one.deletes for one in done)
    assert sum(one.upserts for one in done) > 100
    assert sum(one.deletes for one in done) > 20
    assert set(versions) == set(system.live)
    for row, version in versions.items():
        assert (version == DELETED) == (system.live[row] is None)
        if version != DELETED:
            assert system.live[row].tolist() == moved(source, row, version).tolist()
    # What was changed before goes on from the version it had; what was deleted begins again.
    began = [row for row, vector in system.began.items() if vector is not None]
    assert began
    assert all(system.began[row].tolist() == moved(source, row, 3).tolist() for row in began)
    assert DELETED in versions.values()
