"""Damaged, incomplete and hostile backups: found by verification, refused by a restore."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil

import numpy as np
import pytest
from backup_rows import NAMED, change, damage_of
from blake3 import blake3
from seeds import RUN_SEED

import vecdb
from vecdb import errors
from vecdb.backup import chunk
from vecdb.store import EncodedRows, StoredRows, checksums

REFUSED = (errors.BackupDamaged, errors.BackupNotFound, errors.FormatMismatch, errors.LimitExceeded)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A target with a full backup and two increments, of several files each."""
    folder = tmp_path_factory.mktemp("chain")
    rng = random.Random(5)
    with vecdb.open(folder / "db", auto_build=False) as db:
        docs = db.create_collection("docs", dimension=4, vectors=NAMED)
        for _ in range(3):
            for _ in range(4):
                change(docs, rng)
            db.backup(folder / "b")
        db.set_alias("live", "docs")
    return folder / "b"


@pytest.fixture
def target(chain, tmp_path):
    shutil.copytree(chain, tmp_path / "b")
    return tmp_path / "b"


def ids_of(target):
    return sorted(path.name for path in target.iterdir())


def refused(target, tmp_path, **asked):
    with pytest.raises(REFUSED) as caught:
        vecdb.restore(target, tmp_path / "new", **asked)
    assert not list(tmp_path.glob("new*"))
    return caught.value


@pytest.mark.parametrize("how", ["bit", "short", "longer", "link", "gone"])
def test_damage_of_any_file_is_found(target, tmp_path, how):
    """A file with a wrong bit, too short, too long, gone or replaced by a link is found and named."""
    print(f"seed {RUN_SEED}")
    rng = random.Random(f"{RUN_SEED}{how}")
    for path in sorted(target.glob("*/*")):
        kept = path.read_bytes()
        damage_of(path, rng, how)
        report = vecdb.verify_backups(target)
        lost_whole = path.name == "manifest.json" and how in ("gone", "link")
        if lost_whole and path.parent.name == ids_of(target)[-1]:
            # Without its manifest it is no backup, and nothing else needs it.
            assert path.parent.name in report.incomplete
        else:
            assert not report.ok, path
            error = refused(target, tmp_path)
            assert error.message
        for extra in (path, path.with_suffix(".aside")):
            extra.unlink(missing_ok=True)
        path.write_bytes(kept)
    assert vecdb.verify_backups(target).ok


def test_a_gap_in_a_chain_is_refused(target, tmp_path):
    """Without the backup in the middle the last one is refused, and what lies before it is not."""
    first, middle, last = ids_of(target)
    shutil.rmtree(target / middle)
    report = vecdb.verify_backups(target)
    assert not report.ok
    assert middle in report.problems[0]
    assert middle in refused(target, tmp_path, backup=last).message
    vecdb.restore(target, tmp_path / "new", backup=first)


def test_another_backup_in_the_place_of_one_is_refused(target, chain, tmp_path):
    """A backup of another chain under the name of one of these, or two that changed places, are refused."""
    first, middle, last = ids_of(target)
    with vecdb.open(tmp_path / "other") as db:
        db.create_collection("docs", dimension=4, vectors=NAMED).insert(["a"], np.ones((1, 4)))
        stranger = db.backup(tmp_path / "strangers").id
    shutil.rmtree(target / middle)
    shutil.copytree(tmp_path / "strangers" / stranger, target / middle)
    refused(target, tmp_path, backup=last)
    shutil.rmtree(target / middle)
    shutil.copytree(chain / last, target / middle)
    shutil.rmtree(target / last)
    shutil.copytree(chain / middle, target / last)
    refused(target, tmp_path, backup=last)
    refused(target, tmp_path, backup=middle)
    rewrite(target, first, lambda m: m.update(taken_us=m["taken_us"] + 1))
    shutil.rmtree(target / middle)
    shutil.copytree(chain / middle, target / middle)
    assert "does not continue" in refused(target, tmp_path, backup=middle).message


