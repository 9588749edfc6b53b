"""Files that `vecdb export` writes, and that `vecdb import` reads back without loss.

A file appears under its name only when it is complete; an export that stops half-way leaves nothing.
"""

from __future__ import annotations

import base64
import datetime as dt
import gzip
import json
import os
import sys
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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


class _Lines:
    """Rows as JSON lines, each with its vector when it was asked for.

    Vectors are written as the shortest double that gives the float32 back, so nothing is lost.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, records: Any) -> None:
        for record in records:
            line = dumps(row_of(record)).encode()
            if record.vector is not None:
                vector = msgspec.json.encode(record.vector.tolist())
                line = line[:-1] + b', "vector": ' + vector + b"}"
            self._file.write(line + b"\n")


class _Array:
    """Vectors as the rows of one .npy, other parts as JSON lines beside it.

    How many rows there will be is not known at the start. NumPy leaves room in a header for any
    number of rows, so it is written again at the end.
    """

    def __init__(self, array: IO[bytes], lines: IO[bytes], dimension: int) -> None:
        self._array = array
        self._lines = lines
        self._shape = (0, dimension)
        self.finish()

    def finish(self) -> None:
        self._array.seek(0)
        np.lib.format.write_array_header_1_0(
            self._array, {"descr": "<f4", "fortran_order": False, "shape": self._shape}
        )

    def write(self, records: Any) -> None:
        vectors: NDArray[np.float32] = records.vectors
        self._shape = (self._shape[0] + len(vectors), self._shape[1])
        self._array.write(np.ascontiguousarray(vectors, "<f4").tobytes())
        for record in records:
            self._lines.write(dumps(row_of(record)).encode() + b"\n")


@contextmanager
def sink(path: Path, *, dimension: int) -> Iterator[Sink]:
    """Where records go, by the ending of `path`; `-` is JSON lines on stdout."""
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
                target = _Array(array, stack.enter_context(_packed(beside)), dimension)
                yield target
                target.finish()
            else:
                yield from _npz(path, stack, dimension)
    except OSError as error:
        raise CommandFailed(f"cannot write {path}: {error}") from error


def rows_beside(path: Path) -> Path:
    """The JSON lines that go with `name.npy`."""
    return path.with_name(path.stem + ".jsonl.gz")


def _packed(raw: IO[bytes]) -> Any:
    """gzip without name and time in it: the same records give the same bytes."""
    return gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0)


def _npz(path: Path, stack: ExitStack, dimension: int) -> Iterator[Sink]:
    array_path = path.with_name(path.name + ".vectors.part")
    lines_path = path.with_name(path.name + ".rows.part")
    for scratch in (array_path, lines_path):
        stack.callback(scratch.unlink, missing_ok=True)
    with array_path.open("wb") as array, lines_path.open("wb") as lines:
        target = _Array(array, lines, dimension)
        yield target
        target.finish()
    with _finished_as(path) as raw, zipfile.ZipFile(raw, "w", zipfile.ZIP_STORED) as archive:
        archive.write(array_path, "vectors.npy")
        with archive.open("rows.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array(member, np.fromfile(lines_path, np.uint8))


@contextmanager
def _finished_as(path: Path) -> Iterator[IO[bytes]]:
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
