"""Files that `vecdb export` writes, and that `vecdb import` reads back without loss.

A file appears under its name only when it is complete; an export that stops half-way leaves nothing.
"""

from __future__ import annotations

import base64
import datetime as dt
import gzip
import json
import sys
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from .cli_target import EXIT_USAGE, CommandFailed

SUFFIXES = (".jsonl", ".jsonl.gz", ".npz", ".npy")


class Sink(Protocol):
    def write(self, records: Any) -> None:
        """Takes one page of records, with or without vectors."""


def jsonable(value: Any) -> Any:
    """For `json.dumps(default=…)`: a datetime as {"$date": RFC 3339}."""
    if isinstance(value, dt.datetime):
        text = value.astimezone(dt.UTC).isoformat()
        return {"$date": text.replace("+00:00", "Z")}
    raise TypeError(f"no JSON form for {type(value).__name__}")


def row_of(record: Any) -> dict[str, Any]:
    """What a record holds besides its vector, as JSON values; absent parts are left out."""
    row: dict[str, Any] = {"id": record.id}
    if record.metadata:
        row["metadata"] = record.metadata
    if record.document is not None:
        row["document"] = record.document
    if record.uri is not None:
        row["uri"] = record.uri
    if record.content is not None:
        row["media_type"] = record.content.media_type
        row["content"] = base64.b64encode(record.content.data).decode()
    return row


def dumps(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, default=jsonable)


def _with_vectors(line: bytes, record: Any, *, own: bool) -> bytes:
    """The JSON object `line` with the named vectors of a record, and its own one."""
    if own and record.vector is not None:
        line = line[:-1] + b', "vector": ' + msgspec.json.encode(record.vector.tolist()) + b"}"
    if record.named_vectors:
        named = {name: vector.tolist() for name, vector in record.named_vectors.items()}
        line = line[:-1] + b', "vectors": ' + msgspec.json.encode(named) + b"}"
    return line


class _Lines:
    """Rows as JSON lines, each with its vectors when they were asked for.

    Vectors are written as the shortest double that gives the float32 back, so nothing is lost.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, records: Any) -> None:
        for record in records:
            line = _with_vectors(dumps(row_of(record)).encode(), record, own=True)
            self._file.write(line + b"\n")


class _Array:
    """Rows of one .npy.

    How many rows there will be is not known at the start. NumPy leaves room in a header for any
    number of rows, so it is written again at the end.
    """

    def __init__(self, file: IO[bytes], descr: str, width: tuple[int, ...]) -> None:
        self._file = file
        self._descr = descr
        self._width = width
        self._rows = 0
        self.finish()

    def finish(self) -> None:
        self._file.seek(0)
        shape = (self._rows, *self._width)
        np.lib.format.write_array_header_1_0(
            self._file, {"descr": self._descr, "fortran_order": False, "shape": shape}
        )

    def write(self, rows: NDArray[Any]) -> None:
        self._rows += len(rows)
        self._file.write(np.ascontiguousarray(rows, self._descr).tobytes())


def _array_of(file: IO[bytes], field: Any) -> _Array:
    """An array for the vectors of a collection or of one of its named fields."""
    if field.storage == "binary":
        return _Array(file, "|u1", (field.dimension // 8,))
    return _Array(file, "<f4", (field.dimension,))


class _Arrays:
    """Vectors as rows of arrays, other parts as JSON lines beside them.

    Named vectors stand in the lines where there are no arrays for them.
    """

    def __init__(
        self, lines: IO[bytes], own: _Array, named: dict[str, tuple[_Array, _Array]]
    ) -> None:
        self._lines = lines
        self._own = own
        self._named = named

    def finish(self) -> None:
        for array in (self._own, *chain.from_iterable(self._named.values())):
            array.finish()

    def write(self, records: Any) -> None:
        self._own.write(records.vectors)
        for name, (vectors, present) in self._named.items():
            vectors.write(records.named_vectors[name])
            present.write(records.named_present[name])
        for record in records:
            line = dumps(row_of(record)).encode()
            if not self._named:
                line = _with_vectors(line, record, own=False)
            self._lines.write(line + b"\n")


@contextmanager
def sink(path: Path, info: Any, *, named: bool) -> Iterator[Sink]:
    """Where records of the collection `info` go, by the ending of `path`; `-` is JSON lines on
    stdout. `named` says that they come with their named vectors."""
    name = path.name
    if name == "-":
        if sys.stdout is None:
            raise CommandFailed("cannot write to standard output: it is closed")
        yield _Lines(sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    if not name.endswith(SUFFIXES):
        raise CommandFailed(
            f"cannot tell the format of {path}: end it with one of {', '.join(SUFFIXES)}",
            EXIT_USAGE,
        )
    try:
        with ExitStack() as stack:
            if name.endswith((".jsonl", ".jsonl.gz")):
                raw = stack.enter_context(_finished_as(path))
                if name.endswith(".gz"):
                    raw = stack.enter_context(_packed(raw))
                yield _Lines(raw)
            elif name.endswith(".npy"):
                array = stack.enter_context(_finished_as(path))
                beside = stack.enter_context(_finished_as(rows_beside(path)))
                lines = stack.enter_context(_packed(beside))
                target = _Arrays(lines, _array_of(array, info), {})
                yield target
                target.finish()
            else:
                yield from _npz(path, stack, info, tuple(info.vectors) if named else ())
    except OSError as error:
        if hasattr(error, "reason"):
            raise  # what the database said, as that the time is over, is none of the file's
        raise CommandFailed(f"cannot write {path}: {error}") from error


def rows_beside(path: Path) -> Path:
    """The JSON lines that go with `name.npy`."""
    return path.with_name(path.stem + ".jsonl.gz")


def _packed(raw: IO[bytes]) -> Any:
    """gzip without name and time in it: the same records give the same bytes. Of digits, which vectors are as text, the
    highest level makes 3 % fewer bytes in four times the time."""
    return gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0, compresslevel=3)


def _npz(path: Path, stack: ExitStack, info: Any, named: tuple[str, ...]) -> Iterator[Sink]:
    scratch: dict[str, Path] = {}

    def member(name: str) -> IO[bytes]:
        scratch[name] = path.with_name(f"{path.name}.{name}.part")
        stack.callback(scratch[name].unlink, missing_ok=True)
        return files.enter_context(scratch[name].open("wb"))

    with ExitStack() as files:
        lines = member("rows")
        own = _array_of(member("vectors"), info)
        arrays = {
            name: (
                _array_of(member(f"vectors.{name}"), info.vectors[name]),
                _Array(member(f"present.{name}"), "|b1", ()),
            )
            for name in named
        }
        target = _Arrays(lines, own, arrays)
        yield target
        target.finish()
    with _finished_as(path) as raw, zipfile.ZipFile(raw, "w", zipfile.ZIP_STORED) as archive:
        rows = scratch.pop("rows")
        for name, array_path in scratch.items():
            archive.write(array_path, f"{name}.npy")
        with archive.open("rows.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array(file, np.fromfile(rows, np.uint8))


@contextmanager
def _finished_as(path: Path) -> Iterator[IO[bytes]]:
    # Here: other commands need no engine.
    from vecdb import disk

    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            yield file
            disk.sync_file(file, part, "export")
        disk.rename(part, path, "export")
        disk.sync_folder(path.parent, "export")
    except BaseException:
        disk.remove(part, "export")
        raise
