"""What is done behind goes on whatever a part of it fails of, and a collection that is gone takes no other with it."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import wait_until

import vecdb
from vecdb import builder, compaction, errors, failpoints
from vecdb.build_jobs import SIDE, TASKS, Job


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What failed is tried again soon, and no hook stays."""
    monkeypatch.setattr(builder, "_RETRY_S", 0.05)
    before = failpoints.hook
    yield
    failpoints.install(before)


def vectors(count: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((count, 16), dtype=np.float32)


def test_what_cannot_be_looked_at_keeps_nobody_from_being_looked_after(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that is none of ours, in the look at one collection, ends neither the thread nor what others wait for;
    and that collection is looked at again."""
    real, times = compaction.is_due, []

    def is_due(core: object) -> bool:
        if len(times) < 2:
            times.append(core)
            if len(times) == 2:  # The first is asked by the writer, the second by the thread.
                raise MemoryError
        return real(core)  # type: ignore[arg-type]

    with vecdb.open(data_folder, device="cpu", history_s=0.0) as db:
        other = db.create_collection("other", dimension=16)
        other.insert(["a"], vectors(1))
        docs = db.create_collection("docs", dimension=16)
        ids = [str(n) for n in range(2_000)]
        docs.insert(ids, vectors(2_000))
        monkeypatch.setattr(compaction, "is_due", is_due)
        docs.delete(ids[:1_500])
        wait_until(lambda: len(times) == 2, "a look at the dead rows")
        other.compact(timeout_s=60)
        wait_until(lambda: docs.stats().purged_rows == 1_500, "a compaction")


def test_a_build_that_failed_is_tried_again_where_nobody_writes(data_folder: Path) -> None:
    """The disk was full when the first index was to be saved; once it has room, queries need no write to be served by it."""
    full, met = [True], []

    def hook(name: str, path: Path) -> None:
        if name.startswith("index.") and full[0]:
            met.append(name)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    failpoints.install(hook)
    with vecdb.open(data_folder, device="cpu", exact_max_scalars=1_000, build_threads=1) as db:
        docs = db.create_collection("docs", dimension=16, index="hnsw")
        docs.insert([str(n) for n in range(3_000)], vectors(3_000))
        wait_until(lambda: len(met) > 1, "another try, which fails too")
        assert "no space left" in docs.stats().index.last_error
        full[0] = False
        wait_until(lambda: docs.stats().index.indexed_rows == 3_000, "an index")
        assert docs.stats().index.last_error == ""


def test_builds_of_several_fields_that_failed_are_all_tried_again(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one fails later than the other, it is not forgotten when the other has been built."""
    real, failed = TASKS["build"], set[int]()
    monkeypatch.setattr(builder, "_RETRY_S", 1.5)

    def build(job: Job) -> object:
        if job.number in failed:
            return real(job)
        threading.Event().wait(1.0 * len(failed))
        failed.add(job.number)
        raise errors.StorageFull("no space left")

    monkeypatch.setitem(TASKS, "build", build)
    with vecdb.open(data_folder, device="cpu", exact_max_scalars=1_000, build_threads=1) as db:
        docs = db.create_collection(
            "docs",
            dimension=16,
            index="hnsw",
            vectors={"title": {"dimension": 16, "index": "hnsw"}},
        )
        rows = vectors(3_000)
        docs.insert([str(n) for n in range(3_000)], rows, named_vectors={"title": rows})
        wait_until(lambda: len(failed) == 2, "both fail")
        wait_until(
            lambda: (
                [
                    docs.stats().index.indexed_rows,
                    docs.stats().vectors["title"].indexed_rows,
                ]
                == [3_000, 3_000]
            ),
            "both are built",
        )


def test_a_build_that_was_cancelled_begins_again_after_a_while(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nobody writes."""
    real, begun = TASKS["build"], threading.Event()

    def build(job: Job) -> object:
        if begun.is_set():
            return real(job)
        begun.set()
        return job.cancel.wait(60)

    monkeypatch.setitem(TASKS, "build", build)
    with vecdb.open(data_folder, device="cpu", exact_max_scalars=1_000, build_threads=1) as db:
        docs = db.create_collection("docs", dimension=16, index="hnsw")
        docs.insert([str(n) for n in range(3_000)], vectors(3_000))
        assert begun.wait(60)
        assert docs.cancel_build()
        wait_until(lambda: docs.stats().index.indexed_rows == 3_000, "an index")


def test_nothing_of_a_dropped_collection_is_kept(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it looked at again, where its build failed in the moment of the drop."""
    monkeypatch.setattr(builder, "_RETRY_S", 600.0)
    begun = threading.Event()

    def hook(name: str, path: Path) -> None:
        if name.startswith("index."):
            begun.set()
            wait_until(lambda: any(job.cancel.is_set() for job in jobs()), "the drop")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with vecdb.open(data_folder, device="cpu", exact_max_scalars=1_000, build_threads=1) as db:

        def jobs() -> list[Job]:
            return list(db._builder._jobs.values())

        failpoints.install(hook)
        docs = db.create_collection("docs", dimension=16, index="hnsw")
        docs.insert([str(n) for n in range(3_000)], vectors(3_000))
        assert begun.wait(60)
        db.drop_collection("docs")
        assert not db._builder._unsettled


@pytest.mark.parametrize("gone", ["folder", "file instead"])
def test_a_folder_that_is_gone(data_folder: Path, gone: str) -> None:
    """Each verb of a collection whose folder somebody has removed is typed, and figures of the others are there."""
    with vecdb.open(data_folder, device="cpu", auto_build=False) as db:
        for name in ("a", "b"):
            db.create_collection(name, dimension=16).insert(["x"], vectors(1))
        docs, folder = db.get_collection("a"), db.get_collection("a")._core.store.folder
        shutil.rmtree(folder)
        if gone != "folder":
            folder.write_text("")
        for call in (docs.stats, docs.compact):
            with pytest.raises(errors.Corrupted, match="has gone"):
                call()
        report = docs.check()
        assert not report.ok
        assert any("cannot be looked at" in problem for problem in report.problems)
        assert [one.name for one in db.figures()] == ["b"]
        db.get_collection("b").insert(["y"], vectors(1))
        assert db.get_collection("b").stats().count == 2


def test_what_makes_way_for_another_collection_is_taken_up_again(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph for a filter waits while a job of another collection runs, and one more comes."""
    go_on, begun, considered = threading.Event(), threading.Event(), list[object]()
    consider = builder.Builder.consider

    def kept(job: Job) -> None:
        begun.set()
        assert go_on.wait(20)

    def seen(self: builder.Builder, core: object) -> None:
        considered.append(core)
        consider(self, core)  # type: ignore[arg-type]

    with vecdb.open(data_folder, device="cpu") as db:
        docs, other = (db.create_collection(name, dimension=16) for name in ("docs", "other"))
        monkeypatch.setitem(TASKS, "compact", kept)
        other.compact(wait=False)
        assert begun.wait(20)
        side = db._builder._enqueue(docs._core, SIDE, 0)
        monkeypatch.setattr(builder.Builder, "consider", seen)
        db._builder._enqueue(other._core, "purge", 0)
        assert side.cancel.is_set()
        go_on.set()
        wait_until(lambda: docs._core in considered, "a look at what had made way")
        considered.clear()
        go_on.clear()
        begun.clear()
        other.compact(wait=False)
        assert begun.wait(20)
        side = db._builder._enqueue(docs._core, SIDE, 0)
        db._builder._enqueue(other._core, "purge", 0)
        threading.Timer(0.2, go_on.set).start()
        assert docs.cancel_build()
        assert not side.made_way, "what was stopped is not taken up"
        assert not [job for job in db._builder._jobs.values() if job.core is docs._core]
