"""Patterns over long texts: the same answers as RE2 gives, in a process that ends as soon as a limit is passed."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import re2
from conftest import StartServer, wait_until

import vecdb
from vecdb import long_texts, predicates
from vecdb.stopping import deadline, evaluating, while_wanted
from vecdb_client import connect, errors

NASTY = "(a|b)*a(a|b){900}c"
"""6 us and more of a core a byte."""
PIECES = ["ab", "a", "b", " ", "\n", "é", "word", "_", "x", "\U0001f600", "0"]
PATTERNS = [
    "^ab", "ab$", "(?m)^word$", r"\bword\b", r"\Bword", r"a\b", r"\B\B\B", "^$", "", r"\Aa", r"x\z", "(?s)a.*x$", "é.é",
    "^.", ".$", r"(?m)x$\n^a", "(ab|ba){3}", "(?i)WORD_?x", r"^(?s).{9}word", "[^a]{12}", r"\C\z", r"\pL{4}x", "a{3,5}b",
]  # fmt: skip


def nasty_text(size: int) -> str:
    return "".join(random.Random(5).choices("ab", k=size))


@pytest.fixture(autouse=True)
def _no_process_left() -> Iterator[None]:
    """Neither of these tests, nor of others before them."""
    long_texts._end_idle()
    yield
    long_texts._end_idle()


def gone(pid: int) -> bool:
    """Whether it has ended, awaited by its parent or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def worked_s() -> float:
    """Seconds of a core that this process and those of it that have ended have taken."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + used.ru_utime + used.ru_stime


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[long_texts.Worker]:
    """The processes that were started."""
    workers: list[long_texts.Worker] = []
    worker = long_texts.Worker

    def noted() -> long_texts.Worker:
        workers.append(worker())
        return workers[-1]

    monkeypatch.setattr(long_texts, "Worker", noted)
    return workers


def test_a_slow_pattern_ends_in_the_middle_of_a_text(started: list[long_texts.Worker]) -> None:
    """A text that takes 12 s of a core is left when the limit is passed, as is the process; work there counts as work here."""
    text, begun_s = nasty_text(2_000_000), worked_s()
    regex = predicates.Regex(NASTY)
    with (
        while_wanted(lambda: True, 0.3),
        pytest.raises(vecdb.errors.LimitExceeded, match=r"0\.3 s.*max_filter_s"),
    ):
        regex.texts([text], evaluating(lambda: None))
    assert worked_s() - begun_s < 3
    assert len(started) == 1
    assert gone(started[0].pid)


def test_a_slow_pattern_ends_with_its_call(started: list[long_texts.Worker]) -> None:
    """At its deadline, and once nobody waits any more, also where another process cannot be had at once."""
    text, begun_s = nasty_text(1_000_000), worked_s()
    regex = predicates.Regex(NASTY)
    with pytest.raises(vecdb.errors.DeadlineExceeded):
        regex.texts([text], deadline(0.1))
    left = iter([True] * 4)
    with while_wanted(lambda: next(left, False)), pytest.raises(vecdb.errors.Cancelled):
        regex.texts([text], deadline(None))
    taken = 0
    while long_texts._at_once.acquire(blocking=False):
        taken += 1
    try:
        with pytest.raises(vecdb.errors.DeadlineExceeded):
            regex.texts([text], deadline(0.05))
    finally:
        for _ in range(taken):
            long_texts._at_once.release()
    assert worked_s() - begun_s < 4
    assert all(gone(worker.pid) for worker in started)


def test_many_texts_are_looked_between(started: list[long_texts.Worker]) -> None:
    """Texts that are each searched here are looked between, each time a slow pattern may have taken a while."""
    looks: list[int] = []
    regex = predicates.Regex(NASTY)
    size = regex._most_bytes // 2 + 1
    assert size * 7e-6 < 1
    answers = regex.texts(["c" * size] * 40, lambda: looks.append(1))
    assert answers == [False] * 40
    assert len(looks) >= 39
    assert not started


def test_cheap_patterns_stay_here(started: list[long_texts.Worker]) -> None:
    """Another process is asked only where it could take long, and never where nothing would end the search."""
    text = "some words, " * 40_000
    assert predicates.Regex(r"(?i)\bwords\w+ zebra").texts([text], deadline(100)) == [False]
    assert predicates.Regex(r"\pL{5},").texts([text], deadline(100)) == [True]
    large = predicates.Regex(r"\pL+x")
    assert large.texts([text], deadline(None)) == [False]
    assert not started
    assert large.texts([text, text + "wordx"], deadline(100)) == [False, True]
    assert len(started) == 1  # for both


def test_answers_are_those_of_a_plain_search(
    monkeypatch: pytest.MonkeyPatch, started: list[long_texts.Worker]
) -> None:
    """Anchors and borders of words where the first look ends, texts in pieces and at once: as RE2 over the whole text."""
    monkeypatch.setattr(predicates, "_REGEX_WORK", 1)
    rng, found = random.Random(11), 0
    for _ in range(60):
        texts = ["".join(rng.choices(PIECES, k=rng.randrange(30))) for _ in range(20)]
        pattern = rng.choice([*PATTERNS, re2.escape("".join(rng.choices(PIECES, k=3)))])
        monkeypatch.setattr(predicates, "_REGEX_FIRST_BYTES", rng.randrange(1, 30))
        regex = predicates.Regex(pattern)
        regex._most_bytes = rng.choice([0, 1, 5, 40])
        expected = [re2.search(pattern.encode(), text.encode()) is not None for text in texts]
        assert regex.texts(texts, lambda: None) == expected, pattern
        found += sum(expected)
    assert 200 < found < 1_000
    assert len(started) == 1


def test_what_matches_up_to_a_place_matches_in_the_whole() -> None:
    """What the first look is based on: with the place where to end, RE2 still looks at what is behind it."""
    rng, found = random.Random(12), 0
    for _ in range(3_000):
        text = "".join(rng.choices(PIECES, k=8)).encode()
        search = re2.compile(rng.choice(PATTERNS).encode()).search
        if search(text, 0, rng.randrange(len(text) + 1)) is not None:
            found += 1
            assert search(text) is not None
    assert found > 300
    assert re2.compile(b"a$").search(b"ab", 0, 1) is None


def test_a_process_that_dies_is_told_and_replaced(started: list[long_texts.Worker]) -> None:
    """Killed at work or while idle, or not to be started: a typed error, or another process."""
    looks: list[int] = []

    def kill() -> None:
        looks.append(1)
        if started and len(looks) > 2:
            os.kill(started[0].pid, signal.SIGKILL)

    with pytest.raises(vecdb.errors.Unavailable, match=r"died with exit code -9.*repeat"):
        long_texts.found(NASTY.encode(), nasty_text(1_000_000).encode(), kill)
    assert long_texts.found(b"b$", b"ab", lambda: None)
    os.kill(started[1].pid, signal.SIGKILL)
    wait_until(lambda: not started[1].ready, "it has ended")
    assert not long_texts.found(b"b$", b"abc", lambda: None)
    assert len(started) == 3


def test_no_process_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that starts none says so in a typed error."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(vecdb.errors.Unavailable, match=r"cannot be started.*repeat"):
        long_texts.found(b"a", b"b", lambda: None)


def test_a_search_ends_with_the_process_that_wants_it() -> None:
    """However that one ends: nothing goes on for minutes behind it."""
    script = (
        "import os; from vecdb import long_texts\n"
        f"w = long_texts.Worker(); w.ask(b'a', b'a', lambda: None)\n"
        "calls = []\n"
        "def end():\n"
        "    calls.append(1)\n"
        "    if len(calls) > 20: print(w.pid, flush=True); os._exit(9)\n"
        f"w.ask({NASTY!r}.encode(), b'ab' * 5_000_000, end)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 9, done.stderr
    wait_until(lambda: gone(int(done.stdout)), "the process that searches has ended")


def test_over_the_wire_a_long_document_is_no_way_past_the_limit(start: StartServer) -> None:
    """A pattern that would take 9 s for a document ends at `max_filter_s`, its caller is told which setting it was, and the
    next call is answered."""
    server, begun_s = start(max_filter_s=0.3), worked_s()
    with connect(server.address, timeout_s=30) as client:
        docs = client.create_collection("docs", dimension=2)
        docs.insert(["a"], [[1, 1]], documents=[nasty_text(1_500_000)])
        calls: list[Callable[[], Any]] = [
            lambda: docs.count({"$document": {"$regex": NASTY}}),
            lambda: docs.get(filter={"$document": {"$regex": NASTY}}),
        ]
        for call in calls:
            with pytest.raises(errors.LimitExceeded) as caught:
                call()
            assert caught.value.details["setting"] == "max_filter_s"
        assert docs.count({"$document": {"$regex": "^[ab]+$"}}) == 1
    assert worked_s() - begun_s < 5
