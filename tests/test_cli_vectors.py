"""Named vectors, packed bits and the further questions on the command line."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run
from some_devices import STATS

import vecdb
from vecdb import types
from vecdb_server import cli
from vecdb_server.cli_export import _with_vectors

WIDTHS = {"title": 3, "print": 2}


def rows(count: int) -> list[dict[str, Any]]:
    """Records of which two thirds have a title vector and half a print of 16 bits."""
    rng = np.random.default_rng(11)
    found = []
    for i in range(count):
        row: dict[str, Any] = {
            "id": f"r{i}",
            "vector": rng.standard_normal(4).astype(np.float32).tolist(),
            "metadata": {"kind": f"k{i % 4}"},
            "vectors": {},
        }
        if i % 3:
            row["vectors"]["title"] = rng.standard_normal(3).astype(np.float32).tolist()
        if i % 2:
            row["vectors"]["print"] = rng.integers(0, 256, 2).tolist()
        found.append(row)
    return found


def written(folder: Path, records: list[dict[str, Any]]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in records))
    return path


CREATE = ["--dimension", "4", "--metric", "l2", "--quantization", "none", "--vector", "title:3:l2",
          "--vector", "print:16:hamming:binary"]  # fmt: skip


@pytest.fixture
def docs(run: Run, tmp_path: Path) -> Run:
    """The command line, with 30 records in `docs`."""
    made = run("create", "docs", *CREATE, "--json")
    assert made.code == 0, made.err
    assert made.lines[0]["quantization"] == "none"
    assert made.lines[0]["vectors"]["print"]["storage"] == "binary"
    done = run("import", "docs", str(written(tmp_path, rows(30))), "--batch-size", "7")
    assert done.code == 0, done.err
    return run


def everything(run: Run, collection: str) -> dict[str, Any]:
    done = run("get", collection, "--limit", "1000", "--json", "--include",
               "vector,metadata,named_vectors")  # fmt: skip
    assert done.code == 0, done.err
    return {row["id"]: row for row in done.lines}


def test_choices_of_flags_are_those_of_the_engine() -> None:
    """create offers every metric, storage, index and quantization that the engine has."""
    parser = cli.build_parser(("create", "import"))
    (commands,) = [a for a in parser._actions if a.dest == "command"]
    for name in ("create", "import"):
        actions = {a.dest: a for a in commands.choices[name]._actions}  # type: ignore[index,call-overload,union-attr]
        assert actions["metric"].choices == types.METRICS
        assert actions["storage"].choices == types.STORAGES
        assert actions["index"].choices == types.INDEX_KINDS
        assert actions["quantization"].choices == types.QUANTIZATIONS
    export = {a.dest: a for a in commands.choices["export"]._actions}  # type: ignore[index,call-overload,union-attr]
    assert set(export["include"].default.split(",")) == set(types.INCLUDABLE)


@pytest.mark.parametrize(
    "text", ["title", "title:", ":3", "a:3:far", "a:3:l2:bits", "a:3:l2:int8:x"]
)
def test_vector_fields_that_are_misspelt(text: str) -> None:
    """--vector says what it takes."""
    with pytest.raises(argparse.ArgumentTypeError, match=r"title:384|must be one of"):
        cli._vector_field(text)


@pytest.mark.parametrize("ending", ["a.jsonl", "a.jsonl.gz", "a.npz", "a.npy"])
def test_named_vectors_survive_export_and_import(docs: Run, tmp_path: Path, ending: str) -> None:
    """What export writes, import reads back: every named vector, and who lacks one."""
    out = tmp_path / ending
    assert docs("export", "docs", str(out)).code == 0
    words = [str(out)]
    if ending.endswith(".npy"):
        words = [str(out.with_suffix(".jsonl.gz")), "--vectors", str(out)]
    assert docs("create", "copy", *CREATE).code == 0
    done = docs("import", "copy", *words, "--batch-size", "11")
    assert done.code == 0, done.err
    first = everything(docs, "docs")
    assert everything(docs, "copy") == first
    for row in rows(30):
        assert first[row["id"]].get("vectors", {}) == row["vectors"]
    if ending.endswith(".npz"):
        with np.load(out) as arrays:
            assert arrays["vectors.title"].shape == (30, 3)
            assert arrays["vectors.print"].dtype == np.uint8
            assert arrays["present.title"].tolist() == [bool(i % 3) for i in range(30)]
    assert not list(tmp_path.glob("*.part"))


def test_import_makes_the_fields_that_it_finds(run: Run, tmp_path: Path) -> None:
    """With --create, named vectors of the first batch become fields of the new collection."""
    source = written(tmp_path, rows(20))
    done = run("import", "docs", str(source), "--create", "--vector", "print:16:hamming:binary")
    assert done.code == 0, done.err
    (info,) = run("list", "--json").lines
    assert info["vectors"]["title"] == {
        "dimension": 3, "metric": "cosine", "storage": "float32", "index": "auto",
        "quantization": "auto", "target_recall": 0.95,
    }  # fmt: skip
    assert info["vectors"]["print"]["dimension"] == 16


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": "a", "vector": [1, 2, 3, 4], "vectors": [1]}, "map names to vectors"),
        ({"id": "a", "vector": [1, 2, 3, 4], "vectors": {"other": [1]}}, "other"),
        ({"id": "a", "vector": [1, 2, 3, 4], "vectors": {"title": [1]}}, "dimension"),
        ({"id": "a", "vector": [1, 2, 3, 4], "vectors": {"print": [1, 256]}}, "256"),
    ],
)
def test_named_vectors_that_are_refused(
    run: Run, tmp_path: Path, row: dict[str, Any], said: str
) -> None:
    """What is no vector of a field ends the import with one line."""
    assert run("create", "docs", *CREATE).code == 0
    done = run("import", "docs", str(written(tmp_path, [row])))
    assert done.code == 1
    assert said in done.err
    assert run("count", "docs").out == "0\n"


def test_arrays_of_named_vectors_that_do_not_fit(run: Run, tmp_path: Path) -> None:
    """A .npz whose named arrays have another number of rows is refused with both shapes."""
    path = tmp_path / "x.npz"
    np.savez(path, **{"ids": ["a"], "vectors": np.ones((1, 4)), "vectors.title": np.ones((2, 3))})
    assert run("create", "docs", *CREATE).code == 0
    done = run("import", "docs", str(path))
    assert done.code == 1
    assert "vectors.title has shape (2, 3)" in done.err


def test_questions_beyond_the_nearest(docs: Run) -> None:
    """Named fields, groups, examples, unlike answers and explanations are a flag each."""
    (titled,) = docs("query", "docs", "--vector", "[1, 0, 0]", "--vector-name", "title",
                     "--json", "--include", "named_vectors").lines  # fmt: skip
    assert len(titled["hits"]) == 10
    near = [sum((a - b) ** 2 for a, b in zip(hit["vectors"]["title"], (1, 0, 0), strict=True))
            for hit in titled["hits"]]  # fmt: skip
    assert near == sorted(near)
    (grouped,) = docs("query", "docs", "--id", "r3", "--k", "4", "--group-by", "kind",
                      "--group-size", "2", "--json").lines  # fmt: skip
    groups = [hit["group"] for hit in grouped["hits"]]
    assert sorted(groups) == ["k0", "k0", "k1", "k1", "k2", "k2", "k3", "k3"]
    assert groups[::2] == groups[1::2]
    assert f"{groups[0]}  {grouped['hits'][0]['id']}" in docs(
        "query", "docs", "--id", "r3", "--k", "4", "--group-by", "kind"
    ).out  # fmt: skip
    words = ["query", "docs", "--positive", "r1", "--positive", "[1, 2, 3, 4]", "--negative", "r2",
             "--mmr", "0.5", "--k", "3", "--json", "--explain"]  # fmt: skip
    (chosen,) = docs(*words).lines
    assert len(chosen["hits"]) == 3
    assert not {"r1", "r2"} & {hit["id"] for hit in chosen["hits"]}
    assert chosen["explain"]["rows"] == 30
    assert chosen["explain"]["times_us"]["total"] > 0
    one_each = {
        tuple(hit["id"] for hit in docs(*words, "--mmr-candidates", many).lines[0]["hits"])
        for many in ("3", "28")
    }
    assert len(one_each) == 2
    people = docs("query", "docs", "--id", "r3", "--explain").out
    assert "allowed rows" in people
    assert "total us" in people


@pytest.mark.parametrize(
    "words",
    [
        ["--positive", "[1, 2"],
        ["--positive", "r1", "--id", "r2"],
        ["--negative", "r1"],
    ],
)
def test_examples_that_are_misspelt(docs: Run, words: list[str]) -> None:
    """Examples that cannot be read, and two ways to ask at once, are usage: 2."""
    done = docs("query", "docs", *words)
    assert done.code == 2
    assert done.out == ""


def test_cancel_build_says_whether_there_was_one(
    docs: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a build there is nothing to cancel, which is no failure; a missing collection is one."""
    assert docs("cancel-build", "docs").out == "no build was running\n"
    assert docs("cancel-build", "docs", "--json").lines == [{"cancelled": False}]
    done = docs("cancel-build", "nobody")
    assert (done.code, done.out) == (1, "")
    monkeypatch.setattr(vecdb.Collection, "cancel_build", lambda self: True)
    assert docs("cancel-build", "docs").out == "the build was cancelled\n"


