"""Strange input, for a moment; `make fuzz` goes on for as long as it is told."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from fuzzing import one_round
from seeds import RUN_SEED

_ROUNDS = 5
"""At most. One of six seconds is enough, unless the machine is slow or the first calls dropped what others ask for."""


def test_strange_input_does_no_harm(tmp_path: Path) -> None:
    """Random requests and filters are answered or refused as a client's mistake, and the server goes on; enough of
    both kinds come for that to mean something."""
    print("seed", RUN_SEED)
    seen = Counter[str]()
    for seed in range(RUN_SEED, RUN_SEED + _ROUNDS):
        seen += one_round(seed, 6.0, tmp_path / str(seed))
        found = [seen["filter taken"], seen["filter refused"]]
        calls = [sum(one.endswith(end) for one in seen) for end in (" OK", " INVALID_ARGUMENT")]
        if min(found) > 20 and min(calls) > 10:
            return
    raise AssertionError(f"too little came: {seen}")
