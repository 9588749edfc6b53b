"""The time of a measurement of a card: how it is dealt out, that it is enough, and which Python measures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bench.gpu import budget, plan, run


def test_the_budget_is_dealt_out_by_weight_and_what_is_left_goes_on() -> None:
    """Each part has its share of what is left; a part may overrun by the grace, the whole by no more."""
    now = [100.0]
    dealt = budget.Budget(90, {"a": 1, "b": 1, "c": 1}, lambda: now[0])
    assert dealt.grant("a") == pytest.approx(30)
    now[0] += 10  # 20 s fewer than it had
    assert dealt.grant("b") == pytest.approx(40)
    assert dealt.kill_after(40) == pytest.approx(40 + budget.GRACE_S)
    now[0] += 75
    assert dealt.grant("c") == pytest.approx(5)
    assert dealt.kill_after(40) == pytest.approx(5 + budget.GRACE_S)
    now[0] += 100
    assert dealt.left_s == 0
    assert dealt.kill_after(40) == 1  # a hung part after the end costs no further 20 s


def test_the_defaults_end_within_eight_minutes() -> None:
    """455 s for the parts, and the grace of the last of them, leave time to write the page."""
    assert run._parser().parse_args([]).seconds + budget.GRACE_S <= 475


def test_no_case_is_left_out_for_want_of_time() -> None:
    """The times that an H200 took, dealt out anew with the defaults: what it measured takes as long as then, shared out by
    what each case is thought to need, and what it left out, or has no line of, as long as it is thought to need."""
    recorded = json.loads((run.RESULTS / "2026-11-27-gpu-h200.json").read_text())
    defaults, now = run._parser().parse_args([]), [0.0]
    dealt = budget.Budget(
        defaults.seconds,
        {part: weight for part, (_, weight) in run.PARTS.items() if part not in run.WHEN_NAMED},
        lambda: now[0],
    )
    left_out = []
    for part, (module, _) in run.PARTS.items():
        if part in run.WHEN_NAMED:
            continue
        end_s = now[0] + dealt.grant(part)
        needed = (
            module.needs(plan.FULL, defaults.rounds) if hasattr(module, "needs") else [(part, 0.0)]
        )
        lines = recorded["parts"].get(part, [])
        new = {one["name"] for one in lines if one["kind"] == "left out"}
        if part == "insert":
            new.add(needed[-1][0])
            assert not any(one["case"] == needed[-1][0] for one in lines)
        if part == "tiled":
            # No recorded run has it.
            assert part not in recorded["parts"]
            new = {name for name, _ in needed}
        assert new <= {name for name, _ in needed}
        known_s = sum(s for name, s in needed if name not in new)
        for name, needed_s in needed:
            left_s = end_s - now[0]
            if left_s < needed_s:
                left_out.append(f"{part}: {name} needs {needed_s:.0f} s of {left_s:.0f}")
                continue
            share = needed_s / known_s if known_s else 1.0
            now[0] += needed_s if name in new else recorded["part_s"][part] * share
    assert left_out == []
    assert now[0] <= defaults.seconds


@pytest.mark.parametrize(
    ("target", "words", "runs"),
    [
        ("bench-gpu", ["ARGS=--backend cpu"], ".venv/bin/python -m bench gpu --backend cpu"),
        ("bench-gpu", ["PYTHON=/of/gpus/python"], "/of/gpus/python -m bench gpu"),
        ("test-gpu", ["ARGS=--device=stand-in"], ".venv/bin/python -m pytest -q tests -m gpu --device=stand-in"),
        ("test-gpu", ["PYTHON=/of/gpus/python"], "/of/gpus/python -m pytest -q tests -m gpu"),
    ],
)  # fmt: skip
def test_make_takes_the_python_that_can(target: str, words: list[str], runs: str) -> None:
    """What pretends a card runs in the environment of the project, which has FAISS for the CPU; what needs one in the
    Python that is named."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    told = subprocess.run(
        ["make", "--dry-run", target, *words],
        cwd=Path(run.__file__).parents[2],
        env={k: v for k, v in os.environ.items() if k in ("PATH", "HOME")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.splitlines()[-1].split() == runs.split()