def rewrite(target, backup, change_it):
    """A manifest changed by somebody who knows how its checksum is made."""
    path = target / backup / "manifest.json"
    manifest = json.loads(path.read_bytes().split(b"\n")[0])
    change_it(manifest)
    line = json.dumps(manifest).encode()
    path.write_bytes(line + b"\n" + hashlib.sha256(line).hexdigest().encode() + b"\n")


def collection(manifest):
    return manifest["collections"][0]


def settings_with(**changes):
    def change_it(manifest):
        settings = json.loads(collection(manifest)["settings"])
        settings.update(changes)
        collection(manifest)["settings"] = json.dumps(settings)

    return change_it


def sequence_of(manifest, sequence):
    """A collection without history, as of that commit."""
    part = collection(manifest)
    part.update(sequence=sequence, base_sequence=sequence, base_row=part["next_row"], history=[])
    part["live"] = part["next_row"]


NESTED = "[" * 100_000 + "]" * 100_000
HOSTILE = {
    "path": lambda m: collection(m)["rows"][0].update(name="../../../etc/passwd"),
    "absolute": lambda m: collection(m)["rows"][0].update(name="/etc/passwd"),
    "manifest as chunk": lambda m: collection(m)["rows"][0].update(name="manifest.json"),
    "name": lambda m: collection(m).update(name="../docs"),
    "empty name": lambda m: collection(m).update(name=""),
    "alias": lambda m: m["aliases"].update({"../x": "docs"}),
    "alias to nothing": lambda m: m["aliases"].update({"x": "nothing"}),
    "token": lambda m: collection(m).update(token="../../../../tmp"),
    "twice": lambda m: m["collections"].append(dict(collection(m))),
    "format 0": lambda m: m.update(format=0),
    "huge file": lambda m: collection(m)["rows"][0].update(bytes=1 << 40),
    "negative": lambda m: collection(m)["rows"][0].update(bytes=-1),
    "many rows": lambda m: (
        collection(m).update(next_row=1 << 50, base_row=0),
        collection(m)["rows"][0].update(end=1 << 50),
    ),
    "rows beyond all": lambda m: collection(m).update(next_row=1 << 70),
    "sequence": lambda m: collection(m).update(sequence=-5),
    "sequence too high": lambda m: collection(m).update(sequence=10**6),
    "a sequence that leaves no room": lambda m: sequence_of(m, (1 << 63) - 1),
    "a sequence beyond all": lambda m: sequence_of(m, (1 << 53) + 1),
    "time of a commit": lambda m: collection(m).update(time_us=1 << 62),
    "live": lambda m: collection(m).update(live=collection(m)["live"] + 1),
    "since": lambda m: collection(m).update(since=1),
    "gap of rows": lambda m: collection(m)["rows"][0].update(first=1),
    "no files": lambda m: collection(m).update(rows=[]),
    "no history": lambda m: collection(m).update(history=[]),
    "format": lambda m: m.update(format=99),
    "unknown field": lambda m: m.update(surprise=1),
    "id": lambda m: m.update(id="20200101T000000.000000Z-00000000"),
    "wrong type": lambda m: m.update(collections="all"),
    "time": lambda m: m.update(taken_us=1 << 62),
    "dimension": settings_with(dimension=1 << 30),
    "dimension 0": settings_with(dimension=0),
    "another dimension": settings_with(dimension=5),
    "dtype": settings_with(storage="object"),
    "another dtype": settings_with(storage="float16"),
    "metric": settings_with(metric="none"),
    "fields": settings_with(vectors={f"f{n}": {"dimension": 65_535} for n in range(99)}),
    "settings": lambda m: collection(m).update(settings="{}"),
    "made at no place": settings_with(created_at="2026-01-01T00:00:00"),
    "made before all": settings_with(created_at="0001-01-01T00:00:00+14:00"),
    "made before 1970": settings_with(created_at="1969-12-31T23:59:59.999999Z"),
    "made after all": settings_with(created_at="9999-12-31T23:59:59-14:00"),
    "made in the last year": settings_with(created_at="9999-01-01T00:00:00Z"),
    "deep settings": lambda m: collection(m).update(settings='{"x":' + NESTED + "}"),
}


