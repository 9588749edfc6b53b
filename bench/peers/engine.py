"""vecdb, embedded; what its collection has in common with the client's is in `collection`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import vecdb

from ..datasets import Vectors
from ..sources import Source
from . import collection
from .base import NAME

_OPEN = vecdb.open
"""Looked up here, since that imports the engine: as with the other systems, no part of opening."""


class System(collection.System):
    """The knob is `target_recall`. `audit_share`: without audits of live queries, which are for running systems."""

    packages: ClassVar = ("vecdb",)
    transport: ClassVar = "embedded"

    def __init__(
        self,
        source: Source,
        folder: Path,
        *,
        create: bool,
        index: Any = "auto",
        quantization: Any = "auto",
        audit_share: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(source)
        self.database = _OPEN(folder, audit_share=audit_share, **settings)
        if create:
            self.collection = self.database.create_collection(
                NAME, dimension=source.dimension, index=index, quantization=quantization
            )
        else:
            self.collection = self.database.get_collection(NAME)

    def _made(self, name: str) -> Any:
        return self.database.create_collection(name, dimension=self._source.dimension)

    def explained(self, vector: Vectors, k: int, setting: float) -> dict[str, Any]:
        """Plan and setting of a query at this target."""
        explain = self.collection.query(vector, k=k, target_recall=setting, explain=True).explain
        assert explain is not None
        return {"plan": explain.plan, "setting": explain.setting}

    def close(self) -> None:
        self.database.close()
