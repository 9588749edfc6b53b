"""The setting `device`: what may stand there, and what it means where there are no, some, or broken GPUs."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest
from device_here import ask, assert_same, place, vectors
from hypothesis import given
from hypothesis import strategies as st

from vecdb.device import choice
from vecdb.device.choice import Choice, Chosen, choose, parse, start, visible
from vecdb.errors import DeviceNotFound, FailedPrecondition, InvalidSetting
from vecdb.settings import ENGINE, resolve


def never() -> int:
    raise AssertionError("GPUs were counted")


def broken() -> int:
    raise RuntimeError("the driver is broken")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("auto", Choice("auto")),
        (" CPU ", Choice("cpu")),
        ("gpu", Choice("gpu")),
        ("gpu:0", Choice("gpu", (0,))),
        ("gpu:3,0,12", Choice("gpu", (3, 0, 12))),
    ],
)
def test_what_may_be_said(text: str, wanted: Choice) -> None:
    """auto, cpu, gpu, and gpu with numbers."""
    assert parse(text) == wanted


@pytest.mark.parametrize(
    "text",
    ["", "cuda", "gpu:", "gpu:a", "gpu:-1", "gpu:0,", "gpu:0,0", "gpu 0", "cpu:0", "auto,cpu"],
)
def test_what_may_not_be_said(text: str) -> None:
    """Everything else is InvalidSetting, which names the setting and what it takes."""
    with pytest.raises(InvalidSetting, match="auto, cpu, gpu") as caught:
        parse(text)
    assert caught.value.details["setting"] == "device"


@given(st.text(max_size=20))
def test_any_text_is_understood_or_refused(text: str) -> None:
    """No text makes it fail in another way."""
    try:
        assert parse(text).kind in ("auto", "cpu", "gpu")
    except InvalidSetting:
        assert text.strip().lower() not in ("auto", "cpu", "gpu")


def test_the_cpu_never_asks_for_gpus() -> None:
    """With `cpu` nobody touches a driver."""
    assert choose("cpu", never, {}) == ()


def test_auto_takes_what_is_there() -> None:
    """All GPUs, or none, and none where counting fails: `auto` never fails."""
    assert choose("auto", lambda: 2, {}) == (Chosen("gpu:0", 0), Chosen("gpu:1", 1))
    assert choose("auto", lambda: 0, {}) == ()


def test_auto_says_that_the_driver_is_broken(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing falls back in silence."""
    assert choose("auto", broken, {}) == ()
    assert "the driver is broken" in caplog.text


def test_a_gpu_that_is_asked_for_must_be_there() -> None:
    """DeviceNotFound names what is missing, how many there are, why, and what to do."""
    assert choose("gpu:1", lambda: 2, {}) == (Chosen("gpu:1", 1),)
    for text, count, words in (
        ("gpu", lambda: 0, "a GPU is asked for.*0 GPUs are there"),
        ("gpu:0,5", lambda: 2, "gpu:5 is asked for.*2 GPUs are there"),
        ("gpu", broken, "the driver is broken"),
    ):
        with pytest.raises(DeviceNotFound, match=words) as caught:
            choose(text, count, {})  # type: ignore[arg-type]
        assert isinstance(caught.value, FailedPrecondition)
        assert caught.value.reason == "DEVICE_NOT_FOUND"
        assert "auto or cpu" in caught.value.message


def test_gpus_may_be_pretended() -> None:
    """For tests an environment variable gives stand-ins instead of real ones."""
    known = {choice.STAND_IN_DEVICES: "2"}
    assert choose("auto", never, known) == (Chosen("gpu:0", 0, True), Chosen("gpu:1", 1, True))
    with pytest.raises(DeviceNotFound):
        choose("gpu:2", never, known)
    known |= {choice.STAND_IN_BYTES: str(8 << 20), choice.STAND_IN_FAULTS: "search_s=0"}
    y, x = vectors(50), vectors(3, 2)
    made = start(choose("gpu:1", never, known)[0], environment=known, queue_limit=7)
    with closing(made) as one:
        assert (one.name, one.info.name, one.info.total_bytes) == ("gpu:1", "stand-in", 8 << 20)
        assert one.budget_bytes == int(0.9 * (8 << 20))
        assert_same(ask(one, place(one, y), x)[:2], x, y, 3)


@pytest.mark.parametrize(
    ("number", "shown", "wanted"),
    [(0, None, "0"), (3, None, "3"), (1, "4,7", "7"), (0, "GPU-1f,GPU-2e", "GPU-1f"), (0, "", "0")],
)
def test_a_worker_sees_one_device_only(number: int, shown: Any, wanted: str) -> None:
    """Devices are numbered as CUDA shows them, which may be renumbered already."""
    assert visible(number, shown) == wanted


def test_settings_have_rows() -> None:
    """The engine's table has the settings of devices, with defaults that are allowed."""
    known = resolve(ENGINE, {})
    assert (known["device"], known["device_memory_bytes"]) == ("auto", 0)
    assert (known["device_queue"], known["device_timeout_s"]) == (1_024, 30.0)
    assert parse(str(known["device"])) == Choice("auto")
