"""A file of the user's as a source: its rows scaled to unit length, its queries or held-out rows asked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import clusters
from . import lines, readers, seeded
from .base import encode
from .errors import BadDataset
from .exact import Condition
from .readers import Block

_HELD_SHARE = 0.1
"""At most so many of a file's rows are held out as queries."""
_ID = "row-{:08}"


class Given(lines.Lines):
    """What a file holds. Where it has no metadata, seeded columns stand in; see `seeded`."""

    @cached_property
    def _about(self) -> dict[str, Any]:
        held: dict[str, Any] = json.loads((self.folder / "given.json").read_text())
        return held

    @property
    def name(self) -> str:  # type: ignore[override]
        return str(self._about["name"])

    @property
    def structure(self) -> str:
        return str(self._about["structure"])

    @property
    def row_bytes(self) -> int:
        return self.dimension * 4

    def conditions(self) -> tuple[Condition, ...]:
        return tuple(Condition(*one) for one in self._about["conditions"])

    def records(self, start: int, stop: int) -> tuple[list[str], list[dict[str, Any]], list[str]]:
        ids = [_ID.format(row) for row in range(start, stop)]
        metadata: list[dict[str, Any]] = [{} for _ in ids]
        documents = [
            f"row {row:08} of {self.name}, made to be measured" for row in range(start, stop)
        ]
        if self._about["records"]:
            kept_ids, metadata, kept_documents = super().records(start, stop)
            ids = kept_ids if self._about["ids"] else ids
            documents = kept_documents if self._about["documents"] else documents
        for field in self._about["seeded"]:
            values = seeded.column(field, np.arange(start, stop), self.seed).tolist()
            for record, value in zip(metadata, values, strict=True):
                record[field] = value
        return ids, metadata, documents

    def column(self, field: str) -> NDArray[Any]:
        if field in self._about["seeded"]:
            return seeded.column(field, np.arange(self.rows), self.seed)
        return super().column(field)

    def rows_of(self, ids: Sequence[str]) -> list[int]:
        if self._about["ids"]:
            return super().rows_of(ids)
        return [int(one.removeprefix("row-")) for one in ids]

    @staticmethod
    def write(folder: Path, path: Path, rows: int | None, queries: int, seed: int) -> None:
        """Writes at most `rows` rows of `path`, chosen by `seed`, and at most `queries` queries."""
        reader = readers.opened(path)
        kept, held = _dealt(reader, path, rows, queries, seed)
        asked = [] if reader.queries is None else [_unit(reader.queries[:queries], path, "query")]
        about: dict[str, Any] = {"ids": False, "documents": False}
        tally = seeded.Tally()
        hashes: list[NDArray[np.int64]] = []

        def parts() -> Iterator[list[bytes]]:
            start = 0
            with (folder / "vectors.f32").open("wb") as file:
                for block in reader.blocks():
                    stop = start + len(block.vectors)
                    mine, theirs = kept[start:stop], held[start:stop]
                    vectors = _unit(block.vectors, path, "row", start)
                    vectors[mine].tofile(file)
                    if theirs.any():
                        asked.append(vectors[theirs])
                    if block.ids or block.metadata or block.documents:
                        about["ids"] |= block.ids is not None
                        about["documents"] |= block.documents is not None
                        yield _encoded(block, np.flatnonzero(mine), tally, hashes)
                    start = stop

        lines.write(folder, parts())
        if hashes:
            _refuse_twins(np.concatenate(hashes), path)
        conditions = tally.conditions()
        fields = sorted({one.field for one in conditions} & set(seeded.FIELDS))
        about |= {
            "name": path.stem,
            "records": (folder / "rows.jsonl").stat().st_size > 0,
            "conditions": [[one.field, one.op, one.value] for one in conditions],
            "seeded": fields,
            "structure": _told(path, kept, held, reader.count, fields),
        }
        np.save(folder / "queries.npy", np.concatenate(asked))
        (folder / "given.json").write_text(json.dumps(about))


def _dealt(
    reader: readers.Reader, path: Path, rows: int | None, queries: int, seed: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Flags of the rows that are kept, and of those that are held out as queries."""
    count = reader.count
    kept, held = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
    order = np.random.default_rng(seed).permutation(count)
    asked = 0
    if reader.queries is None or not len(reader.queries):
        reader.queries = None
        asked = min(queries, int(count * _HELD_SHARE))
        if not asked:
            raise BadDataset(
                f"{path.name} has {count} rows and no queries; at most one row in ten is held out, so ten"
                " rows are the least"
            )
    held[order[:asked]] = True
    kept[order[asked : count if rows is None else asked + rows]] = True
    return kept, held


def _unit(vectors: NDArray[Any], path: Path, what: str, start: int = 0) -> clusters.Vectors:
    """A copy scaled to unit length. Raises BadDataset where that cannot be."""
    made = np.array(vectors, np.float32)
    lengths = np.linalg.norm(made, axis=1)
    wrong = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
    if wrong.size:
        raise BadDataset(
            f"{what} {start + int(wrong[0])} of {path.name} has length {lengths[wrong[0]]}; distances are"
            " cosine, so every vector needs finite numbers that are not all zero: leave such rows out"
        )
    made /= lengths[:, np.newaxis]
    return made


def _encoded(
    block: Block,
    chosen: NDArray[np.int64],
    tally: seeded.Tally,
    hashes: list[NDArray[np.int64]],
) -> list[bytes]:
    """Lines of these rows of a block; counts their fields."""
    made = []
    for row in chosen.tolist():
        record = dict(block.metadata[row]) if block.metadata else {}
        made.append(record)
    tally.add(made)
    ids = [block.ids[row] if block.ids else "" for row in chosen.tolist()]
    if block.ids:
        hashes.append(np.array([hash(one) for one in ids], np.int64))
    for record, row, record_id in zip(made, chosen.tolist(), ids, strict=True):
        record["id"] = record_id
        record["text"] = block.documents[row] if block.documents else ""
    return [encode(record) for record in made]


def _refuse_twins(hashes: NDArray[np.int64], path: Path) -> None:
    same = len(hashes) - len(np.unique(hashes))
    if same:
        raise BadDataset(f"{same} ids of {path.name} stand in it more than once; make them unique")


def _told(
    path: Path,
    kept: NDArray[np.bool_],
    held: NDArray[np.bool_],
    count: int,
    fields: Sequence[str],
) -> str:
    asked = "held-out rows of the same file" if held.any() else "the file's own"
    filters = f"; {seeded.WORDS}" if fields else ""
    return (
        f"{path.name}: {int(kept.sum()):,} of {count:,} rows, scaled to unit length for cosine; queries are"
        f" {asked}{filters}"
    )
