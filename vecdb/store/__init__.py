"""The only door to LMDB: what is stored, and the transactions that read and write it."""

from .catalog import Catalog, not_found, taken
from .check import problems
from .collection_store import CollectionStore
from .copying import LogPiece, StoredRows, copy_deaths, copy_log, copy_rows
from .reader import Commit, Reader
from .restoring import Restorer
from .shape import FieldShape, Shape
from .tables import State
from .writer import EncodedRows, Writer, checksums

__all__ = [
    "Catalog",
    "CollectionStore",
    "Commit",
    "EncodedRows",
    "FieldShape",
    "LogPiece",
    "Reader",
    "Restorer",
    "Shape",
    "State",
    "StoredRows",
    "Writer",
    "checksums",
    "copy_deaths",
    "copy_log",
    "copy_rows",
    "not_found",
    "problems",
    "taken",
]
