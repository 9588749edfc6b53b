# A copy of vecdb/types.py, made by tools/generate.py: change it there.
"""The dataclasses of the public interface: what calls return, the same embedded and over the wire.

Results are columns, not objects per record: a list of ids beside an array of vectors. `Records` and `QueryResult` can still be walked
record by record when that reads better. The file stands alone but for `repair_types.py`, on purpose: the client ships a copy of it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .repair_types import RepairStats

Metric = Literal["cosine", "l2", "ip", "hamming"]
Storage = Literal["float32", "float16", "int8", "uint8", "binary"]
IndexKind = Literal["auto", "exact", "hnsw", "ivf"]
Quantization = Literal["auto", "none", "float16", "sq8", "sq4", "pq4", "pq8"]
Scalar = str | int | float | bool | None | dt.datetime
Metadata = Mapping[str, Any]
"""JSON-like: Scalar values, lists of Scalars, nested mappings of the same."""

METRICS: tuple[Metric, ...] = ("cosine", "l2", "ip", "hamming")
STORAGES: tuple[Storage, ...] = ("float32", "float16", "int8", "uint8", "binary")
INDEX_KINDS: tuple[IndexKind, ...] = ("auto", "exact", "hnsw", "ivf")
QUANTIZATIONS: tuple[Quantization, ...] = ("auto", "none", "float16", "sq8", "sq4", "pq4", "pq8")
LISTS_ONLY: tuple[Quantization, ...] = ("pq4", "pq8")
"""Those of index `ivf`, and of `auto`, which then builds lists."""
INCLUDABLE: tuple[str, ...] = ("vector", "metadata", "document", "content", "uri", "named_vectors")
FIELD_TYPES: tuple[str, ...] = ("string", "int", "float", "bool", "datetime")
"""Types of a metadata schema; each also as a list, written `string[]`."""

DEFAULT_K = 10
MAX_K = 10_000
MAX_ID_BYTES = 1_024
MAX_DIMENSION = 65_535
MAX_VECTOR_FIELDS = 16
"""Named vector fields of a collection, beside the record's own vector."""
DEFAULT_GROUP_SIZE = 1
MAX_GROUP_SIZE = 100
MAX_MMR_CANDIDATES = 10_000
MAX_CONTENT_BYTES = 16 * 1024 * 1024
MAX_DOCUMENT_BYTES = 16 * 1024 * 1024
MAX_METADATA_BYTES = 1024 * 1024
MAX_URI_BYTES = 8_192
MAX_MEDIA_TYPE_BYTES = 255
MAX_BATCH_ROWS = 100_000
MAX_REQUEST_ID_BYTES = 64
MAX_PAGE = 10_000


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes a vector was made from, such as an image or a sound; at most 16 MiB."""

    data: bytes
    media_type: str = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class VectorSettings:
    """The settings of a named vector field; fixed when its collection is made."""

    dimension: int
    """Numbers a vector, 1 to 65,535; for storage `binary` bits, a multiple of 8."""
    metric: Metric = "cosine"
    """`hamming` for storage `binary`, which has no other; the others for numbers."""
    storage: Storage = "float32"
    index: IndexKind = "auto"
    quantization: Quantization = "auto"
    target_recall: float = 0.95


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """The settings of a collection. All but `name` are fixed at creation."""

    name: str
    dimension: int
    """Numbers a vector; for storage `binary` bits, a multiple of 8."""
    metric: Metric = "cosine"
    storage: Storage = "float32"
    index: IndexKind = "auto"
    target_recall: float = 0.95
    """recall@k that queries reach unless they ask otherwise; 0.5 to 1.0, where 1.0 means exact."""
    schema: Mapping[str, str] = field(default_factory=dict)
    """Dotted metadata path to a type of `FIELD_TYPES`, `[]` behind it for a list; others are free."""
    description: str = ""
    created_at: dt.datetime = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    quantization: Quantization = "auto"
    """How the index codes vectors; the store keeps them whole, and answers are ranked by the store."""
    vectors: Mapping[str, VectorSettings] = field(default_factory=dict)
    """Further, named vectors, at most 16; a record may lack any of them."""
    device: str = "auto"
    """What searches it: `auto`, `cpu`, `gpu`, or GPUs by number, `gpu:0` or `gpu:0,1`."""
    error: str | None = None
    """In a list: why it cannot be opened, with all but `name` None. Opening it raises the typed error."""

    @classmethod
    def unreadable(cls, name: str, error: str) -> CollectionInfo:
        """What is known of a collection that cannot be opened: `name` and `error`."""
        unknown: Any = None
        return cls(name, **dict.fromkeys([f.name for f in fields(cls)][1:-1], unknown), error=error)


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
    vector: NDArray[Any] | None = None
    metadata: dict[str, Any] | None = None
    document: str | None = None
    content: Content | None = None
    uri: str | None = None
    named_vectors: dict[str, NDArray[Any]] | None = None
    """Name to vector; names that the record lacks are left out."""


@dataclass(frozen=True, slots=True)
class Records:
    """A page of records, as columns. A column that was not included is None.

    `vectors` is float32, shape (len(ids), dimension), owned by the caller; in storage `binary` it is
    uint8, shape (len(ids), dimension / 8), packed as by `numpy.packbits`. `cursor` continues behind
    the last record, or is None when there is no more. `sequence` is the commit that was read.

    `named_vectors` holds such an array for each named vector field, and `named_present` a bool array of shape (len(ids),)
    that says who has one; the row of a record without is NaN (binary: zeros).
    """

    ids: list[str]
    vectors: NDArray[Any] | None = None
    metadata: list[dict[str, Any]] | None = None
    documents: list[str | None] | None = None
    contents: list[Content | None] | None = None
    uris: list[str | None] | None = None
    cursor: str | None = None
    sequence: int = 0
    named_vectors: dict[str, NDArray[Any]] | None = None
    named_present: dict[str, NDArray[np.bool_]] | None = None

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
                _present_rows(self.named_vectors, self.named_present, i),
            )


def _present_rows(
    named: Mapping[str, NDArray[Any]] | None,
    present: Mapping[str, NDArray[np.bool_]] | None,
    i: int,
) -> dict[str, NDArray[Any]] | None:
    """Row `i` of each named array, without those that are absent."""
    if named is None:
        return None
    return {name: rows[i] for name, rows in named.items() if present is None or present[name][i]}


@dataclass(frozen=True, slots=True)
class Hit:
    """One answer of a query, for reading one at a time."""

    id: str
    distance: float
    vector: NDArray[Any] | None = None
    metadata: dict[str, Any] | None = None
    document: str | None = None
    content: Content | None = None
    uri: str | None = None
    named_vectors: dict[str, NDArray[Any]] | None = None
    """Name to vector; names that the record lacks are left out."""
    group: Any = None
    """The value of `group_by` that this hit stands for; None without `group_by`."""


@dataclass(frozen=True, slots=True)
class Explain:
    """How a query was answered: the plan, what it read, and where the time went."""

    plan: str
    """`exact`; `codes`: every row, by its code; `graph` or `lists`: the walk of hnsw or of ivf; `overfetch`: such a walk under
    a filter, made wider until enough rows pass; `side-graph`: the walk of a graph of its own for a filter that is asked
    often; `tiled`: every allowed row, sent to a GPU that does not hold it; `exact-after-` these where they found too few."""
    kind: str
    """What serves the indexed rows: `exact`, `hnsw` or `ivf`."""
    quantization: str
    """How the index codes vectors: `none`, `float16`, `sq8`, `sq4`, `pq4` or `pq8`."""
    setting_name: str
    """The knob that trades recall for time: `efSearch`, `nprobe`, `itopk`, or empty where there is none."""
    setting: int
    """Its value in this query; 0 where there is none."""
    target_recall: float
    expected_recall: float
    """recall@10 that the calibration measured at this setting; 1.0 where search is exact."""
    rows: int
    """Live records of the collection."""
    allowed_rows: int
    """Those of them that the filter lets through; all of them without one."""
    indexed_rows: int
    """Rows of the main index."""
    tail_rows: int
    """Rows behind it, which are always compared exactly."""
    candidates: int
    """Answers that the index was asked for, over all queries of the call."""
    rows_compared: int
    """Rows compared by vector or code, also of the probed lists and to rank again; not what a graph's walk passes."""
    index_sequence: int
    """Commit that the main index was built at; 0 where there is none."""
    index_age_s: float
    """Seconds since then; 0.0 where there is none."""
    rows_since_index: int
    """Rows written since then."""
    batch: int
    """Queries that were searched together with this one; 1 means alone."""
    times_us: Mapping[str, float]
    """Microseconds by step: wait, filter, search, rerank, fetch and total."""
    sequence: int
    """Commit that was read."""
    device: str = "cpu"
    """What answered: `cpu`, or the GPUs, such as `gpu:0` or `gpu:0,1`."""
    device_note: str = ""
    """Why another device answered than the one asked for; empty where that one did."""


