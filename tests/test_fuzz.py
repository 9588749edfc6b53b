"""Strange input, for a moment; `make fuzz` goes on for as long as it is told."""

from __future__ import annotations

from pathlib import Path

from fuzzing import one_round
from seeds import RUN_SEED


def test_strange_input_does_no_harm(tmp_path: Path) -> None:
    """Random requests and filters are answered or refused as a client's mistake, and the server goes on."""
    print("seed", RUN_SEED)
    seen = one_round(RUN_SEED, 6.0, tmp_path / "db")
    assert seen["filter taken"] > 20
    assert seen["filter refused"] > 20
    assert len([one for one in seen if one.endswith(" OK")]) > 10
    assert len([one for one in seen if one.endswith(" INVALID_ARGUMENT")]) > 10
