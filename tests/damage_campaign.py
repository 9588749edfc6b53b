"""Damage of every kind, planted again and again: all of it is found, and repaired or named.

    make damage ARGS='--minutes 3 --seed 7'      --first n --trials 1 repeats one trial

Each trial copies a sound database, damages it, checks it, repairs it, and holds what is there then against what was
there before. It fails where something wrong is read or not found, where a loss is not named, where a deleted record is
back unsaid, or where a refused repair has changed a byte.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from quarantined import rows_kept, wrongly_named
from test_damage import data_file, flip, make
from test_repair import digests, problems, records
from test_repair_pages import pages_of_tables

import vecdb
from vecdb.layout import CATALOG_FOLDER, DATA_FILE

PAGE = 4_096


@dataclass
class Tally:
    """What a campaign has seen."""

    planted: Counter[str] = field(default_factory=Counter)
    """By kind of damage and what came of it."""
    lost_records: int = 0
    lost_versions: int = 0
    lines: int = 0
    """Of `rows.jsonl`."""
    failures: list[str] = field(default_factory=list)


def make_kept(folder: Path) -> None:
    """A database in which all moments are kept, with an index and a tail, in many small commits. Its catalog has a past: a
    collection that is gone, a name that was changed, and an alias that led elsewhere."""
    rng = np.random.default_rng(6)
    with vecdb.open(folder, auto_build=False) as db:
        db.create_collection("gone", dimension=8, request_id="gone")
        db.set_alias("words", "gone")
        docs = db.create_collection(
            "draft",
            dimension=8,
            index="hnsw",
            storage="float16",
            vectors={"title": {"dimension": 4}},
        )
        for batch in range(30):
            ids = [f"r{i}" for i in rng.choice(1_600, 90, replace=False)]
            docs.upsert(
                ids, rng.random((90, 8)), metadata=[{"batch": batch, "name": i} for i in ids],
                documents=[i * int(rng.integers(1, 60)) for i in ids],
                named_vectors={"title": [rng.random(4).tolist() if rng.random() < 0.5 else None for _ in ids]},
            )  # fmt: skip
            docs.delete(ids[:7])
            if batch == 25:
                docs.build_index()
        db.rename_collection("draft", "docs", request_id="renamed")
        db.set_alias("words", "docs")
        db.drop_collection("gone", request_id="dropped")


# -- kinds of damage


def a_bit(folder: Path, rng: random.Random) -> None:
    path = data_file(folder)
    flip(path, rng.randrange(8 * path.stat().st_size))


def some_bits(folder: Path, rng: random.Random) -> None:
    for _ in range(rng.randrange(2, 9)):
        a_bit(folder, rng)


def a_page(folder: Path, rng: random.Random) -> None:
    """A page, half of one or a sector, of whichever table; tables with few pages as often as those with many."""
    path = data_file(folder)
    held = pages_of_tables(path)
    raw = bytearray(path.read_bytes())
    size = rng.choice([512, 2_048, PAGE])
    pages = held[rng.choice(sorted(name for name, pages in held.items() if pages))]
    at = PAGE * rng.choice(pages) + size * rng.randrange(PAGE // size)
    raw[at : at + size] = rng.choice([bytes(size), rng.randbytes(size)])
    path.write_bytes(raw)


def some_pages(folder: Path, rng: random.Random) -> None:
    path = data_file(folder)
    raw = bytearray(path.read_bytes())
    for page in rng.sample(range(len(raw) // PAGE), rng.randrange(2, 6)):
        raw[PAGE * page : PAGE * (page + 1)] = rng.choice([bytes(PAGE), rng.randbytes(PAGE)])
    path.write_bytes(raw)


def no_metas(folder: Path, rng: random.Random) -> None:
    path = data_file(folder)
    raw = bytearray(path.read_bytes())
    raw[: 2 * PAGE] = rng.choice([bytes(2 * PAGE), rng.randbytes(2 * PAGE)])
    path.write_bytes(raw)


def cut_off(folder: Path, rng: random.Random) -> None:
    path = data_file(folder)
    size = path.stat().st_size
    os.truncate(path, size - min(size, rng.choice([1, PAGE, rng.randrange(size)])))


def an_exchange(folder: Path, rng: random.Random) -> None:
    """Two pages that were written to each other's place, as a disk with a wrong address does."""
    path = data_file(folder)
    raw = bytearray(path.read_bytes())
    a, b = (PAGE * n for n in rng.sample(range(len(raw) // PAGE), 2))
    raw[a : a + PAGE], raw[b : b + PAGE] = raw[b : b + PAGE], raw[a : a + PAGE]
    path.write_bytes(raw)


def catalog(folder: Path, rng: random.Random) -> None:
    path = folder / CATALOG_FOLDER / DATA_FILE
    how = rng.randrange(4)
    if how == 0:
        path.unlink()
    elif how == 1:
        os.truncate(path, rng.randrange(path.stat().st_size))
    elif how == 2:
        flip(path, rng.randrange(8 * path.stat().st_size))
    else:
        raw = bytearray(path.read_bytes())
        at = PAGE * rng.randrange(len(raw) // PAGE)
        raw[at : at + PAGE] = rng.choice([bytes(PAGE), rng.randbytes(PAGE)])
        path.write_bytes(raw)


def index_file(folder: Path, rng: random.Random) -> None:
    """One that the collection has; where it has none, a bit of its data."""
    found = sorted(data_file(folder).parent.glob("index-*"))
    if not found:
        a_bit(folder, rng)
        return
    path = rng.choice(found)
    how = rng.randrange(3)
    if how == 0:
        path.unlink()
    elif how == 1:
        os.truncate(path, rng.randrange(path.stat().st_size))
    else:
        flip(path, rng.randrange(8 * path.stat().st_size))


KINDS: dict[str, Callable[[Path, random.Random], None]] = {
    "a bit": a_bit, "2 to 8 bits": some_bits, "a page, half or sector": a_page, "2 to 5 pages": some_pages,
    "both meta pages": no_metas, "cut off": cut_off, "two pages exchanged": an_exchange,
    "the catalog": catalog, "an index file": index_file,
}  # fmt: skip


# -- a trial


def hold(promise: bool, said: str) -> None:
    if not promise:
        raise AssertionError(said)


def judge(folder: Path, before: dict, before_aliases: list[str], tally: Tally) -> str:
    """What came of the damage to a database of one collection with these records and aliases; AssertionError where a
    promise is broken."""
    if not problems(vecdb.check(folder)):
        hold(records(folder) == before, "what check calls sound is not what was stored")
        return "harmless"
    was = digests(folder)
    done = vecdb.check(folder, repair=True)
    _drop_again(folder, done)
    made = [one.repair for one in done if one.repair is not None]
    if problems(vecdb.check(folder)):
        said = " ".join(sentence for one in done for sentence in one.done)
        hold(
            "Nothing was changed" in said or "cannot be read" in said or "restore" in said,
            f"left unsound, and said only: {said}",
        )
        hold(not made and digests(folder) == was, "a repair that was refused has changed something")
        return "refused"
    now = records(folder)
    with vecdb.open(folder, read_only=True) as db:
        names = [info.name for info in db.list_collections()]
        aliases = db.list_aliases()
    said = " ".join(sentence for one in done for sentence in one.done)
    hold(
        names == ["docs"] or (len(names) == 1 and names[0] in said),
        f"a name was lost unsaid: {names}",
    )
    hold(
        aliases == dict.fromkeys(before_aliases, names[0]) or "alias" in said,
        f"aliases {aliases}, before {before_aliases}; unsaid: {said}",
    )
    if not made:
        hold(now == before, "a repair without loss of the file changed records")
        return "repaired, nothing lost"
    (one,) = made
    lost, back = before.keys() - now.keys(), now.keys() - before.keys()
    unsure = {*one.unverified, *one.undecided}
    wrong = [i for i in now.keys() & before.keys() - unsure if now[i] != before[i]]
    hold(one.records == len(now), "another number of records than was told")
    hold(not {*one.lost} & now.keys(), "a record is there that was named as lost")
    if not one.lost_commits:
        hold(not wrong, f"records with another content, unsaid: {wrong[:4]}")
        hold(back <= {*one.undecided}, f"deleted records are back, unsaid: {sorted(back)[:4]}")
        rows = rows_kept(folder, one) if one.quarantine else []
        # An id that nothing confirms may be that of another record, which is said.
        unknown = one.lost_unknown + wrongly_named(rows, lost)
        hold(len(lost - {*one.lost}) <= unknown, "more is lost than was named")
    else:
        # Of the newest commit nothing may be left; what it replaced or deleted is then as it was before.
        hold(bool(one.quarantine), "the old file was not kept")
    told = len(one.lost) + one.lost_unknown
    tally.lost_records += told
    tally.lost_versions += one.lost_versions
    if one.whole:
        hold(now == before, "a repair that lost nothing changed records")
        return "repaired, nothing lost"
    tally.lines += len(rows_kept(folder, one))
    with vecdb.open(folder, read_only=True) as db:
        docs = db.get_collection(names[0])
        hold(docs.stats().repairs[-1].lost_records == told, "stats tells of another loss")
    return (
        "repaired, losses named"
        if told or one.lost_versions or one.lost_commits
        else "repaired, doubts named"
    )


def _drop_again(folder: Path, done: list) -> None:
    """Drops the collection `gone` where the newest change of names, which was its drop, was undone by the loss of its page,
    which must be said: its folder is missing then, and its name stays."""
    said = " ".join(sentence for one in done for sentence in one.done)
    names = [one.collection for one in done if "is missing" in " ".join(one.problems)]
    if names == ["gone"] and "newest change of names may be undone" in said:
        with vecdb.open(folder) as db:
            db.drop_collection("gone")


def trial(
    folder: Path, sound: dict[str, tuple[Path, dict]], seed: int, number: int, tally: Tally
) -> None:
    rng = random.Random(f"{seed} {number}")
    base, kind = rng.choice(sorted(sound)), rng.choice(sorted(KINDS))
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound[base][0], folder)
    KINDS[kind](folder, rng)
    try:
        came = judge(folder, sound[base][1], ["words"] if base == "kept" else [], tally)
    except Exception as error:  # whatever it was, it is a failure of this trial
        came = "FAILED"
        said = f"--seed {seed} --first {number} --trials 1: {kind} ({base}): {type(error).__name__}: {error}"
        tally.failures.append(said)
        print(said, flush=True)
    tally.planted[f"{kind}/{came}"] += 1


OUTCOMES = (
    "harmless",
    "repaired, nothing lost",
    "repaired, doubts named",
    "repaired, losses named",
    "refused",
    "FAILED",
)


def table(tally: Tally) -> str:
    """The tally in Markdown."""
    lines = [
        "| damage | planted | " + " | ".join(OUTCOMES) + " |",
        "|---" * (len(OUTCOMES) + 2) + "|",
    ]
    for kind in (*KINDS, "all"):
        counts = [
            sum(
                n
                for name, n in tally.planted.items()
                if name.endswith("/" + came) and (kind == "all" or name == f"{kind}/{came}")
            )
            for came in OUTCOMES
        ]
        lines.append(f"| {kind} | {sum(counts):,} | " + " | ".join(f"{n:,}" for n in counts) + " |")
    lines.append("")
    lines.append(
        f"Records lost and named {tally.lost_records:,}, earlier versions {tally.lost_versions:,}, lines of rows.jsonl {tally.lines:,}, "
        f"failures {len(tally.failures)}."
    )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=1.0, help="default 1")
    parser.add_argument(
        "--trials", type=int, help="so many at most; default: as many as there is time for"
    )
    parser.add_argument("--seed", type=int, help="default: another one each time")
    parser.add_argument("--first", type=int, default=0, help="number of the first trial")
    parser.add_argument("--save", type=Path, help="add the tally to this JSON file")
    parser.add_argument("--sum", type=Path, help="plant nothing: the table of a file with tallies")
    asked = parser.parse_args()
    if asked.sum:
        total = Tally()
        for run in json.loads(asked.sum.read_text()):
            total.planted.update(run["planted"])
            total.lost_records += run["lost_records"]
            total.lost_versions += run["lost_versions"]
            total.lines += run["lines"]
            total.failures += run["failures"]
        print(table(total))
        return 0
    seed = int.from_bytes(os.urandom(4), "little") if asked.seed is None else asked.seed
    print(f"seed {seed}", flush=True)
    # Losses are told at each opening, which here are thousands.
    logging.getLogger("vecdb").setLevel(logging.CRITICAL)
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="vecdb-damage-") as made:
        parent = Path(made)
        makers: dict[str, Callable[[Path], object]] = {"purged": make, "kept": make_kept}
        sound = {}
        for name, maker in makers.items():
            maker(parent / name)
            sound[name] = parent / name, records(parent / name)
        end = time.monotonic() + 60 * asked.minutes
        number = asked.first
        while time.monotonic() < end and number - asked.first < (asked.trials or 1 << 60):
            trial(parent / "trial", sound, seed, number, tally)
            number += 1
    print(table(tally))
    if asked.save:
        runs = json.loads(asked.save.read_text()) if asked.save.exists() else []
        command = f"python tests/damage_campaign.py --seed {seed} --first {asked.first} --trials {number - asked.first}"
        runs.append({"command": command, **vars(tally)})
        asked.save.write_text(json.dumps(runs, indent=1) + "\n")
    return int(bool(tally.failures))


if __name__ == "__main__":
    sys.exit(main())