@dataclass(frozen=True, slots=True)
class QueryResult:
    """Answers to q query vectors, nearest first.

    `ids[i]` holds the answers to query i, at most k, without padding. `distances` is float32, shape (q, k), NaN where
    fewer than k records match; smaller is nearer for every metric (l2: squared Euclidean, cosine: 1 - cos, ip: 1 - dot,
    hamming: bits that differ). The included columns are nested like `ids`; `vectors[i]` is float32 of shape
    (len(ids[i]), dimension), in storage `binary` uint8 of shape (len(ids[i]), dimension / 8). `sequence` is the commit that was read.

    `named_vectors[name][i]` and `named_present[name][i]` are as in `Records`, for query i. With `group_by`, `groups` is nested
    like `ids` and holds the group of each hit, groups stand in the order of their best hits, and there are up to
    k * group_size hits a query. With `mmr_lambda` hits stand in the order they were picked in.
    """

    ids: list[list[str]]
    distances: NDArray[np.float32]
    vectors: list[NDArray[Any]] | None = None
    metadata: list[list[dict[str, Any]]] | None = None
    documents: list[list[str | None]] | None = None
    contents: list[list[Content | None]] | None = None
    uris: list[list[str | None]] | None = None
    sequence: int = 0
    named_vectors: dict[str, list[NDArray[Any]]] | None = None
    named_present: dict[str, list[NDArray[np.bool_]]] | None = None
    groups: list[list[Any]] | None = None
    explain: Explain | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def hits(self, query: int = 0) -> list[Hit]:
        """The answers to one query as objects, nearest first."""
        i = query
        named = present = None
        if self.named_vectors is not None:
            named = {name: rows[i] for name, rows in self.named_vectors.items()}
        if self.named_present is not None:
            present = {name: rows[i] for name, rows in self.named_present.items()}
        return [
            Hit(
                record_id,
                float(self.distances[i, j]),
                None if self.vectors is None else self.vectors[i][j],
                None if self.metadata is None else self.metadata[i][j],
                None if self.documents is None else self.documents[i][j],
                None if self.contents is None else self.contents[i][j],
                None if self.uris is None else self.uris[i][j],
                _present_rows(named, present, j),
                None if self.groups is None else self.groups[i][j],
            )
            for j, record_id in enumerate(self.ids[i])
        ]


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """What one setting of an index gives, as measured by its calibration."""

    setting: int
    """efSearch of hnsw, nprobe of ivf."""
    recall_at_10: float
    recall_at_100: float
    """For ivf recall@1000."""
    cost_us: float
    """us a query in batches, for k = 10; from a setting of 100 on k = 100 where a graph is walked over stored vectors."""


