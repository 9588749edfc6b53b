"""Whole numbers so long that Python does not write them down: refused in words by all that reads records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import vecdb
from vecdb import errors

HUGE = 10**5_000


@pytest.fixture
def docs(data_folder: Path) -> Iterator[Any]:
    with vecdb.open(data_folder, device="cpu", auto_build=False) as db:
        made = db.create_collection("docs", dimension=2)
        made.insert(["a"], [[1, 2]])
        yield made


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    "call",
    [
        lambda docs, n: docs.query([1, 2], k=n),
        lambda docs, n: docs.query([1, 2], max_distance=n),
        lambda docs, n: docs.query([1, 2], target_recall=n),
        lambda docs, n: docs.query([1, 2], k=1, group_by="x", group_size=n),
        lambda docs, n: docs.query([1, 2], k=1, mmr_lambda=n),
        lambda docs, n: docs.get(limit=n),
        lambda docs, n: docs.get(order_by=n),
        lambda docs, n: list(docs.scan(batch_size=n)),
        lambda docs, n: list(docs.scan(slices=2, slice_index=n)),
        lambda docs, n: docs.count(min_sequence=n, timeout_s=0.1),
        lambda docs, n: docs.query([1, 2], min_sequence=n, timeout_s=0.1),
    ],
)
def test_a_number_too_long_to_write_is_refused(
    docs: Any, call: Callable[[Any, int], Any], sign: int
) -> None:
    """InvalidQuery, which says what is expected, and the collection goes on."""
    with pytest.raises(errors.InvalidQuery, match=r"given a value of type int"):
        call(docs, sign * HUGE)
    assert docs.count() == 1
