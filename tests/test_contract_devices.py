"""Devices as users see them: the same embedded and through both clients."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from conftest import BACKENDS, open_backend
from some_devices import STATS, SomeDevices

import vecdb
from vecdb.index import View
from vecdb_server import status

REFERENCE = (Path(__file__).resolve().parent.parent / "docs/reference.md").read_text()


def two_gpus(options):
    """Where a database has two GPUs from that never search."""
    return SomeDevices()


@pytest.fixture(params=BACKENDS)
def with_devices(request, data_folder):
    """A backend whose database has these GPUs."""
    with open_backend(request.param, data_folder, two_gpus) as opened:
        yield opened


def test_a_collection_keeps_its_device(with_devices):
    """What was asked for is in the collection's settings, in one form, wherever they are read; the default
    is auto."""
    db = with_devices.db
    assert db.create_collection("plain", dimension=2).info.device == "auto"
    for name, given, stored in (
        ("a", "cpu", "cpu"),
        ("b", "gpu", "gpu"),
        ("c", "gpu:1", "gpu:1"),
        ("d", "gpu:1,0", "gpu:0,1"),
    ):
        assert db.create_collection(name, dimension=2, device=given).info.device == stored
        assert db.get_collection(name).info.device == stored
    assert [i.device for i in db.list_collections()] == ["cpu", "gpu", "gpu:1", "gpu:0,1", "auto"]
    db.rename_collection("c", "z")
    assert db.get_collection("z").info.device == "gpu:1"


def test_exist_ok_compares_devices(with_devices):
    """An existing collection is given back only when it has the device that is asked for."""
    db = with_devices.db
    db.create_collection("docs", dimension=2, device="gpu:0,1")
    again = db.create_collection("docs", dimension=2, device="gpu:1,0", exist_ok=True)
    assert again.info.device == "gpu:0,1"
    with pytest.raises(with_devices.errors.CollectionExists, match="device"):
        db.create_collection("docs", dimension=2, exist_ok=True)


@pytest.mark.parametrize("device", ["", "cuda", "gpu:", "gpu:x", "gpu:0,0", None, 1])
def test_what_is_no_device_is_refused(backend, device):
    """A device that is none is refused, with what was given, and no collection is made."""
    with pytest.raises(backend.errors.InvalidSetting, match=f"device.*given {device!r}"):
        backend.db.create_collection("docs", dimension=2, device=device)
    assert backend.db.list_collections() == []


@pytest.mark.host_only("promises what an engine without a GPU does")
@pytest.mark.parametrize("device", ["gpu", "gpu:0", "gpu:0,1"])
def test_a_gpu_that_is_not_there_is_refused(backend, device):
    """Without a GPU no collection is made for one: nothing falls back unasked."""
    with pytest.raises(backend.errors.DeviceNotFound, match=f"docs.*{device}.*no GPU") as caught:
        backend.db.create_collection("docs", dimension=2, device=device)
    assert caught.value.details == {"device": device, "there": []}
    assert backend.db.list_collections() == []
    assert not list((backend.folder / "collections").glob("*"))


def test_a_gpu_that_the_engine_does_not_use_is_refused(with_devices):
    """Of several GPUs each that is named must be in use."""
    with pytest.raises(with_devices.errors.DeviceNotFound) as caught:
        with_devices.db.create_collection("docs", dimension=2, device="gpu:1,2")
    assert caught.value.details == {"device": "gpu:1,2", "there": ["gpu:0", "gpu:1"]}


def test_stats_have_all_devices(with_devices):
    """Every number of every device is in the stats of every collection; without devices there are none."""
    docs = with_devices.db.create_collection("docs", dimension=2)
    stats = docs.stats()
    assert [dataclasses.astuple(one) for one in stats.devices] == [
        dataclasses.astuple(one) for one in STATS
    ]
    assert all(isinstance(one, with_devices.types.DeviceStats) for one in stats.devices)
    assert (stats.index.device_bytes, stats.index.device_note) == (0, "")


@pytest.mark.host_only("promises what an engine without a GPU does")
def test_without_devices_nothing_is_said_of_them(backend):
    """An engine on the CPU says so, and makes no note of it."""
    docs = backend.db.create_collection("docs", dimension=2)
    docs.insert(["a"], [[1, 2]])
    stats = docs.stats()
    assert stats.devices == ()
    assert (stats.index.device, stats.index.device_bytes, stats.index.device_note) == ("cpu", 0, "")
    told = docs.query([[1, 2]], explain=True).explain
    assert (told.device, told.device_note) == ("cpu", "")


@pytest.mark.parametrize("name", BACKENDS)
def test_a_collection_outlives_its_device(name, data_folder, caplog):
    """A collection made for a GPU opens without one, for reading and writing; the CPU answers, and stats,
    explain and one warning in the log say so."""
    with vecdb.Database(data_folder, read_only=False, settings={}, devices=two_gpus) as db:
        docs = db.create_collection(
            "docs", dimension=2, device="gpu:0,1", vectors={"title": {"dimension": 2}}
        )
        docs.insert(["a"], [[1, 2]], named_vectors={"title": [[1, 1]]})
    logging.getLogger("vecdb").propagate = True
    caplog.set_level(logging.WARNING, "vecdb")
    note = "gpu:0, gpu:1 are not there; answered by the CPU"
    with open_backend(name, data_folder) as backend:
        docs = backend.db.get_collection("docs")
        assert docs.info.device == "gpu:0,1"
        docs.insert(["b"], [[2, 1]])
        for asked in ({}, {"exact": True}, {"filter": {"id": "a"}}, {"vector_name": "title"}):
            found = docs.query([[1, 2]], k=1, explain=True, **asked)
            assert found.ids == [["a"]]
            assert (found.explain.device, found.explain.device_note) == ("cpu", note)
        stats = docs.stats()
        for index in (stats.index, stats.vectors["title"]):
            assert (index.device, index.device_bytes, index.device_note) == ("cpu", 0, note)
        same = backend.db.create_collection(
            "docs",
            dimension=2,
            device="gpu:0,1",
            vectors={"title": {"dimension": 2}},
            exist_ok=True,
        )
        assert same.count() == 2
    warnings = [r for r in caplog.records if "answered by the CPU" in r.getMessage()]
    assert [r.getMessage() for r in warnings] == [
        f"collection docs asks for device gpu:0,1: {note}"
    ]
    assert warnings[0].levelno == logging.WARNING


def searched_by(search):
    """Within it views are searched so."""
    return mock.patch.object(View, "search", search)


@pytest.mark.host_only("says by itself which device answered")
def test_explain_says_which_device_answered(backend):
    """Device and note are those that the search has put into its trace; the note of any slice of a large
    batch is told."""
    docs = backend.db.create_collection("docs", dimension=2, metric="l2")
    docs.insert(["a", "b"], [[0, 0], [1, 1]])
    search = View.search
    lost = "gpu:0 was lost; answered by the CPU"
    traced = []

    def on_a_device(self, queries, k, *, trace=None, **options):
        found = search(self, queries, k, trace=trace, **options)
        if trace is not None:
            trace.device, trace.device_note = traced.pop(0) if traced else ("gpu:0,1", "")
        return found

    with searched_by(on_a_device):
        told = docs.query([[0, 0]], explain=True).explain
        assert (told.device, told.device_note) == ("gpu:0,1", "")
        traced[:] = [("gpu:0,1", ""), ("cpu", lost)]
        many = np.zeros((1_100, 2))  # more than a device gets at once
        told = docs.query(many, explain=True).explain
        assert (told.device, told.device_note) == ("cpu", lost)


@pytest.mark.usefixtures("short_retries")
@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("DEVICE_LOST", "UNAVAILABLE"),
        ("DEVICE_FULL", "RESOURCE_EXHAUSTED"),
        ("LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED"),
    ],
)
def test_what_a_device_fails_with_arrives(backend, reason, code):
    """What a device refuses or loses is the same error for every caller, with its details, under the status
    that the reference names."""
    kind = vecdb.errors.by_reason(reason)

    def fails(*_, **__):
        raise kind("the sentence", device="gpu:0")

    docs = backend.db.create_collection("docs", dimension=2)
    docs.insert(["a"], [[1, 2]])
    with (
        searched_by(fails),
        pytest.raises(backend.errors.by_reason(reason), match="the sentence") as caught,
    ):
        docs.query([[1, 2]], timeout_s=5.0)
    assert type(caught.value).__name__ == kind.__name__
    assert caught.value.details == {"device": "gpu:0"}
    assert status.code_of(kind("m")).name == code
    (row,) = [x for x in REFERENCE.splitlines() if f"`{kind.__name__}`" in x and f"| {code} |" in x]
    assert row


def test_devices_end_with_their_database(data_folder):
    """Closing a database closes its devices, once; each opening has its own, from where it was told to have them."""
    made = []

    def opened(options):
        made.append(SomeDevices())
        return made[-1]

    for count in (1, 2):
        with vecdb.Database(data_folder, read_only=False, settings={}, devices=opened) as db:
            assert db.devices is made[-1]
        db.close()
        assert [one.closed for one in made] == [1] * count


def test_an_engine_without_its_device_does_not_open(data_folder):
    """Where the setting `device` names a GPU that is not there, opening fails with DeviceNotFound and lets
    the folder go; a setting that is no device fails before anything is made."""
    with pytest.raises(vecdb.errors.InvalidSetting, match="cuda"):
        vecdb.open(data_folder, device="cuda")
    assert not data_folder.exists()
    with pytest.raises(vecdb.errors.DeviceNotFound, match="gpu:7"):
        vecdb.open(data_folder, device="gpu:7")
    with vecdb.open(data_folder, device="cpu") as db:
        assert db.devices is None
        with pytest.raises(vecdb.errors.DeviceNotFound, match="device='cpu'"):
            db.create_collection("docs", dimension=2, device="gpu")
