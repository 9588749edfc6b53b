"""What a database holds after a kill, compared with the journal."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import vecdb
from crash import answers, old, records
from crash.model import OF_NAMES, OF_RECORDS, Held, Model, Part, Records, State, after
from crash.wrong import Wrong
from vecdb import layout

PATIENCE_S = 20.0
_ABSENT = (-1, -1, -1, -1)


def verify(database: Any, model: Model, *, prune: bool = True) -> Model:
    """The model of what is there; Wrong if that cannot be. `prune`: of backups all but the newest chain may go.

    All that was acknowledged must be there; each part that was under way as a whole or not at all. After a power
    cut with durability `interval`, what was there up to some commit, and no more is missing than that may cost.
    """
    found = _named(database, model)
    for name, token in found.names.items():
        docs = database.get_collection(name)
        _must_be_sound(name, docs)
        held = found.collections[token]
        there = _scan(docs, held, lambda n, token=token: _possible(model, token, n))  # type: ignore[misc]
        held.records = _resolved(name, model, token, there, found)
        answers.compare(name, docs, held)
    _compare_folders(database, found)
    _backed_up(database.path.with_name(records.BACKUPS), model, found, prune=prune)
    _compare_beside(database.path.with_name(records.BESIDE), model, found)
    # Where nothing has begun since the last comparison, what was under way before it may be sent again still.
    found.under_way += [
        part for part in model.pending if part["do"] in OF_RECORDS and "request" in part
    ]
    found.pending, found.in_order, found.recent = [], False, {}
    return found


def _must_be_sound(name: str, docs: Any) -> None:
    report = docs.check()
    if not report.ok:
        raise Wrong(f"check of {name}: {report.problems}")


def _named(database: Any, model: Model) -> Model:
    """The model, with or without the change of names that was under way, as the database says."""
    names = {info.name for info in database.list_collections()}
    aliases = database.list_aliases()
    changes = [part for part in model.pending if part["do"] in OF_NAMES]
    for applied in itertools.product([False, True], repeat=len(changes)):
        candidate = model.copy()
        for part in itertools.compress(changes, applied):
            candidate.apply(part)
            candidate.is_done(part)
        if {*candidate.names} == names and candidate.alias_names() == aliases:
            return candidate
    raise Wrong(
        f"collections {sorted(names)} with aliases {aliases}; acknowledged were {sorted(model.names)} with "
        f"{model.alias_names()}, under way {changes}"
    )


def _scan(docs: Any, held: Held, possible: Callable[[int], list[State]]) -> Records:
    """The state of each record; Wrong if one holds anything else than some version of its parts. `held` is what is expected,
    `possible` else may be there."""
    found: Records = {}
    vectors, titled = (partial(records.stored, held.shape, title=title) for title in (False, True))
    with_contents = records.has_contents(held.shape)
    more = ["content", "uri"] * with_contents
    for page in docs.scan(include=["vector", "named_vectors", "metadata", "document", *more]):
        numbers = np.array([int(i[1:]) for i in page.ids])
        expected = [held.records.get(n, _ABSENT) for n in numbers.tolist()]
        versions = _versions(page.vectors, numbers, 0, expected, possible, vectors)
        titles = np.zeros(len(numbers), np.int64)
        if page.named_vectors:
            there = np.array(page.named_present["title"])
            given = np.asarray(page.named_vectors["title"])[there]
            wanted = [state for state, one in zip(expected, there, strict=True) if one]
            titles[there] = _versions(given, numbers[there], 1, wanted, possible, titled)
        for n, version, title, tags, text in zip(
            numbers.tolist(), versions, titles.tolist(), page.metadata, page.documents, strict=True
        ):
            if n in found:
                raise Wrong(f"record {n} comes twice")
            document = int(text.split()[1])
            if text != records.document(n, document) or tags != {"v": tags["v"], "n": n % 7}:
                raise Wrong(f"record {n} holds {text[:40]!r}, {tags}")
            found[n] = version, title, document, tags["v"]
        if with_contents:
            _compare_contents(page, numbers.tolist(), found)
    return found


def _compare_contents(page: Any, numbers: list[int], found: Records) -> None:
    """Contents and URIs are of the version of the document; Wrong else."""
    for n, content, uri in zip(numbers, page.contents, page.uris, strict=True):
        document = found[n][2]
        data = None if content is None else content.data
        if data != records.content(n, document) or uri != records.uri(n, document):
            raise Wrong(f"record {n} with document {document} holds {uri} and {data!r:.60}")


def _versions(
    vectors: Any, numbers: Any, part: int, expected: list[State],
    possible: Callable[[int], list[State]], made: Callable[[Any, Any], Any],
) -> list[int]:  # fmt: skip
    """Of which version each vector is, bit by bit; Wrong where it is of none that may be there."""
    versions = np.array([state[part] for state in expected], np.int64)
    wanted = made(numbers, versions).reshape(vectors.shape)
    for at in np.flatnonzero((vectors != wanted).any(axis=1)).tolist():
        n = int(numbers[at])
        others = sorted({state[part] for state in possible(n)} - {0})
        given = made(np.full(len(others), n), np.array(others, np.int64))
        (same,) = np.flatnonzero((given == vectors[at]).all(axis=1))[:1].tolist() or [None]
        if same is None:
            raise Wrong(
                f"record {n} holds {vectors[at]}, of no version of {versions[at]}, {others}"
            )
        versions[at] = others[same]
    found: list[int] = versions.tolist()
    return found


def _possible(model: Model, token: str, number: int) -> list[State]:
    """What a record may hold but for what is expected: each part that was under way, and what was there before those
    that a power cut may take."""
    held = model.collections[token].records if token in model.collections else {}
    states = [
        after(held, part | {"ids": [number]})[number]
        for part in model.pending
        if part.get("in") == token and part["do"] in ("put", "change") and number in part["ids"]
    ]
    before = (one.before.get(number) for one in model.recent.get(token, []))
    return [*states, *(state for state in before if state is not None)]


def _resolved(name: str, model: Model, token: str, found: Records, told: Model) -> Records:
    """The records that are there, where a power cut may have left them so; Wrong if it may not."""
    try:
        return _whole(name, model, told.collections[token].records, token, found)
    except Wrong:
        for state in model.without_newest(token) if token in model.collections else ():
            if state == found:
                told.lost_parts += 1
                return state
        raise


def _whole(name: str, model: Model, held: Records, token: str, found: Records) -> Records:
    """The acknowledged records and each pending part that is there; Wrong if that is not what is found."""
    expected = dict(held)
    missing = False
    for part in model.pending:
        if part.get("in") != token or part["do"] in OF_NAMES:
            continue
        new = after(held, part)
        then = {n: new.get(n, _ABSENT) for n in part["ids"]}
        now = {n: found.get(n, _ABSENT) for n in part["ids"]}
        if now == then:
            if missing and model.in_order:
                raise Wrong(f"{name}: batch {part} of a stream is there, an earlier one is not")
            expected.update(new)
            for n in part["ids"] if part["do"] == "gone" else ():
                expected.pop(n, None)
        elif now == {n: held.get(n, _ABSENT) for n in part["ids"]}:
            missing = True
        else:
            raise Wrong(f"{name}: {_said(part)} is there in part: {_some(now, then)}")
    if expected != found:
        raise Wrong(f"{name}: {_some(found, expected)}")
    return expected


def _said(part: Part) -> str:
    return f"{part['do']} of {len(part['ids'])} records, version {part.get('v')}"


def _some(found: dict[int, Any], expected: dict[int, Any]) -> str:
    """What differs, the first few."""
    differ = [
        f"record {n} is {found.get(n, 'absent')}, expected {expected.get(n, 'absent')}"
        for n in sorted({*found, *expected})
        if found.get(n) != expected.get(n)
    ]
    return f"{len(differ)} differ: {'; '.join(differ[:4])}"


def _backed_up(target: Path, model: Model, found: Model, *, prune: bool) -> None:
    """The backups that are there; Wrong if one cannot be restored, or the newest acknowledged is not there.

    Where that is the last, and with `prune`, all but its chain are removed: whoever is killed in the middle leaves it.
    """
    newest = model.backup
    if not newest and not target.exists():
        return
    report = vecdb.verify_backups(target)
    if not report.ok:
        raise Wrong(f"backups: {report.problems}")
    there = [info.id for info in vecdb.list_backups(target)]
    if newest and newest not in there:
        raise Wrong(f"backup {newest} was acknowledged; there are {there}")
    unknown = [one for one in there if one not in model.backups]
    if len(unknown) > any(part["do"] == "backup" for part in model.pending):
        raise Wrong(f"backups {unknown} are there, which nobody was told of")
    if prune and newest and newest == there[-1]:
        vecdb.prune_backups(target, keep=1, incomplete_older_than_s=0)
        there = [info.id for info in vecdb.list_backups(target)]
    found.backup = there[-1] if there else ""
    found.backups = {one: model.backups[one] for one in there if one in model.backups}
    # One that was under way has ended: it is of what was acknowledged when it began.
    found.backups |= {one: model.snapshot() for one in unknown}


def _compare_beside(beside: Path, model: Model, found: Model) -> None:
    """What was restored beside is there, as the backup was taken, and the old database is what it was."""
    wanted = dict(model.beside)
    for part in model.pending:
        if part["do"] == "beside" and (beside / part["name"]).exists():
            wanted[part["name"]] = part["from"]
    for name, backup in wanted.items():
        if not (beside / name).exists():
            raise Wrong(f"{name} was restored from {backup}, and is not there")
        with vecdb.open(beside / name, **old.SETTINGS) as database:
            held = model.backups[backup]
            names = {info.name for info in database.list_collections()}
            if names != held.keys():
                raise Wrong(f"{name} of {backup} holds {names}, expected {held.keys()}")
            for one in names:
                docs = database.get_collection(one)
                _must_be_sound(f"{one} in {name}", docs)
                there = _scan(docs, held[one], lambda _: [])
                if there != held[one].records:
                    raise Wrong(f"{one} in {name}: {_some(there, held[one].records)}")
    found.beside = {}
    if model.old_touched and (beside / records.OLD).exists():
        found.old = old.compare(beside / records.OLD, model)
    found.old_touched = False


def _compare_folders(database: Any, found: Model) -> None:
    """No litter: a folder for each collection, in each only the store and the files of its indexes.

    What is built or compacted just now has files too; it gets time to end.
    """
    root = database.path / layout.COLLECTIONS_FOLDER
    cores = [database.get_collection(name)._core for name in found.names]
    end = time.monotonic() + PATIENCE_S
    while True:
        named = {
            core.store.folder: {
                layout.DATA_FILE,
                layout.LMDB_LOCK_FILE,
                layout.SYNC_POINT_FILE,
                *(f for field in core.all_fields if field.record for f in field.record.files()),
            }
            for core in cores
        }
        strange = [path for path in root.iterdir() if path not in named] if root.is_dir() else []
        for folder, names in named.items():
            strange += [path for path in folder.iterdir() if path.name not in names]
        if not strange:
            return
        if time.monotonic() > end:
            raise Wrong(f"litter: {', '.join(map(str, strange))}")
        time.sleep(0.02)
