"""`python -m bench syncs` counts what a system calls for a write, wherever in it, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import syncs
from bench.run import plan
from bench.run.plan import Entry

TRACE = """\
101 fsync(5)                          = 0
102 fdatasync(9 <unfinished ...>
101 msync(0x7f0000000000, 4096, MS_SYNC) = 0
101 msync(0x7f0000000000, 4096, MS_ASYNC) = 0
102 <... fdatasync resumed>)          = 0
103 sync_file_range(3, 0, 0, SYNC_FILE_RANGE_WRITE) = 0
103 fsync(7)                          = -1 EINVAL (Invalid argument)
102 +++ exited with 0 +++
"""


def test_calls_are_counted_by_name_once_each() -> None:
    """A call that another one interrupts is one, and msync counts where it waits."""
    found = syncs.counts(TRACE)
    assert found == {
        "fsync": 2, "fdatasync": 1, "msync": 1, "sync_file_range": 1, "syncfs": 0, "sync": 0,
    }  # fmt: skip
    assert syncs.counts("") == dict.fromkeys(syncs.CALLS, 0)


def ran(folder: Path, *words: str) -> dict[str, Any]:
    code = syncs.main([*words, "--out", str(folder), "--cache", str(folder / "sets")])
    if code == syncs.NO_STRACE:
        pytest.skip("strace is not installed, or may look at no process here")
    assert code == 0
    (file,) = folder.glob("*.json")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_what_threads_and_processes_of_a_system_call_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each verb alone, between the first write and the last; what has no such verb, or is not there, is named."""
    monkeypatch.setitem(plan.SYSTEMS, "planted", Entry("bench_planted_syncs"))
    monkeypatch.setitem(plan.SYSTEMS, "still", Entry("bench_planted"))
    monkeypatch.setitem(plan.SYSTEMS, "absent", Entry("no_such_adapter"))
    found = ran(tmp_path, "--systems", "planted,still,absent", "--writes", "3")
    planted, still, absent = found["systems"]
    none = dict.fromkeys(syncs.CALLS, 0) | {"open_synchronous": 1}
    assert planted["verbs"] == {
        "insert": {**none, "fsync": 6},
        "upsert": {**none, "fdatasync": 3, "msync": 3},
        "delete": none,
    }
    assert still["verbs"]["insert"] == {**none, "open_synchronous": 0}
    assert still["verbs"]["upsert"] == {"failed": "it cannot replace a row in place"}
    assert absent["skipped"] == "no_such_adapter is not installed"
    (page,) = tmp_path.glob("*.md")
    text = page.read_text()
    assert "| planted | " in text
    assert "| insert | 2 | 6 | 0 | 0 | 0 | 0 | 0 | 1 |" in text
    assert "- still, delete: it cannot delete a row" in text


def test_vecdb_syncs_each_write(tmp_path: Path) -> None:
    """No insert, upsert or delete of the engine is acknowledged without a call that waits for the disk."""
    found = ran(tmp_path, "--systems", "vecdb", "--writes", "5")
    for verb, counted in found["systems"][0]["verbs"].items():
        assert sum(counted[name] for name in ("fsync", "fdatasync", "msync")) >= 5, verb


def test_without_strace_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By name and with a code of its own, and without a page."""
    monkeypatch.setenv("PATH", str(tmp_path))
    words = [
        "--systems",
        "vecdb",
        "--writes",
        "1",
        "--cache",
        str(tmp_path),
        "--out",
        str(tmp_path),
    ]
    assert syncs.main(words) == syncs.NO_STRACE
    assert "strace is not installed" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.md"))
