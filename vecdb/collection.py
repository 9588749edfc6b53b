"""The verbs of a collection, as users call them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from . import paging, searching
from .batch import check_columns, check_ids, check_patch
from .builder import Builder
from .core import Core, deadline, folder_bytes
from .errors import Corrupted, InvalidBatch, InvalidQuery
from .filters import Filter, parse
from .store import problems
from .types import (
    CheckReport,
    CollectionInfo,
    CollectionStats,
    Content,
    IndexStats,
    Metadata,
    QueryResult,
    Records,
    WriteResult,
)
from .writes import Delete, Put, Update

FilterLike = str | bytes | Mapping[str, Any] | Filter | None
_CLEARABLE = ("metadata", "document", "content", "uri")
_MAX_PROBLEMS = 100


class Collection:
    """Records of one dimension and metric. Get it from a `Database`; any thread may use it.

    Writes are atomic for each call, durable when they return, and visible to every later read. Reads
    see one moment and wait for nobody. Filters are explained in README.md, section "Filters".
    Every method raises Closed once the collection was dropped or the database closed.
    """

    def __init__(self, core: Core, builder: Builder) -> None:
        self._core = core
        self._builder = builder

    def __repr__(self) -> str:
        return f"<vecdb collection {self.name!r}>"

    @property
    def info(self) -> CollectionInfo:
        """Settings the collection was created with, under its present name."""
        return self._core.info

    @property
    def name(self) -> str:
        return self._core.info.name

    # -- writing

    def insert(
        self,
        ids: Iterable[str],
        vectors: Any,
        *,
        metadata: Sequence[Metadata | None] | None = None,
        documents: Sequence[str | None] | None = None,
        contents: Sequence[Content | tuple[bytes, str] | bytes | None] | None = None,
        uris: Sequence[str | None] | None = None,
    ) -> WriteResult:
        """Adds records; all columns have one entry an id.

        `vectors`: (n, dimension), anything numpy reads as numbers; stored in the collection's
        storage type; a single vector counts as one row. At most 100,000 records.
        Raises RecordExists (naming the ids) if one is stored; InvalidBatch, InvalidId,
        InvalidVector, InvalidMetadata naming the record; StorageFull. Then nothing is written.
        """
        return self._put(ids, vectors, metadata, documents, contents, uris, replace=False)

    def upsert(
        self,
        ids: Iterable[str],
        vectors: Any,
        *,
        metadata: Sequence[Metadata | None] | None = None,
        documents: Sequence[str | None] | None = None,
        contents: Sequence[Content | tuple[bytes, str] | bytes | None] | None = None,
        uris: Sequence[str | None] | None = None,
    ) -> WriteResult:
        """Adds records, replacing as a whole those whose ids are stored. Otherwise like `insert`."""
        return self._put(ids, vectors, metadata, documents, contents, uris, replace=True)

    def _put(
        self,
        ids: Any,
        vectors: Any,
        metadata: Any,
        documents: Any,
        contents: Any,
        uris: Any,
        *,
        replace: bool,
    ) -> WriteResult:
        core = self._core
        batch = check_columns(core.info, ids, vectors, metadata, documents, contents, uris)
        return self._write(Put(batch, core.ready_columns(), replace=replace))

    def update(
        self,
        ids: Iterable[str],
        *,
        vectors: Any = None,
        metadata: Sequence[Metadata | None] | None = None,
        documents: Sequence[str | None] | None = None,
        contents: Sequence[Content | tuple[bytes, str] | bytes | None] | None = None,
        uris: Sequence[str | None] | None = None,
        clear: Iterable[str] | None = (),
    ) -> WriteResult:
        """Changes parts of stored records; what is not given, or None for a record, stays.

        Metadata is merged (RFC 7396): null removes a key, nested mappings merge, lists are replaced.
        `clear` names parts that are removed from each of these records before the rest applies:
        metadata, document, content, uri. Raises RecordNotFound (naming the ids), and as `insert`.
        """
        core = self._core
        cleared = frozenset([clear] if isinstance(clear, str) else clear or ())
        if not cleared <= set(_CLEARABLE):
            unknown = sorted(map(str, cleared - set(_CLEARABLE)))[0]
            raise InvalidQuery(f"clear takes {', '.join(_CLEARABLE)}; given {unknown!r}")
        batch = check_patch(core.info, ids, vectors, metadata, documents, contents, uris)
        return self._write(Update(batch, core.info, core.ready_columns(), cleared))

    def delete(self, ids: Iterable[str] | None = None, *, filter: FilterLike = None) -> WriteResult:
        """Deletes by ids, by filter, or what is in both; `count` says how many.

        Ids that are not stored are passed over. Raises InvalidBatch when neither is given: an empty
        filter `{}` deletes everything.
        """
        if ids is None and filter is None:
            raise InvalidBatch(
                "delete takes ids, a filter or both; to delete everything give filter={}"
            )
        expression = _filter(filter)
        names = None if ids is None else check_ids(ids)
        core = self._core

        def matching() -> Any:
            assert expression is not None
            moment = core.moment(core.view)
            return np.flatnonzero(core.matching(expression, moment) & moment.live)

        if expression is not None:
            core.ready_columns()
        asked = None if expression is None else matching
        return self._write(Delete(names, asked, lambda rows: core.ids.take(rows)))

    def _write(self, write: Put | Update | Delete) -> WriteResult:
        applied, sequence = self._core.write(write)
        self._builder.consider(self._core)
        return WriteResult(sequence, applied.count)

    # -- reading

    def get(
        self,
        ids: Iterable[str] | None = None,
        *,
        filter: FilterLike = None,
        order_by: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
        include: Iterable[str] = ("metadata", "document"),
        min_sequence: int | None = None,
        timeout_s: float | None = None,
        raw_metadata: bool = False,
        max_bytes: int | None = None,
    ) -> Records:
        """Reads records: those of `ids` that are stored, in their order, or a page by filter.

        Pages: `limit` 1 to 10,000 (default 100); `order_by` a metadata path or `id`, with `-` before
        it to descend (default: row order, where an update counts as new); records without the field
        come last. `cursor` is that of the page before; all pages show the moment of the first.
        A page of large documents or contents may be shorter than `limit`.
        `include`: vector, metadata, document, content, uri. `min_sequence` waits for a commit.
        With `raw_metadata` metadata entries are JSON bytes, empty for none. `max_bytes` refuses
        (LimitExceeded) ids whose included parts are larger together; pages are cut shorter anyway.
        """
        core = self._core
        expression = _filter(filter)
        if ids is not None:
            if order_by or cursor or limit is not None:
                raise InvalidQuery(
                    "get by ids keeps the order of ids; order_by, limit and cursor do not apply"
                )
            return paging.get_by_ids(
                core,
                ids,
                expression,
                include,
                min_sequence,
                timeout_s,
                raw_metadata=raw_metadata,
                max_bytes=max_bytes,
            )
        page = 100 if limit is None else limit
        return paging.get_page(
            core, expression, order_by, page, cursor, include, min_sequence, timeout_s,
            raw_metadata=raw_metadata,
        )  # fmt: skip

    def query(
        self,
        vectors: Any = None,
        *,
        ids: Iterable[str] | None = None,
        k: int | None = None,
        filter: FilterLike = None,
        exact: bool = False,
        max_distance: float | None = None,
        target_recall: float | None = None,
        include: Iterable[str] = (),
        min_sequence: int | None = None,
        timeout_s: float | None = None,
        raw_metadata: bool = False,
        max_bytes: int | None = None,
    ) -> QueryResult:
        """The k nearest records to each query vector (q, dimension), or to each stored record of `ids`.

        A record queried by id is left out of its own answer. `k`: 1 to 10,000, default 10.
        `max_distance` leaves out what is farther; without `k` it returns all that is within (at most
        10,000, found exactly). `exact` compares every vector; otherwise recall@k reaches
        `target_recall` (default: the collection's). There are k answers whenever k records match.
        Queries times k are at most 5 million; `max_bytes` bounds what the included parts may take
        (LimitExceeded). With `raw_metadata` metadata entries are JSON bytes, empty for none.
        """
        return searching.query(
            self._core, vectors, ids, k, _filter(filter), exact, max_distance, target_recall, include,
            min_sequence, timeout_s, raw_metadata=raw_metadata, max_bytes=max_bytes,
        )  # fmt: skip

    def count(
        self,
        filter: FilterLike = None,
        *,
        min_sequence: int | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Live records that match, exact."""
        return self.count_at(filter, min_sequence=min_sequence, timeout_s=timeout_s)[0]

    def count_at(
        self,
        filter: FilterLike = None,
        *,
        min_sequence: int | None = None,
        timeout_s: float | None = None,
    ) -> tuple[int, int]:
        """`count`, and the sequence of the commit that was counted."""
        core = self._core
        expression = _filter(filter)
        interrupt = deadline(timeout_s)
        view = core.wait_for(min_sequence, timeout_s)
        if expression is None:
            return view.n_live, view.sequence
        moment = core.moment(view)
        return int(
            (core.matching(expression, moment, interrupt) & moment.live).sum()
        ), view.sequence

    def scan(
        self,
        *,
        filter: FilterLike = None,
        include: Iterable[str] = ("vector", "metadata", "document"),
        batch_size: int = 1_000,
        cursor: str | None = None,
        slice_index: int = 0,
        slices: int = 1,
        min_sequence: int | None = None,
        timeout_s: float | None = None,
        raw_metadata: bool = False,
    ) -> Iterator[Records]:
        """Streams every matching record in row order, as of the moment of the call.

        Each batch has a cursor that resumes behind it, in another process too; the last one has
        None. `slice_index` of `slices` reads a part: the parts are disjoint and cover everything.
        Arguments are checked at once; no lock is held and no transaction is open between batches.
        """
        return paging.scan(
            self._core, _filter(filter), include, batch_size, cursor, slice_index, slices,
            min_sequence, timeout_s, raw_metadata=raw_metadata,
        )  # fmt: skip

    # -- numbers and care

    def stats(self) -> CollectionStats:
        """Numbers about the collection and its index at one moment."""
        core = self._core
        view = core.view
        used, limit = core.store.map_bytes()
        return CollectionStats(
            name=self.name,
            sequence=view.sequence,
            count=view.n_live,
            rows=view.n_rows,
            disk_bytes=folder_bytes(core.store.folder),
            map_used_bytes=used,
            map_limit_bytes=limit,
            fields=core.ready_columns().fields(),
            index=self._index_stats(),
        )

    def _index_stats(self) -> IndexStats:
        core, figures = self._core, self._core.index.stats()
        record, progress = core.record, self._builder.progress(core)
        return IndexStats(
            kind=figures.kind,
            device=figures.device,
            indexed_rows=figures.indexed_rows,
            tail_rows=figures.tail_rows,
            dead_rows=figures.dead_rows,
            building=progress is not None,
            build_progress=1.0 if progress is None else progress,
            memory_bytes=figures.memory_bytes,
            file_bytes=0 if record is None else record.file_bytes,
            target_recall=core.info.target_recall,
            measured_recall=figures.measured_recall,
            last_error=core.last_error,
        )

    def check(self) -> CheckReport:
        """Compares all stored structures, and the index's counts, with each other.

        Reads everything once, about 10 us a record, in one read transaction.
        """
        core = self._core
        found: list[str] = []
        with core.exclusive():
            view = core.view
            with core.read() as reader:
                state = reader.state()
                if (view.sequence, view.n_rows, view.n_live) != tuple(state):
                    found.append(
                        f"the index is at commit {view.sequence} with {view.n_rows} rows and "
                        f"{view.n_live} live ones, the store at {tuple(state)}"
                    )
        with core.read() as reader:
            state = reader.state()
            try:
                for sentence in problems(reader):
                    found.append(sentence)
                    if len(found) >= _MAX_PROBLEMS:
                        break
            except Corrupted as error:
                found.append(error.message)
        return CheckReport(not found, state.live, tuple(found))

    def build_index(self, *, wait: bool = True, timeout_s: float | None = None) -> IndexStats:
        """Indexes the rows of the tail now; with `wait` returns when that is done.

        Kind `exact`, and collections too small for their kind, have nothing to build. Raises
        DeadlineExceeded after `timeout_s` (the build goes on), ReadOnly.
        """
        self._builder.build(self._core, wait=wait, timeout_s=timeout_s)
        return self._index_stats()


def _filter(given: FilterLike) -> Filter | None:
    """A parsed filter, None where none was given. An empty text is no filter: InvalidFilter."""
    return given if given is None or isinstance(given, Filter) else parse(given)
