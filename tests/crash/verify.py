"""What a database holds after a kill, compared with the journal."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np

import vecdb
from crash import records
from crash.model import Held, Model, Part, after
from vecdb import layout

PATIENCE_S = 20.0
QUERIES = 12
LEAST_RECALL = 0.85
"""Of the mean over some queries at target 0.95, where the index holds hundreds of rows."""

_ABSENT = (-1, -1)


class Wrong(Exception):
    """The database does not hold what it must."""


def verify(database: Any, model: Model) -> Model:
    """The model of what is there; Wrong if that cannot be.

    All that was acknowledged must be there; each part that was under way as a whole or not at all. After a power
    cut with durability `interval`, what was there up to some commit, and no more is missing than that may cost.
    """
    found = _named(database, model)
    for name, token in found.names.items():
        docs = database.get_collection(name)
        report = docs.check()
        if not report.ok:
            raise Wrong(f"check of {name}: {report.problems}")
        held = found.collections[token]
        held.records = _resolved(name, model, token, _scan(docs, held.shape), found)
        _compare_answers(name, docs, held)
    _compare_folders(database, found)
    found.backup = _backed_up(database.path.with_name(records.BACKUPS), model.backup)
    found.pending, found.in_order, found.recent = [], False, {}
    return found


def _named(database: Any, model: Model) -> Model:
    """The model, with or without the change of names that was under way, as the database says."""
    names = {info.name for info in database.list_collections()}
    aliases = database.list_aliases()
    changes = [part for part in model.pending if part["do"] not in ("put", "tag", "gone")]
    for applied in itertools.product([False, True], repeat=len(changes)):
        candidate = model.copy()
        for part in itertools.compress(changes, applied):
            candidate.apply(part)
        if {*candidate.names} == names and candidate.alias_names() == aliases:
            return candidate
    raise Wrong(
        f"collections {sorted(names)} with aliases {aliases}; acknowledged were {sorted(model.names)} with "
        f"{model.alias_names()}, under way {changes}"
    )


def _scan(docs: Any, shape: str) -> dict[int, tuple[int, int]]:
    """Versions of each record and of its metadata; Wrong if a record holds anything else."""
    found: dict[int, tuple[int, int]] = {}
    dimension = records.SHAPES[shape]["dimension"]
    for page in docs.scan(include=["vector", "metadata", "document"]):
        numbers = np.array([int(i[1:]) for i in page.ids])
        versions = np.array([int(text.split()[1]) for text in page.documents])
        if not np.array_equal(page.vectors, records.vectors(numbers, versions, dimension)):
            raise Wrong(f"vectors of {page.ids} are not of their versions")
        if page.named_vectors:
            present = records.has_title(numbers, versions)
            title = records.vectors(numbers, versions, records.TITLE_DIMENSION)
            there = np.array(page.named_present["title"])
            if not np.array_equal(there, present) or not np.array_equal(
                np.asarray(page.named_vectors["title"])[present], title[present]
            ):
                raise Wrong(f"vectors `title` of {page.ids} are not of their versions")
        for n, version, tags, text in zip(
            numbers.tolist(), versions.tolist(), page.metadata, page.documents, strict=True
        ):
            if n in found:
                raise Wrong(f"record {n} comes twice")
            if text != records.document(n, version) or tags["n"] != n % 7:
                raise Wrong(f"record {n} holds {text[:40]!r}, {tags}")
            found[n] = version, tags["v"]
    return found


def _resolved(
    name: str, model: Model, token: str, found: dict[int, Any], told: Model
) -> dict[int, Any]:
    """The records that are there, where a power cut may have left them so; Wrong if it may not."""
    try:
        return _whole(name, model, token, found)
    except Wrong:
        for state in model.without_newest(token) if token in model.collections else ():
            if state == found:
                told.lost_parts += 1
                return state
        raise


def _whole(name: str, model: Model, token: str, found: dict[int, Any]) -> dict[int, Any]:
    """The acknowledged records and each pending part that is there; Wrong if that is not what is found."""
    held = model.collections[token].records if token in model.collections else {}
    expected = dict(held)
    missing = False
    for part in model.pending:
        if part.get("in") != token or part["do"] == "create":
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


def _compare_answers(name: str, docs: Any, held: Held) -> None:
    """Counts and nearest records, by a filter too, against the model."""
    numbers = np.array(sorted(held.records), np.int64)
    versions = np.array([held.records[n][0] for n in numbers.tolist()], np.int64)
    stats = docs.stats()
    if docs.count() != len(numbers) or stats.count != len(numbers):
        raise Wrong(f"{name}: count {docs.count()}, stats {stats.count}, there are {len(numbers)}")
    three = numbers[numbers % 7 == 3]
    if docs.count({"n": 3}) != len(three):
        raise Wrong(f"{name}: a filter counts {docs.count({'n': 3})}, {len(three)} match")
    settings = records.SHAPES[held.shape]
    fields = [(None, settings["dimension"], settings["metric"], numbers >= 0)]
    if "vectors" in settings:
        fields.append(
            ("title", records.TITLE_DIMENSION, "l2", records.has_title(numbers, versions))
        )
    for field, dimension, metric, present in fields:
        queries = records.vectors(np.arange(QUERIES) + 10_000, np.full(QUERIES, 1), dimension)
        stored = records.vectors(numbers, versions, dimension)
        distances = _distances(queries, stored, metric)
        distances[:, ~present] = np.inf
        _compare_queries(f"{name} {field or ''}", docs, queries, distances, numbers, field, None)
        filtered = np.where(numbers % 7 == 3, distances, np.inf)
        _compare_queries(
            f"{name} {field or ''} filtered", docs, queries, filtered, numbers, field, {"n": 3}
        )


def _distances(queries: Any, stored: Any, metric: str) -> Any:
    if metric == "cosine":
        queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
        stored = stored / np.maximum(np.linalg.norm(stored, axis=1, keepdims=True), 1e-30)
        return 1 - queries @ stored.T
    return ((queries[:, None, :] - stored[None, :, :]) ** 2).sum(-1)


def _compare_queries(
    what: str, docs: Any, queries: Any, distances: Any, numbers: Any, field: Any, where: Any
) -> None:
    k = 10
    best = np.sort(distances, axis=1)[:, :k]
    wanted = [int(np.isfinite(row).sum()) for row in best]
    place = {f"r{n}": i for i, n in enumerate(numbers.tolist())}
    for exact in (True, False):
        answer = docs.query(queries, k=k, exact=exact, filter=where, vector_name=field)
        hits = 0
        for q, ids in enumerate(answer.ids):
            if len(ids) != wanted[q] or len({*ids}) != len(ids) or not {*ids} <= {*place}:
                raise Wrong(f"{what}: query {q} (exact={exact}) gives {ids}, {wanted[q]} are there")
            if not ids:
                continue
            true = distances[q, [place[i] for i in ids]]
            if not np.allclose(answer.distances[q, : len(ids)], true, rtol=1e-3, atol=2e-3):
                raise Wrong(f"{what}: query {q} (exact={exact}) gives distances of other vectors")
            near = true <= best[q, len(ids) - 1] + 1e-3
            if exact and not near.all():
                raise Wrong(f"{what}: the exact answer {ids} to query {q} misses nearer records")
            hits += int(near.sum())
        total = sum(wanted)
        if total and hits < LEAST_RECALL * total:
            raise Wrong(f"{what}: recall {hits / total:.3f}")


def _backed_up(target: Path, newest: str) -> str:
    """The newest backup; Wrong if one cannot be restored, or the `newest` acknowledged is not there.

    Where that is the last, all but its chain are removed: whoever is killed in the middle leaves it.
    """
    if not newest and not target.exists():
        return ""
    report = vecdb.verify_backups(target)
    if not report.ok:
        raise Wrong(f"backups: {report.problems}")
    found = [info.id for info in vecdb.list_backups(target)]
    if newest and newest not in found:
        raise Wrong(f"backup {newest} was acknowledged; there are {found}")
    if newest and newest == found[-1]:
        vecdb.prune_backups(target, keep=1, incomplete_older_than_s=0)
    return found[-1] if found else ""


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
