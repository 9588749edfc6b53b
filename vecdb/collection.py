"""The verbs of a collection, as users call them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from . import collection_stats, durability, paging, searching
from .batch import check_columns, check_ids, check_patch, check_request_id
from .builder import Builder
from .core import Core
from .deleting import Matching
from .errors import InvalidBatch, InvalidQuery
from .out_of_memory import memory_told, tells_memory
from .parsed_filters import FilterLike, parsed
from .query_spec import check_k, check_query, check_share
from .recall_audit import audit_of
from .stopping import deadline
from .types import (
    CheckReport,
    CollectionInfo,
    CollectionStats,
    CompactResult,
    Content,
    IndexStats,
    Metadata,
    QueryResult,
    Records,
    WriteResult,
)
from .writes import Delete, Once, Put, Update

log = logging.getLogger("vecdb")

NamedVectors = Mapping[str, Any] | None
"""Name of a vector field to an array (n, d), or to a list of n vectors with None where a record has none."""
_CLEARABLE = ("metadata", "document", "content", "uri")


@tells_memory
class Collection:
    """Records of one dimension and metric. Get it from a `Database`; any thread may use it.

    Writes are atomic for each call, durable when they return (with durability `interval` soon after, see
    `flush`), and visible to every later read. Reads
    see one moment and wait for nobody. Filters are explained in README.md, section "Filters".
    Every method raises Closed once the collection was dropped or the database closed.
    """

    def __init__(self, core: Core, builder: Builder) -> None:
        self._core = core
        self._builder = builder
        self._audit = audit_of(core, builder)

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
        named_vectors: NamedVectors = None,
        request_id: str | None = None,
    ) -> WriteResult:
        """Adds records; all columns have one entry an id.

        `vectors`: (n, dimension), anything numpy reads as numbers; stored in the collection's
        storage type; a single vector counts as one row. Storage int8 and uint8 take whole numbers in
        range, binary takes (n, dimension / 8) bytes as `numpy.packbits` makes them. `named_vectors`
        maps names of vector fields to the same, or to lists with None. At most 100,000 records.
        Raises RecordExists (naming the ids) if one is stored; InvalidBatch, InvalidId,
        InvalidVector, InvalidMetadata naming the record; StorageFull. Then nothing is written.
        With a `request_id`, a text of 1 to 64 bytes that no other write has, a repetition is answered as
        the first time and not done again, also after a crash: for an hour, or 100,000 further ones.
        """
        return self.prepare_put(
            ids, vectors, metadata=metadata, documents=documents, contents=contents, uris=uris,
            named_vectors=named_vectors, request_id=request_id, replace=False,
        )()  # fmt: skip

    def upsert(
        self,
        ids: Iterable[str],
        vectors: Any,
        *,
        metadata: Sequence[Metadata | None] | None = None,
        documents: Sequence[str | None] | None = None,
        contents: Sequence[Content | tuple[bytes, str] | bytes | None] | None = None,
        uris: Sequence[str | None] | None = None,
        named_vectors: NamedVectors = None,
        request_id: str | None = None,
    ) -> WriteResult:
        """Adds records, replacing as a whole those whose ids are stored. Otherwise like `insert`."""
        return self.prepare_put(
            ids, vectors, metadata=metadata, documents=documents, contents=contents, uris=uris,
            named_vectors=named_vectors, request_id=request_id, replace=True,
        )()  # fmt: skip

    def prepare_put(
        self,
        ids: Iterable[str],
        vectors: Any,
        *,
        replace: bool,
        metadata: Sequence[Metadata | None] | None = None,
        documents: Sequence[str | None] | None = None,
        contents: Sequence[Content | tuple[bytes, str] | bytes | None] | None = None,
        uris: Sequence[str | None] | None = None,
        named_vectors: NamedVectors = None,
        request_id: str | None = None,
    ) -> Callable[[], WriteResult]:
        """`insert`, or with `replace` `upsert`, in two steps: checks and encodes; what it returns commits, when
        it is called, once. So a thread can prepare a batch while another waits for the disk with the one before.
        """
        core = self._core
        batch = check_columns(
            core.info, ids, vectors, metadata, documents, contents, uris, named_vectors
        )
        put = Put(batch, core.ready_columns(), replace=replace)
        return partial(memory_told(self._write), put, request_id)

    def update(
        self,
        ids: Iterable[str],
        *,
        vectors: Any = None,
        metadata: Sequence[Metadata | None] | None = None,
        documents: Sequence[str | None] | None = None,
        contents: Sequence[Content | tuple[bytes, str] | bytes | None] | None = None,
        uris: Sequence[str | None] | None = None,
        named_vectors: NamedVectors = None,
        clear: Iterable[str] | None = (),
        request_id: str | None = None,
    ) -> WriteResult:
        """Changes parts of stored records; what is not given, or None for a record, stays.

        Metadata is merged (RFC 7396): null removes a key, nested mappings merge, lists are replaced.
        `clear` names parts that are removed from each of these records before the rest applies:
        metadata, document, content, uri. Raises RecordNotFound (naming the ids), Corrupted when any of the records fails
        its checksum, since damaged parts would be taken over, and as `insert`.
        """
        core = self._core
        cleared = frozenset([clear] if isinstance(clear, str) else clear or ())
        if not cleared <= set(_CLEARABLE):
            unknown = sorted(map(str, cleared - set(_CLEARABLE)))[0]
            raise InvalidQuery(f"clear takes {', '.join(_CLEARABLE)}; given {unknown!r}")
        batch = check_patch(
            core.info, ids, vectors, metadata, documents, contents, uris, named_vectors
        )
        return self._write(Update(batch, core.info, core.ready_columns(), cleared), request_id)

    def delete(
        self,
        ids: Iterable[str] | None = None,
        *,
        filter: FilterLike = None,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> WriteResult:
        """Deletes by ids, by filter, or what is in both; `count` says how many.

        A filter deletes what matches at the moment of the commit. Other writes go on while it is evaluated.
        Ids that are not stored are passed over. Raises InvalidBatch when neither is given: an empty
        filter `{}` deletes everything. DeadlineExceeded when the filter is not evaluated within `timeout_s`
        (default: never); then nothing is deleted.
        """
        if ids is None and filter is None:
            raise InvalidBatch(
                "delete takes ids, a filter or both; to delete everything give filter={}"
            )
        expression = parsed(filter)
        names = None if ids is None else check_ids(ids)
        core = self._core
        found = None if expression is None else Matching(core, expression, timeout_s)
        text = "" if expression is None else expression.text
        matching = None if found is None else found.now
        write = Delete(names, matching, text)
        return self._write(write, request_id)

    def _write(self, write: Put | Update | Delete, request_id: str | None) -> WriteResult:
        once = write if request_id is None else Once(write, check_request_id(request_id))
        applied, sequence = self._core.write(once)
        try:
            self._builder.consider(self._core)
        except Exception:  # It is done, and must not be called undone.
            log.exception("collection %s: a commit stands, but what it calls for failed", self.name)
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
        Records of pages are compared with their checksums as by `scan`, those of `ids` are not.
        """
        core = self._core
        expression = parsed(filter)
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
        positive: Iterable[Any] | None = None,
        negative: Iterable[Any] | None = None,
        vector_name: str | None = None,
        k: int | None = None,
        filter: FilterLike = None,
        exact: bool = False,
        max_distance: float | None = None,
        target_recall: float | None = None,
        group_by: str | None = None,
        group_size: int | None = None,
        mmr_lambda: float | None = None,
        mmr_candidates: int | None = None,
        explain: bool = False,
        include: Iterable[str] = (),
        min_sequence: int | None = None,
        timeout_s: float | None = None,
        raw_metadata: bool = False,
        max_bytes: int | None = None,
    ) -> QueryResult:
        """The k nearest records to each query vector (q, dimension), or to each stored record of `ids`,
        or to the mean of examples.

        Query by one of three: `vectors`; `ids`, each left out of its own answer; `positive` examples,
        record ids and vectors mixed, which make one query: their mean, under cosine of examples of
        length 1, with `negative` ones 2 mean(positive) - mean(negative); records named are left out.
        `vector_name` names a vector field to search instead of the records' own vectors; records
        without it never answer. Storage binary takes (q, dimension / 8) uint8, and no examples.

        `k`: 1 to 10,000, default 10; there are k answers whenever k records match. `max_distance`
        leaves out what is farther; without `k` it returns all that is within (at most 10,000, found
        exactly). `exact` compares every vector; otherwise recall@k reaches `target_recall` (default:
        the field's). Queries times k are at most 5 million.

        `group_by` a metadata path: the best `group_size` (1 to 100, default 1) hits of each of the best
        k groups, group by group, best group first; `result.groups` has their values. There are k groups
        whenever the matching records are in k. A list puts a record into the group of each element.
        `mmr_lambda` 0 to 1 picks k of the `mmr_candidates` nearest (default 4 k, at least 50) one by
        one by maximal marginal relevance; 1 is by distance alone, less prefers hits unlike each other.

        `explain` fills `result.explain`. `include`: vector, metadata, document, content, uri,
        named_vectors. With `raw_metadata` metadata entries are JSON bytes, empty for none. `max_bytes`
        bounds what the included parts may take (LimitExceeded). `min_sequence` waits for a commit.
        Raises InvalidQuery, InvalidVector, InvalidFilter, RecordNotFound, DeadlineExceeded.
        """
        expression = parsed(filter)
        if self._core.unasked:
            self._core.unasked = False
            self._builder.consider(self._core)
        plain = (
            type(vectors) is np.ndarray
            and vectors.dtype == np.float32
            and not include
            and ids is None
            and positive is None
            and negative is None
            and vector_name is None
            and max_distance is None
            and group_by is None
            and group_size is None
            and mmr_lambda is None
            and mmr_candidates is None
            and not explain
            and min_sequence is None
        )
        if plain:
            check_share("target_recall", target_recall, 0.5)
            found = searching.query_plain(
                self._core, self._audit, vectors, check_k(k, None), expression, exact,
                target_recall, timeout_s,
            )  # fmt: skip
            if found is not None:
                return found
        asked = check_query(
            vectors=vectors, ids=ids, positive=positive, negative=negative, vector_name=vector_name,
            k=k, filter=expression, exact=exact, max_distance=max_distance,
            target_recall=target_recall, group_by=group_by, group_size=group_size,
            mmr_lambda=mmr_lambda, mmr_candidates=mmr_candidates, explain=explain, include=include,
            min_sequence=min_sequence, timeout_s=timeout_s, raw_metadata=raw_metadata,
            max_bytes=max_bytes,
        )  # fmt: skip
        return searching.query(self._core, self._audit, asked)

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
        expression = parsed(filter)
        interrupt = deadline(timeout_s)
        view = core.wait_for(min_sequence, timeout_s)
        if expression is None:
            return view.n_live, view.sequence
        moment = core.moment(view)
        return moment.count(core.matching(expression, moment, interrupt)), view.sequence

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
        Corrupted, with the ids, where a record fails its checksum, whatever part of it is damaged: all of a record
        is read for that, its content too. With `include=[]` nothing of it is read, and nothing compared.
        """
        return paging.scan(
            self._core, parsed(filter), include, batch_size, cursor, slice_index, slices,
            min_sequence, timeout_s, raw_metadata=raw_metadata,
        )  # fmt: skip

    # -- numbers and care

    def stats(self) -> CollectionStats:
        """Numbers about the collection and its indexes at one moment."""
        return collection_stats.collection_stats(self._core, self._builder, self._audit)

    def check(self, *, timeout_s: float | None = None) -> CheckReport:
        """Compares all stored structures with each other, and what is held in memory with them.

        Reads everything once, about 15 us a record, in one read transaction; then files that an upgrade has kept
        beside, which takes two thirds of that again for each, and the sync point of durability `interval`. Copies in memory that
        are not as stored are named ("in memory: ...") and made anew by the next call; beside a store with faults they are
        not compared. Writers wait for a microsecond a metadata path. Raises DeadlineExceeded soon after `timeout_s` (default: never).
        """
        return collection_stats.check(self._core, timeout_s)

    def build_index(self, *, wait: bool = True, timeout_s: float | None = None) -> IndexStats:
        """Indexes the rows of the tail now, in all vector fields; with `wait` returns when that is done.

        Kind `exact`, and collections too small for their kind, have nothing to build. Returns the
        state of the index of the records' own vectors. Raises DeadlineExceeded after `timeout_s` (the
        build goes on), Cancelled, LimitExceeded (build_memory_bytes), ReadOnly.
        """
        self._builder.build(self._core, wait=wait, timeout_s=timeout_s)
        core = self._core
        return collection_stats.index_stats(core, self._builder, self._audit, core.field(None))

    def cancel_build(self) -> bool:
        """Stops the builds of this collection, queued and running; whether there were any.

        Returns when they have let go; what served before goes on serving. Raises ReadOnly.
        """
        return self._builder.cancel_build(self._core)

    def flush(self) -> int:
        """Returns when every write acknowledged so far is on the disk; the newest commit of them.

        With durability `commit` that is so at once. Raises ReadOnly when the disk has failed, or the
        database is read-only.
        """
        return durability.flush(self._core)

    def compact(self, *, wait: bool = True, timeout_s: float | None = None) -> CompactResult:
        """Gives back the space of dead records that no scan can still want, and of free pages.

        Happens by itself when dead records pass the share `compact_dead_share`. Reads and writes go on
        meanwhile, writers wait while the file is copied. With `wait` returns when it is done; without,
        the result has no numbers yet. Raises DeadlineExceeded after `timeout_s` (it goes on), ReadOnly.
        """
        return self._builder.compact(self._core, wait=wait, timeout_s=timeout_s)
