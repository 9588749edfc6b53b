"""Lists are trained, and rows assigned to them, by a device where the collection has one, and by the CPU where that
fails."""

from __future__ import annotations

import logging

import faiss
import numpy as np
import pytest
from on_devices import DIMENSION, SEED, filled, opened, placed

from vecdb.device import Device
from vecdb.device import messages as m
from vecdb.errors import DeviceFull
from vecdb.index.on_device import OnDevice

ROWS = 8_000


def vectors_of(metric):
    rng = np.random.default_rng(SEED)
    return (rng.standard_normal((ROWS, DIMENSION)) + (metric == "ip")).astype(np.float32)


@pytest.fixture
def rounds(monkeypatch):
    """The k-means requests that go to workers. `rounds.before(n, do)` does something before the nth."""

    class Rounds(list):
        def before(self, number, do):
            self.at, self.do = number, do

    seen = Rounds()
    seen.at, seen.do = 0, None
    plain = Device._request

    def request(self, asked, *arguments, **named):
        if isinstance(asked, m.Kmeans):
            seen.append(asked)
            if len(seen) == seen.at:
                seen.do(self)
        return plain(self, asked, *arguments, **named)

    monkeypatch.setattr(Device, "_request", request)
    return seen


def recalled(made, vectors):
    queries = vectors[:50] + np.float32(0.1)
    found, true = made.query(queries, k=10), made.query(queries, k=10, exact=True)
    return np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.ids, true.ids, strict=True)])


def centroids_of(made):
    index = made._core.field(None).index.view.main.index
    return index.quantizer.reconstruct_n(0, index.nlist)


@pytest.mark.long
@pytest.mark.parametrize(("metric", "code"), [("l2", "none"), ("cosine", "sq8"), ("ip", "none")])
def test_a_device_trains_lists(tmp_path, devices, rounds, metric, code):
    """Ten rounds by the device, also for lists that the CPU searches; the centroids are as good as the CPU's."""
    devices()
    vectors = vectors_of(metric)
    settings = {"metric": metric, "index": "ivf", "quantization": code, "target_recall": 0.9}
    spread = []
    for name, device in (("by-gpu", "auto"), ("by-cpu", "cpu")):
        with opened(tmp_path / name) as database:
            made, _ = filled(database, n=ROWS, vectors=vectors, device=device, **settings)
            made.build_index(wait=True)
            assert made.stats().index.kind == "ivf"
            assert recalled(made, vectors) >= 0.87
            centroids = centroids_of(made)
        if metric == "cosine":
            np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1.0, atol=1e-5)
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        x = unit if metric == "cosine" else vectors
        apart = (x**2).sum(1)[:, None] - 2 * x @ centroids.T + (centroids**2).sum(1)[None]
        spread.append(float(np.sqrt(np.maximum(apart.min(axis=1), 0)).mean()))
    assert len(rounds) == 10
    assert all(one.spherical == (metric == "cosine") for one in rounds)
    assert spread[0] <= 1.03 * spread[1]


def killed(device):
    device._worker._process.kill()


def full(device):
    raise DeviceFull("no memory for k-means, on purpose", device=device.name)


@pytest.mark.parametrize("fails", [killed, full])
def test_the_cpu_trains_where_a_device_fails(tmp_path, devices, rounds, caplog, fails):
    """A worker that dies in the middle, or has no memory, costs the build nothing but time, and is logged."""
    devices()
    rounds.before(4, fails)
    vectors = vectors_of("l2")
    with opened(tmp_path) as database, caplog.at_level(logging.WARNING, "vecdb"):
        made, _ = filled(database, n=ROWS, vectors=vectors, index="ivf", quantization="none")
        made.build_index(wait=True)
        assert len(rounds) == 4
        assert "the CPU trains 200 lists, as a device did not" in caplog.text
        stats = made.stats().index
        assert (stats.kind, stats.indexed_rows, stats.last_error) == ("ivf", ROWS, "")
        assert recalled(made, vectors) >= 0.92


@pytest.mark.parametrize("device", ["gpu", "auto"])
def test_the_log_says_that_no_device_is_up_for_lists(
    tmp_path, devices, monkeypatch, caplog, device
):
    """Where a device was asked for and none is up, the CPU does not train or assign in silence; where none was it may."""
    devices()
    with opened(tmp_path, device=device) as database, caplog.at_level(logging.WARNING, "vecdb"):
        monkeypatch.setattr(OnDevice, "_roomiest", lambda _: None)
        made, _ = filled(database, n=ROWS, vectors=vectors_of("l2"), index="ivf")
        made.build_index(wait=True)
        assert made.stats().index.indexed_rows == ROWS
        for what in ("trains lists", "assigns rows to lists"):
            assert (f"the CPU {what}, as gpu:0 is not up" in caplog.text) == (device == "gpu")


def in_their_lists(made, vectors):
    """Share of the rows that lie in the list of their nearest centroid."""
    main = made._core.field(None).index.view.main
    lists, centroids = main.index.invlists, centroids_of(made)
    apart = (vectors**2).sum(1)[:, None] - 2 * vectors @ centroids.T + (centroids**2).sum(1)[None]
    right = total = 0
    for number in range(main.index.nlist):
        size = lists.list_size(number)
        at = faiss.rev_swig_ptr(lists.get_ids(number), size) if size else np.empty(0, np.int64)
        rows = main.rows[at]
        right += (apart[rows, number] <= apart[rows].min(axis=1) + 1e-4).sum()
        total += size
    assert total == len(vectors)
    return right / total


@pytest.mark.long
@pytest.mark.parametrize("dies", [False, True])
def test_a_device_assigns_rows_to_lists(tmp_path, devices, monkeypatch, caplog, dies):
    """Each row is in the list of its nearest centroid, whoever finds that; nothing is left on the device for it."""
    devices()
    asked = []
    plain = Device.search

    def search(self, handle, generation, queries, k, *more):
        if k == 1 and len(queries) > 1:
            asked.append(len(queries))
            if dies and len(asked) == 2:
                killed(self)
        return plain(self, handle, generation, queries, k, *more)

    monkeypatch.setattr(Device, "search", search)
    vectors = vectors_of("l2")
    with opened(tmp_path) as database, caplog.at_level(logging.WARNING, "vecdb"):
        made, _ = filled(database, n=ROWS, vectors=vectors, index="ivf", quantization="none")
        made.build_index(wait=True)
        assert in_their_lists(made, vectors) >= 0.999
        assert sum(asked) == (ROWS if not dies else asked[0] + asked[1])
        assert ("the CPU assigns rows to lists" in caplog.text) == dies
        placed(made)
        assert database.devices.stats()[0].placements == 1


def test_a_build_is_cancelled_between_rounds_on_a_device(tmp_path, devices, rounds):
    """Nobody waits for all rounds of a build that is not wanted any more."""
    devices()
    with opened(tmp_path, auto_build=False) as database:
        made, _ = filled(database, n=ROWS, index="ivf", quantization="none")
        builder, core = database._builder, made._core
        rounds.before(3, lambda device: [job.cancel.set() for job in builder._of(core)])
        made.build_index(wait=False)
        (job,) = builder._of(core)
        assert job.done.wait(60)
        assert len(rounds) == 3
        assert made.stats().index.kind == "exact"