def test_compact_and_stats(docs: Run) -> None:
    """compact says what it gave back, stats shows every index."""
    assert docs("delete", "docs", "--filter", '{"kind": "k1"}').code == 0
    (done,) = docs("compact", "docs", "--json").lines
    assert set(done) == {"purged_rows", "bytes_before", "bytes_after"}
    assert "rows given back" in docs("compact", "docs").out
    (stats,) = docs("stats", "docs", "--json").lines
    assert set(stats["vectors"]) == {"title", "print"}
    assert stats["vectors"]["title"]["audit"]["queries"] == 0
    assert stats["index"]["curve"] == []
    assert stats["purged_rows"] >= 0
    people = docs("stats", "docs").out
    assert "index of title: exact on cpu" in people


def test_devices_on_the_command_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """create and import make collections for a device, or refuse; list and stats show it."""
    refused = run("create", "docs", "--dimension", "2", "--device", "gpu:0")
    assert refused.code == 1
    assert "DEVICE_NOT_FOUND" in refused.err
    assert "INVALID_SETTING" in run("create", "docs", "--dimension", "2", "--device", "tpu").err
    made = run("create", "docs", "--dimension", "2", "--device", "cpu", "--json")
    assert made.lines[0]["device"] == "cpu"
    source = written(tmp_path, rows(3))
    assert run("import", "more", str(source), "--create", "--device", "cpu").code == 0
    assert [line["device"] for line in run("list", "--json").lines] == ["cpu", "cpu"]
    assert "device" in run("list").out
    (told,) = run("query", "more", "--id", "r0", "--explain", "--json").lines
    assert (told["explain"]["device"], told["explain"]["device_note"]) == ("cpu", "")
    stats = vecdb.Collection.stats

    def on_devices(self: vecdb.Collection) -> Any:
        held = stats(self)
        note = "gpu:1 was lost; answered by the CPU"
        index = replace(held.index, device_bytes=3 << 20, device_note=note)
        return replace(held, index=index, devices=STATS)

    monkeypatch.setattr(vecdb.Collection, "stats", on_devices)
    people = run("stats", "docs").out
    for words in (
        "memory of GPUs  ", "3.0 MiB", "gpu:1 was lost; answered by the CPU", "gpu:0: NVIDIA H200, up",
        "7.0 GiB of 135.0 GiB that may be, 150.0 GiB in all", "3,000 in 100 batches", "SIGKILL",
        "3, 17 had to go for others",
    ):  # fmt: skip
        assert words in people
    (line,) = run("stats", "docs", "--json").lines
    assert [one["queued"] for one in line["devices"]] == [5, 0]


