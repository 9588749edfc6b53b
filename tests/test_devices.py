"""What a collection asks of devices, and what it gets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from some_devices import SomeDevices

from vecdb.device.devices import Assigned, assigned, checked, must_be_there, open_devices
from vecdb.errors import DeviceNotFound, InvalidSetting

DEVICES = SomeDevices()


@pytest.mark.parametrize(
    ("given_text", "stored"),
    [
        ("auto", "auto"),
        ("cpu", "cpu"),
        ("gpu", "gpu"),
        ("gpu:0", "gpu:0"),
        ("gpu:10,2", "gpu:2,10"),
    ],
)
def test_a_device_is_stored_in_one_form(given_text, stored):
    """Each way to write a choice is stored in one form, which reads as the same choice."""
    assert checked(given_text) == stored == checked(stored)


@given(
    st.sets(st.integers(0, 999), min_size=1, max_size=8).flatmap(lambda s: st.permutations(list(s)))
)
def test_numbers_are_stored_in_order(numbers):
    """GPUs named in any order are one choice."""
    assert (
        checked(f"gpu:{','.join(map(str, numbers))}")
        == f"gpu:{','.join(map(str, sorted(numbers)))}"
    )


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "cuda",
        "gpu:",
        "gpu:a",
        "gpu:0,",
        "gpu:0,0",
        "gpu:-1",
        "gpu:0 1",
        "cpu:0",
        None,
        0,
        ["gpu"],
    ],
)
def test_what_is_no_device_is_refused(wrong):
    """Everything else is InvalidSetting that says what was given and what is taken."""
    with pytest.raises(InvalidSetting, match=r"auto, cpu, gpu.*gpu:0,1.*given") as caught:
        checked(wrong)
    assert repr(wrong) in caught.value.message
    assert caught.value.details == {"setting": "device"}


@pytest.mark.parametrize(
    ("device", "devices", "names", "note"),
    [
        ("auto", None, (), ""),
        ("cpu", None, (), ""),
        ("gpu", None, (), "gpu is not there; answered by the CPU"),
        ("gpu:1", None, (), "gpu:1 is not there; answered by the CPU"),
        ("gpu:0,1", None, (), "gpu:0, gpu:1 are not there; answered by the CPU"),
        ("auto", DEVICES, ("gpu:0", "gpu:1"), ""),
        ("cpu", DEVICES, (), ""),
        ("gpu", DEVICES, ("gpu:0", "gpu:1"), ""),
        ("gpu:1", DEVICES, ("gpu:1",), ""),
        ("gpu:1,2", DEVICES, ("gpu:1",), "gpu:2 is not there; answered by gpu:1"),
        ("gpu:2", DEVICES, (), "gpu:2 is not there; answered by the CPU"),
    ],
)
def test_what_a_collection_gets(device, devices, names, note):
    """It gets the devices it asks for; where they are not there, what is there, with a note; and only
    then is a new collection refused."""
    assert assigned(device, devices) == Assigned(names, note)
    if note:
        with pytest.raises(DeviceNotFound, match=f"docs.*{device}.*device='auto'") as caught:
            must_be_there("docs", device, devices, "auto")
        there = [] if devices is None else ["gpu:0", "gpu:1"]
        assert caught.value.details == {"device": device, "there": there}
    else:
        must_be_there("docs", device, devices, "auto")


@pytest.mark.parametrize("setting", ["auto", "cpu"])
def test_no_device_is_needed(setting):
    """Without a GPU an engine that does not insist on one has no devices."""
    assert open_devices({"device": setting}, lambda: 0) is None


@pytest.mark.parametrize("setting", ["gpu", "gpu:3"])
def test_an_engine_that_insists_on_a_gpu_needs_it(setting):
    """Where a GPU is asked for and none is there, opening fails and says so."""
    with pytest.raises(DeviceNotFound, match=setting):
        open_devices({"device": setting}, lambda: 0)
