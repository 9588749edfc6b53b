"""What the targets of the Makefile run."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
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


WITH_A_CARD = {
    *("blake3", "faiss", "google", "grpc", "grpc_health", "grpc_reflection", "lmdb", "msgspec", "numpy", "re2"),
    *("hypothesis", "pytest"),
}  # fmt: skip
"""What our distributions need, and what `make test-gpu` installs beside them."""


def test_tests_are_found_where_there_is_only_what_a_card_wants() -> None:
    """No file of tests imports another package before a test runs: it would end the run of those that need a GPU, which looks
    into all files."""
    tests = ROOT / "tests"
    own = {path.stem for path in tests.rglob("*.py")} | {
        *("bench", "crash", "examples", "tests", "tools", "vecdb", "vecdb_client", "vecdb_server")
    }
    found = {
        f"{path.name} imports {name}"
        for path in tests.rglob("*.py")
        for name in imported_at_once(ast.parse(path.read_text(encoding="utf-8")).body)
        if name not in {*sys.stdlib_module_names, *own, *WITH_A_CARD}
    }
    assert not found


def imported_at_once(body: list[ast.stmt]) -> Iterator[str]:
    """First names of what statements of a module import when it is imported itself."""
    for one in body:
        if isinstance(one, ast.Import):
            yield from (alias.name.split(".")[0] for alias in one.names)
        elif isinstance(one, ast.ImportFrom) and not one.level:
            yield (one.module or "").split(".")[0]
        elif isinstance(one, ast.If | ast.Try):
            yield from imported_at_once(one.body)
