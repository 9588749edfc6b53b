"""The synchronous client: the nouns and verbs of the engine, over gRPC.

What a verb sends and how its answer is read is in `calls.py`, shared with `aio`; here and in
`collection.py` are only signatures. Objects are thread-safe: all threads share one channel.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from . import backups, calls, transport
from .backup_types import BackupInfo, BackupKind, BackupReport, Progress, RestoreResult, unwatched
from .calls import ServerInfo
from .collection import Collection
from .connection import Connection
from .credentials import Tls, credentials
from .idle import DEFAULT_IDLE_S
from .reports import OnCall
from .types import CollectionInfo, IndexKind, Metric, Quantization, Storage, VectorSettings


def connect(
    target: str = "127.0.0.1:7700",
    *,
    api_key: str | None = None,
    tls: Tls | bool | None = None,
    timeout_s: float = transport.DEFAULT_TIMEOUT_S,
    retry_s: float | None = None,
    idle_s: float = DEFAULT_IDLE_S,
    max_message_bytes: int = transport.DEFAULT_MESSAGE_BYTES,
    on_call: OnCall | None = None,
    call_metadata: transport.CallMetadata | None = None,
    send_key_unencrypted: bool = False,
) -> Client:
    """A client of the server at `target` (host:port; port 7700 when left out). Does not wait.

    The connection is made by the first call and made again whenever it breaks. `timeout_s` is the
    deadline of calls that name none of their own; infinity for no limit. Streams (scan, ingest, backup, verify_backups,
    restore) have none, but end with DeadlineExceeded when nothing has come of one for `idle_s` while it was waited for
    (five times as long for an acknowledgement, whose message has to go first); infinity for no limit. Messages are refused above `max_message_bytes` in both directions; the server has a limit of
    its own (64 MiB by default).

    `api_key` is the text that `vecdb keys add` printed, None for that of the environment variable
    VECDB_API_KEY, if it is set. `tls` encrypts: True with the authorities that gRPC ships, or a `Tls`. A
    key goes unencrypted to this machine only, unless `send_key_unencrypted` says otherwise. `retry_s`
    bounds how long a failing call is repeated (see `transport.py`); 0: never; None: 3 s, and up to 60 s within its `timeout_s`
    while a server is away, as for a restart, that has answered this client before. `on_call` gets a
    `CallReport` of each call, in the thread that made it. `call_metadata` is asked once for each call
    for further metadata, such as the `traceparent` of a trace, of 8 KiB at most with what every call has; queries are then
    sent as calls, never on streams. InvalidSetting.

    A client that no thread uses at that moment goes on in a process that is forked; where threads are calling, gRPC
    may end the child with SIGABRT or let its calls wait for their deadline: start such processes by `spawn`.
    """
    shown = credentials(transport.normalised_target(target), api_key, tls, send_key_unencrypted)
    return Client(
        Connection(
            target,
            shown,
            timeout_s=timeout_s,
            retry_s=retry_s,
            idle_s=idle_s,
            max_message_bytes=max_message_bytes,
            on_call=on_call,
            call_metadata=call_metadata,
        )
    )


class Client:
    """A connection to one server, with the verbs of `vecdb.Database`.

    Reads, writes of records, and changes of collections and aliases are repeated while the server is unavailable (see
    `transport.py`); each change is done once all the same: the server knows it by a random id, or by `request_id`, with which
    you may repeat it yourself within the hour. Errors are those of `vecdb_client.errors`, the same as the engine's.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def target(self) -> str:
        """host:port of the server."""
        return self._connection.target

    def close(self) -> None:
        """Ends the connection and whatever runs on it; later calls raise Closed."""
        self._connection.close()

    def server_info(self, *, timeout_s: float | None = None) -> ServerInfo:
        """Version and limits of the server."""
        return self._connection.run(calls.server_info(), timeout_s)

    def metrics(self, *, timeout_s: float | None = None) -> str:
        """All metrics of the server in the text format of Prometheus; docs/operations.md lists them."""
        return self._connection.run(calls.metrics(), timeout_s)

    def create_collection(
        self,
        name: str,
        *,
        dimension: int,
        metric: Metric = "cosine",
        storage: Storage = "float32",
        index: IndexKind = "auto",
        target_recall: float = 0.95,
        schema: Mapping[str, str] | None = None,
        description: str = "",
        quantization: Quantization = "auto",
        vectors: Mapping[str, VectorSettings | Mapping[str, Any]] | None = None,
        exist_ok: bool = False,
        device: str = "auto",
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> Collection:
        """Makes a collection. CollectionExists if the name is taken, unless `exist_ok` and equal.

        `storage` binary counts bits in `dimension` and takes the metric hamming. `quantization` says
        how the index codes vectors; `vectors` names up to 16 further vector fields, each with
        settings of its own. `device` is auto, cpu, gpu, or GPUs by number, as gpu:0,1; DeviceNotFound
        when the server does not use them.
        """
        call = calls.create_collection(
            name, dimension, metric, storage, index, target_recall, schema, description,
            quantization, vectors, exist_ok, device, request_id,
        )  # fmt: skip
        return Collection(self._connection, self._connection.run(call, timeout_s))

    def get_collection(self, name: str, *, timeout_s: float | None = None) -> Collection:
        """A collection by name or alias. CollectionNotFound."""
        return Collection(
            self._connection, self._connection.run(calls.get_collection(name), timeout_s)
        )

    def list_collections(self, *, timeout_s: float | None = None) -> list[CollectionInfo]:
        """All collections, ordered by name; one whose files the server cannot open has `error`."""
        return self._connection.run(calls.list_collections(), timeout_s)

    def drop_collection(
        self, name: str, *, request_id: str | None = None, timeout_s: float | None = None
    ) -> None:
        """Removes a collection, its records and its aliases. Takes the name, not an alias."""
        self._connection.run(calls.drop_collection(name, request_id), timeout_s)

    def rename_collection(
        self,
        name: str,
        new_name: str,
        *,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Renames a collection; aliases follow, other clients' `Collection` objects do not."""
        self._connection.run(calls.rename_collection(name, new_name, request_id), timeout_s)

    def set_alias(
        self,
        alias: str,
        collection: str,
        *,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Makes an alias, or points it elsewhere in one step."""
        self._connection.run(calls.set_alias(alias, collection, request_id), timeout_s)

    def drop_alias(
        self, alias: str, *, request_id: str | None = None, timeout_s: float | None = None
    ) -> None:
        """Removes an alias. AliasNotFound."""
        self._connection.run(calls.drop_alias(alias, request_id), timeout_s)

    def list_aliases(self, *, timeout_s: float | None = None) -> dict[str, str]:
        """All aliases and the collections they stand for."""
        return self._connection.run(calls.list_aliases(), timeout_s)

    # -- backups, kept below what the server's setting backup_root names; for admins

    def backup(
        self,
        target: str = "",
        *,
        collections: Iterable[str] | None = None,
        kind: BackupKind = "auto",
        verify: bool = True,
        limit_bytes_s: float | None = None,
        progress: Progress = unwatched,
        timeout_s: float | None = None,
    ) -> BackupInfo:
        """Backs up collections (default: all) while the server serves; see `vecdb.Database.backup`.

        `target` is the name of a folder below `backup_root`, empty for that itself. `timeout_s` None: no
        limit but `idle_s` of `connect`. What `progress` raises ends the backup, and nothing of it is left.
        """
        call = backups.backup(target, collections, kind, verify, limit_bytes_s)
        return self._connection.watch(call, timeout_s, progress)

    def list_backups(self, target: str = "", *, timeout_s: float | None = None) -> list[BackupInfo]:
        """The complete backups of a target, oldest first."""
        return self._connection.run(backups.list_backups(target), timeout_s)

    def verify_backups(
        self,
        target: str = "",
        *,
        backup: str | None = None,
        progress: Progress = unwatched,
        timeout_s: float | None = None,
    ) -> BackupReport:
        """Reads all backups of a target, or one and those it goes back to, and says what is wrong."""
        return self._connection.watch(backups.verify(target, backup), timeout_s, progress)

    def restore(
        self,
        target: str = "",
        *,
        backup: str | None = None,
        collections: Iterable[str] | Mapping[str, str] | None = None,
        at: dt.datetime | None = None,
        sequence: int | None = None,
        progress: Progress = unwatched,
        timeout_s: float | None = None,
    ) -> RestoreResult:
        """Makes collections on the server from a backup; see `vecdb.Database.restore`."""
        call = backups.restore(target, backup, collections, at, sequence)
        return self._connection.watch(call, timeout_s, progress)

    def prune_backups(
        self,
        target: str = "",
        *,
        keep: int,
        incomplete_older_than_s: float | None = None,
        timeout_s: float | None = None,
    ) -> list[str]:
        """Removes all but the newest `keep` chains, and what was interrupted a day ago; ids removed."""
        call = backups.prune(target, keep, incomplete_older_than_s)
        return self._connection.run(call, timeout_s)
