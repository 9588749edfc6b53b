"""What parts of the benchmark of the index are made of: which queries come when, and which builds are seen."""

from __future__ import annotations

import types
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from bench import sources
from bench.index import building, selective
from bench.peers import engine
from vecdb.index import choice

ROWS, QUERIES = 2_000, 30


@pytest.fixture
def source(tmp_path: Path) -> sources.Source:
    return sources.prepare("clusters", ROWS, QUERIES, 1, tmp_path / "sets")


class Asked:
    """In place of a system: notes which queries come."""

    def __init__(self, *_: object, **options: object) -> None:
        self.options, self.asked = options, []
        self.collection = types.SimpleNamespace(
            query=lambda *_, **__: types.SimpleNamespace(
                explain=types.SimpleNamespace(plan="graph")
            )
        )

    def prepare(self, queries: object) -> list[int]:
        return list(range(len(queries)))

    def query(self, number: int, *_: object) -> tuple[list[str], None]:
        self.asked.append(number)
        return [], None


@pytest.mark.parametrize("earns", [False, True])
def test_a_filter_is_measured_by_queries_that_have_not_warmed_it(
    source: sources.Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earns: bool
) -> None:
    """Where filters earn graphs, one half of the queries asks for them and the other is measured; before, that one alone is,
    by an engine that makes nothing behind."""
    monkeypatch.setattr(engine, "System", Asked)
    monkeypatch.setattr(selective.measure, "quiet", lambda _: 0.0)
    selecting = selective.Selecting(source, tmp_path, earns)
    allowed = np.ones(ROWS, np.bool_)
    found = selecting._case({}, allowed, ~allowed)
    half = QUERIES // 2
    measured, others = list(range(half)), list(range(half, QUERIES))
    one = [*(others * selective._PASSES if earns else []), *measured]
    assert selecting._system.asked == one * len(selective.TARGETS)
    assert selecting._system.options["auto_build"] is earns
    assert [at["asked"] for at in found["at"].values()] == [half] * len(selective.TARGETS)


@pytest.mark.long
def test_queries_are_timed_while_a_graph_is_tried_behind_lists(
    source: sources.Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where lists serve first, the graph is really built while the caller asks; where it is not, that is told and no phase
    is made of it."""
    monkeypatch.setattr(choice, "_LISTS_FIRST_ROWS", ROWS)
    monkeypatch.setattr(building, "_WARM_S", 0.0)
    monkeypatch.setattr(engine, "System", partial(engine.System, exact_max_scalars=0))
    compared, cheaper = [], choice.cheaper
    monkeypatch.setattr(choice, "cheaper", lambda *all: compared.append(all) or cheaper(*all))
    first = building.First(source, tmp_path / "folder", 0.01)
    found = first.run(0.95)
    assert found["index"].startswith("ivf/")
    assert len(compared) == 1, "one graph was made and compared with these lists"
    for phase in ("during the first build", "quiet with the index", "while a graph is tried"):
        assert found[phase]["calls"] >= building._FEWEST_CALLS
    monkeypatch.setattr(building.First, "_unfinished", lambda _: True)
    with pytest.raises(RuntimeError, match="no graph was tried"):
        first._tried()
    first.close()
