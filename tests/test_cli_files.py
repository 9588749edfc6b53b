"""Files in and out of the command line: import, export, and what happens when they are stopped."""

from __future__ import annotations

import datetime as dt
import gzip
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CLI_DIMENSION as DIMENSION
from conftest import Run, rows_file

import vecdb
from vecdb import failpoints
from vecdb_server import __main__ as command_line


def everything(run: Run, collection: str) -> dict[str, Any]:
    """All records of a collection as JSON, by id; vectors as exact numbers."""
    done = run("get", collection, "--limit", "100000", "--json", "--include",
               "vector,metadata,document,content,uri")  # fmt: skip
    assert done.code == 0, done.err
    return {row["id"]: row for row in done.lines}


@pytest.mark.parametrize("ending", ["a.jsonl", "a.jsonl.gz", "a.npz", "a.npy"])
def test_export_then_import_loses_nothing(run: Run, tmp_path: Path, ending: str) -> None:
    """What export writes, import reads back: bits of vectors, types of metadata, texts and bytes."""
    source = rows_file(tmp_path, 40)
    done = run("import", "a", str(source), "--create", "--metric", "l2", "--batch-size", "7")
    assert done.code == 0, done.err
    out = tmp_path / ending
    assert run("export", "a", str(out)).code == 0
    words = [str(out)]
    if ending.endswith(".npy"):
        words = [str(out.with_suffix(".jsonl.gz")), "--vectors", str(out)]
    done = run("import", "b", *words, "--create", "--metric", "l2")
    assert done.code == 0, done.err
    first, second = everything(run, "a"), everything(run, "b")
    assert first == second
    assert len(first) == 40
    assert first["r4"]["content"] == "AAEC/w=="
    assert first["r4"]["metadata"]["at"] == {"$date": "2025-01-01T00:00:04.000125Z"}
    assert type(first["r4"]["metadata"]["whole"]) is float
    assert first["r3"]["metadata"]["big"] == 2**62 + 3
    given = json.loads(source.read_text().splitlines()[5])
    assert first["r5"]["vector"] == given["vector"]
    assert not list(tmp_path.glob("*.part"))


def test_import_takes_vectors_from_a_file_beside_the_rows(run: Run, tmp_path: Path) -> None:
    """Fields are named by flags; all that is nothing else becomes metadata, or those that are named."""
    vectors = np.random.default_rng(3).standard_normal((20, DIMENSION)).astype(np.float16)
    np.save(tmp_path / "v.npy", vectors)
    rows = [{"key": i, "text": f"t{i}", "pos": "noun", "other": 1} for i in range(20)]
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    words = [str(tmp_path / "rows.jsonl.gz"), "--vectors", str(tmp_path / "v.npy"), "--create",
             "--id-field", "key", "--document-field", "text", "--metric", "l2"]  # fmt: skip
    assert run("import", "all", *words).code == 0
    assert run("import", "some", *words, "--metadata-fields", "pos").code == 0
    assert everything(run, "all")["7"]["metadata"] == {"pos": "noun", "other": 1}
    seven = everything(run, "some")["7"]
    assert seven["metadata"] == {"pos": "noun"}
    assert seven["document"] == "t7"
    assert seven["vector"] == vectors[7].astype(np.float32).tolist()


def test_import_of_an_npz_with_ids_only(run: Run, tmp_path: Path) -> None:
    """A .npz of `ids` and `vectors`, as a few lines of numpy write it, is enough."""
    vectors = np.eye(DIMENSION, dtype=np.float32)
    np.savez(tmp_path / "x.npz", ids=np.array([f"a{i}" for i in range(8)]), vectors=vectors)
    assert run("import", "x", str(tmp_path / "x.npz"), "--create").code == 0
    assert run("count", "x").out == "8\n"


