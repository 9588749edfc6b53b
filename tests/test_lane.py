"""Who shares a commit: writers that were let go and ask again at once are let back in before the next one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

import vecdb
from vecdb import lane as lane_module
from vecdb.errors import RecordExists
from vecdb.lane import Lane
from vecdb.writes import Put


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
        self.lane._waiting += [
            SimpleNamespace(write=SimpleNamespace(frees=False, looks=False, adds=0))
        ] * came


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
    lane = Lane(docs._core.store, lambda *_: None, lambda _: None, SimpleNamespace())
    given = Given(lane, coming)
    monkeypatch.setattr(lane_module, "time", given)
    lane._let_go = let_go
    lane._waiting.append(SimpleNamespace(write=SimpleNamespace(frees=False, looks=False, adds=0)))
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


@pytest.mark.parametrize("others_read", [True, False])
def test_a_read_shows_what_another_process_may_have_shown(others_read, data_folder, monkeypatch):
    """Between a commit and its publishing a query waits for the latter where others read the file, and only there;
    nobody waits for the disk, and the thread that commits not for itself."""
    with vecdb.open(data_folder) as db:
        db.others_read = others_read
        docs = db.create_collection("docs", dimension=4, metric="l2")
        lane, store = docs._core._lane, docs._core.store
        publish, commit = lane._publish, store.commit
        at_disk, on_disk = threading.Event(), threading.Event()
        committed, go_on = threading.Event(), threading.Event()
        seen: dict[str, int] = {}

        def found() -> int:
            return len([i for i in docs.query([1, 0, 0, 0], k=5).ids[0] if i])

        def waiting_commit(*args):
            at_disk.set()
            assert on_disk.wait(30)
            return commit(*args)

        def waiting_publish(*args):
            seen["by the thread that commits"] = found()
            committed.set()
            assert go_on.wait(30)
            publish(*args)

        monkeypatch.setattr(store, "commit", waiting_commit)
        monkeypatch.setattr(lane, "_publish", waiting_publish)
        writer = threading.Thread(target=docs.insert, args=(["a"], [[1, 0, 0, 0]]))
        writer.start()
        assert at_disk.wait(30)
        assert found() == 0
        on_disk.set()
        assert committed.wait(30)
        reader = threading.Thread(target=lambda: seen.update(meanwhile=found()))
        reader.start()
        reader.join(0.3 if others_read else 30)
        assert reader.is_alive() == others_read
        go_on.set()
        writer.join(30)
        reader.join(30)
        assert seen == {"by the thread that commits": 0, "meanwhile": int(others_read)}
        assert found() == 1
        assert lane.landing is None


def test_a_commit_that_fails_keeps_no_reader_waiting(data_folder, monkeypatch):
    """What never lands is not waited for."""
    with vecdb.open(data_folder) as db:
        db.others_read = True
        docs = db.create_collection("docs", dimension=4, metric="l2")

        def broken(*_):
            raise vecdb.errors.StorageFull("no space")

        with monkeypatch.context() as patch:
            patch.setattr(docs._core.store, "commit", broken)
            with pytest.raises(vecdb.errors.StorageFull):
                docs.insert(["a"], [[1, 0, 0, 0]])
        assert docs._core._lane.landing is None
        docs.insert(["a"], [[1, 0, 0, 0]])
        assert docs.count() == 1


def test_a_large_batch_is_copied_while_it_is_applied_and_once(data_folder, monkeypatch):
    """Into the tail, where nobody looks yet: what is refused after it was copied is never found, and what comes instead
    is, whole."""
    rng = np.random.default_rng(5)
    steps: list[str] = []
    with vecdb.open(data_folder) as db:
        docs = db.create_collection("docs", dimension=128, metric="l2")
        core, apply = docs._core, Put.apply
        copy, came = core.index._ahead._tail._copy, threading.Event()

        def copied(*given):
            steps.append("copied")
            came.set()
            return copy(*given)

        def applied(put, *given):
            assert came.wait(10), "it is copied before it is applied"
            came.clear()
            steps.append("applied")
            return apply(put, *given)

        monkeypatch.setattr(core.index._ahead._tail, "_copy", copied)
        monkeypatch.setattr(Put, "apply", applied)
        first, refused, second = rng.standard_normal((3, 600, 128)).astype(np.float32)
        docs.insert([f"a{n}" for n in range(600)], first)
        with pytest.raises(RecordExists):
            docs.insert([f"a{n}" for n in range(600)], refused)
        assert core.index._ahead._copied is None, "a refused batch is held no longer"
        docs.insert([f"b{n}" for n in range(600)], second)
        assert steps == ["copied", "applied"] * 3
        assert docs.count() == 1_200
        near = docs.query(second, k=1)
        assert [ids[0] for ids in near.ids] == [f"b{n}" for n in range(600)]
        assert (docs.query(refused, k=1).distances > 1).all()
        assert docs.check().ok
