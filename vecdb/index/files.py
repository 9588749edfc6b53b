"""Saving a main index beside the store, and mapping it again.

Up to three files a save, named by a token that is never used twice: the FAISS file, the row numbers,
and codes that the store does not hold. An HNSW file holds the graph only (144 bytes a row at M = 16);
its vectors come from the store, so they are not on disk twice. Whatever is wrong with a file, the
store can make it again.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .. import disk
from ..errors import Corrupted, DeadlineExceeded, StorageFull
from ..stopping import Interrupt
from .arena import Arena
from .blocks import Block, FloatBlock
from .calibrate import Curve, Point
from .cells import align_centroids
from .codes import is_lossy, new_codes, own_code
from .door import CORES, READ_FLAGS, faiss, faiss_metric, flat_over
from .file_sums import checksum, form_of
from .filling import BEHIND_BYTES, LateBlock, fill
from .main import BuiltIndex, Main, attach, block_of, whole
from .makers import Job
from .mapped_file import MappedFile
from .signed import between_bounds, for_walks

_CLASSES = {"hnsw": faiss.IndexHNSW, "ivf": faiss.IndexIVF, "flat": faiss.IndexScalarQuantizer}

_WHAT = "index"

FORMAT = 5
"""Version of the record and of the files it names. Version 1 knew no codes but those of the storage,
version 2 no graph over float32 that is walked over codes, version 3 no provisional lists, and version 4 no
checksum of the record itself: one bit of `high_water` can hide rows."""
_SEAL = b',"crc32":'


@dataclass(frozen=True, slots=True)
class FilePart:
    """One file of a saved index: name in its folder, bytes, checksum as `file_sums.checksum` gives it."""

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
    code: str
    codes: FilePart | None = None
    """Codes that a graph walks over where they are not the stored vectors; else None."""
    error: float = 0.0
    sequence: int = 0
    built_at_s: float = 0.0
    provisional: bool = False
    format: int = FORMAT

    def files(self) -> list[str]:
        """Names of the files in the folder; nothing else there belongs to this index."""
        return [part.name for part in self._parts()]

    @property
    def file_bytes(self) -> int:
        """Bytes of the files together."""
        return sum(part.size for part in self._parts())

    def _parts(self) -> list[FilePart]:
        return [self.graph, self.numbers, *([] if self.codes is None else [self.codes])]

    def to_json(self) -> bytes:
        return sealed(json.dumps(asdict(self), separators=(",", ":")).encode())

    @classmethod
    def from_json(cls, data: bytes) -> IndexRecord:
        """The record in `data`; Corrupted when it is not one of a known format."""
        try:
            fields: dict[str, Any] = json.loads(data)
            if fields["format"] not in (1, 2, 3, 4, FORMAT):
                raise Corrupted(
                    f"the index record has format {fields['format']!r}, this version reads up to {FORMAT}"
                )
            seal = fields.pop("crc32", None)
            # Of any format that has one: a bit may have made 4 of 5.
            sealed_one = fields["format"] == FORMAT or seal is not None
            if sealed_one and seal != zlib.crc32(data[: data.rfind(_SEAL)]):
                raise Corrupted("the index record fails its checksum")
            if fields["format"] == 1:
                fields["code"] = own_code(fields["storage"])
            curve = fields.pop("curve")
            points = tuple(Point(**point) for point in curve.pop("points"))
            codes = fields.pop("codes", None)
            return cls(
                graph=FilePart(**fields.pop("graph")),
                numbers=FilePart(**fields.pop("numbers")),
                codes=None if codes is None else FilePart(**codes),
                curve=Curve(points, **curve),
                **fields,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise Corrupted(f"the index record cannot be read: {error!r}") from error


def sealed(record: bytes) -> bytes:
    """A record in JSON with the CRC-32 of all that comes before it as its last entry."""
    body = record[:-1]
    return body + _SEAL + str(zlib.crc32(body)).encode() + b"}"


def save(job: Job, main: Main, folder: Path) -> IndexRecord:
    """Write `main` into `folder` and make it durable; StorageFull when the disk is full."""
    token = secrets.token_hex(8)
    binary = main.code == "binary"

    def write_graph(file: BinaryIO) -> None:
        # Not by path: FAISS only prints an error of the last write, and a full disk goes unseen.
        writer = faiss.PyCallbackIOWriter(file.write)
        if binary:
            faiss.write_index_binary(main.index, writer)
        else:
            flags = faiss.IO_FLAG_SKIP_STORAGE if main.kind == "hnsw" else 0
            faiss.write_index(main.index, writer, flags)

    def write_numbers(file: BinaryIO) -> None:
        file.write(main.rows.astype("<i8").tobytes())

    def write_codes(file: BinaryIO) -> None:
        codes = between_bounds(faiss.downcast_index(main.index.storage))
        faiss.write_index(codes, faiss.PyCallbackIOWriter(file.write))

    apart = main.kind == "hnsw" and (main.code != own_code(job.storage) or main.guide is not None)
    names = [f"index-{token}.{kind}" for kind in ("faiss", "rows", "codes")]
    try:
        graph = _write(folder, names[0], write_graph)
        numbers = _write(folder, names[1], write_numbers)
        codes = _write(folder, names[2], write_codes) if apart else None
        disk.sync_folder(folder, _WHAT)
    except BaseException:
        for name in names:
            disk.remove(folder / name, _WHAT)
        raise
    return IndexRecord(
        kind=main.kind,
        dimension=job.dimension,
        metric=job.metric,
        storage=job.storage,
        rows=main.n,
        high_water=main.high_water,
        graph=graph,
        numbers=numbers,
        curve=main.curve,
        code=main.code,
        codes=codes,
        error=main.error,
        sequence=main.sequence,
        built_at_s=main.built_at_s,
        provisional=main.provisional,
    )


def _write(folder: Path, name: str, write: Callable[[BinaryIO], None]) -> FilePart:
    """Write aside, fsync, rename; what is left behind when it fails has the name `name`."""
    try:
        with disk.written_aside(folder / name, _WHAT) as file:
            write(file)
            size = file.seek(0, os.SEEK_END)
        found = checksum(folder / name, size)
    except BaseException as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left" in str(error):  # inside FAISS the error loses its type
            raise StorageFull(
                f"no space left to save the index in {folder}; free some and build again",
                path=str(folder),
            ) from error
        raise
    return FilePart(name, size, found)


def _verify(folder: Path, part: FilePart, interrupt: Interrupt = lambda: None) -> Path:
    path = folder / part.name
    try:
        size = os.stat(path).st_size  # looked at first: to open a pipe in its place would never end
        if size != part.size:
            raise Corrupted(
                f"index file {part.name} has {size} bytes, {part.size} were written",
                file=part.name,
            )
        if checksum(path, size, form_of(part.checksum), interrupt) != part.checksum:
            raise Corrupted(
                f"index file {part.name} fails its checksum: its content was changed",
                file=part.name,
            )
    except DeadlineExceeded:
        raise  # An OSError, as a TimeoutError, and no word about the file.
    except OSError as error:
        raise Corrupted(
            f"index file {part.name} cannot be read: {error.strerror}", file=part.name
        ) from error
    return path


def file_faults(
    record: IndexRecord, folder: Path, interrupt: Interrupt = lambda: None
) -> list[str]:
    """What is wrong with the files of a saved index, one sentence a file; reads them once. `interrupt` is called
    every few milliseconds and may raise."""
    faults = []
    for part in record._parts():
        try:
            _verify(folder, part, interrupt)
        except Corrupted as error:
            faults.append(error.message)
    return faults


def load(job: Job, record: IndexRecord, folder: Path, *, behind: bool = False) -> Main:
    """Verify, map and complete a saved index; Corrupted says in plain words why it cannot be.

    Reads the stored vectors of rows 0..high_water once for HNSW without codes of its own, in slices,
    by as many threads as there are cores. With `behind` it does not where a large graph is walked over codes: then
    these are yet to be read, see `LateBlock`.
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
    binary = record.code == "binary"
    # FAISS reads binary indexes into memory, and maps others.
    maps = [] if binary else [_watched(graph_path, record.graph)]
    index = _mapped(graph_path, record.graph, binary=binary)
    kind = faiss.IndexBinaryHNSW if binary else _CLASSES.get(record.kind, ())
    found = (int(index.ntotal), int(index.d), int(index.metric_type))
    expected = (rows.size, record.dimension, faiss_metric(record.metric))
    if not isinstance(index, kind) or found != expected:
        raise Corrupted(
            f"index file {record.graph.name} does not fit its record", file=record.graph.name
        )
    arena: Arena | None = None
    storage: Any = None
    look: Any = None
    if record.kind == "hnsw" and record.code == "float32":
        arena = Arena(record.dimension, rows.size)
        look = arena.vectors[: rows.size]
        arena.used = rows.size
    if binary:
        storage = faiss.downcast_IndexBinary(index.storage)
    elif record.codes is not None:
        codes_path = _verify(folder, record.codes)
        maps.append(_watched(codes_path, record.codes))
        storage = _mapped(codes_path, record.codes, binary=False)
        coded = isinstance(storage, faiss.IndexScalarQuantizer)
        if not coded or (int(storage.ntotal), int(storage.d)) != (rows.size, record.dimension):
            raise Corrupted(
                f"index file {record.codes.name} does not fit its record", file=record.codes.name
            )
        attach(index, for_walks(storage))
    elif arena is not None:
        storage = flat_over(look, faiss_metric(record.metric))
        attach(index, storage)
    elif record.kind == "hnsw":
        storage, look = _empty_codes(record, rows.size)
        attach(index, storage)
    elif record.kind == "ivf":
        whole(index).make_direct_map(True)
        align_centroids(index)
    else:
        storage = index
    late = behind and record.codes is not None and arena is not None and look.nbytes > BEHIND_BYTES
    if look is not None and not late:
        # Last: it reads every vector, and all that may be wrong with the files has been found before.
        fill(job.source, job.metric, job.storage, look, rows, record.high_water, CORES)
    block: Block
    if late:
        space = job.metric, job.storage
        metric = faiss_metric(record.metric)
        block = LateBlock(look, metric, job.source, space, rows, record.high_water)
    elif arena is None:
        block = block_of(record.kind, record.code, index, storage)
    else:
        block = FloatBlock(look, faiss_metric(record.metric))
    return Main(
        kind=record.kind,
        code=record.code,
        index=index,
        block=block,
        rows=rows,
        high_water=record.high_water,
        curve=record.curve,
        lossy=is_lossy(record.code, record.storage, record.metric),
        error=record.error,
        arena=arena,
        sequence=record.sequence,
        built_at_s=record.built_at_s,
        provisional=record.provisional,
        maps=tuple(maps),
    )


