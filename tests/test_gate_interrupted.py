"""Ctrl-C at any step of a transaction's coming and going: who was struck can still close."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from vecdb.errors import Closed
from vecdb.store import gate


def _struck_at(step: int, work: Any) -> bool:
    """Whether the work had so many lines; a KeyboardInterrupt comes at the last of them."""
    left = step

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename != gate.__file__:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


def _inside(one: gate.Gate) -> None:
    one.enter(lambda: None)
    try:
        assert one.is_inside
    finally:
        one.leave()


def test_who_was_interrupted_can_close(tmp_path: Path) -> None:
    """After an interrupt at each line of entering and leaving, closing returns, and nobody enters any more."""
    struck, step, ended = 0, 1, threading.Event()

    def play() -> None:
        nonlocal struck, step
        while True:
            one = gate.Gate(tmp_path)
            if not _struck_at(step, lambda one=one: _inside(one)):  # type: ignore[misc]
                break
            assert one.close()
            with pytest.raises(Closed):
                _inside(one)
            struck, step = struck + 1, step + 1
        ended.set()

    threading.Thread(target=play, daemon=True).start()
    assert ended.wait(60), f"closing waits for ever after an interrupt at line {step}"
    assert struck > 10


def test_others_are_waited_for(tmp_path: Path) -> None:
    """Closing waits until every other thread has left."""
    one, within, go = gate.Gate(tmp_path), threading.Event(), threading.Event()

    def stay() -> None:
        one.enter(lambda: None)
        one.enter(lambda: None)
        within.set()
        go.wait(60)
        one.leave()
        one.leave()

    other = threading.Thread(target=stay)
    other.start()
    assert within.wait(60)
    closing = threading.Thread(target=one.close)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive()
    go.set()
    closing.join(60)
    other.join(60)
    assert not closing.is_alive()
