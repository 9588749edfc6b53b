"""The verbs of backups, as sync and asyncio clients share them: requests, answers, and their messages.

Long ones answer with a stream: how far the server is, again and again, and at last the result.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from . import arguments
from .backup_types import (
    BackupCollection,
    BackupInfo,
    BackupProgress,
    BackupReport,
    RestoredCollection,
    RestoreResult,
)
from .calls import Call
from .errors import InvalidArgument, InvalidQuery
from .v1 import vecdb_pb2 as pb

T = TypeVar("T")

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)
_KINDS = {
    "auto": pb.BACKUP_KIND_AUTO,
    "full": pb.BACKUP_KIND_FULL,
    "incremental": pb.BACKUP_KIND_INCREMENTAL,
}
_PROGRESS = ("stage", "collection", "rows", "total_rows", "bytes")
_COLLECTION = ("name", "sequence", "since", "oldest_sequence", "count", "rows", "bytes")
_RESTORED = ("name", "source", "sequence", "count")


@dataclass(frozen=True, slots=True)
class Watched(Generic[T]):
    """A call whose answers tell how far it is; the one with `result` is the last."""

    rpc: str
    request: Any
    result: str
    read: Callable[[Any], T]

    def last(self, answer: Any, progress: Callable[[BackupProgress], None]) -> bool:
        """Whether this answer is the result; else `progress` is told."""
        if answer.WhichOneof("outcome") == self.result:
            return True
        progress(decode_progress(answer.progress))
        return False


# -- the verbs


def backup(
    target: str,
    collections: Iterable[str] | None,
    kind: str,
    verify: bool,
    limit_bytes_s: float | None,
) -> Watched[BackupInfo]:
    if kind not in _KINDS:
        raise InvalidArgument(f"kind must be auto, full or incremental, given {kind!r:.80}")
    if isinstance(collections, str):
        collections = [collections]
    names = [arguments.text("collections", name) for name in collections or ()]
    if collections is not None and not names:
        raise InvalidArgument("collections must name at least one collection")
    request = pb.BackupDatabaseRequest(
        target=_given("target", target or None),
        collections=names,
        kind=_KINDS[kind],
        skip_verify=not arguments.flag("verify", verify, InvalidArgument),
        limit_bytes_s=_above_zero("limit_bytes_s", limit_bytes_s),
    )
    return Watched("BackupDatabase", request, "backup", lambda a: decode_info(a.backup))


def list_backups(target: str) -> Call[list[BackupInfo]]:
    request = pb.ListBackupsRequest(target=_given("target", target or None))
    return Call("ListBackups", request, lambda a: [decode_info(b) for b in a.backups], True)


def verify(target: str, backup_id: str | None) -> Watched[BackupReport]:
    request = pb.VerifyBackupsRequest(
        target=_given("target", target or None), backup=_given("backup", backup_id)
    )
    return Watched("VerifyBackups", request, "report", lambda a: decode_report(a.report))


def restore(
    target: str,
    backup_id: str | None,
    collections: Iterable[str] | Mapping[str, str] | None,
    at: dt.datetime | None,
    sequence: int | None,
) -> Watched[RestoreResult]:
    if isinstance(collections, str):
        collections = [collections]
    if collections is not None and not isinstance(collections, Mapping):
        collections = {name: name for name in collections}
    if collections is not None and not collections:
        raise InvalidArgument("collections must name at least one collection")
    if at is not None and not isinstance(at, dt.datetime):
        raise InvalidQuery(f"at takes a datetime, given {at!r:.80}")
    if sequence is not None:
        sequence = arguments.whole("sequence", sequence, 0, 2**63 - 1, InvalidQuery)
    request = pb.RestoreBackupRequest(
        target=_given("target", target or None),
        backup=_given("backup", backup_id),
        collections={
            arguments.text("collections", name): arguments.text("collections", new)
            for name, new in (collections or {}).items()
        },
        at_us=None if at is None else (at.astimezone(dt.UTC) - _EPOCH) // _MICROSECOND,
        sequence=sequence,
    )
    return Watched("RestoreBackup", request, "result", lambda a: decode_restored(a.result))


def prune(target: str, keep: int, incomplete_older_than_s: float | None) -> Call[list[str]]:
    request = pb.PruneBackupsRequest(
        target=_given("target", target or None),
        keep=arguments.whole("keep", keep, 1, 2**31 - 1, InvalidArgument),
        incomplete_older_than_s=incomplete_older_than_s,
    )
    return Call("PruneBackups", request, lambda a: list(a.removed), False)


def _given(what: str, value: str | None) -> str:
    return "" if value is None else arguments.text(what, value)


def _above_zero(what: str, value: float | None) -> float:
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise InvalidArgument(f"{what} must be above 0, given {value!r:.80}")
    return float(value)


def moment(time_us: int) -> dt.datetime:
    """Microseconds since 1970 as a time in UTC."""
    return _EPOCH + time_us * _MICROSECOND


# -- the messages


def encode_progress(progress: Any) -> pb.BackupProgress:
    return pb.BackupProgress(**{name: getattr(progress, name) for name in _PROGRESS})


def decode_progress(message: pb.BackupProgress) -> BackupProgress:
    return BackupProgress(**{name: getattr(message, name) for name in _PROGRESS})


def encode_info(info: Any) -> pb.BackupInfo:
    return pb.BackupInfo(
        id=info.id,
        kind=info.kind,
        chain=info.chain,
        parent=info.parent,
        taken_at_us=(info.taken_at - _EPOCH) // _MICROSECOND,
        bytes=info.bytes,
        files=info.files,
        collections=[
            pb.BackupCollection(**{name: getattr(one, name) for name in _COLLECTION})
            for one in info.collections
        ],
    )


def decode_info(message: pb.BackupInfo) -> BackupInfo:
    return BackupInfo(
        message.id,
        "incremental" if message.kind == "incremental" else "full",
        message.chain,
        message.parent,
        moment(message.taken_at_us),
        message.bytes,
        message.files,
        [
            BackupCollection(**{name: getattr(one, name) for name in _COLLECTION})
            for one in message.collections
        ],
    )


def encode_report(report: Any) -> pb.BackupReport:
    return pb.BackupReport(
        ok=report.ok,
        backups=report.backups,
        files=report.files,
        bytes=report.bytes,
        problems=list(report.problems),
        incomplete=list(report.incomplete),
    )


def decode_report(message: pb.BackupReport) -> BackupReport:
    return BackupReport(
        message.ok, message.backups, message.files, message.bytes,
        list(message.problems), list(message.incomplete),
    )  # fmt: skip


def encode_restored(result: Any) -> pb.RestoreResult:
    return pb.RestoreResult(
        backup=result.backup,
        collections=[
            pb.RestoredCollection(**{name: getattr(one, name) for name in _RESTORED})
            for one in result.collections
        ],
        aliases=dict(result.aliases),
    )


def decode_restored(message: pb.RestoreResult) -> RestoreResult:
    made = [
        RestoredCollection(**{name: getattr(one, name) for name in _RESTORED})
        for one in message.collections
    ]
    return RestoreResult(message.backup, made, dict(message.aliases))
