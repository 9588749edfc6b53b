"""Collections of index `exact` with codes: the host has the codes, a device the vectors in float16, and answers are exact."""

from __future__ import annotations

import numpy as np
import pytest
from on_devices import (
    DIMENSION,
    QUERIES,
    ROWS,
    SEED,
    check,
    filled,
    opened,
    placed,
    rows_of,
    using,
    wait_for,
)

from vecdb.errors import DeviceLost
from vecdb.index import chosen
from vecdb.index.on_device import OnDevice


@pytest.fixture(params=["stand-in", "no masks", pytest.param("gpu", marks=pytest.mark.gpu)])
def devices(request, monkeypatch):
    """Of stand-ins also such without masks."""
    return using(request.param, monkeypatch)


@pytest.fixture(autouse=True)
def _small_is_large(monkeypatch):
    monkeypatch.setattr(chosen, "FEW_ROWS", 40)
    monkeypatch.setattr("vecdb.index.index.LEAST_FRESH_ROWS", 2_000)


def coded(database, metric, quantization, **settings):
    """A collection that has its codes, and lies on a device."""
    made, vectors = filled(database, metric, index="exact", quantization=quantization, **settings)
    made.build_index(wait=True)
    assert made.stats().index.quantization == quantization
    assert made.stats().index.indexed_rows == len(vectors)
    placed(made)
    return made, vectors


@pytest.mark.parametrize(
    ("metric", "quantization"), [("l2", "float16"), ("cosine", "sq8"), ("ip", "sq4")]
)
def test_codes_do_not_take_a_collection_off_its_device(tmp_path, devices, metric, quantization):
    """Built or not, deleted from, added to and filtered: the device answers what the stored vectors say, and holds two
    bytes a number."""
    masks = devices()
    with opened(tmp_path, device="gpu") as database:
        made, vectors = coded(database, metric, quantization)
        index = made._core.field(None).index
        assert (index.view.main.kind, index.view.served.code) == ("flat", "float16")
        assert made.stats().index.device_bytes <= ROWS * (2 * DIMENSION + 4)
        live = np.ones(ROWS, np.bool_)
        for k in (1, 10, 100):
            told = check(made, QUERIES, live, vectors, metric, k)
            assert (told.kind, told.quantization, told.device_note) == ("exact", quantization, "")
        check(made, QUERIES, live, vectors, metric, exact=True)
        for part in (99, 50, 10):
            check(made, QUERIES, live, vectors, metric, part=part)
        if masks:
            check(made, QUERIES[:1], live, vectors, metric, k=2_900)
        made.delete([f"r{i}" for i in range(100, 400)])
        live[100:400] = False
        fresh = rows_of(metric, "float32", np.random.default_rng(SEED + 2), 500)
        made.insert([f"r{ROWS + i}" for i in range(500)], fresh,
                    metadata=[{"part": (ROWS + i) % 100} for i in range(500)])  # fmt: skip
        vectors = np.concatenate([vectors, fresh])
        live = np.concatenate([live, np.ones(500, np.bool_)])
        check(made, QUERIES, live, vectors, metric)
        check(made, QUERIES, live, vectors, metric, part=50)


def test_rows_between_what_lies_there_and_the_codes_are_not_missed(tmp_path, devices, monkeypatch):
    """Codes of newer rows than the device has: they are in no tail, so the host answers, says so, and the vectors are
    placed anew."""
    devices()
    with opened(tmp_path, device="gpu", auto_build=False) as database:
        made, vectors = filled(database, index="exact", quantization="sq8")
        placed(made)
        fresh = rows_of("l2", "float32", np.random.default_rng(SEED + 2), 500)
        made.insert([f"r{ROWS + i}" for i in range(500)], fresh,
                    metadata=[{"part": (ROWS + i) % 100} for i in range(500)])  # fmt: skip
        vectors = np.concatenate([vectors, fresh])
        live = np.ones(len(vectors), np.bool_)
        assert check(made, fresh[:3], live, vectors, "l2").device == "gpu:0"
        with monkeypatch.context() as patch:

            def lost(*_):
                raise DeviceLost("lost on purpose")

            patch.setattr(OnDevice, "place", lost)
            made.build_index(wait=True)
            view = made._core.field(None).index.view
            assert view.main.high_water == ROWS + 500
            told = check(made, fresh[:3], live, vectors, "l2", on="cpu", exact=True)
            assert "placed" in told.device_note or "failed" in told.device_note
        made._core.field(None).index.on_device.wake()
        wait_for(
            lambda: (
                check(made, fresh[:3], live, vectors, "l2", on=None, exact=True).device == "gpu:0"
            )
        )


def test_codes_that_are_opened_are_placed_from_the_store(tmp_path, devices):
    """After opening the device has the vectors again, and the host its codes."""
    devices()
    with opened(tmp_path) as database:
        coded(database, "l2", "sq8")
    with opened(tmp_path, device="gpu") as database:
        made = database.get_collection("docs")
        placed(made)
        vectors = rows_of("l2", "float32", np.random.default_rng(SEED), ROWS)
        told = check(made, QUERIES, np.ones(ROWS, np.bool_), vectors, "l2")
        assert (told.quantization, told.indexed_rows) == ("sq8", ROWS)


def test_codes_of_vectors_that_do_not_fit_are_the_hosts_and_say_so(tmp_path, devices):
    """Not even as float16: the host answers by its codes."""
    devices(size=2 * ROWS * DIMENSION // 2)
    with opened(tmp_path, device="gpu") as database:
        made, vectors = filled(database, index="exact", quantization="sq8")
        made.build_index(wait=True)
        told = check(made, QUERIES, np.ones(ROWS, np.bool_), vectors, "l2", on="cpu", exact=True)
        assert told.device_note == "96,000 bytes do not fit gpu:0; answered by the CPU"
        assert made.stats().index.device_note == "96,000 bytes do not fit gpu:0"