@pytest.mark.parametrize("ids", [np.array([b"a", "ä".encode()]), np.array(["a", "ä"])])
def test_ids_of_a_npz_may_be_bytes(run: Run, tmp_path: Path, ids: Any) -> None:
    """As HDF5 has texts."""
    np.savez(tmp_path / "x.npz", ids=ids, vectors=np.eye(2, DIMENSION, dtype=np.float32))
    assert run("import", "x", str(tmp_path / "x.npz"), "--create").code == 0
    assert sorted(everything(run, "x")) == ["a", "ä"]


@pytest.mark.parametrize("ids", [np.array([b"a", b"\xff"]), np.array([1.0, 2.0])])
def test_ids_of_a_npz_that_are_none_are_refused(run: Run, tmp_path: Path, ids: Any) -> None:
    """Bytes that are no texts, and numbers that are not whole."""
    np.savez(tmp_path / "x.npz", ids=ids, vectors=np.eye(2, DIMENSION, dtype=np.float32))
    done = run("import", "x", str(tmp_path / "x.npz"), "--create")
    assert done.code == 1
    assert "ids are" in done.err


@pytest.mark.parametrize("ending", ["a.jsonl", "a.npz"])
def test_empty_texts_come_back_also_where_a_batch_has_no_others(
    run: Run, tmp_path: Path, ending: str
) -> None:
    """An empty text is one: neither import nor export takes it for none."""
    rows = [
        {
            "id": str(n),
            "vector": [float(n)] * DIMENSION,
            **({"document": "", "uri": ""} if n else {}),
        }
        for n in range(3)
    ]
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    for name, file in (("a", source), ("b", tmp_path / ending)):
        assert run("import", name, str(file), "--create", "--metric", "l2").code == 0
        held = everything(run, name)
        assert [held[str(n)].get("document") for n in range(3)] == [None, "", ""]
        assert [held[str(n)].get("uri") for n in range(3)] == [None, "", ""]
        assert run("export", name, str(tmp_path / ending)).code == 0


def test_import_says_how_to_go_on_after_a_failure(run: Run, tmp_path: Path) -> None:
    """Batches before the fault stay; the message names --skip, and going on with it completes."""
    source = rows_file(tmp_path, 30)
    lines = source.read_text().splitlines()
    broken = tmp_path / "broken.jsonl"
    broken.write_text("\n".join([*lines[:25], "{not json", *lines[26:]]))
    done = run("import", "docs", str(broken), "--create", "--batch-size", "10")
    assert done.code == 1
    assert "line 26" in done.err
    assert "--skip 20" in done.err
    assert run("count", "docs").out == "20\n"
    assert run("import", "docs", str(source), "--skip", "20").code == 0
    assert run("count", "docs").out == "30\n"
    again = run("import", "docs", str(source))
    assert again.code == 1
    assert "RECORD_EXISTS" in again.err
    assert run("import", "docs", str(source), "--upsert").code == 0
    assert run("count", "docs").out == "30\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[1]", "JSON object"),
        ('{"vector": [1]}', "--id-field"),
        ('{"id": "a"}', "--vectors"),
        ('{"id": "a", "vector": ["x"]}', "numbers"),
        ('{"id": "a", "vector": [1], "metadata": 3}', "--metadata-fields"),
        ('{"id": "a", "vector": [1], "metadata": {"b": 1}, "b": 2}', "'b'"),
        ('{"id": "a", "vector": [1], "document": 3}', "text"),
        ('{"id": "a", "vector": [1], "content": "%%"}', "base64"),
        ('{"id": "a", "vector": [1], "at": {"$date": "yesterday"}}', "$date"),
    ],
)
def test_import_names_what_is_wrong_with_a_line(
    run: Run, tmp_path: Path, line: str, said: str
) -> None:
    """A bad line ends the import with exit code 1 and a message that says what was expected."""
    path = tmp_path / "bad.jsonl"
    path.write_text(line + "\n")
    done = run("import", "docs", str(path), "--create")
    assert done.code == 1
    assert said in done.err
    assert "line 1" in done.err
    assert run("list", "--json").lines == []


