# ruff: noqa: N802  (gRPC calls handlers by the names of the contract)
"""Handlers of backups, for admins. What a client names is one folder below what the operator has configured:
no path from a client touches the disk."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal

import vecdb
from vecdb.backup_types import BackupProgress, Progress
from vecdb.collection_info import check_name
from vecdb.errors import Cancelled, FailedPrecondition, InvalidArgument, InvalidQuery
from vecdb_client import backups as wire
from vecdb_client.v1 import vecdb_pb2 as pb
from vecdb_client.v1 import vecdb_pb2_grpc as pb_grpc

from .access import require_everything

Stage = Literal["copy", "verify", "restore"]
_KINDS: dict[int, Any] = {
    pb.BACKUP_KIND_UNSPECIFIED: "auto",
    pb.BACKUP_KIND_AUTO: "auto",
    pb.BACKUP_KIND_FULL: "full",
    pb.BACKUP_KIND_INCREMENTAL: "incremental",
}


_SAYS_S = 15.0
"""After so long without a word the last one is said again: a client ends a stream that is silent (`idle_s`)."""


class BackupHandlers(pb_grpc.VecdbServiceServicer):  # type: ignore[misc,unused-ignore]
    """The part of the service that backs up and restores."""

    _database: Any
    """A vecdb.Database, or one that asks first who calls."""
    backup_root = ""
    """Folder or URL below which backups lie; empty: none are taken."""

    def BackupDatabase(self, request: Any, context: Any) -> Iterator[Any]:
        target = self._target(request.target)
        if request.kind not in _KINDS:
            raise InvalidArgument(
                f"kind {request.kind} is not known; ask for auto, full or incremental"
            )
        for said in _watched(
            lambda progress: self._database.backup(
                target,
                collections=list(request.collections) or None,
                kind=_KINDS[request.kind],
                verify=not request.skip_verify,
                limit_bytes_s=request.limit_bytes_s or None,
                progress=progress,
            ),
            "copy",
        ):
            if isinstance(said, BackupProgress):
                yield pb.BackupDatabaseResponse(progress=wire.encode_progress(said))
            else:
                yield pb.BackupDatabaseResponse(backup=wire.encode_info(said))

    def ListBackups(self, request: Any, context: Any) -> Any:
        found = vecdb.list_backups(self._target(request.target))
        return pb.ListBackupsResponse(backups=map(wire.encode_info, found))

    def VerifyBackups(self, request: Any, context: Any) -> Iterator[Any]:
        target = self._target(request.target)
        for said in _watched(
            lambda progress: vecdb.verify_backups(
                target, backup=request.backup or None, progress=progress
            ),
            "verify",
        ):
            if isinstance(said, BackupProgress):
                yield pb.VerifyBackupsResponse(progress=wire.encode_progress(said))
            else:
                yield pb.VerifyBackupsResponse(report=wire.encode_report(said))

    def RestoreBackup(self, request: Any, context: Any) -> Iterator[Any]:
        target = self._target(request.target)
        try:
            at = wire.moment(request.at_us) if request.HasField("at_us") else None
        except OverflowError:
            raise InvalidQuery(f"at_us {request.at_us} is a moment that no calendar has") from None
        for said in _watched(
            lambda progress: self._database.restore(
                target,
                backup=request.backup or None,
                collections=dict(request.collections) or None,
                at=at,
                sequence=request.sequence if request.HasField("sequence") else None,
                progress=progress,
            ),
            "restore",
        ):
            if isinstance(said, BackupProgress):
                yield pb.RestoreBackupResponse(progress=wire.encode_progress(said))
            else:
                yield pb.RestoreBackupResponse(result=wire.encode_restored(said))

    def PruneBackups(self, request: Any, context: Any) -> Any:
        older = {}
        if request.HasField("incomplete_older_than_s"):
            older["incomplete_older_than_s"] = request.incomplete_older_than_s
        target = self._target(request.target)
        return pb.PruneBackupsResponse(
            removed=vecdb.prune_backups(target, keep=request.keep, **older)
        )

    def _target(self, name: str) -> str:
        """The folder or URL that a client means, who must be an admin of everything: a backup holds, lists
        and restores what is anybody's. PermissionDenied, FailedPrecondition, InvalidName."""
        require_everything()
        if not self.backup_root:
            raise FailedPrecondition(
                "this server takes no backups: its operator has to name a folder or a URL for them with the "
                "setting backup_root"
            )
        if not name:
            return self.backup_root
        check_name(name)
        return f"{self.backup_root.rstrip('/')}/{name}"


def _watched(work: Callable[[Progress], Any], stage: Stage) -> Iterator[Any]:
    """What `work` says of its progress, as it says it, then what it returns; raises what it raises. Where it says nothing
    for long its last word is repeated, of `stage` where there was none.

    When nobody listens any more, the next word of `work` ends it.
    """
    said: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
    left = threading.Event()
    end = object()

    def progress(one: BackupProgress) -> None:
        if left.is_set():
            raise Cancelled("the client has gone")
        said.put((one, None))

    def run() -> None:
        try:
            said.put((work(progress), None))
        except BaseException as error:
            said.put((None, error))
        said.put((end, None))

    thread = threading.Thread(target=run, name="vecdb-backup")
    thread.start()
    last = BackupProgress(stage, "", 0, 0, 0)
    try:
        while True:
            try:
                one, error = said.get(timeout=_SAYS_S)
            except queue.Empty:
                yield last
                continue
            if error is not None:
                raise error
            if one is end:
                return
            if isinstance(one, BackupProgress):
                last = one
            yield one
    finally:
        left.set()
        thread.join()
