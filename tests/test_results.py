"""What is recorded can be made again: results name a commit that the history with them holds."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SINCE = "2026-11-29T12:00"
"""Of results from before, some name commits that were made anew since, and are known by no name now."""
_DATE = re.compile(r'"date": ?"([^"]+)"')
_COMMIT = re.compile(r'"commit": ?"([^"]*)"')
_HASH = re.compile(r"[0-9a-f]{7,40}( with changes)?")


def git(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    done = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words]
    return subprocess.run(done, cwd=root, capture_output=True, text=True, check=False)


def strangers(root: Path, results: Path) -> list[str]:
    """Files of numbers that name a commit which is none of the history of what is checked out. Skips where that history
    is not here."""
    if git(root, "rev-parse", "--verify", "HEAD").returncode:
        pytest.skip("not a git checkout: which commits there were is not known")
    if git(root, "rev-parse", "--is-shallow-repository").stdout.strip() == "true":
        pytest.skip("a shallow clone: commits before are not here")
    found = []
    for path in sorted((*results.glob("*.json"), *results.glob("*.jsonl"))):
        text = path.read_text(encoding="utf-8")
        date = _DATE.search(text)
        if (path.name if date is None else date[1]) < SINCE:
            continue
        for commit in dict.fromkeys(_COMMIT.findall(text)):
            held = (
                _HASH.fullmatch(commit) is not None
                and not git(
                    root, "merge-base", "--is-ancestor", commit.partition(" ")[0], "HEAD"
                ).returncode
            )
            if not held:
                found.append(f"{path.name} names {commit}")
    return found


def test_results_name_commits_of_this_history() -> None:
    """Whoever reads a figure can check out what gave it, perhaps with changes, which the file says."""
    assert strangers(ROOT, ROOT / "bench" / "results") == []


def test_a_commit_that_is_not_held_is_found(tmp_path: Path) -> None:
    """One that nobody has, one that no branch of what is checked out leads to, and none; older files are let be."""
    assert git(tmp_path, "init", "-q").returncode == 0
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "one")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "two")
    lost = git(tmp_path, "rev-parse", "--short", "HEAD").stdout.strip()
    git(tmp_path, "reset", "-q", "--hard", "HEAD~1")
    held = git(tmp_path, "rev-parse", "--short", "HEAD").stdout.strip()
    for name, commit, date in (
        ("held", held, "2027-01-01T00:00:00+00:00"),
        ("changed", f"{held} with changes", "2027-01-01T00:00:00+00:00"),
        ("lost", lost, "2027-01-01T00:00:00+00:00"),
        ("made-up", "0123abc", "2027-01-01T00:00:00+00:00"),
        ("none", "none", "2027-01-01T00:00:00+00:00"),
        ("old", "0123abc", "2026-11-28T00:00:00+00:00"),
    ):
        text = json.dumps({"date": date, "machine": {"commit": commit}})
        (tmp_path / f"{name}.json").write_text(text)
    assert strangers(tmp_path, tmp_path) == [
        f"lost.json names {lost}", "made-up.json names 0123abc", "none.json names none",
    ]  # fmt: skip
