"""Repairs of the catalog: what is sound stays, what is doubtful is told, and nothing that may be data is removed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lmdb
import pytest
from test_damage import flip
from test_sums import places

import vecdb
from vecdb import failpoints, repairing
from vecdb.errors import Corrupted
from vecdb.layout import (
    CATALOG_FOLDER,
    COLLECTIONS_FOLDER,
    DATA_FILE,
    QUARANTINE_FOLDER,
    UNNAMED_FILE,
)
from vecdb.repairing import CheckedCollection
from vecdb.store.pages import MAIN, PageFile

STRAY = "0123456789abcdef"


@pytest.fixture
def folder(data_folder: Path) -> Path:
    """A database with `docs`, which has a record, and `more`, which has none."""
    with vecdb.open(data_folder, device="cpu") as db:
        db.create_collection("docs", dimension=2).insert(["a"], [[1, 2]])
        db.create_collection("more", dimension=2)
    return data_folder


def place(folder: Path, name: str) -> Path:
    """The folder of a collection."""
    with vecdb.open(folder, read_only=True) as db:
        found: Path = db.get_collection(name)._core.store.folder
        return found


def catalog(folder: Path) -> Path:
    return folder / CATALOG_FOLDER / DATA_FILE


def stray(folder: Path, name: str, token: str = STRAY) -> Path:
    """A second copy of the collection `name`, which no catalog names."""
    made = folder / COLLECTIONS_FOLDER / token
    made.mkdir()
    (made / DATA_FILE).write_bytes((place(folder, name) / DATA_FILE).read_bytes())
    return made


def repaired(folder: Path) -> CheckedCollection:
    """What a repair says of the catalog."""
    return vecdb.check(folder, repair=True)[0]


def forgets(first: CheckedCollection) -> bool:
    return any("may be done again" in told for told in first.done)


def test_a_repair_remembers_which_changes_were_done(folder: Path) -> None:
    """What is repeated after it is still answered: a drop leaves the newer collection of that name alone."""
    with vecdb.open(folder, device="cpu") as db:
        db.drop_collection("docs", request_id="once")
        db.create_collection("docs", dimension=2).insert(["newer"], [[1, 2]])
    stray(folder, "more")
    first = repaired(folder)
    assert first.repaired
    assert not forgets(first)
    assert vecdb.check(folder)[0].ok
    with vecdb.open(folder, device="cpu") as db:
        db.drop_collection("docs", request_id="once")
        assert db.get_collection("docs").count() == 1


@pytest.mark.parametrize("how", ["a bit of them", "their page", "no catalog"])
def test_changes_that_cannot_be_read_are_told(folder: Path, how: str) -> None:
    """A repair that cannot know which changes were done says what that means; `check` names a record that is damaged."""
    with vecdb.open(folder, device="cpu") as db:
        db.set_alias("alias", "docs", request_id="once")
    path = catalog(folder)
    ((at, _),) = [(at, size) for key, at, size in places(path, "meta") if key == b"changes"]
    if how == "a bit of them":
        flip(path, 8 * at + 3)
        (said,) = vecdb.check(folder)[0].problems
        assert "changes that were done" in said
    elif how == "their page":
        start = at // 4_096 * 4_096
        raw = path.read_bytes()
        path.write_bytes(raw[:start] + bytes(4_096) + raw[start + 4_096 :])
    else:
        path.unlink()
    first = repaired(folder)
    assert first.repaired
    assert forgets(first)
    assert vecdb.check(folder)[0].ok


def test_changes_that_never_were_are_not_told(folder: Path) -> None:
    """Where no change had an id, none is forgotten."""
    stray(folder, "more")
    assert not forgets(repaired(folder))


def set_aside(folder: Path) -> list[Path]:
    """Collections in the quarantine."""
    kept = folder / QUARANTINE_FOLDER
    found = sorted(kept.iterdir()) if kept.is_dir() else []
    return [path for path in found if not path.name.startswith(CATALOG_FOLDER)]


def counts(folder: Path) -> dict[str, int]:
    with vecdb.open(folder, device="cpu") as db:
        return {name: db.get_collection(name).count() for name in db.collection_names()}


def test_a_marked_folder_with_records_is_not_removed_where_names_are_lost(folder: Path) -> None:
    """It may be a collection that lives: the repair says where it is, and moved back it is recovered. What is empty goes."""
    docs, more = place(folder, "docs"), place(folder, "more")
    for made in (docs, more):
        (made / UNNAMED_FILE).touch()
    shutil.rmtree(folder / CATALOG_FOLDER)
    first = repaired(folder)
    assert first.repaired
    (kept,) = set_aside(folder)
    (told,) = [one for one in first.done if docs.name in one]
    assert "one record" in told
    assert str(kept) in told
    assert str(docs) in told
    assert counts(folder) == {}
    assert not list((folder / COLLECTIONS_FOLDER).iterdir())
    kept.rename(docs)
    assert repaired(folder).repaired
    assert counts(folder) == {f"recovered-{docs.name}": 1}


def test_a_name_that_leads_nowhere_may_be_that_of_a_marked_folder(folder: Path) -> None:
    """In a catalog without checksums, as an earlier version wrote it, nothing else tells that a token is wrong."""
    docs = place(folder, "docs")
    (docs / UNNAMED_FILE).touch()
    path = str(folder / CATALOG_FOLDER)
    with lmdb.open(path, max_dbs=20, map_size=1 << 24) as env, env.begin(write=True) as txn:
        meta = env.open_db(b"meta", txn=txn)
        for key in [bytes(k) for k, _ in txn.cursor(db=meta) if bytes(k).startswith(b"sum")]:
            txn.delete(key, db=meta)
        txn.put(b"docs", STRAY.encode(), db=env.open_db(b"collections", txn=txn))
    assert not repaired(folder).repaired
    assert len(set_aside(folder)) == 1


def test_what_a_drop_has_left_is_removed_where_all_names_are_known(folder: Path) -> None:
    """A catalog that can be read says that a marked folder has no name: it is litter, whatever else the repair mends."""
    (stray(folder, "docs") / UNNAMED_FILE).touch()
    stray(folder, "more", STRAY[::-1])
    assert repaired(folder).repaired
    assert set_aside(folder) == []
    assert counts(folder) == {"docs": 1, "more": 0, f"recovered-{STRAY[::-1]}": 0}
    assert not (folder / COLLECTIONS_FOLDER / STRAY).exists()


def test_a_repair_that_breaks_off_while_it_moves_a_folder(folder: Path) -> None:
    """Its records are there after the next one, under a name or in the quarantine."""
    docs = place(folder, "docs")
    (docs / UNNAMED_FILE).touch()
    (folder / CATALOG_FOLDER / DATA_FILE).unlink()
    passed: set[str] = set()

    def breaks_off(name: str, path: Path) -> None:
        if name.startswith("repair.") and name not in passed:
            passed.add(name)
            raise KeyboardInterrupt

    before = failpoints.install(breaks_off)
    try:
        while True:
            try:
                vecdb.check(folder, repair=True)
                break
            except KeyboardInterrupt:
                (place_of_it,) = [*set_aside(folder), *(p for p in [docs] if p.exists())]
                assert (place_of_it / DATA_FILE).exists()
    finally:
        failpoints.install(before)
    assert "repair.remove.after" in passed
    assert counts(folder)[f"recovered-{docs.name}"] == 1


@pytest.mark.parametrize("whole", [True, False])
def test_a_catalog_in_which_nothing_can_be_mended_stays(folder: Path, whole: bool) -> None:
    """Where the files of a collection are gone, each repair says so, and none puts another copy of the catalog aside."""
    docs = place(folder, "docs")
    shutil.rmtree(docs) if whole else (docs / DATA_FILE).unlink()
    before = catalog(folder).read_bytes()
    for _ in range(2):
        first = repaired(folder)
        assert not first.repaired
        assert ("does not exist" if whole else "has no data.mdb") in first.done[-1]
    assert catalog(folder).read_bytes() == before
    assert not (folder / QUARANTINE_FOLDER).exists()


def test_a_recovered_name_is_nobody_elses(folder: Path) -> None:
    """A collection or an alias that has the name already keeps it."""
    with vecdb.open(folder, device="cpu") as db:
        db.create_collection(f"recovered-{STRAY}", dimension=3)
        db.set_alias(f"recovered-{STRAY[::-1]}", "docs")
    for token in (STRAY, STRAY[::-1]):
        stray(folder, "docs", token)
    assert repaired(folder).repaired
    assert counts(folder) == {
        "docs": 1,
        "more": 0,
        f"recovered-{STRAY}": 0,
        f"recovered-{STRAY}-2": 1,
        f"recovered-{STRAY[::-1]}-2": 1,
    }
    with vecdb.open(folder, device="cpu") as db:
        assert db.list_aliases() == {f"recovered-{STRAY[::-1]}": "docs"}


def by_name(folder: Path, **given: bool) -> dict[str, CheckedCollection]:
    return {one.collection: one for one in vecdb.check(folder, **given)}


def test_a_catalog_that_is_the_file_of_a_collection(folder: Path) -> None:
    """It is named as that, the names are lost, and the records are there."""
    docs = place(folder, "docs")
    shutil.copy(docs / DATA_FILE, catalog(folder))
    (said,) = by_name(folder)[""].problems
    assert "the file of a collection" in said
    assert repaired(folder).repaired
    assert counts(folder)[f"recovered-{docs.name}"] == 1
    assert by_name(folder)[""].ok


def test_a_collection_that_is_the_file_of_a_catalog(folder: Path) -> None:
    """Check and repair say so in its entry; the others are looked at, and the database can be used."""
    shutil.copy(catalog(folder), place(folder, "docs") / DATA_FILE)
    for repair in (False, True):
        found = by_name(folder, repair=repair)
        assert [name for name, one in found.items() if not one.ok] == ["docs"]
        assert not found["docs"].repaired
    assert "restore a backup" in found["docs"].done[0]


@pytest.mark.parametrize("repair", [False, True])
def test_an_error_of_the_system_stands_in_an_entry(
    folder: Path, monkeypatch: pytest.MonkeyPatch, repair: bool
) -> None:
    """What the system says of the files of one collection keeps none of the others from being checked."""
    docs, right = place(folder, "docs"), repairing.file_problems

    def odd(made: Path, *given: Any) -> list[str]:
        if made == docs:
            raise NotADirectoryError("odd")
        return right(made, *given)

    monkeypatch.setattr(repairing, "file_problems", odd)
    found = by_name(folder, repair=repair)
    assert found["docs"].problems == ("odd",)
    assert found[""].ok
    assert found["more"].ok


def test_a_folder_that_may_not_be_looked_into(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has a name is not called missing, one without is named and left, and what is none of ours is passed over."""
    docs, other = place(folder, "docs"), folder / COLLECTIONS_FOLDER / "lost+found"
    other.mkdir()
    nobodys, is_file = stray(folder, "docs"), Path.is_file

    def denied(path: Path) -> bool:
        if path.parent in (docs, nobodys, other):
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "is_file", denied)
        (said,) = by_name(folder)[""].problems
        assert STRAY in said
        assert "Permission denied" in said
        first = by_name(folder, repair=True)[""]
        assert first.done == (said,)
    assert [one for one in by_name(folder) if one.startswith("recovered")] == []


