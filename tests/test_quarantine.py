"""What a repair keeps of the rows that it could not keep: each is listed, with its bytes as far as they can be read."""

from __future__ import annotations

import base64
import json
import random

import numpy as np
import pytest
from seeds import RUN_SEED
from test_damage import data_file, flip
from test_repair import problems, rows_kept

import vecdb
from vecdb.store import quarantine

DIMENSION = 4
COUNT = 40


def vectors(version):
    return (np.arange(COUNT * DIMENSION).reshape(COUNT, DIMENSION) + 1_000 * version).astype("<f4")


def make(folder):
    """Two versions of each record, the first of which is dead, in commits 1 and 2."""
    with vecdb.open(folder) as db:
        docs = db.create_collection(
            "docs", dimension=DIMENSION, vectors={"title": {"dimension": 2}}
        )
        for version in (1, 2):
            docs.upsert(
                [f"r{n}" for n in range(COUNT)],
                vectors(version),
                metadata=[{"v": version, "n": n} for n in range(COUNT)],
                documents=[f"words {version} of {n:03d} " * 3 for n in range(COUNT)],
                contents=[b"\xff\xfe" * 9 + bytes([version, n]) for n in range(COUNT)],
                named_vectors={"title": [[n, version] if n % 2 else None for n in range(COUNT)]},
            )
    return data_file(folder)


def change(path, wanted, at=0, bit=0):
    """Flips a bit wherever these bytes stand, so many bytes behind their begin: pages of commits before have copies."""
    raw = path.read_bytes()
    found = [n for n in range(len(raw)) if raw.startswith(wanted, n)]
    assert found
    for place in found:
        flip(path, 8 * (place + at) + bit)


def repaired(folder):
    assert problems(vecdb.check(folder))
    made = vecdb.check(folder, repair=True)[1].repair
    assert not problems(vecdb.check(folder))
    return rows_kept(folder, made)


def parts(row):
    """The parts of a line by table, and by field those of vectors."""
    return {(p["table"], p["field"]) if "field" in p else p["table"]: p for p in row["parts"]}


@pytest.mark.parametrize("part", ["vector", "title", "metadata", "document", "content"])
@pytest.mark.parametrize("version", [1, 2])
def test_a_row_that_fails_its_checksum_is_kept_to_look_at(data_folder, part, version):
    """Whichever part of it was damaged, live or dead, the line of the row has its id, its commits, both checksums,
    and every part: the damaged one as it is, the others as they were."""
    print(f"seed {RUN_SEED}")
    rng = random.Random(f"{RUN_SEED} {part} {version}")
    n = rng.randrange(1, COUNT, 2)
    path = make(data_folder)
    vector = vectors(version)[n].tobytes()
    title = np.array([n, version], "<f4").tobytes()
    document = f"words {version} of {n:03d} " * 3
    if part == "metadata":
        # JSON is kept as it was written, in whichever order that is.
        raw = path.read_bytes()
        (found,) = [
            m
            for m in (b'{"v":%d,"n":%d}' % (version, n), b'{"n":%d,"v":%d}' % (n, version))
            if m in raw
        ]
        change(path, found, at=rng.randrange(len(found)))
    else:
        content = b"\xff\xfe" * 9 + bytes([version, n])
        wanted = {
            "vector": vector,
            "title": title,
            "document": document.encode(),
            "content": content,
        }[part]
        change(path, wanted, at=rng.randrange(len(wanted)), bit=rng.randrange(8))
    (row,) = repaired(data_folder)
    assert (row["id"], row["live"], row["written_in"]) == (f"r{n}", version == 2, version)
    assert row["died_in"] == (2 if version == 1 else None)
    assert row["row"] == n + COUNT * (version - 1)
    assert row["checksum"] in row["fault"]
    assert row["vectors_certain"]
    held = parts(row)
    assert (base64.b64decode(held["vectors", 0]["base64"]) == vector) == (part != "vector")
    assert (base64.b64decode(held["vectors", 1]["base64"]) == title) == (part != "title")
    # A damaged text may not be one any more.
    assert (held["documents"].get("text") == document) == (part != "document")
    content = base64.b64decode(held["contents"]["base64"])
    assert content.endswith(b"\xff\xfe" * 9 + bytes([version, n])) == (part != "content")
    assert ("text" in held["metadata"] and str(n) in held["metadata"]["text"]) or part == "metadata"


def test_rows_without_a_vector_are_listed_by_what_is_left(data_folder):
    """Where the page of the vectors is gone each row is listed with its id and its texts, and says what is missing."""
    path = make(data_folder)
    raw = bytearray(path.read_bytes())
    wanted = vectors(2)[0].tobytes()
    while wanted in raw:
        at = raw.index(wanted) // 4_096 * 4_096
        raw[at : at + 4_096] = bytes(4_096)
    path.write_bytes(raw)
    rows = repaired(data_folder)
    live = [row for row in rows if row["live"]]
    assert [row["id"] for row in live] == [f"r{n}" for n in range(COUNT)]
    for n, row in enumerate(live):
        assert "vector" in row["fault"] or row["checksum"] in row["fault"]
        assert parts(row)["documents"]["text"] == f"words 2 of {n:03d} " * 3


def test_long_parts_stay_in_the_old_file(data_folder, monkeypatch):
    """A part beyond the bound is not written twice: its line says where it is in the file beside it."""
    monkeypatch.setattr(quarantine, "_MOST_BYTES", 16)
    path = make(data_folder)
    change(path, vectors(2)[7].tobytes())
    assert problems(vecdb.check(data_folder))
    made = vecdb.check(data_folder, repair=True)[1].repair
    (kept,) = (data_folder / "quarantine").iterdir()
    (line,) = (kept / "rows.jsonl").read_text().splitlines()
    held = parts(json.loads(line))
    told = held["documents"]
    assert "text" not in told
    old = (kept / "data.mdb").read_bytes()
    assert old[told["at"] : told["at"] + told["bytes"]].decode() == "words 2 of 007 " * 3
    assert "base64" in held["vectors", 0]
    assert made.lost == ("r7",)
