"""Collections for tests of backups, and what they should hold after each commit."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

import vecdb
from vecdb_server import __main__ as command_line

NAMED = {"small": {"dimension": 2, "metric": "l2"}}
ALL = ["vector", "metadata", "document", "content", "uri", "named_vectors"]


def filled(db, name="docs", rows=3_000, **settings):
    """A collection of plain records r0, r1, …, inserted in one commit."""
    made = db.create_collection(name, dimension=4, **settings)
    vectors = np.random.default_rng(rows).standard_normal((rows, 4))
    made.insert([f"r{n}" for n in range(rows)], vectors, metadata=[{"n": n} for n in range(rows)])
    return made


def two_collections(db, rng: random.Random, commits: int):
    """Makes the collections docs and more of some commits each; what they hold, by name."""
    held = {}
    for name in ("docs", "more"):
        collection = db.create_collection(name, dimension=4, vectors=NAMED)
        for _ in range(commits):
            change(collection, rng)
        held[name] = everything(collection)
    return held


def everything(collection):
    """All records as a dict of id to what each holds."""
    found = {}
    for page in collection.scan(include=ALL, batch_size=500):
        for record in page:
            named = {name: vector.tolist() for name, vector in (record.named_vectors or {}).items()}
            found[record.id] = (
                record.vector.tolist(), record.metadata, record.document, record.content, record.uri, named,
            )  # fmt: skip
    return found


def change(collection, rng: random.Random, ids: int = 60) -> None:
    """One commit, of any verb."""
    count = rng.choice([1, 3, 20, 45])
    names = sorted({f"r{rng.randrange(ids)}" for _ in range(count)})
    verb = rng.choice(["upsert", "upsert", "upsert", "update", "delete"])
    stored = collection.get(names, include=[]).ids
    if verb == "upsert" or not stored:
        vectors = np.random.default_rng(rng.randrange(1 << 30)).standard_normal((len(names), 4))
        collection.upsert(
            names,
            vectors,
            metadata=[
                {"n": rng.randrange(9), "t": [n, "x"]} if rng.random() < 0.7 else None
                for n in names
            ],
            documents=[rng.choice([None, "", f"text of {n}"]) for n in names],
            contents=[rng.choice([None, (bytes([rng.randrange(256)] * 9), "a/b")]) for _ in names],
            uris=[rng.choice([None, f"u:{n}"]) for n in names],
            named_vectors={"small": [rng.choice([None, [1.0, rng.random()]]) for _ in names]},
        )
    elif verb == "update":
        collection.update(stored, metadata=[{"n": -1}] * len(stored))
    else:
        collection.delete(stored)


def commands(url, folder: Path, capsys):
    """Takes two backups of a small database below `folder` to `url`, which is empty yet, and restores one, by the command line;
    checks all that it says, and gives what calls it: words -> (exit code, what was printed)."""

    def call(*words):
        code = command_line.main([str(word) for word in words])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    with vecdb.open(folder / "db") as db:
        db.create_collection("docs", dimension=2).insert(["a", "b"], [[1, 2], [2, 1]])
    assert call("verify", url)[0] == 6
    code, text = call("backup", url, "--data", folder / "db")
    assert (code, "docs: 2 records at commit 1" in text) == (0, True)
    assert '"incremental"' in call("backup", url, "--data", folder / "db", "--json")[1]
    assert call("backups", url)[1].count("docs (") == 2
    assert call("verify", url)[1].startswith("2 backups")
    assert call("restore", url, "--into", folder / "new")[0] == 0
    with vecdb.open(folder / "new", read_only=True) as db:
        assert db.get_collection("docs").count() == 2
    return call


def damage_of(path: Path, rng: random.Random, how: str) -> None:
    """Breaks one file: a bit, its end, all of it, or another one in its place."""
    data = bytearray(path.read_bytes())
    if how == "bit":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
    elif how == "short":
        path.write_bytes(data[: rng.randrange(len(data))])
    elif how == "longer":
        path.write_bytes(data + b"\0")
    elif how == "link":
        aside = path.with_suffix(".aside")
        path.rename(aside)
        path.symlink_to(aside.name)
    else:
        path.unlink()
