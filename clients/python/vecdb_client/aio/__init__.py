"""The asyncio client: `async with connect(target) as db`."""

from .client import Client, connect
from .collection import Collection

__all__ = ["Client", "Collection", "connect"]
