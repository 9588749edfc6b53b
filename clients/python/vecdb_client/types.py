# A copy of vecdb/types.py, made by tools/generate.py: change it there.
"""The dataclasses of the public interface: what calls return, the same embedded and over the wire.

Results are columns, not objects per record: a list of ids beside an array of vectors. `Records` and
`QueryResult` can still be walked record by record when that reads better.

The file stands alone on purpose: the client ships a copy of it, and `make check` compares the two.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Metric = Literal["cosine", "l2", "ip"]
Storage = Literal["float32", "float16"]
IndexKind = Literal["auto", "exact", "hnsw", "ivf"]
Scalar = str | int | float | bool | None | dt.datetime
Metadata = Mapping[str, Any]
"""JSON-like: Scalar values, lists of Scalars, nested mappings of the same."""

METRICS: tuple[Metric, ...] = ("cosine", "l2", "ip")
STORAGES: tuple[Storage, ...] = ("float32", "float16")
INDEX_KINDS: tuple[IndexKind, ...] = ("auto", "exact", "hnsw", "ivf")
INCLUDABLE: tuple[str, ...] = ("vector", "metadata", "document", "content", "uri")
FIELD_TYPES: tuple[str, ...] = ("string", "int", "float", "bool", "datetime")
"""Types of a metadata schema; each also as a list, written `string[]`."""

DEFAULT_K = 10
MAX_K = 10_000
MAX_ID_BYTES = 1_024
MAX_DIMENSION = 65_535
MAX_CONTENT_BYTES = 16 * 1024 * 1024
MAX_DOCUMENT_BYTES = 16 * 1024 * 1024
MAX_METADATA_BYTES = 1024 * 1024
MAX_URI_BYTES = 8_192
MAX_MEDIA_TYPE_BYTES = 255
MAX_BATCH_ROWS = 100_000
MAX_PAGE = 10_000


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes a vector was made from, such as an image or a sound; at most 16 MiB."""

    data: bytes
    media_type: str = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """The settings of a collection. All but `name` are fixed at creation."""

    name: str
    dimension: int
    metric: Metric = "cosine"
    storage: Storage = "float32"
    index: IndexKind = "auto"
    target_recall: float = 0.95
    """recall@k that queries reach unless they ask otherwise; 0.5 to 1.0, where 1.0 means exact."""
    schema: Mapping[str, str] = field(default_factory=dict)
    """Dotted metadata path to a type of `FIELD_TYPES`, `[]` behind it for a list; others are free."""
    description: str = ""
    created_at: dt.datetime = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


@dataclass(frozen=True, slots=True)
class WriteResult:
    """Acknowledgement of a write: durable, and visible to every later read."""

    sequence: int
    """Number of the commit that holds the write; pass it as `min_sequence` to a read."""
    count: int
    """Records inserted, upserted, updated or deleted."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record, for reading one at a time. Fields that were not included are None."""

    id: str
    vector: NDArray[np.float32] | None = None
    metadata: dict[str, Any] | None = None
    document: str | None = None
    content: Content | None = None
    uri: str | None = None


@dataclass(frozen=True, slots=True)
class Records:
    """A page of records, as columns. A column that was not included is None.

    `vectors` is float32, shape (len(ids), dimension), owned by the caller. `cursor` continues
    behind the last record, or is None when there is no more. `sequence` is the commit that was read.
    """

    ids: list[str]
    vectors: NDArray[np.float32] | None = None
    metadata: list[dict[str, Any]] | None = None
    documents: list[str | None] | None = None
    contents: list[Content | None] | None = None
    uris: list[str | None] | None = None
    cursor: str | None = None
    sequence: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Record]:
        for i, record_id in enumerate(self.ids):
            yield Record(
                record_id,
                None if self.vectors is None else self.vectors[i],
                None if self.metadata is None else self.metadata[i],
                None if self.documents is None else self.documents[i],
                None if self.contents is None else self.contents[i],
                None if self.uris is None else self.uris[i],
            )


@dataclass(frozen=True, slots=True)
class Hit:
    """One answer of a query, for reading one at a time."""

    id: str
    distance: float
    vector: NDArray[np.float32] | None = None
    metadata: dict[str, Any] | None = None
    document: str | None = None
    content: Content | None = None
    uri: str | None = None


@dataclass(frozen=True, slots=True)
class QueryResult:
    """Answers to q query vectors, nearest first.

    `ids[i]` holds the answers to query i, at most k, without padding. `distances` is float32, shape
    (q, k), NaN where fewer than k records match; smaller is nearer for every metric (l2: squared
    Euclidean, cosine: 1 - cos, ip: 1 - dot). The included columns are nested like `ids`;
    `vectors[i]` is float32 of shape (len(ids[i]), dimension). `sequence` is the commit that was read.
    """

    ids: list[list[str]]
    distances: NDArray[np.float32]
    vectors: list[NDArray[np.float32]] | None = None
    metadata: list[list[dict[str, Any]]] | None = None
    documents: list[list[str | None]] | None = None
    contents: list[list[Content | None]] | None = None
    uris: list[list[str | None]] | None = None
    sequence: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def hits(self, query: int = 0) -> list[Hit]:
        """The answers to one query as objects, nearest first."""
        i = query
        return [
            Hit(
                record_id,
                float(self.distances[i, j]),
                None if self.vectors is None else self.vectors[i][j],
                None if self.metadata is None else self.metadata[i][j],
                None if self.documents is None else self.documents[i][j],
                None if self.contents is None else self.contents[i][j],
                None if self.uris is None else self.uris[i][j],
            )
            for j, record_id in enumerate(self.ids[i])
        ]


@dataclass(frozen=True, slots=True)
class IndexStats:
    """State of a collection's index."""

    kind: str
    """What serves the indexed rows: `exact`, `hnsw` or `ivf`."""
    device: str
    indexed_rows: int
    """Rows in the main index; the rest is searched exactly."""
    tail_rows: int
    dead_rows: int
    """Deleted or replaced rows that still take space."""
    building: bool
    build_progress: float
    """Share of the running build that is done, 0 to 1; 1 when none is running."""
    memory_bytes: int
    file_bytes: int
    target_recall: float
    measured_recall: float
    """recall@10 measured by the last calibration on held-out rows; 1.0 where search is exact."""
    last_error: str = ""
    """Why the last build failed, empty if it did not."""


@dataclass(frozen=True, slots=True)
class CollectionStats:
    """Numbers about a collection at one moment; bytes are on disk unless named otherwise."""

    name: str
    sequence: int
    count: int
    """Live records, exact."""
    rows: int
    """Row numbers ever given out; grows with every insert and update."""
    disk_bytes: int
    map_used_bytes: int
    map_limit_bytes: int
    fields: Mapping[str, int]
    """Metadata paths seen, each with the number of rows that have it, dead rows included."""
    index: IndexStats


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What `check` found. `ok` means that nothing is wrong."""

    ok: bool
    records: int
    """Live records that were checked."""
    problems: Sequence[str] = ()
    """One sentence a fault, at most 100; empty when ok."""
