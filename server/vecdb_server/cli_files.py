"""Files that `vecdb import` reads: JSON lines, NumPy arrays, and both together.

A file comes out as batches of columns, read as they are needed: memory holds one batch, whatever
the size of the file (except .npz, which NumPy reads as a whole).
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import gzip
import sys
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from .cli_target import EXIT_USAGE, CommandFailed


@dataclass(frozen=True, slots=True)
class Fields:
    """Which field of a row is what. `metadata` None: the object in the field `metadata`, and every
    field that is nothing else."""

    id: str = "id"
    vector: str = "vector"
    document: str = "document"
    uri: str = "uri"
    content: str = "content"
    media_type: str = "media_type"
    named_vectors: str = "vectors"
    metadata: tuple[str, ...] | None = None


@dataclass(slots=True)
class Batch:
    """Records as columns of equal length, as `insert` takes them. `share` of the file is read."""

    ids: list[str] = field(default_factory=list)
    vectors: Any = None
    metadata: list[dict[str, Any]] = field(default_factory=list)
    documents: list[str | None] = field(default_factory=list)
    contents: list[tuple[bytes, str] | None] = field(default_factory=list)
    uris: list[str | None] = field(default_factory=list)
    named: dict[str, list[Any]] = field(default_factory=dict)
    share: float | None = None

    def columns(self) -> dict[str, Any]:
        """Keyword arguments of `insert` and `upsert`; columns without any value are left out."""
        found: dict[str, Any] = {"ids": self.ids, "vectors": self.vectors}
        if any(self.metadata):
            found["metadata"] = self.metadata
        for name in ("documents", "contents", "uris"):
            column = getattr(self, name)
            # An empty text is one.
            if any(entry is not None for entry in column):
                found[name] = column
        if self.named:
            found["named_vectors"] = self.named
        return found

    def add_named(self, vectors: dict[str, Any]) -> None:
        """Appends the named vectors of the record whose id was added last."""
        behind = len(self.ids) - 1
        for name in vectors.keys() - self.named.keys():
            self.named[name] = [None] * behind
        for name, column in self.named.items():
            column.append(vectors.get(name))

    def named_widths(self) -> dict[str, int]:
        """Numbers of the first vector of each named field."""
        firsts = {
            name: next((vector for vector in column if vector is not None), None)
            for name, column in self.named.items()
        }
        return {name: np.size(first) for name, first in firsts.items() if first is not None}


def read_batches(
    rows: Path, vectors: Path | None, fields: Fields, *, batch_size: int, skip: int
) -> Iterator[Batch]:
    """Batches of `rows` behind the first `skip`; `vectors` is a .npy whose rows go beside them.

    Raises CommandFailed with the file and the line that is at fault.
    """
    if skip < 0 or batch_size < 1:
        raise CommandFailed("--skip takes 0 or more and --batch-size 1 or more", EXIT_USAGE)
    if rows.suffix == ".npz":
        if vectors is not None:
            raise CommandFailed("a .npz holds its own vectors: leave --vectors out", EXIT_USAGE)
        yield from _read_npz(rows, fields, batch_size, skip)
        return
    if rows.suffix == ".npy":
        raise CommandFailed(
            f"{rows} holds vectors only: name it with --vectors, beside a file of rows", EXIT_USAGE
        )
    matrix = None if vectors is None else load_vectors(vectors)
    yield from _read_lines(rows, matrix, fields, batch_size, skip)


def load_vectors(path: Path) -> NDArray[Any]:
    """The (n, d) array of a .npy, mapped instead of read; a single (d,) vector counts as one row."""
    try:
        matrix: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise _unreadable(path, error) from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CommandFailed(f"{path} is no .npy file of numbers", EXIT_USAGE) from error
    if not isinstance(matrix, np.ndarray) or matrix.dtype.kind not in "fiu":
        raise CommandFailed(f"{path} is no .npy file of numbers", EXIT_USAGE)
    if matrix.ndim == 1:
        matrix = matrix[None, :]
    if matrix.ndim != 2:
        raise CommandFailed(
            f"{path} holds an array of shape {matrix.shape}, expected (rows, d)", EXIT_USAGE
        )
    found: NDArray[Any] = matrix
    return found


def _unreadable(path: Path, error: OSError) -> CommandFailed:
    return CommandFailed(f"cannot read {path}: {error.strerror or error}", EXIT_USAGE)


def _read_lines(
    path: Path, matrix: NDArray[Any] | None, fields: Fields, batch_size: int, skip: int
) -> Iterator[Batch]:
    with _open(path) as raw:
        size = path.stat().st_size if path.is_file() else 0
        lines: Any = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        numbered = enumerate(lines)
        row = 0
        try:
            for _number, line in numbered:
                if row == skip:
                    numbered = _push_back((_number, line), numbered)
                    break
                row += bool(line.strip())
            while group := list(islice(_stripped(numbered), batch_size)):
                batch = Batch()
                listed: list[Any] = []
                for number, line in group:
                    where = f"{path} line {number + 1}"
                    listed.append(_add_row(batch, _decode(line, where), fields, where))
                end = row + len(group)
                if matrix is None:
                    batch.vectors = _matrix(listed, fields, path, group[0][0] + 1)
                elif end > len(matrix):
                    raise CommandFailed(
                        f"{path} has more rows than the {len(matrix):,} vectors beside it"
                    )
                else:
                    batch.vectors = np.ascontiguousarray(matrix[row:end])
                row = end
                batch.share = raw.tell() / size if size else None
                yield batch
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise CommandFailed(f"{path} is not complete gzip: {error}") from error
    if matrix is not None and row < len(matrix):
        raise CommandFailed(
            f"{path} has {row:,} rows, but there are {len(matrix):,} vectors beside it"
        )


def _read_npz(path: Path, fields: Fields, batch_size: int, skip: int) -> Iterator[Batch]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            # What is in the archive but is no array comes out as bytes.
            found = {n: a for n in arrays.files if isinstance(a := arrays[n], np.ndarray)}
    except OSError as error:
        raise _unreadable(path, error) from error
    except (ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise CommandFailed(f"{path} is no .npz file of arrays", EXIT_USAGE) from error
    vectors, rows = found.get("vectors"), found.get("rows")
    if (
        vectors is None
        or vectors.ndim != 2
        or not ("ids" in found if rows is None else rows.dtype == np.uint8)
    ):
        raise CommandFailed(
            f"{path} holds {', '.join(sorted(found)) or 'nothing'}; expected `vectors` (rows, d) and"
            " either `rows` (JSON lines as bytes, as export writes them) or `ids`"
        )
    if rows is not None:
        lines = rows.tobytes().splitlines()
    else:
        lines = [msgspec.json.encode({fields.id: one}) for one in _ids(path, found["ids"])]
    if len(lines) != len(vectors):
        raise CommandFailed(f"{path} has {len(lines):,} rows and {len(vectors):,} vectors")
    named = _named_arrays(path, found, len(lines))
    for start in range(skip, len(lines), batch_size):
        batch = Batch()
        for number, line in enumerate(lines[start : start + batch_size], start + 1):
            where = f"{path} row {number}"
            _add_row(batch, _decode(line, where), fields, where)
        batch.vectors = vectors[start : start + batch_size]
        for name, (rows_of, present) in named.items():
            part = slice(start, start + batch_size)
            column = zip(rows_of[part], present[part].tolist(), strict=True)
            batch.named[name] = [row if there else None for row, there in column]
        batch.share = (start + len(batch.ids)) / len(lines)
        yield batch


def _ids(path: Path, given: NDArray[Any]) -> list[str]:
    """Texts, whole numbers, or bytes of UTF-8, as HDF5 has them, as texts."""
    if given.dtype.kind in "US":
        try:
            return [one.decode() if isinstance(one, bytes) else one for one in given.tolist()]
        except UnicodeDecodeError as error:
            raise CommandFailed(f"{path}: ids are no texts in UTF-8: {error}") from error
    if given.dtype.kind not in "iu":
        raise CommandFailed(
            f"{path}: ids are of type {given.dtype}; expected texts or whole numbers"
        )
    return [str(one) for one in given.tolist()]


def _named_arrays(
    path: Path, arrays: dict[str, Any], count: int
) -> dict[str, tuple[NDArray[Any], NDArray[np.bool_]]]:
    """Arrays called `vectors.NAME`, each with who has such a vector: `present.NAME`, or else all."""
    named = {}
    for key in arrays:
        kind, _, name = key.partition(".")
        if kind != "vectors" or not name:
            continue
        present = arrays.get(f"present.{name}", np.ones(count, np.bool_))
        if arrays[key].ndim != 2 or len(arrays[key]) != count or present.shape != (count,):
            raise CommandFailed(
                f"{path}: {key} has shape {arrays[key].shape} and its presence {present.shape}, "
                f"expected ({count}, d) and ({count},)"
            )
        named[name] = arrays[key], present.astype(np.bool_)
    return named


def _open(path: Path) -> BinaryIO:
    if str(path) == "-":
        if sys.stdin is None:
            raise CommandFailed("cannot read from standard input: it is closed", EXIT_USAGE)
        return sys.stdin.buffer
    try:
        return path.open("rb")
    except OSError as error:
        raise CommandFailed(f"cannot read {path}: {error.strerror}", EXIT_USAGE) from error


def _push_back(first: tuple[int, bytes], rest: Iterator[tuple[int, bytes]]) -> Any:
    yield first
    yield from rest


def _stripped(numbered: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    return ((number, line) for number, line in numbered if line.strip())


def _decode(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CommandFailed(f"{where}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise CommandFailed(f"{where}: expected a JSON object, found {str(row)[:60]}")
    found: dict[str, Any] = _revive(row, where) if b'"$date"' in line else row
    return found


def _revive(value: Any, where: str) -> Any:
    """`value` with every {"$date": text} in it as a datetime."""
    if isinstance(value, dict):
        if set(value) == {"$date"}:
            try:
                return dt.datetime.fromisoformat(value["$date"])
            except (TypeError, ValueError) as error:
                raise CommandFailed(f"{where}: bad $date {value['$date']!r}: {error}") from error
        return {key: _revive(inner, where) for key, inner in value.items()}
    if isinstance(value, list):
        return [_revive(inner, where) for inner in value]
    return value


def _add_row(batch: Batch, row: dict[str, Any], fields: Fields, where: str) -> Any:
    """Appends `row` to all columns but the vectors; answers its vector, None if it has none."""
    record_id = row.pop(fields.id, None)
    if isinstance(record_id, int) and not isinstance(record_id, bool):
        record_id = str(record_id)
    if not isinstance(record_id, str):
        raise CommandFailed(
            f"{where}: field {fields.id!r} must hold the record's id, found {record_id!r};"
            " another field is named with --id-field"
        )
    batch.ids.append(record_id)
    vector = row.pop(fields.vector, None)
    named = row.pop(fields.named_vectors, None) or {}
    if not isinstance(named, dict):
        raise CommandFailed(
            f"{where}: field {fields.named_vectors!r} must map names to vectors, found {str(named)[:60]}"
        )
    batch.add_named(named)
    batch.documents.append(_text(row.pop(fields.document, None), fields.document, where))
    batch.uris.append(_text(row.pop(fields.uri, None), fields.uri, where))
    batch.contents.append(_content(row, fields, where))
    if fields.metadata is not None:
        batch.metadata.append({name: row[name] for name in fields.metadata if name in row})
        return vector
    metadata = row.pop("metadata", None)
    if metadata is None:
        metadata = row
    elif not isinstance(metadata, dict):
        raise CommandFailed(
            f"{where}: field 'metadata' must be an object; name the fields to take instead with"
            " --metadata-fields"
        )
    elif clash := sorted(set(metadata) & set(row)):
        raise CommandFailed(f"{where}: {clash[0]!r} stands both in 'metadata' and beside it")
    else:
        metadata |= row
    batch.metadata.append(metadata)
    return vector


def _text(value: Any, name: str, where: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise CommandFailed(f"{where}: field {name!r} must be text, found {str(value)[:60]}")


def _content(row: dict[str, Any], fields: Fields, where: str) -> tuple[bytes, str] | None:
    if fields.content not in row:
        return None
    encoded = row.pop(fields.content)
    media_type = row.pop(fields.media_type, None) or "application/octet-stream"
    if encoded is None:
        return None
    try:
        return base64.b64decode(encoded, validate=True), media_type
    except (binascii.Error, TypeError, ValueError) as error:
        raise CommandFailed(f"{where}: field {fields.content!r} must be base64: {error}") from error


def _matrix(listed: list[Any], fields: Fields, path: Path, first: int) -> NDArray[np.float64]:
    missing = [position for position, vector in enumerate(listed) if vector is None]
    if missing:
        raise CommandFailed(
            f"{path}, row {missing[0] + 1} from line {first}: no field {fields.vector!r}; vectors"
            " in a file of their own are named with --vectors file.npy, another field with"
            " --vector-field"
        )
    matrix = number_matrix(listed)
    if matrix is None or matrix.ndim != 2:
        raise CommandFailed(
            f"{path}, {len(listed)} rows from line {first}: vectors must be lists of numbers, all of"
            " one length"
        )
    return matrix


def number_matrix(listed: Any) -> NDArray[np.float64] | None:
    """The array of what JSON lists hold, None where it is not numbers in lists of one length.

    Doubles, so that a number beyond float32 is still itself when the database refuses it.
    """
    try:
        return np.array(listed, np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