def test_a_folder_that_may_not_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its collection is not repaired, and says why, if it is damaged; others are, and what is sound is no matter."""
    docs, more = place(folder, "docs"), place(folder, "more")
    monkeypatch.setattr(repairing, "_may_be_written", lambda path: path not in (docs, more))
    (docs / DATA_FILE).write_bytes((docs / DATA_FILE).read_bytes()[:6_000])
    stray(folder, "more")
    found = by_name(folder, repair=True)
    assert found[""].repaired
    assert found["more"].ok
    assert not found["docs"].repaired
    assert "may not be written" in found["docs"].done[0]


def test_a_file_in_place_of_the_quarantine(folder: Path) -> None:
    """A repair that would put something aside refuses in words, with nothing changed."""
    (folder / QUARANTINE_FOLDER).write_text("x")
    raw = catalog(folder).read_bytes()[:100]
    catalog(folder).write_bytes(raw)
    with pytest.raises(Corrupted, match="move it away"):
        vecdb.check(folder, repair=True)
    assert catalog(folder).read_bytes() == raw


@pytest.mark.parametrize("damage", ["zeroed", 0, 2, 3, 4])
@pytest.mark.parametrize("change", ["drop", "rename", "alias"])
def test_a_leaf_of_names_that_is_damaged_undoes_no_change(
    folder: Path, change: str, damage: Any
) -> None:
    """The checksums of the newest change say which names there are: a drop is not undone, nor a rename. Nor are names
    lost whose bytes are there, behind a header of the page that is wrong."""
    with vecdb.open(folder, device="cpu") as db:
        db.create_collection("scratch", dimension=2)
        db.set_alias("old", "docs")
        if change == "drop":
            db.drop_collection("scratch")
        elif change == "rename":
            db.rename_collection("docs", "zoo")
        else:
            db.drop_alias("old")
    with vecdb.open(folder, read_only=True) as db:
        names, aliases = db.collection_names(), db.list_aliases()
    path = catalog(folder)
    file = PageFile(path)
    trees = file.subtrees(file.walk(file.metas()[0].main, MAIN).entries)
    table = trees["aliases" if change == "alias" else "collections"]
    page = table.root
    del file
    raw = bytearray(path.read_bytes())
    if page is None:
        assert change == "alias", "without aliases there is no leaf"
        return
    if damage == "zeroed":
        raw[page * 4_096 : (page + 1) * 4_096] = bytes(4_096)
    else:
        raw[page * 4_096 + 10] ^= 1 << damage
    path.write_bytes(raw)
    assert repaired(folder).repaired
    assert vecdb.check(folder)[0].ok
    with vecdb.open(folder, read_only=True) as db:
        assert db.collection_names() == names
        assert db.list_aliases() == aliases


@pytest.mark.parametrize("how", ["their page", "their page and the checksums", "no catalog"])
def test_aliases_that_may_be_lost_are_told(folder: Path, how: str) -> None:
    """Where their page cannot be read, nor the checksums of which there were, or nothing of the catalog, nobody knows which are
    missing: it is said. Where the checksums tell, none is lost, and nothing said."""
    with vecdb.open(folder, device="cpu") as db:
        db.set_alias("words", "docs")
    path = catalog(folder)
    if how == "no catalog":
        path.unlink()
    else:
        file = PageFile(path)
        trees = file.subtrees(file.walk(file.metas()[0].main, MAIN).entries)
        damaged = ["aliases", "meta"] if "checksums" in how else ["aliases"]
        pages = [trees[table].root for table in damaged]
        del file, trees
        raw = bytearray(path.read_bytes())
        for page in pages:
            assert page is not None
            raw[page * 4_096 : (page + 1) * 4_096] = bytes(4_096)
        path.write_bytes(raw)
    told = " ".join(repaired(folder).done)
    assert vecdb.check(folder)[0].ok
    with vecdb.open(folder, read_only=True) as db:
        kept = db.list_aliases()
    assert kept == ({"words": "docs"} if how == "their page" else {}), told
    assert ("aliases may be lost" in told) == (how != "their page"), told