def test_import_refuses_vectors_that_do_not_fit_the_rows(run: Run, tmp_path: Path) -> None:
    """More rows than vectors, or fewer, is an error that gives both numbers."""
    source = rows_file(tmp_path, 10)
    for count in (8, 12):
        np.save(tmp_path / "v.npy", np.ones((count, DIMENSION), np.float32))
        done = run("import", f"c{count}", str(source), "--vectors", str(tmp_path / "v.npy"),
                   "--create")  # fmt: skip
        assert done.code == 1
        assert str(count) in done.err


def vecdb_process(*words: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "vecdb_server", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def test_a_reader_that_goes_away_is_no_crash(data_folder: Path, tmp_path: Path) -> None:
    """`vecdb export - | head -1` ends quietly: no traceback, exit code 141."""
    command = ["import", "docs", str(rows_file(tmp_path, 3_000)), "--create", "--data"]
    assert command_line.main([*command, str(data_folder)]) == 0
    process = vecdb_process("export", "docs", "-", "--data", str(data_folder))
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith(b"{")
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


def test_control_c_ends_an_import_with_130(data_folder: Path, tmp_path: Path) -> None:
    """An interrupted import says how to go on, and what was acknowledged is there."""
    process = vecdb_process("import", "docs", "-", "--create", "--batch-size", "10", "--data",
                            str(data_folder), stdin=subprocess.PIPE)  # fmt: skip
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write(rows_file(tmp_path, 200).read_bytes())
    process.stdin.flush()
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        try:
            with vecdb.open(data_folder, read_only=True) as db:
                if db.get_collection("docs").count():
                    break
        except vecdb.VecdbError:
            time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.stderr.read().decode()
    assert process.wait(timeout=60) == 130
    process.stdin.close()
    process.stderr.close()
    assert process.stdout is not None
    process.stdout.close()
    assert "Traceback" not in said
    stored = int(said.split(" rows are stored")[0].split()[-1].replace(",", ""))
    with vecdb.open(data_folder) as db:
        assert db.get_collection("docs").count() == stored


def test_export_that_fails_leaves_no_file(data_folder: Path, tmp_path: Path) -> None:
    """A file appears when it is complete: a scan that breaks leaves neither file nor part."""
    assert command_line.main(["import", "docs", str(rows_file(tmp_path, 20)), "--create", "--data",
                              str(data_folder)]) == 0  # fmt: skip
    out = tmp_path / "out"
    out.mkdir()

    def breaks(*_: Any, **__: Any) -> Any:
        raise vecdb.errors.Corrupted("page 3 is damaged")
        yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vecdb.Collection, "scan", breaks)
        for name in ("a.jsonl", "a.jsonl.gz", "a.npy", "a.npz"):
            words = ["export", "docs", str(out / name), "--data", str(data_folder)]
            assert command_line.main(words) == 1
    assert not list(out.iterdir())


def test_dates_are_exported_in_utc() -> None:
    """Any time zone becomes the same moment in UTC, as RFC 3339 with Z."""
    from vecdb_server.cli_export import jsonable

    zone = dt.timezone(dt.timedelta(hours=2))
    assert jsonable(dt.datetime(2025, 1, 1, 1, tzinfo=zone)) == {"$date": "2024-12-31T23:00:00Z"}


def test_a_finished_export_is_durable_with_its_name(run: Run, tmp_path: Path) -> None:
    """The file is synced, renamed, and its folder synced, in this order; an error before leaves nothing."""
    rows = rows_file(tmp_path, 5)
    assert run("import", "a", str(rows), "--create").code == 0
    names: list[str] = []
    before = failpoints.install(lambda name, _: names.append(name))
    try:
        assert run("export", "a", str(tmp_path / "out.jsonl")).code == 0
        steps = ("sync", "rename", "sync-folder")
        expected = [f"export.{step}.{when}" for step in steps for when in ("before", "after")]
        assert [name for name in names if name.startswith("export.")] == expected
        failpoints.arm("export.sync.after=error:ENOSPC")
        assert run("export", "a", str(tmp_path / "more.jsonl")).code != 0
    finally:
        failpoints.install(before)
    assert not list(tmp_path.glob("more*"))
