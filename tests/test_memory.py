"""Memory that is filled from the front and grows."""

from __future__ import annotations

import numpy as np
import pytest
from seeds import RUN_SEED

from vecdb import memory
from vecdb.ids import Ids
from vecdb.memory import Growing, anonymous


def words(n):
    return np.zeros(n, np.int64)


class Watched(np.ndarray):
    """An array that notes how many values are written at a time."""

    written: list[int]

    def __setitem__(self, at, values):
        self.written.append(at.stop - at.start)
        super().__setitem__(at, values)


def watched(n, written):
    made = words(n).view(Watched)
    made.written = written
    return made


@pytest.mark.parametrize("make", [words, anonymous], ids=["array", "pages"])
def test_what_was_there_stays_there(make, monkeypatch):
    """Whatever batches come, also some that are reserved and then not written, values and their places stay."""
    monkeypatch.setattr(memory, "_AT_ONCE", 8)
    rng = np.random.default_rng(RUN_SEED)
    growing, held, n = Growing(make), make(8), 0
    expected = rng.integers(0, 100, 6_000)
    while n < 5_000:
        stop = n + int(rng.choice([0, 1, 7, 40, 300]))
        held = growing.reserve(held, n, stop, 2 * len(held), ahead=bool(rng.random() < 0.8))
        if rng.random() < 0.2:
            continue  # the batch failed elsewhere: the next one writes other values there
        for at in range(n, stop):
            held[at] = int(expected[at])
        n = stop
        assert len(held) >= n, RUN_SEED
        assert list(held[:n]) == expected[:n].tolist(), RUN_SEED


def test_no_batch_pays_for_all_that_came_before():
    """While a million values come by thousands, none of them waits for more than some twenty thousand to be copied."""
    written: list[int] = []
    growing = Growing(lambda n: watched(n, written))
    held = watched(1 << 16, written)
    for n in range(0, 1_000_000, 1_000):
        held = growing.reserve(held, n, n + 1_000, 2 * len(held))
    assert len(held) >= 1_000_000
    assert max(written) <= 20_000
    assert sum(written) < 2_000_000


def test_memory_may_lack_the_last_values():
    """What was never reserved is zero in the longer memory."""
    growing, held = Growing(words), words(4)
    held[:] = 7
    longer = growing.reserve(held, 10, 12, 16)
    assert longer.tolist() == [7] * 4 + [0] * 12


def test_room_that_cannot_be_had_yet_is_asked_for_again(monkeypatch):
    """Memory that is refused ahead of need stops nobody; where it is needed, MemoryError leaves all as it was."""
    monkeypatch.setattr(memory, "_AT_ONCE", 8)
    refuse = True

    def make(n):
        if refuse:
            raise MemoryError
        return words(n)

    growing, held = Growing(make), words(64)
    held[:] = range(64)
    assert growing.reserve(held, 62, 63, 128) is held
    with pytest.raises(MemoryError):
        growing.reserve(held, 64, 65, 128)
    refuse = False
    longer = growing.reserve(held, 64, 65, 128)
    assert longer[:64].tolist() == list(range(64))
    assert growing.room == 0


def test_ids_that_are_expected_are_read_into_one_place():
    """Opening copies no ids, and leaves no half-made copy behind; those that come later find room."""
    ids = Ids(200_000)
    texts = [b"%06d" % n for n in range(200_000)]
    ids.append(texts[:100_000])
    before = ids.nbytes
    ids.append(texts[100_000:])
    assert ids.nbytes == before
    ids.append([b"a", b"b"])
    assert ids.nbytes == before
    assert ids.take(np.array([0, 199_999, 200_001])) == ["000000", "199999", "b"]
