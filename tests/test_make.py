"""What the targets of the Makefile run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("given", "left_out"), [((), True), (("TESTS=tests/test_open.py",), False)], ids=["all", "some"]
)
def test_long_tests_are_left_out_of_all_but_not_of_those_named(
    given: tuple[str, ...], left_out: bool
) -> None:
    """`make test` leaves out what is marked `long`; what is named runs whatever it is, and `make test-long` has the rest."""
    told = subprocess.run(
        ["make", "-n", "test", "test-long", *given],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    short, long = [line for line in told if "-m pytest" in line]
    assert ("-m 'not long'" in short) is left_out
    assert "-m long" in long
    assert all(one.partition("=")[2] in short for one in given)
