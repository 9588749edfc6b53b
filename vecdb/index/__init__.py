"""The index of a collection: the only door to FAISS.

It knows rows by number, vectors and bitmaps; nothing of ids, metadata or LMDB. The store is the
truth: whatever is in here can be made again from it.
"""

from .calibrate import Curve
from .distance import distances
from .door import device, give_memory_back, limit_threads
from .figures import IndexFigures, figures_of
from .files import IndexRecord, file_faults, of_same_files
from .found import Found
from .index import Index
from .main import BuiltIndex
from .on_device import OnDevice
from .side_files import faults as side_faults
from .side_files import is_beside, is_ours
from .side_files import known as saved_sides
from .source import VectorSource
from .trace import Trace
from .view import View

__all__ = [
    "BuiltIndex",
    "Curve",
    "Found",
    "Index",
    "IndexFigures",
    "IndexRecord",
    "OnDevice",
    "Trace",
    "VectorSource",
    "View",
    "device",
    "distances",
    "figures_of",
    "file_faults",
    "give_memory_back",
    "is_beside",
    "is_ours",
    "limit_threads",
    "of_same_files",
    "saved_sides",
    "side_faults",
]
