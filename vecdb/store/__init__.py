"""The only door to LMDB: what is stored, and the transactions that read and write it."""

from .catalog import Catalog, not_found, taken
from .check import problems
from .collection_store import CollectionStore
from .faults import full_or_internal, no_thread, system_in_our_words
from .reader import Commit, Reader
from .shape import FieldShape, Shape
from .tables import State
from .writer import EncodedRows, Writer, checksums

__all__ = [
    "Catalog",
    "CollectionStore",
    "Commit",
    "EncodedRows",
    "FieldShape",
    "Reader",
    "Shape",
    "State",
    "Writer",
    "checksums",
    "full_or_internal",
    "no_thread",
    "not_found",
    "problems",
    "system_in_our_words",
    "taken",
]