def test_a_manifest_that_is_nested_without_end(target, tmp_path):
    """However deep a manifest is nested where nobody looks, it is refused as damaged."""
    path = target / ids_of(target)[-1] / "manifest.json"
    line = b'{"x":' + NESTED.encode() + b"," + path.read_bytes().split(b"\n")[0][1:]
    path.write_bytes(line + b"\n" + hashlib.sha256(line).hexdigest().encode() + b"\n")
    refused(target, tmp_path)
    assert not vecdb.verify_backups(target).ok


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_manifest_is_refused(target, tmp_path, name):
    """A manifest that claims what cannot be is refused before anything is made of it, and verification says so."""
    first = ids_of(target)[0]
    for later in ids_of(target)[1:]:
        shutil.rmtree(target / later)
    rewrite(target, first, HOSTILE[name])
    refused(target, tmp_path)
    try:
        assert not vecdb.verify_backups(target).ok
    except errors.FormatMismatch:
        assert name in ("format", "format 0")


def test_a_collection_at_the_last_number(target, tmp_path):
    """At the highest commit that a manifest may name a collection takes writes and is compacted, and a backup of what
    is beyond is refused before anybody could miss the others in its target."""
    first = ids_of(target)[0]
    for later in ids_of(target)[1:]:
        shutil.rmtree(target / later)
    forge(target, rows_with())
    rewrite(target, first, lambda m: sequence_of(m, 1 << 53))
    vecdb.restore(target, tmp_path / "new")
    with vecdb.open(tmp_path / "new", history_s=0.0) as db:
        docs = db.get_collection("docs")
        db.backup(tmp_path / "own")
        docs.insert(["z"], np.ones((1, 4)))
        assert docs.delete(["z"]).sequence == (1 << 53) + 2
        docs.compact()
        with pytest.raises(errors.BackupDamaged, match="leave that collection out"):
            db.backup(tmp_path / "own")
        db.create_collection("other", dimension=2)
        db.backup(tmp_path / "own", collections=["other"])
        assert docs.check().ok
    assert len(vecdb.list_backups(tmp_path / "own")) == 2


def test_names_of_the_last_year(target, tmp_path):
    """A folder that is called like a backup of the year 9999 is none, and behind one of the end of 9998 nothing has a
    place: that is told by a backup, and the rest of the target can be read."""
    first = ids_of(target)[0]
    with vecdb.open(tmp_path / "db") as db:
        db.create_collection("docs", dimension=4)
        kept = vecdb.list_backups(target)
        (target / "99991231T235959.999999Z-00000000").mkdir()
        (target / "99991231T235959.999999Z-00000000" / "manifest.json").write_text("x")
        assert vecdb.list_backups(target) == kept
        assert vecdb.verify_backups(target).ok
        made = db.backup(target, kind="full")
        assert made.id > first
        last = target / "99981231T235959.999999Z-00000000"
        shutil.copytree(target / made.id, last)
        with pytest.raises(errors.BackupDamaged, match="9998"):
            db.backup(target, kind="full")
        shutil.rmtree(last)
        db.backup(target)


def test_a_manifest_of_more_than_its_files_account_for(target, tmp_path):
    """Rows that a manifest claims in large files are refused by the sizes of the files, before memory is asked
    for them."""
    first = ids_of(target)[0]
    for later in ids_of(target)[1:]:
        shutil.rmtree(target / later)

    def change_it(manifest):
        part = collection(manifest)
        (file,) = part["rows"]
        names = [file["name"], *(f"{n:06d}.chunk" for n in range(100, 110))]
        part["rows"] = [
            {**file, "name": name, "bytes": 1 << 28, "first": n << 31, "end": (n + 1) << 31}
            for n, name in enumerate(names)
        ]
        part["base_row"], part["next_row"] = 0, len(names) << 31

    rewrite(target, first, change_it)
    assert "of another size" in refused(target, tmp_path).message
    (problem,) = vecdb.verify_backups(target).problems
    assert "of another size" in problem


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"null\n", b"\xff" * 50, b"[" * 100_000, b"{}\n" + b"0" * 64]
)
def test_a_manifest_that_is_none_is_refused(target, tmp_path, data):
    """Bytes that are no manifest are refused, whatever they are."""
    (target / ids_of(target)[-1] / "manifest.json").write_bytes(data)
    refused(target, tmp_path)
    assert not vecdb.verify_backups(target).ok


