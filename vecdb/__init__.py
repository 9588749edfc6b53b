"""vecdb: a vector database engine for one machine.

Start here:

    import vecdb

    with vecdb.open("./data") as db:
        docs = db.create_collection("docs", dimension=384, metric="cosine")
        docs.insert(ids=["a"], vectors=[[0.1] * 384], metadata=[{"lang": "en"}], documents=["…"])
        hits = docs.query([[0.1] * 384], k=10, filter={"lang": "en"}, include=["document"])
        print(hits.ids[0], hits.distances[0])
"""

from typing import TYPE_CHECKING

from . import errors
from .errors import VecdbError
from .lazy import lazily

if TYPE_CHECKING:
    from .backup import list_backups, prune_backups, verify_backups
    from .backup_types import (
        BackupCollection,
        BackupInfo,
        BackupProgress,
        BackupReport,
        RestoredCollection,
        RestoreResult,
    )
    from .collection import Collection
    from .database import Database, open
    from .downgrading import Downgraded, discard_kept, downgrade
    from .index import limit_threads as limit_search_threads
    from .repair_types import RepairStats
    from .repairing import CheckedCollection, check
    from .restored import restore
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
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "backup": "list_backups prune_backups verify_backups",
            "backup_types": (
                "BackupCollection BackupInfo BackupProgress BackupReport "
                "RestoredCollection RestoreResult"
            ),
            "collection": "Collection",
            "database": "Database open",
            "downgrading": "Downgraded discard_kept downgrade",
            "index": "limit_search_threads:limit_threads",
            "repair_types": "RepairStats",
            "repairing": "CheckedCollection check",
            "restored": "restore",
            "types": (
                "AuditStats CheckReport CollectionInfo CollectionStats "
                "CompactResult Content CurvePoint Explain Hit IndexStats "
                "QueryResult Record Records VectorSettings WriteResult"
            ),
        },
    )

__version__ = "0.1.0"

__all__ = [
    "AuditStats",
    "BackupCollection",
    "BackupInfo",
    "BackupProgress",
    "BackupReport",
    "CheckReport",
    "CheckedCollection",
    "Collection",
    "CollectionInfo",
    "CollectionStats",
    "CompactResult",
    "Content",
    "CurvePoint",
    "Database",
    "Downgraded",
    "Explain",
    "Hit",
    "IndexStats",
    "QueryResult",
    "Record",
    "Records",
    "RepairStats",
    "RestoreResult",
    "RestoredCollection",
    "VecdbError",
    "VectorSettings",
    "WriteResult",
    "check",
    "discard_kept",
    "downgrade",
    "errors",
    "limit_search_threads",
    "list_backups",
    "open",
    "prune_backups",
    "restore",
    "verify_backups",
]
