"""What every adapter has beside the verbs that are timed: how it is described, and what it cannot do."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from typing import Any, ClassVar, Self

import numpy as np

from ..datasets import Vectors
from ..sources import Condition, Part, Source

NAME = "bench"


class Unsupported(LookupError):
    """A system has no such verb. The message says what it has instead."""


class Adapter:
    """Defaults of the verbs that not every system has. Numbers of rows are those of the source."""

    packages: ClassVar[tuple[str, ...]] = ()
    """Modules that are imported before anything is timed."""
    distribution: ClassVar[str] = ""
    """Whose version is given."""
    transport: ClassVar[str] = "none"
    role: ClassVar[str] = "engine"
    outside: ClassVar[bool] = False
    """True for a server that runs already: its memory, CPU and disk are not measured."""
    durability: ClassVar[str] = "none: in memory"
    durable: ClassVar[dict[str, str]] = {}
    """What `durability` rests on, where the system can be asked whether it is in force: see `in_force`."""
    chosen: ClassVar[dict[str, Any]] = {}
    """Settings that were chosen, for the reader."""
    apart: ClassVar[bool] = False
    """True for a server: several callers can have a process each, which connects by `joined`."""
    callers: ClassVar[str] = "threads"
    """Who asks when several do in one process: "threads", or "asyncio" where the system has `ask`."""
    many_in_one: ClassVar[bool] = True
    """False where each collection has a folder and a handle of its own."""
    names_rows: ClassVar[bool] = True
    """`rows` gives numbers of the source; False: numbers within the collection, as they were inserted."""
    settings: Sequence[float]

    @classmethod
    def version(cls) -> str:
        return metadata.version(cls.distribution)

    @classmethod
    def look(cls) -> None:
        """Raises Unsupported where something is missing that is no package."""

    def tune(self, setting: float) -> None:
        """Makes `setting` hold from now on, where a query cannot carry it; not timed."""

    def prepare(self, queries: Vectors) -> Sequence[Any]:
        """Queries in the form that `query` takes fastest; not timed."""
        return list(queries)

    def where(self, condition: Condition) -> Any:
        raise Unsupported("it holds no metadata to filter by")

    def upsert(self, numbers: Sequence[int], part: Part) -> None:
        """Rows of these numbers with new contents, acknowledged when it returns."""
        raise Unsupported("it cannot replace a row in place")

    def delete(self, numbers: Sequence[int], ids: Sequence[str]) -> None:
        """Acknowledged when it returns."""
        raise Unsupported("it cannot delete a row")

    def count(self) -> int:
        """Live rows by the system's own count."""
        raise Unsupported("it does not count its rows")

    def in_force(self) -> dict[str, str]:
        """The settings of `durable` as the open system has them."""
        return {}

    def another(self, name: str) -> Self:
        """A new collection beside this one, in the same database."""
        raise Unsupported("it has no collections")

    def link(self) -> Any:
        """What another process connects by, as it is now; plain values, which differ where one has to connect anew."""
        raise Unsupported("it is in this process")

    @classmethod
    def joined(cls, source: Source, link: Any) -> Self:
        """The same collection from another process: queries and writes. Its `close` ends the connection alone."""
        raise Unsupported("it is in another process")

    async def ask(self, vector: Any, k: int, where: Any, setting: float) -> tuple[Any, Any]:
        """As `query`, for asyncio."""
        raise Unsupported("it has no asyncio client")

    async def begin(self) -> None:
        """Opens what `ask` needs, in the loop that will use it."""

    async def end(self) -> None:
        """Closes what `begin` opened."""


def rows_in(ids: Any) -> list[int]:
    """Row numbers from an array of them, without the -1 of answers that were not found."""
    found: list[int] = [row for row in np.asarray(ids).tolist() if row >= 0]
    return found