@pytest.mark.parametrize("kind", ["none", "of format 1", "two", "of format 2 in format 1", "large"])
@pytest.mark.parametrize("files", ["rows", "history"])
def test_a_file_without_its_digest_is_refused(target, tmp_path, kind, files):
    """A file has the digest of its manifest's format and no other, though each be right."""
    first = ids_of(target)[0]
    for later in ids_of(target)[1:]:
        shutil.rmtree(target / later)

    def change_it(manifest):
        file = collection(manifest)[files][0]
        if kind in ("of format 1", "two"):
            data = (target / first / file["name"]).read_bytes()
            file["sha256"] = hashlib.sha256(data).hexdigest()
        if kind in ("none", "of format 1"):
            del file["blake3"]
        if kind == "large":
            file["blake3"] = file["blake3"].upper()
        if kind == "of format 2 in format 1":
            manifest["format"] = 1

    rewrite(target, first, change_it)
    assert "no possible digest" in refused(target, tmp_path).message
    assert not vecdb.verify_backups(target).ok


def forge(target, make_rows):
    """A backup whose rows were replaced by somebody who knows how all of its checksums are made."""
    first = ids_of(target)[0]
    for later in ids_of(target)[1:]:
        shutil.rmtree(target / later)

    def change_it(manifest):
        part = collection(manifest)
        data = b"".join([chunk.MAGIC, *map(bytes, make_rows(part))])
        (file,) = part["rows"]
        (target / first / file["name"]).write_bytes(data)
        file.update(bytes=len(data), blake3=blake3(data).hexdigest())

    rewrite(target, first, change_it)


def rows_with(**changes):
    """All rows of a part, ordinary but for what is changed of each."""

    def make(part):
        count = part["next_row"]
        rows = {
            "ids": [b"id-%d" % n for n in range(count)],
            "vectors": np.ones((count, 4), np.float32),
            **changes,
        }
        rows = {key: value(count) if callable(value) else value for key, value in rows.items()}
        encoded = EncodedRows(**rows)
        sums = np.array(checksums(encoded), np.uint32)
        return chunk.pack_rows(StoredRows(0, count, np.ones(count, np.bool_), encoded, sums))

    return make


HOSTILE_ROWS = {
    "the same id twice": rows_with(ids=lambda n: [b"same"] * n),
    "an empty id": rows_with(ids=lambda n: [b""] * n),
    "a NUL in an id": rows_with(ids=lambda n: [b"a\0%d" % i for i in range(n)]),
    "an id that is no UTF-8": rows_with(ids=lambda n: [b"\xff%d" % i for i in range(n)]),
    "an id too long": rows_with(ids=lambda n: [b"x" * 1_100 + b"%d" % i for i in range(n)]),
    "NaN": rows_with(vectors=lambda n: np.full((n, 4), np.nan, np.float32)),
    "zero under cosine": rows_with(vectors=lambda n: np.zeros((n, 4), np.float32)),
    "metadata that is no JSON": rows_with(metadata=lambda n: [b"{nonsense"] * n),
    "metadata that is no object": rows_with(metadata=lambda n: [b"[1]"] * n),
    "metadata too deep": rows_with(metadata=lambda n: [b'{"a":' * 40 + b"1" + b"}" * 40] * n),
    "metadata that is nested without end": rows_with(
        metadata=lambda n: [b'{"a":' + NESTED.encode() + b"}"] * n
    ),
    "a document that is no UTF-8": rows_with(documents=lambda n: [b"\xff"] * n),
    "a content without a type": rows_with(contents=lambda n: [b""] * n),
    "a uri too long": rows_with(uris=lambda n: [b"u" * 9_000] * n),
}


