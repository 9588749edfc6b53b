"""Saving a main index beside the store, and mapping it again.

Two files a save, named by a token that is never used twice: the FAISS file and the row numbers.
An HNSW file holds the graph only (144 bytes a row at M = 16); its vectors come from the store,
so they are not on disk twice. Whatever is wrong with a file, the store can make it again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import Corrupted, StorageFull
from .build import READ_ROWS, Job, ReadVectors, to_space
from .calibrate import Curve, Point
from .distance import Rows
from .door import faiss, faiss_metric
from .main import Main, attach_storage, block_of, storage_of

FORMAT = 1
"""Version of the record and of the files it names."""


@dataclass(frozen=True, slots=True)
class FilePart:
    """One file of a saved index: name in its folder, bytes, BLAKE2b-256 in hexadecimal."""

    name: str
    size: int
    checksum: str


@dataclass(frozen=True, slots=True)
class IndexRecord:
    """What the store keeps about a saved index, enough to find, verify and use it."""

    kind: str
    dimension: int
    metric: str
    storage: str
    rows: int
    high_water: int
    graph: FilePart
    numbers: FilePart
    curve: Curve
    format: int = FORMAT

    def files(self) -> list[str]:
        """Names of the files in the folder; nothing else there belongs to this index."""
        return [self.graph.name, self.numbers.name]

    @property
    def file_bytes(self) -> int:
        """Bytes of the files together."""
        return self.graph.size + self.numbers.size

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes) -> IndexRecord:
        """The record in `data`; Corrupted when it is not one of this format."""
        try:
            fields: dict[str, Any] = json.loads(data)
            if fields["format"] != FORMAT:
                raise Corrupted(
                    f"the index record has format {fields['format']!r}, this version reads {FORMAT}"
                )
            curve = fields.pop("curve")
            points = tuple(Point(**point) for point in curve["points"])
            return cls(
                graph=FilePart(**fields.pop("graph")),
                numbers=FilePart(**fields.pop("numbers")),
                curve=Curve(points, curve["rows"], curve["queries"], curve["least"]),
                **fields,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise Corrupted(f"the index record cannot be read: {error!r}") from error


def save(job: Job, main: Main, folder: Path) -> IndexRecord:
    """Write `main` into `folder` and make it durable; StorageFull when the disk is full."""
    token = secrets.token_hex(8)
    flags = faiss.IO_FLAG_SKIP_STORAGE if main.kind == "hnsw" else 0

    def write_graph(file: BinaryIO) -> None:
        # Not by path: FAISS only prints an error of the last write, and a full disk goes unseen.
        faiss.write_index(main.index, faiss.PyCallbackIOWriter(file.write), flags)

    def write_numbers(file: BinaryIO) -> None:
        file.write(main.rows.astype("<i8").tobytes())

    graph_name, numbers_name = f"index-{token}.faiss", f"index-{token}.rows"
    try:
        graph = _write(folder, graph_name, write_graph)
        numbers = _write(folder, numbers_name, write_numbers)
        _sync_folder(folder)
    except BaseException:
        for name in (graph_name, numbers_name):
            (folder / name).unlink(missing_ok=True)
        raise
    return IndexRecord(
        main.kind,
        job.dimension,
        job.metric,
        job.storage,
        main.n,
        main.high_water,
        graph,
        numbers,
        main.curve,
    )


def _write(folder: Path, name: str, write: Callable[[BinaryIO], None]) -> FilePart:
    """Write aside, fsync, rename; nothing is left behind when it fails."""
    aside = folder / f"{name}.tmp"
    try:
        with open(aside, "w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            checksum = _checksum(file)
        os.replace(aside, folder / name)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left" in str(error):  # inside FAISS the error loses its type
            raise StorageFull(
                f"no space left to save the index in {folder}; free some and build again",
                path=str(folder),
            ) from error
        raise
    return FilePart(name, size, checksum)


def _checksum(file: BinaryIO) -> str:
    digest = hashlib.blake2b(digest_size=32)
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _verify(folder: Path, part: FilePart) -> Path:
    path = folder / part.name
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != part.size:
                raise Corrupted(
                    f"index file {part.name} has {size} bytes, {part.size} were written",
                    file=part.name,
                )
            if _checksum(file) != part.checksum:
                raise Corrupted(
                    f"index file {part.name} fails its checksum: its content was changed",
                    file=part.name,
                )
    except OSError as error:
        raise Corrupted(
            f"index file {part.name} cannot be read: {error.strerror}", file=part.name
        ) from error
    return path


def load(job: Job, record: IndexRecord, folder: Path, read_vectors: ReadVectors) -> Main:
    """Verify, map and complete a saved index; Corrupted says in plain words why it cannot be.

    Reads the stored vectors of rows 0..high_water once for HNSW, in slices.
    """
    for name in ("dimension", "metric", "storage"):
        if getattr(record, name) != getattr(job, name):
            raise Corrupted(
                f"the saved index has {name} {getattr(record, name)!r}, the collection has "
                f"{getattr(job, name)!r}"
            )
    # FAISS trusts its input, so nothing reaches it that has not passed its checksum.
    graph_path = _verify(folder, record.graph)
    numbers_path = _verify(folder, record.numbers)
    rows = np.fromfile(numbers_path, "<i8").astype(np.int64)
    if rows.size != record.rows or (
        rows.size and not (rows.min() >= 0 and rows.max() < record.high_water)
    ):
        raise Corrupted(
            f"index file {record.numbers.name} does not fit its record", file=record.numbers.name
        )
    try:
        index = faiss.read_index(str(graph_path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise Corrupted(
            f"index file {record.graph.name} cannot be read by FAISS {faiss.__version__}: {error}",
            file=record.graph.name,
        ) from error
    found = (int(index.ntotal), int(index.d), int(index.metric_type))
    if found != (rows.size, record.dimension, faiss_metric(record.metric)):
        raise Corrupted(
            f"index file {record.graph.name} does not fit its record", file=record.graph.name
        )
    if record.kind == "hnsw":
        attach_storage(index, _vectors(job, rows, record.high_water, read_vectors))
    else:
        index.make_direct_map(True)
    block = block_of(record.kind, index, record.storage)
    return Main(record.kind, index, block, rows, record.high_water, record.curve)


def _vectors(job: Job, rows: Rows, high_water: int, read_vectors: ReadVectors) -> Any:
    """FAISS storage with the vectors of `rows`, read in row order and put where they belong."""
    storage, look = storage_of(rows.size, job.dimension, job.metric, job.storage)
    position = np.full(high_water, -1, np.int64)
    position[rows] = np.arange(rows.size)
    for start in range(0, high_water, READ_ROWS):
        stop = min(high_water, start + READ_ROWS)
        target = position[start:stop]
        wanted = target >= 0
        if wanted.any():
            vectors = to_space(read_vectors(start, stop)[wanted], job.metric, job.storage)
            look[target[wanted]] = vectors
    return storage
