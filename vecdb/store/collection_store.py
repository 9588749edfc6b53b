"""The store of one collection: the truth that every index and column is a copy of."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ..errors import FormatMismatch
from ..layout import COLLECTION_FORMAT, COLLECTION_TABLES, META_FORMAT, META_SETTINGS
from .environment import Environment
from .reader import Reader, Shape
from .writer import Writer

Result = TypeVar("Result")


class CollectionStore:
    """Opens, reads and commits. Reads from any thread; commits from one thread at a time."""

    def __init__(
        self, folder: Path, shape: Shape, environment: Environment, settings: bytes
    ) -> None:
        self.folder = folder
        self.settings = settings
        self._shape = shape
        self._env = environment

    @classmethod
    def create(
        cls, folder: Path, settings: bytes, shape: Shape, options: Mapping[str, Any]
    ) -> CollectionStore:
        """Makes a complete, durable, empty store in a folder that exists and is empty."""
        environment = _open(folder, options, create=True, read_only=False)

        def describe(transaction: Any) -> None:
            meta = environment.table("meta")
            transaction.put(META_FORMAT, str(COLLECTION_FORMAT).encode(), db=meta)
            transaction.put(META_SETTINGS, settings, db=meta)

        environment.write(describe)
        return cls(folder, shape, environment, settings)

    @classmethod
    def open(
        cls,
        folder: Path,
        shape_of: Callable[[bytes], Shape],
        options: Mapping[str, Any],
        *,
        read_only: bool,
    ) -> CollectionStore:
        """Opens an existing store. Raises FormatMismatch or Corrupted when it cannot be read."""
        environment = _open(folder, options, create=False, read_only=read_only)
        try:
            with environment.read() as transaction:
                reader = Reader(environment, transaction, Shape(1, "float32"))
                if reader.format() != COLLECTION_FORMAT:
                    raise FormatMismatch(
                        f"{folder} has collection format {reader.format()}, this version reads "
                        f"{COLLECTION_FORMAT}; open it with the version of vecdb that wrote it",
                        given=reader.format(),
                        expected=COLLECTION_FORMAT,
                    )
                settings = reader.settings()
            return cls(folder, shape_of(settings), environment, settings)
        except BaseException:
            environment.close()
            raise

    @contextmanager
    def read(self) -> Iterator[Reader]:
        """A short read transaction: one moment of the store. Do not keep it across other work."""
        with self._env.read() as transaction:
            yield Reader(self._env, transaction, self._shape)

    def commit(self, work: Callable[[Writer, int], Result]) -> tuple[Result, int]:
        """Runs `work(writer, sequence)` and commits; (its result, newest sequence).

        The commit counts as `sequence` only if `work` changed rows; otherwise the number stays free
        and the returned one is that of the last commit. `work` may run twice (see Environment.write).
        """

        def run(transaction: Any) -> tuple[Result, int]:
            writer = Writer(self._env, transaction, self._shape)
            sequence = writer.before.sequence + 1
            result = work(writer, sequence)
            if not writer.changed:
                return result, writer.before.sequence
            writer.finish(sequence, time.time_ns() // 1000)
            return result, sequence

        return self._env.write(run)

    def set_index_record(self, record: bytes | None) -> None:
        """Names the saved index; no commit of rows, so no sequence number."""
        self._env.write(
            lambda transaction: Writer(self._env, transaction, self._shape).set_index_record(record)
        )

    def has_metadata(self) -> bool:
        with self.read() as reader:
            return reader.entries("metadata") > 0

    def map_bytes(self) -> tuple[int, int]:
        """(bytes of the LMDB map in use, bytes it may grow to)."""
        return self._env.map_bytes()

    def close(self) -> None:
        self._env.close()


def _open(
    folder: Path, options: Mapping[str, Any], *, create: bool, read_only: bool
) -> Environment:
    return Environment(
        folder,
        COLLECTION_TABLES,
        create=create,
        read_only=read_only,
        map_initial_bytes=options["map_initial_bytes"],
        map_limit_bytes=options["map_limit_bytes"],
    )
