from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Metric(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    METRIC_UNSPECIFIED: _ClassVar[Metric]
    METRIC_COSINE: _ClassVar[Metric]
    METRIC_L2: _ClassVar[Metric]
    METRIC_IP: _ClassVar[Metric]
    METRIC_HAMMING: _ClassVar[Metric]

class ElementType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ELEMENT_TYPE_UNSPECIFIED: _ClassVar[ElementType]
    ELEMENT_TYPE_FLOAT32: _ClassVar[ElementType]
    ELEMENT_TYPE_FLOAT16: _ClassVar[ElementType]
    ELEMENT_TYPE_INT8: _ClassVar[ElementType]
    ELEMENT_TYPE_UINT8: _ClassVar[ElementType]
    ELEMENT_TYPE_BINARY: _ClassVar[ElementType]

class IndexKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INDEX_KIND_UNSPECIFIED: _ClassVar[IndexKind]
    INDEX_KIND_AUTO: _ClassVar[IndexKind]
    INDEX_KIND_EXACT: _ClassVar[IndexKind]
    INDEX_KIND_HNSW: _ClassVar[IndexKind]
    INDEX_KIND_IVF: _ClassVar[IndexKind]

class Quantization(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    QUANTIZATION_UNSPECIFIED: _ClassVar[Quantization]
    QUANTIZATION_AUTO: _ClassVar[Quantization]
    QUANTIZATION_NONE: _ClassVar[Quantization]
    QUANTIZATION_FLOAT16: _ClassVar[Quantization]
    QUANTIZATION_SQ8: _ClassVar[Quantization]
    QUANTIZATION_SQ4: _ClassVar[Quantization]
    QUANTIZATION_PQ4: _ClassVar[Quantization]
    QUANTIZATION_PQ8: _ClassVar[Quantization]

class Include(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INCLUDE_UNSPECIFIED: _ClassVar[Include]
    INCLUDE_VECTOR: _ClassVar[Include]
    INCLUDE_METADATA: _ClassVar[Include]
    INCLUDE_DOCUMENT: _ClassVar[Include]
    INCLUDE_CONTENT: _ClassVar[Include]
    INCLUDE_URI: _ClassVar[Include]
    INCLUDE_NAMED_VECTORS: _ClassVar[Include]

class BackupKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BACKUP_KIND_UNSPECIFIED: _ClassVar[BackupKind]
    BACKUP_KIND_AUTO: _ClassVar[BackupKind]
    BACKUP_KIND_FULL: _ClassVar[BackupKind]
    BACKUP_KIND_INCREMENTAL: _ClassVar[BackupKind]
METRIC_UNSPECIFIED: Metric
METRIC_COSINE: Metric
METRIC_L2: Metric
METRIC_IP: Metric
METRIC_HAMMING: Metric
ELEMENT_TYPE_UNSPECIFIED: ElementType
ELEMENT_TYPE_FLOAT32: ElementType
ELEMENT_TYPE_FLOAT16: ElementType
ELEMENT_TYPE_INT8: ElementType
ELEMENT_TYPE_UINT8: ElementType
ELEMENT_TYPE_BINARY: ElementType
INDEX_KIND_UNSPECIFIED: IndexKind
INDEX_KIND_AUTO: IndexKind
INDEX_KIND_EXACT: IndexKind
INDEX_KIND_HNSW: IndexKind
INDEX_KIND_IVF: IndexKind
QUANTIZATION_UNSPECIFIED: Quantization
QUANTIZATION_AUTO: Quantization
QUANTIZATION_NONE: Quantization
QUANTIZATION_FLOAT16: Quantization
QUANTIZATION_SQ8: Quantization
QUANTIZATION_SQ4: Quantization
QUANTIZATION_PQ4: Quantization
QUANTIZATION_PQ8: Quantization
INCLUDE_UNSPECIFIED: Include
INCLUDE_VECTOR: Include
INCLUDE_METADATA: Include
INCLUDE_DOCUMENT: Include
INCLUDE_CONTENT: Include
INCLUDE_URI: Include
INCLUDE_NAMED_VECTORS: Include
BACKUP_KIND_UNSPECIFIED: BackupKind
BACKUP_KIND_AUTO: BackupKind
BACKUP_KIND_FULL: BackupKind
BACKUP_KIND_INCREMENTAL: BackupKind

class Vectors(_message.Message):
    __slots__ = ("data", "count", "dimension", "element_type")
    DATA_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    ELEMENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    count: int
    dimension: int
    element_type: ElementType
    def __init__(self, data: _Optional[bytes] = ..., count: _Optional[int] = ..., dimension: _Optional[int] = ..., element_type: _Optional[_Union[ElementType, str]] = ...) -> None: ...

class NamedVectors(_message.Message):
    __slots__ = ("name", "vectors", "present")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    name: str
    vectors: Vectors
    present: bytes
    def __init__(self, name: _Optional[str] = ..., vectors: _Optional[_Union[Vectors, _Mapping]] = ..., present: _Optional[bytes] = ...) -> None: ...

class TextColumn(_message.Message):
    __slots__ = ("values", "present")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[str]
    present: bytes
    def __init__(self, values: _Optional[_Iterable[str]] = ..., present: _Optional[bytes] = ...) -> None: ...

class ContentColumn(_message.Message):
    __slots__ = ("values", "media_types", "present")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPES_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[bytes]
    media_types: _containers.RepeatedScalarFieldContainer[str]
    present: bytes
    def __init__(self, values: _Optional[_Iterable[bytes]] = ..., media_types: _Optional[_Iterable[str]] = ..., present: _Optional[bytes] = ...) -> None: ...

class RecordBatch(_message.Message):
    __slots__ = ("ids", "vectors", "metadata", "documents", "contents", "uris", "named_vectors")
    IDS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    CONTENTS_FIELD_NUMBER: _ClassVar[int]
    URIS_FIELD_NUMBER: _ClassVar[int]
    NAMED_VECTORS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    vectors: Vectors
    metadata: _containers.RepeatedScalarFieldContainer[bytes]
    documents: TextColumn
    contents: ContentColumn
    uris: TextColumn
    named_vectors: _containers.RepeatedCompositeFieldContainer[NamedVectors]
    def __init__(self, ids: _Optional[_Iterable[str]] = ..., vectors: _Optional[_Union[Vectors, _Mapping]] = ..., metadata: _Optional[_Iterable[bytes]] = ..., documents: _Optional[_Union[TextColumn, _Mapping]] = ..., contents: _Optional[_Union[ContentColumn, _Mapping]] = ..., uris: _Optional[_Union[TextColumn, _Mapping]] = ..., named_vectors: _Optional[_Iterable[_Union[NamedVectors, _Mapping]]] = ...) -> None: ...

class VectorField(_message.Message):
    __slots__ = ("name", "dimension", "metric", "storage", "index", "target_recall", "quantization")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    STORAGE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TARGET_RECALL_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    name: str
    dimension: int
    metric: Metric
    storage: ElementType
    index: IndexKind
    target_recall: float
    quantization: Quantization
    def __init__(self, name: _Optional[str] = ..., dimension: _Optional[int] = ..., metric: _Optional[_Union[Metric, str]] = ..., storage: _Optional[_Union[ElementType, str]] = ..., index: _Optional[_Union[IndexKind, str]] = ..., target_recall: _Optional[float] = ..., quantization: _Optional[_Union[Quantization, str]] = ...) -> None: ...

class Collection(_message.Message):
    __slots__ = ("name", "dimension", "metric", "storage", "index", "target_recall", "schema", "description", "created_at_us", "quantization", "vectors", "device", "error")
    class SchemaEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    STORAGE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TARGET_RECALL_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_US_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    name: str
    dimension: int
    metric: Metric
    storage: ElementType
    index: IndexKind
    target_recall: float
    schema: _containers.ScalarMap[str, str]
    description: str
    created_at_us: int
    quantization: Quantization
    vectors: _containers.RepeatedCompositeFieldContainer[VectorField]
    device: str
    error: str
    def __init__(self, name: _Optional[str] = ..., dimension: _Optional[int] = ..., metric: _Optional[_Union[Metric, str]] = ..., storage: _Optional[_Union[ElementType, str]] = ..., index: _Optional[_Union[IndexKind, str]] = ..., target_recall: _Optional[float] = ..., schema: _Optional[_Mapping[str, str]] = ..., description: _Optional[str] = ..., created_at_us: _Optional[int] = ..., quantization: _Optional[_Union[Quantization, str]] = ..., vectors: _Optional[_Iterable[_Union[VectorField, _Mapping]]] = ..., device: _Optional[str] = ..., error: _Optional[str] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "max_message_bytes", "collections")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    COLLECTIONS_FIELD_NUMBER: _ClassVar[int]
    version: str
    max_message_bytes: int
    collections: int
    def __init__(self, version: _Optional[str] = ..., max_message_bytes: _Optional[int] = ..., collections: _Optional[int] = ...) -> None: ...

class GetMetricsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetMetricsResponse(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class CreateCollectionRequest(_message.Message):
    __slots__ = ("collection", "exist_ok")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    EXIST_OK_FIELD_NUMBER: _ClassVar[int]
    collection: Collection
    exist_ok: bool
    def __init__(self, collection: _Optional[_Union[Collection, _Mapping]] = ..., exist_ok: _Optional[bool] = ...) -> None: ...

class CreateCollectionResponse(_message.Message):
    __slots__ = ("collection",)
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    collection: Collection
    def __init__(self, collection: _Optional[_Union[Collection, _Mapping]] = ...) -> None: ...

class GetCollectionRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetCollectionResponse(_message.Message):
    __slots__ = ("collection",)
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    collection: Collection
    def __init__(self, collection: _Optional[_Union[Collection, _Mapping]] = ...) -> None: ...

class ListCollectionsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListCollectionsResponse(_message.Message):
    __slots__ = ("collections",)
    COLLECTIONS_FIELD_NUMBER: _ClassVar[int]
    collections: _containers.RepeatedCompositeFieldContainer[Collection]
    def __init__(self, collections: _Optional[_Iterable[_Union[Collection, _Mapping]]] = ...) -> None: ...

class DropCollectionRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DropCollectionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RenameCollectionRequest(_message.Message):
    __slots__ = ("name", "new_name")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NEW_NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    new_name: str
    def __init__(self, name: _Optional[str] = ..., new_name: _Optional[str] = ...) -> None: ...

class RenameCollectionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SetAliasRequest(_message.Message):
    __slots__ = ("alias", "collection")
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    alias: str
    collection: str
    def __init__(self, alias: _Optional[str] = ..., collection: _Optional[str] = ...) -> None: ...

class SetAliasResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DropAliasRequest(_message.Message):
    __slots__ = ("alias",)
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    alias: str
    def __init__(self, alias: _Optional[str] = ...) -> None: ...

class DropAliasResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListAliasesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListAliasesResponse(_message.Message):
    __slots__ = ("aliases",)
    class AliasesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    aliases: _containers.ScalarMap[str, str]
    def __init__(self, aliases: _Optional[_Mapping[str, str]] = ...) -> None: ...

class InsertRequest(_message.Message):
    __slots__ = ("collection", "records", "request_id")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    collection: str
    records: RecordBatch
    request_id: str
    def __init__(self, collection: _Optional[str] = ..., records: _Optional[_Union[RecordBatch, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class InsertResponse(_message.Message):
    __slots__ = ("sequence", "count")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    count: int
    def __init__(self, sequence: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class UpsertRequest(_message.Message):
    __slots__ = ("collection", "records", "request_id")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    collection: str
    records: RecordBatch
    request_id: str
    def __init__(self, collection: _Optional[str] = ..., records: _Optional[_Union[RecordBatch, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class UpsertResponse(_message.Message):
    __slots__ = ("sequence", "count")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    count: int
    def __init__(self, sequence: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class UpdateRequest(_message.Message):
    __slots__ = ("collection", "records", "clear", "request_id")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    CLEAR_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    collection: str
    records: RecordBatch
    clear: _containers.RepeatedScalarFieldContainer[Include]
    request_id: str
    def __init__(self, collection: _Optional[str] = ..., records: _Optional[_Union[RecordBatch, _Mapping]] = ..., clear: _Optional[_Iterable[_Union[Include, str]]] = ..., request_id: _Optional[str] = ...) -> None: ...

class UpdateResponse(_message.Message):
    __slots__ = ("sequence", "count")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    count: int
    def __init__(self, sequence: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class DeleteRequest(_message.Message):
    __slots__ = ("collection", "ids", "filter", "request_id")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    collection: str
    ids: _containers.RepeatedScalarFieldContainer[str]
    filter: str
    request_id: str
    def __init__(self, collection: _Optional[str] = ..., ids: _Optional[_Iterable[str]] = ..., filter: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class DeleteResponse(_message.Message):
    __slots__ = ("sequence", "count")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    count: int
    def __init__(self, sequence: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class IngestRequest(_message.Message):
    __slots__ = ("collection", "records", "upsert", "request_id")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    UPSERT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    collection: str
    records: RecordBatch
    upsert: bool
    request_id: str
    def __init__(self, collection: _Optional[str] = ..., records: _Optional[_Union[RecordBatch, _Mapping]] = ..., upsert: _Optional[bool] = ..., request_id: _Optional[str] = ...) -> None: ...

class IngestResponse(_message.Message):
    __slots__ = ("sequence", "count")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    count: int
    def __init__(self, sequence: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("collection", "ids", "filter", "order_by", "limit", "cursor", "include", "min_sequence")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    ORDER_BY_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_FIELD_NUMBER: _ClassVar[int]
    MIN_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    collection: str
    ids: _containers.RepeatedScalarFieldContainer[str]
    filter: str
    order_by: str
    limit: int
    cursor: str
    include: _containers.RepeatedScalarFieldContainer[Include]
    min_sequence: int
    def __init__(self, collection: _Optional[str] = ..., ids: _Optional[_Iterable[str]] = ..., filter: _Optional[str] = ..., order_by: _Optional[str] = ..., limit: _Optional[int] = ..., cursor: _Optional[str] = ..., include: _Optional[_Iterable[_Union[Include, str]]] = ..., min_sequence: _Optional[int] = ...) -> None: ...

class GetResponse(_message.Message):
    __slots__ = ("records", "cursor", "sequence")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    records: RecordBatch
    cursor: str
    sequence: int
    def __init__(self, records: _Optional[_Union[RecordBatch, _Mapping]] = ..., cursor: _Optional[str] = ..., sequence: _Optional[int] = ...) -> None: ...

class Examples(_message.Message):
    __slots__ = ("ids", "vectors")
    IDS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    vectors: Vectors
    def __init__(self, ids: _Optional[_Iterable[str]] = ..., vectors: _Optional[_Union[Vectors, _Mapping]] = ...) -> None: ...

class QueryRequest(_message.Message):
    __slots__ = ("collection", "vectors", "ids", "k", "filter", "exact", "max_distance", "target_recall", "include", "min_sequence", "vector_name", "positive", "negative", "group_by", "group_size", "mmr_lambda", "mmr_candidates", "explain")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    MAX_DISTANCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_RECALL_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_FIELD_NUMBER: _ClassVar[int]
    MIN_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    VECTOR_NAME_FIELD_NUMBER: _ClassVar[int]
    POSITIVE_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_FIELD_NUMBER: _ClassVar[int]
    GROUP_BY_FIELD_NUMBER: _ClassVar[int]
    GROUP_SIZE_FIELD_NUMBER: _ClassVar[int]
    MMR_LAMBDA_FIELD_NUMBER: _ClassVar[int]
    MMR_CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    collection: str
    vectors: Vectors
    ids: _containers.RepeatedScalarFieldContainer[str]
    k: int
    filter: str
    exact: bool
    max_distance: float
    target_recall: float
    include: _containers.RepeatedScalarFieldContainer[Include]
    min_sequence: int
    vector_name: str
    positive: Examples
    negative: Examples
    group_by: str
    group_size: int
    mmr_lambda: float
    mmr_candidates: int
    explain: bool
    def __init__(self, collection: _Optional[str] = ..., vectors: _Optional[_Union[Vectors, _Mapping]] = ..., ids: _Optional[_Iterable[str]] = ..., k: _Optional[int] = ..., filter: _Optional[str] = ..., exact: _Optional[bool] = ..., max_distance: _Optional[float] = ..., target_recall: _Optional[float] = ..., include: _Optional[_Iterable[_Union[Include, str]]] = ..., min_sequence: _Optional[int] = ..., vector_name: _Optional[str] = ..., positive: _Optional[_Union[Examples, _Mapping]] = ..., negative: _Optional[_Union[Examples, _Mapping]] = ..., group_by: _Optional[str] = ..., group_size: _Optional[int] = ..., mmr_lambda: _Optional[float] = ..., mmr_candidates: _Optional[int] = ..., explain: _Optional[bool] = ...) -> None: ...

class Explain(_message.Message):
    __slots__ = ("plan", "kind", "quantization", "setting_name", "setting", "target_recall", "expected_recall", "rows", "allowed_rows", "indexed_rows", "tail_rows", "candidates", "rows_compared", "index_sequence", "index_age_s", "rows_since_index", "batch", "times_us", "sequence", "device", "device_note")
    class TimesUsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    PLAN_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    SETTING_NAME_FIELD_NUMBER: _ClassVar[int]
    SETTING_FIELD_NUMBER: _ClassVar[int]
    TARGET_RECALL_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_RECALL_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_ROWS_FIELD_NUMBER: _ClassVar[int]
    INDEXED_ROWS_FIELD_NUMBER: _ClassVar[int]
    TAIL_ROWS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    ROWS_COMPARED_FIELD_NUMBER: _ClassVar[int]
    INDEX_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    INDEX_AGE_S_FIELD_NUMBER: _ClassVar[int]
    ROWS_SINCE_INDEX_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    TIMES_US_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_NOTE_FIELD_NUMBER: _ClassVar[int]
    plan: str
    kind: str
    quantization: str
    setting_name: str
    setting: int
    target_recall: float
    expected_recall: float
    rows: int
    allowed_rows: int
    indexed_rows: int
    tail_rows: int
    candidates: int
    rows_compared: int
    index_sequence: int
    index_age_s: float
    rows_since_index: int
    batch: int
    times_us: _containers.ScalarMap[str, float]
    sequence: int
    device: str
    device_note: str
    def __init__(self, plan: _Optional[str] = ..., kind: _Optional[str] = ..., quantization: _Optional[str] = ..., setting_name: _Optional[str] = ..., setting: _Optional[int] = ..., target_recall: _Optional[float] = ..., expected_recall: _Optional[float] = ..., rows: _Optional[int] = ..., allowed_rows: _Optional[int] = ..., indexed_rows: _Optional[int] = ..., tail_rows: _Optional[int] = ..., candidates: _Optional[int] = ..., rows_compared: _Optional[int] = ..., index_sequence: _Optional[int] = ..., index_age_s: _Optional[float] = ..., rows_since_index: _Optional[int] = ..., batch: _Optional[int] = ..., times_us: _Optional[_Mapping[str, float]] = ..., sequence: _Optional[int] = ..., device: _Optional[str] = ..., device_note: _Optional[str] = ...) -> None: ...

class QueryStreamRequest(_message.Message):
    __slots__ = ("queries",)
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    queries: _containers.RepeatedCompositeFieldContainer[StreamedQuery]
    def __init__(self, queries: _Optional[_Iterable[_Union[StreamedQuery, _Mapping]]] = ...) -> None: ...

class StreamedQuery(_message.Message):
    __slots__ = ("query", "timeout_s")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    query: QueryRequest
    timeout_s: float
    def __init__(self, query: _Optional[_Union[QueryRequest, _Mapping]] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class QueryStreamResponse(_message.Message):
    __slots__ = ("answers",)
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedCompositeFieldContainer[StreamedAnswer]
    def __init__(self, answers: _Optional[_Iterable[_Union[StreamedAnswer, _Mapping]]] = ...) -> None: ...

class StreamedAnswer(_message.Message):
    __slots__ = ("position", "answer", "error")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    position: int
    answer: QueryResponse
    error: StreamedError
    def __init__(self, position: _Optional[int] = ..., answer: _Optional[_Union[QueryResponse, _Mapping]] = ..., error: _Optional[_Union[StreamedError, _Mapping]] = ...) -> None: ...

class StreamedError(_message.Message):
    __slots__ = ("code", "error")
    CODE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    code: int
    error: bytes
    def __init__(self, code: _Optional[int] = ..., error: _Optional[bytes] = ...) -> None: ...

class QueryResponse(_message.Message):
    __slots__ = ("counts", "distances", "hits", "sequence", "groups", "explain")
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    DISTANCES_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    counts: _containers.RepeatedScalarFieldContainer[int]
    distances: bytes
    hits: RecordBatch
    sequence: int
    groups: _containers.RepeatedScalarFieldContainer[bytes]
    explain: Explain
    def __init__(self, counts: _Optional[_Iterable[int]] = ..., distances: _Optional[bytes] = ..., hits: _Optional[_Union[RecordBatch, _Mapping]] = ..., sequence: _Optional[int] = ..., groups: _Optional[_Iterable[bytes]] = ..., explain: _Optional[_Union[Explain, _Mapping]] = ...) -> None: ...

class CountRequest(_message.Message):
    __slots__ = ("collection", "filter", "min_sequence")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    MIN_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    collection: str
    filter: str
    min_sequence: int
    def __init__(self, collection: _Optional[str] = ..., filter: _Optional[str] = ..., min_sequence: _Optional[int] = ...) -> None: ...

class CountResponse(_message.Message):
    __slots__ = ("count", "sequence")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    count: int
    sequence: int
    def __init__(self, count: _Optional[int] = ..., sequence: _Optional[int] = ...) -> None: ...

class ScanRequest(_message.Message):
    __slots__ = ("collection", "filter", "include", "batch_size", "cursor", "slice", "slices", "min_sequence")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    SLICE_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    MIN_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    collection: str
    filter: str
    include: _containers.RepeatedScalarFieldContainer[Include]
    batch_size: int
    cursor: str
    slice: int
    slices: int
    min_sequence: int
    def __init__(self, collection: _Optional[str] = ..., filter: _Optional[str] = ..., include: _Optional[_Iterable[_Union[Include, str]]] = ..., batch_size: _Optional[int] = ..., cursor: _Optional[str] = ..., slice: _Optional[int] = ..., slices: _Optional[int] = ..., min_sequence: _Optional[int] = ...) -> None: ...

class ScanResponse(_message.Message):
    __slots__ = ("records", "cursor", "sequence")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    records: RecordBatch
    cursor: str
    sequence: int
    def __init__(self, records: _Optional[_Union[RecordBatch, _Mapping]] = ..., cursor: _Optional[str] = ..., sequence: _Optional[int] = ...) -> None: ...

class GetStatsRequest(_message.Message):
    __slots__ = ("collection",)
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    collection: str
    def __init__(self, collection: _Optional[str] = ...) -> None: ...

class CurvePoint(_message.Message):
    __slots__ = ("setting", "recall_at_10", "recall_at_100", "cost_us")
    SETTING_FIELD_NUMBER: _ClassVar[int]
    RECALL_AT_10_FIELD_NUMBER: _ClassVar[int]
    RECALL_AT_100_FIELD_NUMBER: _ClassVar[int]
    COST_US_FIELD_NUMBER: _ClassVar[int]
    setting: int
    recall_at_10: float
    recall_at_100: float
    cost_us: float
    def __init__(self, setting: _Optional[int] = ..., recall_at_10: _Optional[float] = ..., recall_at_100: _Optional[float] = ..., cost_us: _Optional[float] = ...) -> None: ...

class AuditStats(_message.Message):
    __slots__ = ("queries", "recall", "low", "high")
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    queries: int
    recall: float
    low: float
    high: float
    def __init__(self, queries: _Optional[int] = ..., recall: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ...) -> None: ...

class IndexStats(_message.Message):
    __slots__ = ("kind", "device", "indexed_rows", "tail_rows", "dead_rows", "building", "build_progress", "memory_bytes", "file_bytes", "target_recall", "measured_recall", "last_error", "quantization", "curve", "built_at_sequence", "age_s", "audit", "device_bytes", "device_note")
    KIND_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    INDEXED_ROWS_FIELD_NUMBER: _ClassVar[int]
    TAIL_ROWS_FIELD_NUMBER: _ClassVar[int]
    DEAD_ROWS_FIELD_NUMBER: _ClassVar[int]
    BUILDING_FIELD_NUMBER: _ClassVar[int]
    BUILD_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    FILE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TARGET_RECALL_FIELD_NUMBER: _ClassVar[int]
    MEASURED_RECALL_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    CURVE_FIELD_NUMBER: _ClassVar[int]
    BUILT_AT_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    DEVICE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_NOTE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    device: str
    indexed_rows: int
    tail_rows: int
    dead_rows: int
    building: bool
    build_progress: float
    memory_bytes: int
    file_bytes: int
    target_recall: float
    measured_recall: float
    last_error: str
    quantization: str
    curve: _containers.RepeatedCompositeFieldContainer[CurvePoint]
    built_at_sequence: int
    age_s: float
    audit: AuditStats
    device_bytes: int
    device_note: str
    def __init__(self, kind: _Optional[str] = ..., device: _Optional[str] = ..., indexed_rows: _Optional[int] = ..., tail_rows: _Optional[int] = ..., dead_rows: _Optional[int] = ..., building: _Optional[bool] = ..., build_progress: _Optional[float] = ..., memory_bytes: _Optional[int] = ..., file_bytes: _Optional[int] = ..., target_recall: _Optional[float] = ..., measured_recall: _Optional[float] = ..., last_error: _Optional[str] = ..., quantization: _Optional[str] = ..., curve: _Optional[_Iterable[_Union[CurvePoint, _Mapping]]] = ..., built_at_sequence: _Optional[int] = ..., age_s: _Optional[float] = ..., audit: _Optional[_Union[AuditStats, _Mapping]] = ..., device_bytes: _Optional[int] = ..., device_note: _Optional[str] = ...) -> None: ...

class DeviceStats(_message.Message):
    __slots__ = ("name", "card", "state", "total_bytes", "budget_bytes", "used_bytes", "placements", "queued", "batches", "queries", "restarts", "last_error", "evictions")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CARD_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    PLACEMENTS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    card: str
    state: str
    total_bytes: int
    budget_bytes: int
    used_bytes: int
    placements: int
    queued: int
    batches: int
    queries: int
    restarts: int
    last_error: str
    evictions: int
    def __init__(self, name: _Optional[str] = ..., card: _Optional[str] = ..., state: _Optional[str] = ..., total_bytes: _Optional[int] = ..., budget_bytes: _Optional[int] = ..., used_bytes: _Optional[int] = ..., placements: _Optional[int] = ..., queued: _Optional[int] = ..., batches: _Optional[int] = ..., queries: _Optional[int] = ..., restarts: _Optional[int] = ..., last_error: _Optional[str] = ..., evictions: _Optional[int] = ...) -> None: ...

class RepairStats(_message.Message):
    __slots__ = ("repaired_at_us", "sequence", "lost_records", "lost", "lost_versions", "lost_commits", "history_dropped", "unverified_records", "unverified", "undecided_records", "undecided", "doubts", "quarantine")
    REPAIRED_AT_US_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LOST_RECORDS_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    LOST_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    LOST_COMMITS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_DROPPED_FIELD_NUMBER: _ClassVar[int]
    UNVERIFIED_RECORDS_FIELD_NUMBER: _ClassVar[int]
    UNVERIFIED_FIELD_NUMBER: _ClassVar[int]
    UNDECIDED_RECORDS_FIELD_NUMBER: _ClassVar[int]
    UNDECIDED_FIELD_NUMBER: _ClassVar[int]
    DOUBTS_FIELD_NUMBER: _ClassVar[int]
    QUARANTINE_FIELD_NUMBER: _ClassVar[int]
    repaired_at_us: int
    sequence: int
    lost_records: int
    lost: _containers.RepeatedScalarFieldContainer[str]
    lost_versions: int
    lost_commits: int
    history_dropped: bool
    unverified_records: int
    unverified: _containers.RepeatedScalarFieldContainer[str]
    undecided_records: int
    undecided: _containers.RepeatedScalarFieldContainer[str]
    doubts: _containers.RepeatedScalarFieldContainer[str]
    quarantine: str
    def __init__(self, repaired_at_us: _Optional[int] = ..., sequence: _Optional[int] = ..., lost_records: _Optional[int] = ..., lost: _Optional[_Iterable[str]] = ..., lost_versions: _Optional[int] = ..., lost_commits: _Optional[int] = ..., history_dropped: _Optional[bool] = ..., unverified_records: _Optional[int] = ..., unverified: _Optional[_Iterable[str]] = ..., undecided_records: _Optional[int] = ..., undecided: _Optional[_Iterable[str]] = ..., doubts: _Optional[_Iterable[str]] = ..., quarantine: _Optional[str] = ...) -> None: ...

class GetStatsResponse(_message.Message):
    __slots__ = ("name", "sequence", "count", "rows", "disk_bytes", "map_used_bytes", "map_limit_bytes", "fields", "index", "vectors", "purged_rows", "devices", "durability", "synced_sequence", "repairs")
    class FieldsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class VectorsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: IndexStats
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[IndexStats, _Mapping]] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAP_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAP_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    PURGED_ROWS_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    SYNCED_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    REPAIRS_FIELD_NUMBER: _ClassVar[int]
    name: str
    sequence: int
    count: int
    rows: int
    disk_bytes: int
    map_used_bytes: int
    map_limit_bytes: int
    fields: _containers.ScalarMap[str, int]
    index: IndexStats
    vectors: _containers.MessageMap[str, IndexStats]
    purged_rows: int
    devices: _containers.RepeatedCompositeFieldContainer[DeviceStats]
    durability: str
    synced_sequence: int
    repairs: _containers.RepeatedCompositeFieldContainer[RepairStats]
    def __init__(self, name: _Optional[str] = ..., sequence: _Optional[int] = ..., count: _Optional[int] = ..., rows: _Optional[int] = ..., disk_bytes: _Optional[int] = ..., map_used_bytes: _Optional[int] = ..., map_limit_bytes: _Optional[int] = ..., fields: _Optional[_Mapping[str, int]] = ..., index: _Optional[_Union[IndexStats, _Mapping]] = ..., vectors: _Optional[_Mapping[str, IndexStats]] = ..., purged_rows: _Optional[int] = ..., devices: _Optional[_Iterable[_Union[DeviceStats, _Mapping]]] = ..., durability: _Optional[str] = ..., synced_sequence: _Optional[int] = ..., repairs: _Optional[_Iterable[_Union[RepairStats, _Mapping]]] = ...) -> None: ...

class CheckRequest(_message.Message):
    __slots__ = ("collection",)
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    collection: str
    def __init__(self, collection: _Optional[str] = ...) -> None: ...

class CheckResponse(_message.Message):
    __slots__ = ("ok", "records", "problems")
    OK_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    ok: bool
    records: int
    problems: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ok: _Optional[bool] = ..., records: _Optional[int] = ..., problems: _Optional[_Iterable[str]] = ...) -> None: ...

class BuildIndexRequest(_message.Message):
    __slots__ = ("collection", "wait")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    collection: str
    wait: bool
    def __init__(self, collection: _Optional[str] = ..., wait: _Optional[bool] = ...) -> None: ...

class BuildIndexResponse(_message.Message):
    __slots__ = ("index",)
    INDEX_FIELD_NUMBER: _ClassVar[int]
    index: IndexStats
    def __init__(self, index: _Optional[_Union[IndexStats, _Mapping]] = ...) -> None: ...

class CancelBuildRequest(_message.Message):
    __slots__ = ("collection",)
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    collection: str
    def __init__(self, collection: _Optional[str] = ...) -> None: ...

class CancelBuildResponse(_message.Message):
    __slots__ = ("cancelled",)
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    cancelled: bool
    def __init__(self, cancelled: _Optional[bool] = ...) -> None: ...

class FlushRequest(_message.Message):
    __slots__ = ("collection",)
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    collection: str
    def __init__(self, collection: _Optional[str] = ...) -> None: ...

class FlushResponse(_message.Message):
    __slots__ = ("sequence",)
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    def __init__(self, sequence: _Optional[int] = ...) -> None: ...

class CompactRequest(_message.Message):
    __slots__ = ("collection", "wait")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    collection: str
    wait: bool
    def __init__(self, collection: _Optional[str] = ..., wait: _Optional[bool] = ...) -> None: ...

class CompactResponse(_message.Message):
    __slots__ = ("purged_rows", "bytes_before", "bytes_after")
    PURGED_ROWS_FIELD_NUMBER: _ClassVar[int]
    BYTES_BEFORE_FIELD_NUMBER: _ClassVar[int]
    BYTES_AFTER_FIELD_NUMBER: _ClassVar[int]
    purged_rows: int
    bytes_before: int
    bytes_after: int
    def __init__(self, purged_rows: _Optional[int] = ..., bytes_before: _Optional[int] = ..., bytes_after: _Optional[int] = ...) -> None: ...

class BackupDatabaseRequest(_message.Message):
    __slots__ = ("target", "collections", "kind", "skip_verify", "limit_bytes_s")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    COLLECTIONS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SKIP_VERIFY_FIELD_NUMBER: _ClassVar[int]
    LIMIT_BYTES_S_FIELD_NUMBER: _ClassVar[int]
    target: str
    collections: _containers.RepeatedScalarFieldContainer[str]
    kind: BackupKind
    skip_verify: bool
    limit_bytes_s: float
    def __init__(self, target: _Optional[str] = ..., collections: _Optional[_Iterable[str]] = ..., kind: _Optional[_Union[BackupKind, str]] = ..., skip_verify: _Optional[bool] = ..., limit_bytes_s: _Optional[float] = ...) -> None: ...

class BackupDatabaseResponse(_message.Message):
    __slots__ = ("progress", "backup")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    BACKUP_FIELD_NUMBER: _ClassVar[int]
    progress: BackupProgress
    backup: BackupInfo
    def __init__(self, progress: _Optional[_Union[BackupProgress, _Mapping]] = ..., backup: _Optional[_Union[BackupInfo, _Mapping]] = ...) -> None: ...

class BackupProgress(_message.Message):
    __slots__ = ("stage", "collection", "rows", "total_rows", "bytes")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_ROWS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    stage: str
    collection: str
    rows: int
    total_rows: int
    bytes: int
    def __init__(self, stage: _Optional[str] = ..., collection: _Optional[str] = ..., rows: _Optional[int] = ..., total_rows: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class BackupInfo(_message.Message):
    __slots__ = ("id", "kind", "chain", "parent", "taken_at_us", "bytes", "files", "collections")
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    TAKEN_AT_US_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    COLLECTIONS_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: str
    chain: str
    parent: str
    taken_at_us: int
    bytes: int
    files: int
    collections: _containers.RepeatedCompositeFieldContainer[BackupCollection]
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[str] = ..., chain: _Optional[str] = ..., parent: _Optional[str] = ..., taken_at_us: _Optional[int] = ..., bytes: _Optional[int] = ..., files: _Optional[int] = ..., collections: _Optional[_Iterable[_Union[BackupCollection, _Mapping]]] = ...) -> None: ...

class BackupCollection(_message.Message):
    __slots__ = ("name", "sequence", "since", "oldest_sequence", "count", "rows", "bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    OLDEST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    sequence: int
    since: int
    oldest_sequence: int
    count: int
    rows: int
    bytes: int
    def __init__(self, name: _Optional[str] = ..., sequence: _Optional[int] = ..., since: _Optional[int] = ..., oldest_sequence: _Optional[int] = ..., count: _Optional[int] = ..., rows: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class ListBackupsRequest(_message.Message):
    __slots__ = ("target",)
    TARGET_FIELD_NUMBER: _ClassVar[int]
    target: str
    def __init__(self, target: _Optional[str] = ...) -> None: ...

class ListBackupsResponse(_message.Message):
    __slots__ = ("backups",)
    BACKUPS_FIELD_NUMBER: _ClassVar[int]
    backups: _containers.RepeatedCompositeFieldContainer[BackupInfo]
    def __init__(self, backups: _Optional[_Iterable[_Union[BackupInfo, _Mapping]]] = ...) -> None: ...

class VerifyBackupsRequest(_message.Message):
    __slots__ = ("target", "backup")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    BACKUP_FIELD_NUMBER: _ClassVar[int]
    target: str
    backup: str
    def __init__(self, target: _Optional[str] = ..., backup: _Optional[str] = ...) -> None: ...

class VerifyBackupsResponse(_message.Message):
    __slots__ = ("progress", "report")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    progress: BackupProgress
    report: BackupReport
    def __init__(self, progress: _Optional[_Union[BackupProgress, _Mapping]] = ..., report: _Optional[_Union[BackupReport, _Mapping]] = ...) -> None: ...

class BackupReport(_message.Message):
    __slots__ = ("ok", "backups", "files", "bytes", "problems", "incomplete")
    OK_FIELD_NUMBER: _ClassVar[int]
    BACKUPS_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    INCOMPLETE_FIELD_NUMBER: _ClassVar[int]
    ok: bool
    backups: int
    files: int
    bytes: int
    problems: _containers.RepeatedScalarFieldContainer[str]
    incomplete: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ok: _Optional[bool] = ..., backups: _Optional[int] = ..., files: _Optional[int] = ..., bytes: _Optional[int] = ..., problems: _Optional[_Iterable[str]] = ..., incomplete: _Optional[_Iterable[str]] = ...) -> None: ...

class RestoreBackupRequest(_message.Message):
    __slots__ = ("target", "backup", "collections", "at_us", "sequence")
    class CollectionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TARGET_FIELD_NUMBER: _ClassVar[int]
    BACKUP_FIELD_NUMBER: _ClassVar[int]
    COLLECTIONS_FIELD_NUMBER: _ClassVar[int]
    AT_US_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    target: str
    backup: str
    collections: _containers.ScalarMap[str, str]
    at_us: int
    sequence: int
    def __init__(self, target: _Optional[str] = ..., backup: _Optional[str] = ..., collections: _Optional[_Mapping[str, str]] = ..., at_us: _Optional[int] = ..., sequence: _Optional[int] = ...) -> None: ...

class RestoreBackupResponse(_message.Message):
    __slots__ = ("progress", "result")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    progress: BackupProgress
    result: RestoreResult
    def __init__(self, progress: _Optional[_Union[BackupProgress, _Mapping]] = ..., result: _Optional[_Union[RestoreResult, _Mapping]] = ...) -> None: ...

class RestoreResult(_message.Message):
    __slots__ = ("backup", "collections", "aliases")
    class AliasesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    BACKUP_FIELD_NUMBER: _ClassVar[int]
    COLLECTIONS_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    backup: str
    collections: _containers.RepeatedCompositeFieldContainer[RestoredCollection]
    aliases: _containers.ScalarMap[str, str]
    def __init__(self, backup: _Optional[str] = ..., collections: _Optional[_Iterable[_Union[RestoredCollection, _Mapping]]] = ..., aliases: _Optional[_Mapping[str, str]] = ...) -> None: ...

class RestoredCollection(_message.Message):
    __slots__ = ("name", "source", "sequence", "count")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    name: str
    source: str
    sequence: int
    count: int
    def __init__(self, name: _Optional[str] = ..., source: _Optional[str] = ..., sequence: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class PruneBackupsRequest(_message.Message):
    __slots__ = ("target", "keep", "incomplete_older_than_s")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    INCOMPLETE_OLDER_THAN_S_FIELD_NUMBER: _ClassVar[int]
    target: str
    keep: int
    incomplete_older_than_s: float
    def __init__(self, target: _Optional[str] = ..., keep: _Optional[int] = ..., incomplete_older_than_s: _Optional[float] = ...) -> None: ...

class PruneBackupsResponse(_message.Message):
    __slots__ = ("removed",)
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    removed: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, removed: _Optional[_Iterable[str]] = ...) -> None: ...
