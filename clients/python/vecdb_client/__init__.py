"""Client of a vecdb server: `connect(target)` gives the nouns and verbs of the engine.

    from vecdb_client import connect

    with connect("127.0.0.1:7700") as db:
        docs = db.create_collection("docs", dimension=3)
        docs.insert(ids=["a"], vectors=[[1, 0, 0]])
        docs.query(vectors=[1, 0, 0], k=1).ids[0]

`vecdb_client.aio` is the same for asyncio.
"""

from . import errors, types
from .backup_types import (
    BackupCollection,
    BackupInfo,
    BackupProgress,
    BackupReport,
    RestoredCollection,
    RestoreResult,
)
from .calls import ServerInfo
from .client import Client, connect
from .collection import Collection
from .credentials import Tls
from .repair_types import RepairStats
from .reports import CallReport
from .types import (
    AuditStats,
    CheckReport,
    CollectionInfo,
    CollectionStats,
    CompactResult,
    Content,
    CurvePoint,
    Explain,
    Hit,
    IndexStats,
    QueryResult,
    Record,
    Records,
    VectorSettings,
    WriteResult,
)

__all__ = [
    "AuditStats",
    "BackupCollection",
    "BackupInfo",
    "BackupProgress",
    "BackupReport",
    "CallReport",
    "CheckReport",
    "Client",
    "Collection",
    "CollectionInfo",
    "CollectionStats",
    "CompactResult",
    "Content",
    "CurvePoint",
    "Explain",
    "Hit",
    "IndexStats",
    "QueryResult",
    "Record",
    "Records",
    "RepairStats",
    "RestoreResult",
    "RestoredCollection",
    "ServerInfo",
    "Tls",
    "VectorSettings",
    "WriteResult",
    "connect",
    "errors",
    "types",
]
