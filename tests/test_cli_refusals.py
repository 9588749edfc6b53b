"""What a user may type or hand in wrongly: one clear line, a fitting exit code, never a traceback."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Run

from vecdb_server import __main__ as command_line


def jsonl(*rows: object) -> Callable[[Path], None]:
    return lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in rows)) and None


def raw(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data) and None


def array(value: object) -> Callable[[Path], None]:
    return lambda path: np.save(path, np.asarray(value))


def arrays(**values: object) -> Callable[[Path], None]:
    return lambda path: np.savez(path, **{k: np.asarray(v) for k, v in values.items()})  # type: ignore[arg-type]


def no_arrays(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("vectors.npy", "no array")


ROW = {"id": "a", "vector": [1, 2, 3, 4]}
BAD_ROWS = [
    ("empty.npz", raw(b""), 2, "no .npz file"),
    ("text.npz", raw(b"PK is not enough"), 2, "no .npz file"),
    ("inside.npz", no_arrays, 1, "expected `vectors`"),
    ("other.npz", arrays(a=[1]), 1, "holds a;"),
    ("texts.npz", arrays(vectors=np.ones((1, 4)), rows=["a"]), 1, "expected `vectors`"),
    ("uneven.npz", arrays(vectors=np.ones((2, 4)), ids=["a"]), 1, "1 rows and 2 vectors"),
    ("vectors.npy", array(np.ones((2, 4))), 2, "--vectors"),
    ("half.jsonl", raw(b'{"id": "a", \n'), 1, "line 1: not JSON"),
    ("list.jsonl", jsonl([1, 2]), 1, "expected a JSON object"),
    ("nameless.jsonl", jsonl({"vector": [1, 2, 3, 4]}), 1, "--id-field"),
    ("bare.jsonl", jsonl({"id": "a"}), 1, "no field 'vector'"),
    ("ragged.jsonl", jsonl(ROW, {"id": "b", "vector": [1]}), 1, "all of one length"),
    ("words.jsonl", jsonl({"id": "a", "vector": "abc"}), 1, "lists of numbers"),
    ("huge.jsonl", jsonl({"id": "a", "vector": [1e300, 1, 1, 1]}), 1, "'a'.*too large"),
    ("vast.jsonl", jsonl({"id": "a", "vector": [10**400, 1, 1, 1]}), 1, "lists of numbers|not JSON"),
    ("plain.jsonl.gz", raw(b"not packed"), 1, "not complete gzip"),
    ("damaged.jsonl.gz", raw(b"\x1f\x8b\x08\0\0\0\0\0\0\xff\xff\xff\xff\xff"), 1, "not complete gzip"),
    ("missing.jsonl", lambda _: None, 2, "No such file"),
    ("folder.jsonl", Path.mkdir, 2, "Is a directory"),
]  # fmt: skip

BAD_VECTORS = [
    ("empty.npy", raw(b""), "no .npy file of numbers"),
    ("text.npy", raw(b"text"), "no .npy file of numbers"),
    ("words.npy", array(["a", "b"]), "no .npy file of numbers"),
    ("cube.npy", array(np.ones((2, 2, 2))), r"shape \(2, 2, 2\)"),
    ("missing.npy", lambda _: None, "No such file"),
    ("folder.npy", Path.mkdir, "Is a directory"),
]

BAD_WORDS = [
    (["create", "x", "--dimension", "4", "--schema", "[]"], 2, "JSON object"),
    (["create", "x", "--dimension", "4", "--schema", "{"], 2, "JSON object"),
    (["create", "x", "--dimension", "0"], 1, "dimension"),
    (["alias", "--drop"], 2, "name an alias"),
    (["get", "docs", "--limit", "0"], 2, "--limit"),
    (["get", "docs", "nobody"], 1, "not stored: nobody"),
    (["query", "docs", "--vector", "[[1, 2], [1]]"], 2, "JSON list of numbers"),
    (["query", "docs", "--vector", "[1e300, 1, 1, 1]"], 1, "too large"),
    (["query", "docs", "--vector", "{}"], 2, "JSON list of numbers"),
    (["query", "docs"], 2, "--vector, --vectors and --id"),
    (["count", "docs", "--filter", ""], 1, "empty"),
    (["delete", "docs", "--filter", ""], 1, "empty"),
    (["delete", "docs"], 2, "--filter"),
    (["export", "docs", "rows.txt"], 2, "format"),
    (["stats", "nowhere"], 1, "nowhere"),
]


@pytest.fixture
def filled(run: Run) -> Run:
    """The command line, with an empty collection `docs` of dimension 4."""
    assert run("create", "docs", "--dimension", "4").code == 0
    return run


def refused(run: Run, words: list[str], code: int, match: str) -> None:
    done = run(*words)
    assert done.code == code, done
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert line.startswith("vecdb: ")
    assert re.search(match, line), line


def test_files_that_hold_no_records(filled: Run, tmp_path: Path) -> None:
    """Each kind of file that cannot be imported is named with what is wrong; nothing is written."""
    for name, make, code, match in BAD_ROWS:
        make(tmp_path / name)
        refused(filled, ["import", "docs", str(tmp_path / name)], code, match)
    assert filled("count", "docs").out == "0\n"


def test_files_that_hold_no_vectors(filled: Run, tmp_path: Path) -> None:
    """Each kind of file that holds no matrix is refused by import and by query."""
    rows = tmp_path / "rows.jsonl"
    jsonl({"id": "a"})(rows)
    for name, make, match in BAD_VECTORS:
        path = tmp_path / name
        make(path)
        refused(filled, ["query", "docs", "--vectors", str(path)], 2, match)
        refused(filled, ["import", "docs", str(rows), "--vectors", str(path)], 2, match)


def test_words_that_say_nothing(filled: Run) -> None:
    """Each kind of wrong argument is refused with the word that is at fault."""
    for words, code, match in BAD_WORDS:
        refused(filled, words, code, match)


def test_a_file_without_rows(filled: Run, tmp_path: Path) -> None:
    """No rows are no fault, but the collection must be there, and cannot be made from nothing."""
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    assert filled("import", "docs", str(empty)).code == 0
    refused(filled, ["import", "nowhere", str(empty)], 1, "nowhere")
    refused(filled, ["import", "nowhere", str(empty), "--create"], 1, "dimension")


@pytest.mark.usefixtures("short_retries")
@pytest.mark.parametrize(
    ("target", "code"),
    [
        (["--server", "http://x"], 2),
        (["--server", "127.0.0.1:99999"], 2),
        (["--timeout-s", "0"], 2),
        (["--server", "127.0.0.1:1"], 5),
        (["--data", "nowhere"], 3),
    ],
)
def test_targets_that_are_none(
    target: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server or folder that cannot be, or is not there, has an exit code of its own."""
    assert command_line.main(["list", *target]) == code
    assert capsys.readouterr().err.count("\n") == 1


def test_ctrl_c_while_waiting_for_rows(tmp_path: Path) -> None:
    """Ctrl-C in an import that waits for standard input ends it with one line and 130."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vecdb_server", "import", "docs", "-", "--create", "--data",
         str(tmp_path / "data")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()
    # The database is made before the first row is read.
    for _ in range(600):
        if (tmp_path / "data").exists():
            break
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == b"vecdb: interrupted\n"