@pytest.mark.parametrize("name", HOSTILE_ROWS)
def test_hostile_rows_are_refused(target, tmp_path, name):
    """What no insert takes, no restore takes, though every checksum is right."""
    forge(target, HOSTILE_ROWS[name])
    refused(target, tmp_path)
    assert not vecdb.verify_backups(target).ok


def test_ordinary_forged_rows_are_taken(target, tmp_path):
    """The rows that the refusals above are made from are taken when nothing is wrong with them."""
    forge(target, rows_with())
    assert vecdb.verify_backups(target).ok
    vecdb.restore(target, tmp_path / "new")
    with vecdb.open(tmp_path / "new") as db:
        assert db.get_collection("docs").check().ok


DEEP_HEAD = b'{"x":' + b"[" * 7_000 + b"]" * 7_000 + b"}"
HOSTILE_GROUPS = {
    "no group": [],
    "a head beyond the file": [chunk.HEAD.pack(9_999)],
    "a head too large": [chunk.HEAD.pack(1 << 31)],
    "a head that is no JSON": [chunk.HEAD.pack(4) + b"abcd"],
    "a head that is nested without end": [chunk.HEAD.pack(len(DEEP_HEAD)) + DEEP_HEAD],
    "a section beyond the file": [
        chunk.HEAD.pack(50) + b'{"first":0,"end":1,"sections":[["sums",1000000]]}'.ljust(50)
    ],
    "no sections": chunk.pack(0, 5, {}),
    "too many rows": chunk.pack(0, 1 << 20, {"held": bytes(1 << 17)}),
    "a strange section": chunk.pack(0, 5, {"code": b"import os"}),
    "lengths beyond the bytes": chunk.pack(
        0,
        1,
        {"sums": bytes(4), "id_lengths": b"\xff\xff\xff\x7f", "ids": b"a", "vectors:0": bytes(16)},
    ),
}


@pytest.mark.parametrize("name", HOSTILE_GROUPS)
def test_hostile_groups_are_refused(target, tmp_path, name):
    """Sizes inside of a chunk that do not agree are refused before memory is asked for them."""
    forge(target, lambda _: HOSTILE_GROUPS[name])
    refused(target, tmp_path)
    assert not vecdb.verify_backups(target).ok


def test_a_pipe_or_a_folder_in_the_place_of_a_file_does_not_hang(target, tmp_path):
    """What is no plain file is refused at once."""
    (path, *_) = sorted(target.glob("*/000001.chunk"))
    path.unlink()
    os.mkfifo(path)
    refused(target, tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises((*REFUSED, errors.Unavailable)):
        vecdb.restore(target, tmp_path / "new")


def test_random_bytes_in_a_manifest_or_a_chunk_never_get_further(target, tmp_path):
    """Whatever is changed at random, a restore raises an error of ours or gives back what was there."""
    print(f"seed {RUN_SEED}")
    rng = random.Random(RUN_SEED)
    first = ids_of(target)[0]
    for later in ids_of(target)[1:]:
        shutil.rmtree(target / later)
    manifest = (target / first / "manifest.json").read_bytes()
    line = manifest.split(b"\n")[0]
    for n in range(60):
        changed = bytearray(line)
        for _ in range(rng.choice([1, 2, 8])):
            changed[rng.randrange(len(changed))] = rng.choice(b'0123456789{}[],":abcxyz-.')
        digest = hashlib.sha256(changed).hexdigest().encode()
        (target / first / "manifest.json").write_bytes(bytes(changed) + b"\n" + digest + b"\n")
        try:
            vecdb.restore(target, tmp_path / f"new-{n}")
        except errors.VecdbError:
            assert not (tmp_path / f"new-{n}").exists()
