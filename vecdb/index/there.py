"""What something that lies on devices knows of its place there."""

from __future__ import annotations

from collections.abc import Hashable

from ..device import Placements
from ..turns import away
from .distance import Floats, Rows


class There:
    """Something that was placed under `key`. Any thread may ask."""

    def __init__(self, placements: Placements, key: Hashable) -> None:
        self.placements = placements
        self.key = key
        self.note = ""
        """Why the host answered lately instead of the device, for `stats`; empty while the device answers. Of another search perhaps:
        what one has met itself, `failed` gives it."""

    @property
    def names(self) -> str:
        """The devices it lies on, as in `gpu:0,1`; empty when it is gone."""
        held = self.placements.get(self.key)
        return "" if held is None else held.names

    @property
    def device_bytes(self) -> int:
        """Memory of the devices that it takes."""
        held = self.placements.get(self.key)
        return 0 if held is None else held.bytes

    @property
    def there(self) -> bool:
        """Whether it still lies there: not evicted, and its workers live."""
        return self.placements.get(self.key) is not None

    def failed(self, why: str, queries: int) -> str:
        """Notes that the host has to answer so many queries, and counts them; `why`."""
        self.note = why
        self.placements.taken_over.add(queries)
        return why

    def ask(
        self, queries: Floats, k: int, setting: int, metric: str, mask: int = 0
    ) -> tuple[Floats, Rows, int] | None:
        """`Placements.search` of this. Whoever has the turn of this thread ends the wait, and lets others search meanwhile."""
        with away() as wait:
            return self.placements.search(self.key, queries, k, setting, metric, wait, mask)

    def leave(self) -> None:
        """Gives the memory back; searches go to the host from now on."""
        self.placements.forget(self.key)
