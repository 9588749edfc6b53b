"""`python -m bench run` finds the setting of what it asks before it takes a sample, and for what it asks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.run import queries, writes
from bench.run.changes import Changes
from bench.run.plan import TARGETS, Plan
from bench.sources import Source, prepare

SETTINGS = [1.0, 2.0, 3.0, 4.0, 5.0]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return prepare("clusters", 1_500, 60, 5, tmp_path_factory.mktemp("sets"))


class Played:
    """A session without a child: `answer` says what a setting reaches under a filter, after what was asked before."""

    apart = False

    def __init__(self, source: Source, answer: Any) -> None:
        self.source, self._answer = source, answer
        self.name, self.before = "played", [""]
        self.samples: list[dict[str, Any]] = []
        self.mixes: list[float] = []

    @contextmanager
    def attempt(self, workload: str, case: str = "") -> Iterator[None]:
        yield

    def call(self, method: str, *arguments: Any) -> Any:
        if method == "ask":
            self.before.append(str(arguments[0].condition))
        return SETTINGS

    def asked(self, case: Any, condition: Any = None, state: Any = None) -> dict[str, Any]:
        assert case.condition == condition
        self.before.append(str(condition))
        recall, rate = self._answer(case.setting, str(condition), self.before)
        return {"recall": recall, "qps": rate, "setting": case.setting}

    def watched(self, method: str, mix: Any, *_: Any) -> Any:
        self.mixes.append(mix.setting)
        return ({"qps": 5.0}, {}), {}

    def disk(self) -> dict[str, Any]:
        return {}

    def sample(self, workload: str, case: str, **values: Any) -> None:
        self.samples.append({"case": case, **values})


@pytest.mark.parametrize(
    ("first", "later", "rates"), [(1.0, 3.0, (100, 100)), (4.0, 2.0, (100, 400))]
)
def test_samples_of_a_filter_are_all_of_the_setting_for_what_the_system_has_made(
    source: Source, first: float, later: float, rates: tuple[float, float]
) -> None:
    """What a system makes for a filter comes while the next one is asked: it needs more, or less, of the setting, and
    no sample is of the way before."""

    def answer(setting: float, filtered: str, before: list[str]) -> tuple[float, float]:
        since = before[before.index(filtered) :]
        made = any(one != filtered for one in since)
        least = later if made else first
        return (0.97 if setting >= least else 0.8), rates[made]

    session, chosen = Played(source, answer), {}
    for _ in range(3):
        queries.filters(session, Plan((), frozenset(), Path()), chosen)  # type: ignore[arg-type]
    cases = {source.case(one) for one in source.conditions()}
    assert len(session.samples) == 3 * len(cases)
    assert {one["setting"] for one in session.samples} == {later}
    assert min(one["recall"] for one in session.samples) >= TARGETS[0]


def test_the_mix_is_asked_at_what_reaches_the_recall_under_its_own_filters(source: Source) -> None:
    """The setting of the rarest filter, under which all is compared, is not taken for the filters of tenants."""
    tenants = {str(condition) for condition, _ in writes.tenants_of(source)}

    def answer(setting: float, filtered: str, before: list[str]) -> tuple[float, float]:
        least = 3.0 if filtered in tenants else 1.0
        return (0.97 if setting >= least else 0.8), 100.0

    session, plan = Played(source, answer), Plan((), frozenset(), Path())
    chosen: queries.Chosen = {("filter", source.case(source.conditions()[0])): 1.0}
    writes.rag(session, plan, chosen, Changes())  # type: ignore[arg-type]
    assert session.mixes == [3.0, 3.0]
    assert [(one["case"], one["setting"], one["recall"]) for one in session.samples] == [
        ("callers=1", 3.0, pytest.approx(0.97)),
        ("callers=8", 3.0, pytest.approx(0.97)),
    ]
    # The second round takes what the first has found.
    asked = len(session.before)
    writes.rag(session, plan, chosen, Changes())  # type: ignore[arg-type]
    assert len(session.before) == asked + 6
