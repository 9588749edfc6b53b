"""What a repair keeps of the rows that it could not keep: each is listed, with its bytes as far as they can be read."""

from __future__ import annotations

import base64
import errno
import json
import os
import random

import numpy as np
import pytest
from quarantined import rows_kept
from seeds import RUN_SEED
from test_damage import data_file, flip
from test_repair import problems, records

import vecdb
from vecdb.layout import (
    DATA_FILE,
    QUARANTINE_FOLDER,
    QUARANTINED_ROWS,
    QUARANTINED_TOLD,
    ROW,
    pack_content,
)
from vecdb.store import quarantine
from vecdb.store.salvage import looks_right

DIMENSION = 4
COUNT = 40


PARTS = ("vector", "title", "metadata", "document", "content")


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
                documents=[document(version, n) for n in range(COUNT)],
                contents=[b"\xff\xfe" * 9 + bytes([version, n]) for n in range(COUNT)],
                named_vectors={
                    "title": [[n + 100, version] if n % 2 else None for n in range(COUNT)]
                },
            )
    return data_file(folder)


def change(path, wanted, at=0, bits=(0, 1)):
    """Flips bits wherever these bytes stand, so many bytes behind their begin: pages of commits before have copies."""
    raw = path.read_bytes()
    found = [n for n in range(len(raw)) if raw.startswith(wanted, n)]
    assert found
    for place in found:
        for bit in bits:
            flip(path, 8 * (place + at) + bit)


def bytes_of(part, version, n, path):
    """A part of a record as it is stored."""
    if part == "metadata":
        # JSON is kept as it was written, in whichever order that is.
        raw = path.read_bytes()
        both = b'{"v":%d,"n":%d}' % (version, n), b'{"n":%d,"v":%d}' % (n, version)
        return next(text for text in both if text in raw)
    return {
        "vector": vectors(version)[n].tobytes(),
        "title": np.array([n + 100, version], "<f4").tobytes(),
        "document": document(version, n).encode(),
        "content": b"\xff\xfe" * 9 + bytes([version, n]),
    }[part]


def document(version, n):
    return f"words {version} of {n:03d} " * 3


def repaired(folder):
    assert problems(vecdb.check(folder))
    made = vecdb.check(folder, repair=True)[1].repair
    assert not problems(vecdb.check(folder))
    return rows_kept(folder, made)


def parts(row):
    """The parts of a line by table, and by field those of vectors."""
    return {(p["table"], p["field"]) if "field" in p else p["table"]: p for p in row["parts"]}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("version", [1, 2])
def test_a_row_that_fails_its_checksum_is_kept_to_look_at(data_folder, part, version):
    """Whichever part of it was damaged, live or dead, the line of the row has its id, its commits, both checksums,
    and every part: the damaged one as it is, the others as they were."""
    print(f"seed {RUN_SEED}")
    rng = random.Random(f"{RUN_SEED} {part} {version}")
    n = rng.randrange(1, COUNT, 2)
    path = make(data_folder)
    held_before = {p: bytes_of(p, version, n, path) for p in PARTS}
    wanted = held_before[part]
    # Two bits of a byte: of one the checksum would tell which.
    first = rng.randrange(7)
    change(path, wanted, rng.randrange(len(wanted)), (first, first + 1))
    (row,) = repaired(data_folder)
    assert (row["id"], row["live"], row["written_in"]) == (f"r{n}", version == 2, version)
    assert row["died_in"] == (2 if version == 1 else None)
    assert row["row"] == n + COUNT * (version - 1)
    assert row["checksum"] in row["fault"]
    assert row["vectors_certain"]
    held = parts(row)
    names = {"vector": ("vectors", 0), "title": ("vectors", 1)}
    for p, before in held_before.items():
        told = held[names.get(p, p + "s" * (p in ("document", "content")))]
        # A damaged text may not be one any more.
        now = told["text"].encode() if "text" in told else base64.b64decode(told["base64"])
        assert now.endswith(before) == (p != part), p  # contents begin with their media type


