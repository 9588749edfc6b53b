"""GPUs: which there are, what lies on them, and how they are asked.

`choice` reads the setting and starts devices, `placement` says what lies where, `link` is a device with its
queue, `worker` the process behind it, which runs `serve` around a `Card`. Knows nothing of rows, filters or
LMDB, and does not import FAISS.
"""

from ..types import DeviceStats
from .card import Card, CardFull, CardInfo, CardRefused, Limits
from .choice import Choice, Chosen, choose, parse, start
from .devices import Source
from .link import Device, collected
from .merging import merged
from .placement import Placement, PlacementFigures, Placements, Shard
from .placing import Placed
from .queue import MAX_BATCH
from .stand_in import Faults, StandInCard

__all__ = [
    "MAX_BATCH",
    "Card",
    "CardFull",
    "CardInfo",
    "CardRefused",
    "Choice",
    "Chosen",
    "Device",
    "DeviceStats",
    "Faults",
    "Limits",
    "Placed",
    "Placement",
    "PlacementFigures",
    "Placements",
    "Shard",
    "Source",
    "StandInCard",
    "choose",
    "collected",
    "merged",
    "parse",
    "start",
]
