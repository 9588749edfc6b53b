"""Who shares a commit: writers that were let go and ask again at once are let back in before the next one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

import vecdb
from vecdb import lane as lane_module
from vecdb.lane import Lane


@pytest.fixture
def docs(data_folder):
    """A collection of a database of its own."""
    with vecdb.open(data_folder) as db:
        yield db.create_collection("docs", dimension=4, metric="l2")


def in_threads(work: Callable[[int], None], count: int) -> None:
    threads = [threading.Thread(target=work, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Given:
    """Stands for `time` in the lane: each time that the interpreter is given up, so many writers come."""

    def __init__(self, lane: Lane, coming: list[int]) -> None:
        self.lane, self.coming, self.times = lane, coming, 0

    def sleep(self, seconds: float) -> None:
        assert seconds == 0, "the lane waits for nobody"
        came = self.coming[self.times] if self.times < len(self.coming) else 0
        self.times += 1
        self.lane._waiting += [SimpleNamespace(write=SimpleNamespace(alone=False))] * came


@pytest.mark.parametrize(
    ("let_go", "coming", "times", "size"),
    [
        (0, [1, 1], 0, 1),  # one that was alone does not even ask
        (3, [1, 1, 1, 1], 3, 4),  # all are back
        (3, [3, 0, 1], 2, 4),  # several at once, and then nobody more
        (7, [], 1, 1),  # nobody comes: asked once
        (7, [1, 0, 1, 1], 2, 2),  # it ends where nobody comes
    ],
)
def test_the_lane_lets_in_who_comes_and_stops_where_nobody_does(
    docs, monkeypatch, let_go, coming, times, size
):
    """As often as writers were let go at most, and no longer than each time somebody comes."""
    lane = Lane(docs._core.store, lambda *_: None, SimpleNamespace())
    given = Given(lane, coming)
    monkeypatch.setattr(lane_module, "time", given)
    lane._let_go = let_go
    lane._waiting.append(SimpleNamespace(write=SimpleNamespace(alone=False)))
    assert (len(lane._take_group()), given.times) == (size, times)
    assert lane._let_go == size - 1


def test_a_lone_writer_never_gives_way(docs, monkeypatch):
    """Its writes cost what they did: it has let nobody go."""
    monkeypatch.setattr(Lane, "_let_back_in", lambda lane: seen.append(lane._let_go))
    seen: list[int] = []
    for n in range(20):
        docs.insert([str(n)], [[n, 0, 0, 1]])
    assert seen == [0] * 20


def test_eight_writers_without_pause_share_nearly_every_commit(docs, monkeypatch):
    """More than half of them: without being let back in, half of the writers wait while the other half commits, so
    never more than about 4.6 of 8 share."""
    commit = docs._core.store.commit

    def slow(*work):
        # A disk as slow as many are: what this one takes must not decide.
        time.sleep(0.01)
        return commit(*work)

    monkeypatch.setattr(docs._core.store, "commit", slow)
    each, writers = 60, 8
    in_threads(
        lambda n: [docs.insert([f"{n}-{i}"], [[n, i, 0, 1]]) for i in range(each)] and None, writers
    )
    assert docs.count() == each * writers
    assert each * writers / docs.stats().sequence > 5.2
    assert docs.check().ok