@pytest.mark.parametrize("part", [*PARTS, "id", "checksum"])
def test_one_flipped_bit_of_a_row_is_put_right(data_folder, part):
    """Wherever in a record it is, its checksum tells which bit it was: nothing is lost, and that this was done is
    said, in the numbers too."""
    print(f"seed {RUN_SEED}")
    rng = random.Random(f"{RUN_SEED} {part}")
    path = make(data_folder)
    before = records(data_folder)
    n = rng.randrange(1, COUNT, 2)
    if part in PARTS:
        wanted = bytes_of(part, 2, n, path)
    else:
        with (
            vecdb.open(data_folder, read_only=True) as db,
            db.get_collection("docs")._core.read() as reader,
        ):
            raw = bytes(reader._get("ids", ROW.pack(0)))
        count = int.from_bytes(raw[:4], "little")
        place = COUNT + n
        wanted = raw[4 + 4 * place : 8 + 4 * place] if part == "checksum" else raw[4 + 8 * count :]
    at = (
        rng.randrange(len(wanted)) if part != "id" else rng.randrange(len(wanted) // 2, len(wanted))
    )
    change(path, wanted, at, (rng.randrange(8),))
    assert problems(vecdb.check(data_folder))
    made = vecdb.check(data_folder, repair=True)[1].repair
    assert not problems(vecdb.check(data_folder))
    assert records(data_folder) == before
    assert not made.lost
    assert not made.history_dropped
    (doubt,) = made.doubts
    assert "put right" in doubt
    with vecdb.open(data_folder, read_only=True) as db:
        assert db.get_collection("docs").stats().repairs[0].doubts == (doubt,)


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
        assert parts(row)["documents"]["text"] == document(2, n)


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
    assert old[told["at"] : told["at"] + told["bytes"]].decode() == document(2, 7)
    assert "base64" in held["vectors", 0]
    assert made.lost == ("r7",)


@pytest.mark.parametrize(
    "text",
    [
        "The share of hits/misses was measured again, and it is what the paper says that it ought to be, more or less.",
        "https://example.org/a/long/way/to/a/page?with=arguments&and=more#than-that-" + 60 * "x",
        "\n\nA/B tests of two answers.",
        "",
    ],
)
def test_a_text_with_a_slash_is_no_content(text):
    """What begins like a content, by its first byte and a slash soon after it, is a document all the same; a content is none."""
    assert looks_right("documents", ROW.pack(7), memoryview(text.encode()))
    assert looks_right("uris", ROW.pack(7), memoryview(text.encode()))
    for media_type in ("text/plain", "image/svg+xml", "text/html; charset=utf-8"):
        packed = memoryview(pack_content(media_type.encode(), text.encode()))
        assert not looks_right("documents", ROW.pack(7), packed)
        assert looks_right("contents", ROW.pack(7), packed)


def _spoiled(folder):
    """A database with a record that is lost; the data file, and its bytes."""
    path = make(folder)
    change(path, bytes_of("document", 2, 7, path), 3)
    return path, path.read_bytes()


def _kept(folder):
    """The data file in quarantine, after a repair that has lost one record."""
    (row,) = repaired(folder)
    assert row["id"] == "r7"
    (kept,) = (folder / QUARANTINE_FOLDER).rglob(DATA_FILE)
    return kept


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.ENOTSUP])
def test_a_file_that_gets_no_second_name_is_copied(data_folder, monkeypatch, number):
    """As on another disk than the database, and on one without hard links."""
    _, old = _spoiled(data_folder)

    def refuse(*_, **__):
        raise OSError(number, "no such links")

    monkeypatch.setattr("os.link", refuse)
    kept = _kept(data_folder)
    assert kept.read_bytes() == old
    assert {path.name for path in kept.parent.iterdir()} == {
        DATA_FILE, QUARANTINED_ROWS, QUARANTINED_TOLD,
    }  # fmt: skip


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_file_that_cannot_be_copied_either(data_folder, monkeypatch, number):
    """Then a repair changes nothing and leaves nothing, and says so in the entry of the collection."""
    path, old = _spoiled(data_folder)

    def refuse(*_, **__):
        raise OSError(errno.EXDEV, "another disk")

    def fail(*_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("os.link", refuse)
        patch.setattr("shutil.copyfileobj", fail)
        _, docs = vecdb.check(data_folder, repair=True)
    assert ("no space left" if number == errno.ENOSPC else os.strerror(number)) in docs.done[0]
    assert path.read_bytes() == old
    assert not [*(data_folder / QUARANTINE_FOLDER).iterdir()]
    assert _kept(data_folder).read_bytes() == old


def test_of_a_link_the_file_is_kept(data_folder, tmp_path):
    """A link, of which a second name would lead nowhere: what it led to is kept, and stays where it is."""
    path, old = _spoiled(data_folder)
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / "of docs.mdb"
    path.rename(moved)
    path.symlink_to(os.path.relpath(moved, path.parent))
    kept = _kept(data_folder)
    assert kept.read_bytes() == old
    assert not kept.is_symlink()
    assert moved.read_bytes() == old


@pytest.mark.parametrize("kind", ["a file", "a link that leads nowhere"])
def test_what_is_no_folder_in_place_of_the_quarantine(data_folder, kind):
    """It is named, nothing is changed, and a repair works once it was moved away."""
    path, old = _spoiled(data_folder)
    place = data_folder / QUARANTINE_FOLDER
    place.write_text("theirs") if kind == "a file" else place.symlink_to("/nowhere/at/all")
    _, docs = vecdb.check(data_folder, repair=True)
    assert not docs.repaired
    assert f"{place} is {kind}, where a folder belongs; move it away" in docs.done[0]
    assert path.read_bytes() == old
    assert {p.name for p in path.parent.iterdir()} == {DATA_FILE, "lock.mdb"}
    place.unlink()
    _kept(data_folder)
