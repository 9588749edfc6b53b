"""What is written is what was given: not what its memory holds by the time it is stored, and no more than memory holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecdb
from vecdb import errors, writes

D = 8


@pytest.fixture
def docs(data_folder: Path) -> Iterator[Any]:
    with vecdb.open(data_folder, device="cpu", auto_build=False) as db:
        yield db.create_collection(
            "docs", dimension=D, metric="l2", vectors={"title": {"dimension": 4, "metric": "l2"}}
        )


class Lent:
    """As a tensor of another library: numpy looks into its memory."""

    def __init__(self, held: np.ndarray) -> None:
        self.held = held

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.held


def view_of(held: np.ndarray) -> np.ndarray:
    looked_at = held[:]
    looked_at.flags.writeable = False
    return looked_at


@pytest.mark.parametrize("lend", [lambda held: held, view_of, lambda held: held[::1], Lent])
def test_a_batch_that_is_prepared_keeps_its_numbers(docs: Any, lend: Any) -> None:
    """Its buffer may be filled with the next one before it is written."""
    buffer, titles = np.full((3, D), 5, np.float32), np.full((3, 4), 6, np.float32)
    commit = docs.prepare_put(
        ["a", "b", "c"], lend(buffer), named_vectors={"title": lend(titles)}, replace=False
    )
    buffer[:], titles[:] = np.nan, np.nan
    commit()
    found = docs.get(["a", "b", "c"], include=("vector", "named_vectors"))
    np.testing.assert_array_equal(found.vectors, np.full((3, D), 5))
    np.testing.assert_array_equal(found.named_vectors["title"], np.full((3, 4), 6))
    assert docs.check().ok


def test_what_nobody_can_write_to_is_not_copied(docs: Any) -> None:
    """As the numbers of a message are."""
    raw = np.full((3, D), 5, np.float32).tobytes()
    given = np.frombuffer(raw, np.float32).reshape(3, D)
    put = docs.prepare_put(["a", "b", "c"], given, replace=False).args[0]
    assert np.shares_memory(put.vectors, given)


def test_an_update_keeps_no_more_than_memory_holds(
    docs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it would keep is counted before anything of it is read; what it clears or replaces does not count."""
    monkeypatch.setattr(writes, "MOST_KEPT_BYTES", 1 << 20)
    ids = [str(n) for n in range(4)]
    docs.insert(ids, np.ones((4, D)), contents=[(b"x" * (1 << 19), "image/png")] * 4)
    with pytest.raises(errors.LimitExceeded, match="update fewer records at once") as caught:
        docs.update(ids, metadata=[{"seen": True}] * 4)
    assert caught.value.details["given"] > 1 << 21
    assert docs.count({"seen": True}) == 0
    docs.update(ids[:1], metadata=[{"seen": True}])
    docs.update(ids, metadata=[{"seen": True}] * 4, clear=["content"])
    assert docs.count({"seen": True}) == 4
    assert docs.get(["0"], include=("content",)).contents == [None]
    assert docs.check().ok
