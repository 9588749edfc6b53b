"""pip-audit against a local copy of the advisories: `make audit ADVISORIES=folder`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENTRY = """
id: PYSEC-2026-1
details: Reads what it should not.
modified: "2026-03-04T05:06:07Z"
published: "2026-03-01T00:00:00Z"
affected:
- package: {{name: {name}, ecosystem: {ecosystem}}}
  ranges:
  - type: GIT
    events: [{{introduced: "0"}}]
  - type: ECOSYSTEM
    events: {events}
  versions: {versions}
"""
ASK = """
import json, sys, urllib.request
for asked in json.load(sys.stdin):
    body = json.dumps({"package": {"name": asked[0], "ecosystem": "PyPI"}, "version": asked[1]}).encode()
    with urllib.request.urlopen(urllib.request.Request(sys.argv[-1], body)) as answer:
        print(json.dumps([one["id"] for one in json.load(answer).get("vulns", [])]))
sys.exit(7)
"""


def copy(
    folder: Path,
    events: str = "[]",
    versions: str = "[]",
    name: str = "some-thing",
    ecosystem: str = "PyPI",
) -> Path:
    """A copy with one entry."""
    file = folder / "vulns/some-thing/PYSEC-2026-1.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(ENTRY.format(name=name, ecosystem=ecosystem, events=events, versions=versions))
    return folder


def run(folder: Path, *command: str, given: Any = None) -> subprocess.CompletedProcess[str]:
    """The tool, with a command that it runs."""
    pytest.importorskip("yaml", reason="PyYAML is not installed (make audit installs it)")
    # A proxy that is not there: nothing of this goes through one.
    own = {**os.environ, "http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    return subprocess.run(
        [sys.executable, str(ROOT / "tools/advisories.py"), str(folder), *command],
        input=json.dumps(given), capture_output=True, text=True, check=False, timeout=120, env=own,
    )  # fmt: skip


def affected(folder: Path, *versions: str, name: str = "some-thing") -> list[str]:
    """Which versions have the entry."""
    done = run(folder, sys.executable, "-c", ASK, given=[(name, one) for one in versions])
    assert done.returncode == 7, done.stderr
    assert "1 advisories, changed on 2026-03-04 at the latest" in done.stderr
    answers = map(json.loads, done.stdout.splitlines())
    return [one for one, found in zip(versions, answers, strict=True) if found]


@pytest.mark.parametrize(
    ("events", "listed", "among", "expected"),
    [
        ('[{introduced: "0"}, {fixed: "1.4"}]', "[]", "0.1 1.3.9 1.4rc1 1.4 2.0", "0.1 1.3.9 1.4rc1"),
        ('[{introduced: "1.0"}]', "[]", "0.9 1.0 99", "1.0 99"),
        ('[{introduced: "1.0"}, {last_affected: "1.2"}]', "[]", "0.9 1.2 1.2.1", "1.2"),
        ('[{fixed: "1.4"}, {introduced: "2.0"}, {fixed: "2.1"}, {introduced: "1.0"}]', "[]",
         "0.9 1.3 1.4 2.0.5 2.1", "1.3 2.0.5"),
        ("[]", '["1.0", "1.10", "before-all-forms"]', "1 1.0.0 1.1 1.10", "1 1.0.0 1.10"),
    ],
    ids=["fixed", "never fixed", "last", "twice", "listed"],
)  # fmt: skip
def test_the_versions_that_an_entry_is_about(
    tmp_path: Path, events: str, listed: str, among: str, expected: str
) -> None:
    """Ranges and lists are read as OSV says; the exit code is that of the command, and the age of the copy is told."""
    folder = copy(tmp_path, events, listed)
    assert affected(folder, *among.split()) == expected.split()


def test_names_are_compared_as_pypi_does(tmp_path: Path) -> None:
    """Upper case, dots and underscores make no other package; another ecosystem does."""
    events = '[{introduced: "0"}]'
    ours = copy(tmp_path / "ours", events, name="Some_Thing")
    assert affected(ours, "1.0", name="some.Thing") == ["1.0"]
    assert affected(ours, "1.0", name="thing") == []
    assert affected(copy(tmp_path / "npm", events, ecosystem="npm"), "1.0") == []


def test_what_is_no_copy_and_what_cannot_be_read_are_no_good_answer(tmp_path: Path) -> None:
    """A folder without entries is refused before anything is asked; an entry that is damaged is an error for who asks."""
    (tmp_path / "empty").mkdir()
    done = run(tmp_path / "empty", "true")
    assert done.returncode == 1
    assert "no copy of the advisory database" in done.stderr
    damaged = copy(tmp_path / "damaged", events="[")
    done = run(damaged, sys.executable, "-c", ASK, given=[("some-thing", "1.0")])
    assert done.returncode == 1
    assert "500" in done.stderr


def test_pip_audit_finds_a_fault_in_the_copy(tmp_path: Path) -> None:
    """pip-audit itself, as `make audit` runs it: code 1 for a version that is affected, 0 for one that is not."""
    program = shutil.which(
        "pip-audit", path=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    )
    if program is None:
        pytest.skip("pip-audit is not installed (make audit installs it)")
    folder = copy(tmp_path / "copy", '[{introduced: "0"}, {fixed: "1.4"}]')
    pins = tmp_path / "pins.txt"
    for version, code in (("1.3", 1), ("1.4", 0)):
        pins.write_text(f"Some-Thing=={version}\n")
        done = run(folder, program, "--strict", "--no-deps", "--disable-pip", "-r", str(pins))
        assert done.returncode == code, done.stderr
        assert ("PYSEC-2026-1" in done.stdout) == bool(code)


@pytest.mark.parametrize("given", ["", "a folder"])
def test_make_audit_asks_the_copy_that_it_is_given(given: str) -> None:
    """`make audit ADVISORIES=...` puts the tool before the very command that is run without it."""
    told = subprocess.run(
        ["make", "-n", "audit", f"ADVISORIES={given}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    (line,) = [one for one in told.splitlines() if "--strict" in one]
    assert line.endswith("pip-audit --strict --no-deps --disable-pip -r constraints.txt")
    assert ("tools/advisories.py 'a folder' .venv/bin/pip-audit" in line) == bool(given)
