"""Workers of devices are started when a collection needs them, and shared by the databases of a process."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from functools import partial

import numpy as np
import pytest
import test_on_device
from on_devices import DIMENSION, QUERIES, ROWS, SETTINGS, check, filled, placed, wait_for

import vecdb
from vecdb.device.devices import open_devices
from vecdb.types import DeviceStats

devices = test_on_device.devices
few_are_fewer = test_on_device._few_are_fewer
LIVE = np.ones(ROWS, np.bool_)
IDLE = DeviceStats("gpu:0", "", "idle", 0, 0, 0, 0, 0, 0, 0, 0)


def pids(database):
    return [one._worker.pid for one in database.devices.placements.devices]


def test_nothing_is_started_before_it_is_needed(tmp_path, devices):
    """With `auto`, small collections and such that ask for the CPU start no worker; the first that is large
    enough does, without keeping its writer waiting for the answer."""
    devices()
    with vecdb.open(tmp_path / "db", **SETTINGS) as database:
        small = database.create_collection("small", dimension=DIMENSION)
        small.insert(["a", "b"], QUERIES[:2])
        small.query(QUERIES, k=1)
        assert database.devices.names == database.devices.found == ("gpu:0",)
        assert small.stats().devices == (IDLE,)
        made, vectors = filled(database)
        placed(made)
        check(made, QUERIES, LIVE, vectors, "l2")
        assert [(one.name, one.state) for one in small.stats().devices] == [("gpu:0", "up")]


def test_a_gpu_that_is_asked_for_is_started_at_once(tmp_path, devices):
    """With `gpu` the worker is up when the database is open: where it cannot start, opening says so."""
    devices()
    with vecdb.open(tmp_path / "db", device="gpu") as database:
        assert [one.state for one in database.devices.stats()] == ["up"]


@pytest.mark.parametrize(
    ("setting", "count", "line"),
    [
        ("auto", 2, "device is auto: gpu:0, gpu:1"),
        ("gpu:1", 2, "device is gpu:1: gpu:1"),
        ("auto", 0, "device is auto, and no GPU is used: the CPU searches"),
        ("cpu", 2, None),
    ],
)
def test_the_log_says_what_searches(tmp_path, monkeypatch, caplog, setting, count, line):
    """A line with each opening, as of the server; none where nothing is looked for."""
    monkeypatch.setenv("VECDB_STAND_IN_DEVICES", str(count))
    logging.getLogger("vecdb").propagate = True
    caplog.set_level(logging.INFO, "vecdb")
    with vecdb.open(tmp_path / "db", device=setting):
        told = [record.getMessage() for record in caplog.records]
    assert [one for one in told if one.startswith("device is")] == ([line] if line else [])


def test_a_gpu_that_does_not_start_fails_the_opening(tmp_path, devices):
    """With `gpu` a worker that dies at its start is DeviceLost, and the folder can be opened without it; with
    `auto` the CPU serves."""
    devices(faults="die_at_start=1")
    with pytest.raises(vecdb.errors.DeviceLost, match="gpu:0 did not start"):
        vecdb.open(tmp_path / "db", device="gpu")
    with vecdb.open(tmp_path / "db", **SETTINGS) as database:
        made, vectors = filled(database)
        wait_for(lambda: database.devices.placements.started)
        assert made.build_index().indexed_rows == ROWS
        check(made, QUERIES, LIVE, vectors, "l2", on="cpu", exact=True)
        (told,) = made.stats().devices
        assert (told.name, told.state, told.total_bytes) == ("gpu:0", "down", 0)
        assert "gpu:0 did not start" in told.last_error


def test_who_only_reads_starts_nothing_before_a_query(tmp_path, devices):
    """Looking at a large collection beside its writer costs no worker; searching it does."""
    devices()
    with vecdb.open(tmp_path / "db", **{**SETTINGS, "device": "cpu"}) as database:
        _, vectors = filled(database)
    with vecdb.open(tmp_path / "db", read_only=True, **SETTINGS) as database:
        made = database.get_collection("docs")
        assert made.count() == ROWS
        assert made.stats().devices == (IDLE,)
        assert not database.devices.placements.started
        check(made, QUERIES, LIVE, vectors, "l2", on=None)
        placed(made)
        check(made, QUERIES, LIVE, vectors, "l2")


def test_databases_of_a_process_share_a_worker(tmp_path, devices):
    """Two databases search on one worker and within one budget; it ends with the last of them."""
    devices()
    first = vecdb.open(tmp_path / "a", **SETTINGS)
    with vecdb.open(tmp_path / "b", **SETTINGS) as second:
        collections = [filled(one) for one in (first, second)]
        for made, vectors in collections:
            placed(made)
            check(made, QUERIES, LIVE, vectors, "l2")
        assert pids(first) == pids(second)
        (told,) = second.devices.stats()
        assert (told.placements, told.used_bytes) == (
            2, sum(made.stats().index.device_bytes for made, _ in collections)
        )  # fmt: skip
        first.close()
        check(*collections[1][:1], QUERIES, LIVE, collections[1][1], "l2")
        assert second.devices.stats()[0].placements == 1
        (device,) = second.devices.placements.devices
        first.close()
    assert device.stats().state == "closed"
    with vecdb.open(tmp_path / "a", **SETTINGS) as again:
        placed(again.get_collection("docs"))
        assert again.devices.placements.devices != (device,)


def test_each_database_has_the_devices_it_was_given(tmp_path):
    """Of three databases in one process two are given a stand-in, one without masks, and one none: the two share no worker,
    and the third is the CPU's, whatever the others have."""

    def given(**environment):
        known = {f"VECDB_STAND_IN_{name.upper()}": str(n) for name, n in environment.items()}
        return partial(open_devices, count=lambda: 0, environment=known)

    with ExitStack() as stack:
        made = [
            stack.enter_context(
                vecdb.Database(tmp_path / name, read_only=False, settings=SETTINGS, devices=source)
            )
            for name, source in (
                ("with", given(devices=1)),
                ("unmasked", given(devices=1, masks=0)),
                ("without", given()),
            )
        ]
        filled_ = [filled(one) for one in made]
        for docs, vectors in filled_[:2]:
            placed(docs)
            check(docs, QUERIES, LIVE, vectors, "l2")
        # A graph of the CPU may miss one.
        check(*filled_[2][:1], QUERIES, LIVE, filled_[2][1], "l2", on="cpu", exact=True)
        assert made[2].devices is None
        assert filled_[2][0].stats().devices == ()
        assert pids(made[0]) != pids(made[1])
        masks = [[one.info.masks for one in a.devices.placements.devices] for a in made[:2]]
        assert masks == [[True], [False]]


def test_they_make_room_for_each_other(tmp_path, devices):
    """Where two collections of two databases do not fit together, what lies there is never more than one budget."""
    devices()
    budget = 3 * ROWS * (DIMENSION + 2)  # one and a half times what one takes in float16
    settings = {**SETTINGS, "device_memory_bytes": budget}
    with (
        vecdb.open(tmp_path / "a", **settings) as first,
        vecdb.open(tmp_path / "b", **settings) as second,
    ):
        made, _ = filled(first)
        placed(made)
        other, vectors = filled(second)
        placed(other)
        check(other, QUERIES, LIVE, vectors, "l2")
        (told,) = first.devices.stats()
        assert (told.placements, told.budget_bytes) == (1, budget)
        assert made.stats().index.device == "cpu"


def test_other_settings_are_other_workers(tmp_path, devices):
    """Databases that give their devices different limits share nothing."""
    devices()
    with (
        vecdb.open(tmp_path / "a", device="gpu") as first,
        vecdb.open(tmp_path / "b", device="gpu", device_memory_bytes=1 << 20) as second,
    ):
        assert pids(first) != pids(second)
        assert second.devices.stats()[0].budget_bytes == 1 << 20
