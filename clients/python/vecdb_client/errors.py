# A copy of vecdb/errors.py, made by tools/generate.py: change it there.
"""Every error that vecdb raises.

VecdbError                       the root; `reason` is a stable word that scripts and the wire rely on
├── InvalidArgument              (also a ValueError) the call itself is wrong; repeating it cannot help
│   ├── InvalidName              a database, collection, alias or vector name
│   ├── InvalidSetting           a setting: unknown, of the wrong type, or out of range
│   ├── InvalidBatch             ragged, empty or oversized batches, an id given twice
│   ├── InvalidId                a record id
│   ├── InvalidVector            dimension, dtype, NaN, infinity, zero vector under cosine
│   ├── InvalidMetadata          metadata, document, content or uri of a record
│   ├── InvalidFilter            a filter expression; `details["path"]` leads to the fault
│   ├── InvalidQuery             k, include, order, recall, distance bound, slice
│   └── InvalidCursor            a cursor that is damaged or belongs to another call
├── NotFound                     (also a LookupError)
│   ├── CollectionNotFound
│   ├── AliasNotFound
│   ├── RecordNotFound           update, or query by id, of an id that is not stored
│   └── BackupNotFound           no such backup, or none that holds this collection at this moment
├── AlreadyExists
│   ├── CollectionExists         the name is taken by a collection or an alias
│   └── RecordExists             insert of an id that is stored
├── FailedPrecondition           the call is right, the state of the database is not
│   ├── ReadOnly                 a write on a database opened with read_only=True, or to a folder that may not be written
│   ├── Closed                   the database or the collection was closed or dropped
│   ├── DatabaseNotFound         no folder, or a read-only open of one that holds no database
│   ├── FormatMismatch           the folder was written by another version of the format
│   ├── MissingDependency        no FAISS is installed, or two that overwrite each other
│   └── DeviceNotFound           a GPU is asked for by name, and it is not there
├── ResourceExhausted            repeating may help once something was freed
│   ├── DatabaseLocked           another process has the folder open for writing
│   ├── StorageFull              disk full, or the map limit is reached
│   ├── LimitExceeded            a message, a value or a queue is larger than the stated limit
│   └── DeviceFull               a GPU has too little memory left for this call
├── Unauthenticated              the server wants a valid API key, and none came with the call
├── PermissionDenied             the API key of the call does not allow it
├── Unavailable                  no server answers, or it is shutting down; repeating later may help
│   ├── DeviceLost               the process that drives a GPU died, and what was on the GPU with it
│   └── TlsFailed                client and server do not agree on TLS: a certificate, a name, or one speaks none
├── DeadlineExceeded             (also a TimeoutError) not done in time; a write may or may not have happened
├── Cancelled                    the caller cancelled
├── Corrupted                    stored data fails its own checks
│   └── BackupDamaged            a backup is incomplete or altered, or the one before it is missing
└── Internal                     a bug of ours

A message says what was given, what was expected and what to do. `details` holds the same facts as
JSON values (ids, row positions, limits), so that they survive the way over the wire.

The file stands alone on purpose: the client ships a copy of it, and `make check` compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = [
    "AliasNotFound",
    "AlreadyExists",
    "BackupDamaged",
    "BackupNotFound",
    "Cancelled",
    "Closed",
    "CollectionExists",
    "CollectionNotFound",
    "Corrupted",
    "DatabaseLocked",
    "DatabaseNotFound",
    "DeadlineExceeded",
    "DeviceFull",
    "DeviceLost",
    "DeviceNotFound",
    "FailedPrecondition",
    "FormatMismatch",
    "Internal",
    "InvalidArgument",
    "InvalidBatch",
    "InvalidCursor",
    "InvalidFilter",
    "InvalidId",
    "InvalidMetadata",
    "InvalidName",
    "InvalidQuery",
    "InvalidSetting",
    "InvalidVector",
    "LimitExceeded",
    "MissingDependency",
    "NotFound",
    "PermissionDenied",
    "ReadOnly",
    "RecordExists",
    "RecordNotFound",
    "ResourceExhausted",
    "StorageFull",
    "TlsFailed",
    "Unauthenticated",
    "Unavailable",
    "VecdbError",
    "by_reason",
]

Detail = str | int | float | bool | None | list[str] | list[int]


class VecdbError(Exception):
    """Root of the tree. `reason` names the class on the wire and never changes."""

    reason = "VECDB_ERROR"

    def __init__(self, message: str, **details: Detail) -> None:
        super().__init__(message)
        self.message = message
        self.details: Mapping[str, Detail] = details

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, dict(self.details)))


def _rebuild(cls: type[VecdbError], message: str, details: dict[str, Detail]) -> VecdbError:
    return cls(message, **details)


class InvalidArgument(VecdbError, ValueError):
    reason = "INVALID_ARGUMENT"


class InvalidName(InvalidArgument):
    reason = "INVALID_NAME"


class InvalidSetting(InvalidArgument):
    reason = "INVALID_SETTING"


class InvalidBatch(InvalidArgument):
    reason = "INVALID_BATCH"


class InvalidId(InvalidArgument):
    reason = "INVALID_ID"


class InvalidVector(InvalidArgument):
    reason = "INVALID_VECTOR"


class InvalidMetadata(InvalidArgument):
    reason = "INVALID_METADATA"


class InvalidFilter(InvalidArgument):
    reason = "INVALID_FILTER"


class InvalidQuery(InvalidArgument):
    reason = "INVALID_QUERY"


class InvalidCursor(InvalidArgument):
    reason = "INVALID_CURSOR"


class NotFound(VecdbError, LookupError):
    reason = "NOT_FOUND"


class CollectionNotFound(NotFound):
    reason = "COLLECTION_NOT_FOUND"


class AliasNotFound(NotFound):
    reason = "ALIAS_NOT_FOUND"


class RecordNotFound(NotFound):
    reason = "RECORD_NOT_FOUND"


class BackupNotFound(NotFound):
    reason = "BACKUP_NOT_FOUND"


class AlreadyExists(VecdbError):
    reason = "ALREADY_EXISTS"


class CollectionExists(AlreadyExists):
    reason = "COLLECTION_EXISTS"


class RecordExists(AlreadyExists):
    reason = "RECORD_EXISTS"


class FailedPrecondition(VecdbError):
    reason = "FAILED_PRECONDITION"


class ReadOnly(FailedPrecondition):
    reason = "READ_ONLY"


class Closed(FailedPrecondition):
    reason = "CLOSED"


class DatabaseNotFound(FailedPrecondition):
    reason = "DATABASE_NOT_FOUND"


class FormatMismatch(FailedPrecondition):
    reason = "FORMAT_MISMATCH"


class MissingDependency(FailedPrecondition):
    reason = "MISSING_DEPENDENCY"


class DeviceNotFound(FailedPrecondition):
    reason = "DEVICE_NOT_FOUND"


class ResourceExhausted(VecdbError):
    reason = "RESOURCE_EXHAUSTED"


class DatabaseLocked(ResourceExhausted):
    reason = "DATABASE_LOCKED"


class StorageFull(ResourceExhausted):
    reason = "STORAGE_FULL"


class LimitExceeded(ResourceExhausted):
    reason = "LIMIT_EXCEEDED"


class DeviceFull(ResourceExhausted):
    reason = "DEVICE_FULL"


class Unauthenticated(VecdbError):
    reason = "UNAUTHENTICATED"


class PermissionDenied(VecdbError):
    reason = "PERMISSION_DENIED"


class Unavailable(VecdbError):
    reason = "UNAVAILABLE"


class DeviceLost(Unavailable):
    reason = "DEVICE_LOST"


class TlsFailed(Unavailable):
    reason = "TLS_FAILED"


class DeadlineExceeded(VecdbError, TimeoutError):
    reason = "DEADLINE_EXCEEDED"


class Cancelled(VecdbError):
    reason = "CANCELLED"


class Corrupted(VecdbError):
    reason = "CORRUPTED"


class BackupDamaged(Corrupted):
    reason = "BACKUP_DAMAGED"


class Internal(VecdbError):
    reason = "INTERNAL"


def _tree(cls: type[VecdbError]) -> dict[str, type[VecdbError]]:
    found = {cls.reason: cls}
    for child in cls.__subclasses__():
        found.update(_tree(child))
    return found


_BY_REASON = _tree(VecdbError)


def by_reason(reason: str) -> type[VecdbError]:
    """The class whose `reason` this is; `VecdbError` for a word this version does not know."""
    return _BY_REASON.get(reason, VecdbError)