@dataclass(frozen=True, slots=True)
class AuditStats:
    """Live queries that were answered again exactly in spare time, and how the index did."""

    queries: int = 0
    """Queries audited so far; the share is the setting `audit_share`."""
    recall: float = 1.0
    """Their mean recall; 1.0 while there are none."""
    low: float = 0.0
    """Lower end of its 95 % confidence interval."""
    high: float = 1.0
    """Upper end of it."""


@dataclass(frozen=True, slots=True)
class IndexStats:
    """State of a collection's index."""

    kind: str
    """What serves the indexed rows: `exact`, `hnsw` or `ivf`."""
    device: str
    """What serves its searches: `cpu`, or the GPUs, such as `gpu:0` or `gpu:0,1`."""
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
    quantization: str = "none"
    """How the index codes vectors: `none`, `float16`, `sq8`, `sq4`, `pq4` or `pq8`."""
    curve: Sequence[CurvePoint] = ()
    """The last calibration, by rising setting; empty where search is exact."""
    built_at_sequence: int = 0
    """Commit that the main index was built at; 0 where there is none."""
    age_s: float = 0.0
    """Seconds since that build; 0.0 where there is none."""
    audit: AuditStats = field(default_factory=AuditStats)
    device_bytes: int = 0
    """Memory of GPUs that it takes, all of them together; 0 where none serves it."""
    device_note: str = ""
    """Why another device serves it than the one asked for; empty where that one does."""


@dataclass(frozen=True, slots=True)
class DeviceStats:
    """A GPU that the engine uses, and the queue before it, at one moment; counts are since it was opened."""

    name: str
    """`gpu:0`, `gpu:1` and so on."""
    card: str
    """What it is, such as `NVIDIA H200`; empty, and all numbers 0, before it was started."""
    state: str
    """`idle` (not needed yet), `starting`, `up`, `down` or `closed`; the CPU answers while it is not `up`."""
    total_bytes: int
    """Memory of the GPU."""
    budget_bytes: int
    """What placements may take of it."""
    used_bytes: int
    """What they take."""
    placements: int
    """Indexes and parts of them that it holds."""
    queued: int
    """Searches that wait for it."""
    batches: int
    """Calls that searched on it; what waits together is searched together."""
    queries: int
    """Query vectors in them."""
    restarts: int
    """Times that its process was started again after it had died."""
    last_error: str = ""
    """Why its process died last, empty if it did not."""
    evictions: int = 0
    """Indexes and parts of them that had to go from it to make room for others."""


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
    vectors: Mapping[str, IndexStats] = field(default_factory=dict)
    """The index of each named vector field."""
    purged_rows: int = 0
    """Dead rows whose space was given back."""
    devices: Sequence[DeviceStats] = ()
    """The GPUs that the engine uses, for all collections together; empty where the CPU serves alone."""
    durability: str = "commit"
    """When a write is acknowledged: commit, interval; empty in a process that only reads."""
    synced_sequence: int = 0
    """Newest commit that is on the disk for sure; `sequence` itself with durability `commit`, 0 in a process that only reads."""
    repairs: Sequence[RepairStats] = ()
    """Repairs of its file that could not keep everything, the oldest first, at most the newest 20."""


@dataclass(frozen=True, slots=True)
class CompactResult:
    """What `compact` did; bytes are those of the collection's files on disk."""

    purged_rows: int
    """Dead rows whose space was given back by this call."""
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What `check` found. `ok` means that nothing is wrong."""

    ok: bool
    records: int
    """Live records that were checked."""
    problems: Sequence[str] = ()
    """One sentence a fault, at most 100; empty when ok."""