def test_import_waits_for_the_index(run: Run, tmp_path: Path) -> None:
    """--build-index ends when all rows are indexed, however long that takes."""
    np.savez(
        tmp_path / "x.npz",
        ids=[f"r{i}" for i in range(3_000)],
        vectors=np.random.default_rng(5).standard_normal((3_000, 8)),
    )
    done = run("import", "docs", str(tmp_path / "x.npz"), "--create", "--index", "hnsw",
               "--build-index")  # fmt: skip
    assert done.code == 0, done.err
    (stats,) = run("stats", "docs", "--json").lines
    assert stats["index"]["indexed_rows"] == 3_000
    assert stats["index"]["curve"]
    assert "recall@100" in run("stats", "docs").out


def test_bits_on_the_command_line(run: Run, tmp_path: Path) -> None:
    """A collection of packed bits is made from a file of bytes, eight bits a number."""
    source = tmp_path / "bits.jsonl"
    source.write_text('{"id": "a", "vector": [255, 0]}\n{"id": "b", "vector": [255, 1]}\n')
    done = run(
        "import", "bits", str(source), "--create", "--storage", "binary", "--metric", "hamming"
    )
    assert done.code == 0, done.err
    assert run("list", "--json").lines[0]["dimension"] == 16
    (found,) = run("query", "bits", "--vector", "[255, 3]", "--json").lines
    assert [(hit["id"], hit["distance"]) for hit in found["hits"]] == [("b", 1.0), ("a", 2.0)]


def test_lines_of_records_without_named_vectors() -> None:
    """A record that has none gets no field for them."""
    record = types.Record("a", np.ones(2, np.float32), named_vectors={})
    assert _with_vectors(b'{"id": "a"}', record, own=True) == b'{"id": "a", "vector": [1.0,1.0]}'
