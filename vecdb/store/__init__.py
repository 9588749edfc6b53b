"""The only door to LMDB: what is stored, and the transactions that read and write it."""

from .awake import Awake
from .beside import beside_faults, kept_faults
from .catalog import Catalog, Names, not_found, taken
from .catalog_repair import catalog_problems, repair_catalog
from .changes import Change
from .check import problems
from .collection_store import CollectionStore
from .copying import LogPiece, StoredRows, copy_deaths, copy_log, copy_rows
from .epochs import epoch_of
from .faults import full_or_internal, no_thread, system_in_our_words
from .losses import sentence
from .meta_sums import log_faults
from .reader import Commit, Reader
from .repair import RepairedFile, file_problems, losses, repair_file, settle
from .restoring import Restorer
from .shape import FieldShape, Shape
from .sums import BY_ROW, Views, must_be_whole
from .tables import State
from .writer import Column, EncodedRows, Writer, checksums

__all__ = [
    "BY_ROW",
    "Awake",
    "Catalog",
    "Change",
    "CollectionStore",
    "Column",
    "Commit",
    "EncodedRows",
    "FieldShape",
    "LogPiece",
    "Names",
    "Reader",
    "RepairedFile",
    "Restorer",
    "Shape",
    "State",
    "StoredRows",
    "Views",
    "Writer",
    "beside_faults",
    "catalog_problems",
    "checksums",
    "copy_deaths",
    "copy_log",
    "copy_rows",
    "epoch_of",
    "file_problems",
    "full_or_internal",
    "kept_faults",
    "log_faults",
    "losses",
    "must_be_whole",
    "no_thread",
    "not_found",
    "problems",
    "repair_catalog",
    "repair_file",
    "sentence",
    "settle",
    "system_in_our_words",
    "taken",
]