def _watched(path: Path, part: FilePart) -> MappedFile:
    try:
        return MappedFile(path)
    except OSError as error:
        raise Corrupted(
            f"index file {part.name} cannot be read: {error.strerror}", file=part.name
        ) from error


def _mapped(path: Path, part: FilePart, *, binary: bool) -> Any:
    try:
        if binary:
            return faiss.read_index_binary(str(path))
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC | READ_FLAGS)
    except RuntimeError as error:
        raise Corrupted(
            f"index file {part.name} cannot be read by FAISS {faiss.__version__}: {error}",
            file=part.name,
        ) from error


def _empty_codes(record: IndexRecord, size: int) -> tuple[Any, Any]:
    """float16 codes of `size` vectors with undefined content, and a writable (size, d) look at them."""
    index = new_codes(record.code, record.dimension, record.metric)
    if not size:
        return index, np.empty((0, record.dimension), np.float16)
    needed = size * int(index.code_size)
    index.codes.resize(needed)
    index.ntotal = size
    look = faiss.rev_swig_ptr(index.codes.data(), needed)
    return index, look.view(np.float16).reshape(size, record.dimension)


def of_same_files(record: IndexRecord, built: BuiltIndex) -> IndexRecord:
    """The record of files that hold `built` already, but for its curve and for whether it is provisional."""
    return replace(record, curve=built.curve, provisional=built.main.provisional)
